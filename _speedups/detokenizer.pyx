# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False, autotestdict=False
"""Token ids to text, as they come: whole characters only, and nothing of a stop string.

A token goes through three stages, each of which may hold something back:

    piece of the token -> characters (holds the first bytes of a character)
                       -> without the leading space of SentencePiece (once, at the start)
                       -> without stop strings (holds what may be the start of one)
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.long cimport PyLong_Check
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1
    unicode PyUnicode_DecodeUTF8(const char* at, Py_ssize_t size, const char* errors)
    unicode PyUnicode_DecodeUTF8Stateful(
        const char* at, Py_ssize_t size, const char* errors, Py_ssize_t* num_consumed
    )
    Py_UCS4* PyUnicode_AsUCS4(object text, Py_UCS4* to, Py_ssize_t size, int with_null) except NULL
    int PyUnicode_KIND(object text) noexcept
    const void* PyUnicode_DATA(object text) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(object text) noexcept

cdef extern from "utf8.h":
    int utf8_state(const uint8_t* at, int size) noexcept

cdef extern from "stop_search.h":
    ctypedef struct StopSearch:
        Py_UCS4* text
        int32_t* border
        int32_t length
        int32_t matched

    void stop_begin(StopSearch* stop) noexcept
    Py_ssize_t stop_feed(StopSearch* stop, int kind, const void* data, Py_ssize_t size) noexcept

cdef enum:
    MAX_VOCABULARY_BYTES = 0x7FFFFFFF

cdef enum Flag:
    SPECIAL = 1         # left out where special tokens are skipped
    SINGLE_BYTE = 2     # a byte-fallback token, <0xNN>

cdef struct Piece:
    uint32_t start      # into Vocabulary._bytes
    uint32_t length     # 0: no such token, or nothing to show
    uint8_t flags       # of Flag
    uint8_t tail        # bytes at the end that only begin a character; known once the text is


@cython.final
cdef class Vocabulary:
    """What each token stands for; immutable, shared by all detokenizers of a model."""

    cdef readonly int size

    cdef Piece* _pieces         # [size]
    cdef char* _bytes           # the pieces, one after another
    cdef PyObject** _texts      # [size] str made of a piece when it is first needed, NULL before
    cdef tuple _first_pieces    # [size] bytes, or None
    cdef bint _fallback         # byte-fallback kind; else one stream of bytes
    cdef bint _strip_leading_space

    def __cinit__(
        self,
        object pieces,
        object special,
        *,
        object byte_tokens,
        bint strip_leading_space,
        object first_pieces=None,
    ):
        cdef Py_ssize_t total
        cdef Py_ssize_t size = len(pieces)
        cdef Py_ssize_t i
        cdef bytes piece
        self._check_lengths(size, special=special, byte_tokens=byte_tokens, first_pieces=first_pieces)
        if first_pieces is not None and byte_tokens is None:
            raise ValueError("first_pieces is given without byte_tokens")
        total = self._total_bytes(pieces)
        if not 1 <= size <= MAX_VOCABULARY_BYTES:
            raise ValueError(f"{size} pieces, not 1 .. {MAX_VOCABULARY_BYTES}")
        if total > MAX_VOCABULARY_BYTES:
            raise ValueError(f"the pieces have {total} bytes, over {MAX_VOCABULARY_BYTES}")
        self._pieces = <Piece*>calloc(size, sizeof(Piece))
        self._texts = <PyObject**>calloc(size, sizeof(PyObject*))
        self._bytes = <char*>malloc(total + 1)
        if self._pieces == NULL or self._texts == NULL or self._bytes == NULL:
            raise MemoryError(f"no memory for a vocabulary of {size}")
        self.size = size
        self._fallback = byte_tokens is not None
        self._strip_leading_space = strip_leading_space
        if first_pieces is not None:
            self._total_bytes(first_pieces)
            self._first_pieces = tuple(first_pieces)
        total = 0
        for i, piece in enumerate(pieces):
            self._pieces[i].start = total
            self._pieces[i].length = PyBytes_GET_SIZE(piece)
            memcpy(self._bytes + total, PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece))
            total += PyBytes_GET_SIZE(piece)
        for i, flag in enumerate(special):
            if flag:
                self._pieces[i].flags |= SPECIAL
        for i, flag in enumerate(() if byte_tokens is None else byte_tokens):
            if flag:
                if self._pieces[i].length != 1:
                    raise ValueError(f"byte token {i} has a piece of {self._pieces[i].length} bytes, not 1")
                self._pieces[i].flags |= SINGLE_BYTE

    def __dealloc__(self):
        cdef int i
        if self._texts != NULL:
            for i in range(self.size):
                Py_XDECREF(self._texts[i])
        free(self._texts)
        free(self._pieces)
        free(self._bytes)

    def piece(self, object token_id):
        """Return the bytes that a token stands for."""
        cdef int known = self._known(token_id)
        if known < 0:
            return b""
        return PyBytes_FromStringAndSize(self._bytes + self._pieces[known].start, self._pieces[known].length)

    cdef int _check_lengths(self, Py_ssize_t size, object special, object byte_tokens, object first_pieces) except -1:
        for name, values in (("special", special), ("byte_tokens", byte_tokens), ("first_pieces", first_pieces)):
            if (values is not None or name == "special") and len(values) != size:
                raise ValueError(f"{name} has {len(values)} entries for {size} pieces")
        return 0

    cdef Py_ssize_t _total_bytes(self, object pieces) except -1:
        cdef Py_ssize_t total = 0
        for piece in pieces:
            if not isinstance(piece, bytes):
                raise TypeError(f"piece {piece!r} is not bytes")
            total += len(piece)
        return total

    cdef int _known(self, object token_id) except -2:
        """Return the id where a token of that id has a piece, else -1."""
        cdef int overflow = 0
        cdef long long value
        if not PyLong_Check(token_id):
            raise TypeError(f"token id {token_id!r} is not an int")
        value = PyLong_AsLongLongAndOverflow(token_id, &overflow)
        if overflow or value < 0 or value >= self.size or self._pieces[value].length == 0:
            return -1
        return <int>value

    cdef unicode _text(self, int token_id):
        """The text of a piece where no character is begun, without ``tail`` bytes at its end."""
        cdef Piece* piece = &self._pieces[token_id]
        cdef const char* at = self._bytes + piece.start
        cdef Py_ssize_t num_consumed = 0
        cdef unicode text
        if self._texts[token_id] == NULL:
            if self._fallback:
                text = PyUnicode_DecodeUTF8(at, piece.length, "replace")
            else:
                text = PyUnicode_DecodeUTF8Stateful(at, piece.length, "replace", &num_consumed)
                piece.tail = piece.length - num_consumed
            Py_INCREF(text)
            self._texts[token_id] = <PyObject*>text
        return <unicode>self._texts[token_id]


@cython.final
cdef class Detokenizer:
    """Turns the tokens of one sequence into text."""

    cdef readonly str stop_reason

    cdef Vocabulary _vocabulary
    cdef tuple _stop_texts      # [_num_stops] str
    cdef StopSearch* _stops           # [_num_stops], with what they point to in the same allocation
    cdef int _num_stops
    cdef int _held_by           # the stop string whose first _num_held characters are held back
    cdef int32_t _num_held
    cdef uint8_t _pending[4]    # the first bytes of a character
    cdef int _num_pending
    cdef int64_t _num_unsearched    # tokens to come whose text is not searched for stop strings
    cdef bint _include_stop
    cdef bint _skip_special_tokens
    cdef bint _strip            # the next character is the first, and goes if it is a space
    cdef bint _first            # the next token is the first that is shown
    cdef bint _done             # flushed, or ended by a stop string

    def __cinit__(
        self,
        Vocabulary vocabulary not None,
        *,
        object stop=(),
        bint include_stop=False,
        bint skip_special_tokens=True,
        int64_t min_tokens=0,
    ):
        if isinstance(stop, str):
            raise TypeError("stop is a str, not a sequence of str")
        if min_tokens < 0:
            raise ValueError(f"min_tokens is {min_tokens}, below 0")
        self._vocabulary = vocabulary
        self._include_stop = include_stop
        self._skip_special_tokens = skip_special_tokens
        self._num_unsearched = min_tokens
        self._strip = vocabulary._strip_leading_space
        self._first = True
        self._stop_texts = tuple(stop)
        if self._stop_texts:
            self._prepare_stops()

    def __dealloc__(self):
        free(self._stops)

    def feed(self, object token_id):
        """Add a token; return the text that is certain now."""
        return self._feed(token_id)

    def flush(self):
        """End the text; return what was held back."""
        cdef unicode text
        if self._done:
            return ""
        text = self._pending_text()
        if self._num_stops and self._num_unsearched == 0:
            text = self._search(text)
        if self.stop_reason is None and self._num_held:
            text = self._held(self._num_held) + text
        self._done = True
        return text

    cdef unicode _feed(self, object token_id):
        cdef int known = self._vocabulary._known(token_id)
        cdef bint searched = self._num_unsearched == 0
        cdef unicode text
        if not searched:
            self._num_unsearched -= 1
        if known < 0 or self._done:
            return ""
        if self._skip_special_tokens and self._vocabulary._pieces[known].flags & SPECIAL:
            return ""
        text = self._characters(known)
        if self._strip and PyUnicode_GET_LENGTH(text):
            self._strip = False
            if text[0] == u" ":
                text = text[1:]
        if searched and self._num_stops:
            text = self._search(text)
        return text

    # ---- bytes to characters --------------------------------------------------------------------------------------

    cdef unicode _characters(self, int token_id):
        cdef Vocabulary vocabulary = self._vocabulary
        cdef Piece* piece = &vocabulary._pieces[token_id]
        cdef const char* at = vocabulary._bytes + piece.start
        cdef unicode text
        if self._first:
            self._first = False
            if vocabulary._first_pieces is not None and not piece.flags & SINGLE_BYTE:
                return PyUnicode_DecodeUTF8(
                    PyBytes_AS_STRING(vocabulary._first_pieces[token_id]),
                    PyBytes_GET_SIZE(vocabulary._first_pieces[token_id]),
                    "replace",
                )
        if piece.flags & SINGLE_BYTE:
            return self._add_byte(<uint8_t>at[0])
        if self._num_pending == 0:
            text = vocabulary._text(token_id)
            self._num_pending = piece.tail
            memcpy(self._pending, at + piece.length - piece.tail, piece.tail)
            return text
        if vocabulary._fallback:
            return self._pending_text() + vocabulary._text(token_id)
        return self._add_bytes(at, piece.length)

    cdef unicode _add_bytes(self, const char* at, Py_ssize_t length):
        """Continue the one stream of bytes, in which a character is begun."""
        cdef char small[64]
        cdef Py_ssize_t size = self._num_pending + length
        cdef Py_ssize_t num_consumed = 0
        cdef char* joined = small
        if size > <Py_ssize_t>sizeof(small):
            joined = <char*>malloc(size)
            if joined == NULL:
                raise MemoryError(f"no memory for {size} bytes of text")
        memcpy(joined, self._pending, self._num_pending)
        memcpy(joined + self._num_pending, at, length)
        try:
            text = PyUnicode_DecodeUTF8Stateful(joined, size, "replace", &num_consumed)
            self._num_pending = size - num_consumed
            memcpy(self._pending, joined + num_consumed, self._num_pending)
            return text
        finally:
            if joined != small:
                free(joined)

    cdef unicode _add_byte(self, uint8_t byte):
        """Continue a run of byte-fallback tokens; a byte that fits nowhere becomes one U+FFFD."""
        cdef unicode text = ""
        cdef int state
        self._pending[self._num_pending] = byte
        state = utf8_state(self._pending, self._num_pending + 1)
        if state < 0 and self._num_pending:
            text = self._pending_text()
            self._pending[0] = byte
            state = utf8_state(self._pending, 1)
        self._num_pending += 1
        if state > 0:
            text += PyUnicode_DecodeUTF8(<char*>self._pending, self._num_pending, "replace")
            self._num_pending = 0
        elif state < 0:
            text += self._pending_text()
        return text

    cdef unicode _pending_text(self):
        """Give up on the character that was begun."""
        cdef int count = self._num_pending
        self._num_pending = 0
        if count == 0:
            return ""
        if self._vocabulary._fallback:
            return u"\ufffd" * count
        return PyUnicode_DecodeUTF8(<char*>self._pending, count, "replace")

    # ---- stop strings ---------------------------------------------------------------------------------------------

    cdef int _prepare_stops(self) except -1:
        cdef Py_ssize_t total = 0
        cdef Py_ssize_t length
        cdef char* at
        cdef int i
        for text in self._stop_texts:
            if type(text) is not str:
                raise TypeError(f"stop string {text!r} is not a str")
            if not text:
                raise ValueError("stop string '' is empty")
            total += len(text)
        if total > MAX_VOCABULARY_BYTES:
            raise ValueError(f"the stop strings have {total} characters, over {MAX_VOCABULARY_BYTES}")
        length = len(self._stop_texts)
        self._stops = <StopSearch*>malloc(length * sizeof(StopSearch) + total * (sizeof(Py_UCS4) + sizeof(int32_t)))
        if self._stops == NULL:
            raise MemoryError(f"no memory for {total} characters of stop strings")
        at = <char*>(self._stops + length)
        for i, text in enumerate(self._stop_texts):
            length = len(text)
            self._stops[i].length = length
            self._stops[i].text = <Py_UCS4*>at
            self._stops[i].border = <int32_t*>(at + length * sizeof(Py_UCS4))
            at += length * (sizeof(Py_UCS4) + sizeof(int32_t))
            PyUnicode_AsUCS4(text, self._stops[i].text, length, 0)
            stop_begin(&self._stops[i])
        self._num_stops = len(self._stop_texts)
        return 0

    cdef unicode _search(self, unicode text):
        """Add text; return what is certain of the text held back and this."""
        cdef int kind = PyUnicode_KIND(text)
        cdef const void* data = PyUnicode_DATA(text)
        cdef Py_ssize_t size = PyUnicode_GET_LENGTH(text)
        cdef Py_ssize_t end
        cdef int32_t kept
        cdef int completed = -1
        cdef int held_by = 0
        cdef int i
        if size == 0:
            return text
        for i in range(self._num_stops):
            # Only what ends before the earliest end known still matters, or ends with it and starts before it.
            end = stop_feed(&self._stops[i], kind, data, size)
            if end >= 0 and (completed < 0 or end + 1 < size or self._stops[i].length > self._stops[completed].length):
                completed = i
                size = end + 1
            if self._stops[i].matched > self._stops[held_by].matched:
                held_by = i
        if completed >= 0:
            self._done = True
            self.stop_reason = self._stop_texts[completed]
            return self._released(text, size, 0 if self._include_stop else self._stops[completed].length)
        kept = self._stops[held_by].matched
        if kept == 0 and self._num_held == 0:
            return text
        text = self._released(text, size, kept)
        self._held_by = held_by
        self._num_held = kept
        return text

    cdef unicode _released(self, unicode text, Py_ssize_t size, Py_ssize_t kept):
        """Return the text held back and ``text[:size]``, without the last ``kept`` characters of both."""
        cdef Py_ssize_t length = self._num_held + size - kept
        if length <= self._num_held:
            return self._held(length)
        text = text[:length - self._num_held]
        return self._held(self._num_held) + text if self._num_held else text

    cdef unicode _held(self, Py_ssize_t size):
        # What is held back is always the beginning of a stop string, so it need not be stored.
        return (<unicode>self._stop_texts[self._held_by])[:size]


def feed_batch(list detokenizers not None, list token_ids not None):
    """Feed one token to each detokenizer, in order."""
    cdef Py_ssize_t count = PyList_GET_SIZE(detokenizers)
    cdef Py_ssize_t i
    cdef list texts = []
    if PyList_GET_SIZE(token_ids) != count:
        raise ValueError(f"{count} detokenizers and {PyList_GET_SIZE(token_ids)} token ids")
    for i in range(count):
        if not isinstance(<object>PyList_GET_ITEM(detokenizers, i), Detokenizer):
            raise TypeError(f"entry {i} is not a Detokenizer")
        if not PyLong_Check(<object>PyList_GET_ITEM(token_ids, i)):
            raise TypeError(f"token id {token_ids[i]!r} is not an int")
    for i in range(count):
        texts.append((<Detokenizer>PyList_GET_ITEM(detokenizers, i))._feed(<object>PyList_GET_ITEM(token_ids, i)))
    return texts
