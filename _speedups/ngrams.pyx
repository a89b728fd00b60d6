# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False, autotestdict=False
# distutils: extra_compile_args = -O3
"""What came after the last tokens of a sequence when it had them before: drafts of what comes now.

A sequence has one table from the hash of an n-gram to the place of the token that followed it. A newer place takes an
older one's room, whether the n-grams are equal or only their hashes are, and a lookup compares the tokens themselves.
So a token costs a hash and a write for each length, a lookup as many reads, however long the sequence is. A place is
entered when its token is known: what the last tokens lead to is always an earlier occurrence.

    tokens    a b c d a b c        places    (a b) -> 6    (b c) -> 3    (a b c) -> 3    (c d) -> 4    ...
                          ^ what now? (a b c) -> 3: d a b c
"""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cdef enum:
    MAX_LENGTH = 32
    MIN_PLACES = 256
    SPARSENESS = 2      # a table that has not room for so many times its entries grows

cdef struct Table:
    int32_t* places     # [mask + 1], 0: none, since nothing comes before the first token
    uint32_t mask
    int32_t num_known   # tokens whose places are entered


cdef uint64_t SEED = 0x243F6A8885A308D3


cdef inline uint64_t extended(uint64_t hash, int32_t token) noexcept nogil:
    return (hash ^ <uint32_t>token) * <uint64_t>0x9E3779B97F4A7C15


cdef inline uint32_t finished(uint64_t hash) noexcept nogil:
    return <uint32_t>(hash >> 32)


@cython.final
cdef class NgramIndex:
    """The n-grams of ``shortest`` to ``longest`` tokens of up to ``num_slots`` sequences."""

    cdef readonly int shortest
    cdef readonly int longest
    cdef Table* _tables
    cdef int _num_slots

    def __cinit__(self, int num_slots, *, int shortest, int longest):
        if not 1 <= shortest <= longest <= MAX_LENGTH:
            raise ValueError(f"n-grams of {shortest} to {longest} tokens: 1 to {MAX_LENGTH} can be")
        if num_slots < 1:
            raise ValueError(f"{num_slots} slots")
        self.shortest, self.longest, self._num_slots = shortest, longest, num_slots
        self._tables = <Table*>calloc(num_slots, sizeof(Table))
        if self._tables == NULL:
            raise MemoryError(f"no memory for {num_slots} tables")

    def __dealloc__(self):
        if self._tables != NULL:
            for slot in range(self._num_slots):
                free(self._tables[slot].places)
            free(self._tables)

    def forget(self, int slot):
        """The next tokens of ``slot`` are another sequence's."""
        self._check(slot)
        free(self._tables[slot].places)
        self._tables[slot] = Table(NULL, 0, 0)

    def draft(self, int32_t[:, ::1] token_ids, const int64_t[::1] slots, const int64_t[::1] num_tokens,
              const int64_t[::1] room, int64_t[::1] found):
        """Write what may follow behind the known tokens of ``slots``, and how many there are to ``found``.

        A draft that reaches the last token goes on with itself: what repeats at once is continued as often as there is
        room. Tokens that were not there at the last call are entered first; known ones may not have changed.

        Shapes:
            token_ids: [num_slots, max_len], a row a slot
            slots, num_tokens, room, found: [num_seqs]; room: for at most so many tokens, found: 0 .. room
        """
        cdef Py_ssize_t i, num_seqs = slots.shape[0]
        cdef int slot
        if num_tokens.shape[0] != num_seqs or room.shape[0] != num_seqs or found.shape[0] != num_seqs:
            raise ValueError(
                f"{num_seqs} slots, {num_tokens.shape[0]} counts, {room.shape[0]} rooms, room for {found.shape[0]}"
            )
        for i in range(num_seqs):
            self._check(<int>slots[i])
            if not (0 <= slots[i] < token_ids.shape[0] and 0 <= num_tokens[i]
                    and num_tokens[i] + max(room[i], 0) <= token_ids.shape[1]):
                raise ValueError(f"slot {slots[i]}: {num_tokens[i]} tokens and {room[i]} more in "
                                 f"{token_ids.shape[0]} rows of {token_ids.shape[1]}")
        with nogil:
            for i in range(num_seqs):
                slot = <int>slots[i]
                found[i] = self._draft(&self._tables[slot], &token_ids[slot, 0], <int>num_tokens[i], <int>room[i])

    cdef int _check(self, int slot) except -1:
        if not 0 <= slot < self._num_slots:
            raise IndexError(f"slot {slot} of {self._num_slots}")
        return 0

    cdef int _draft(self, Table* table, int32_t* tokens, int num_tokens, int room) except -1 nogil:
        cdef int place, i
        self._enter(table, tokens, num_tokens)
        if room <= 0:
            return 0
        place = self._place(table, tokens, num_tokens)
        if place == 0:
            return 0
        for i in range(room):
            tokens[num_tokens + i] = tokens[place + i]  # behind the last token these are the draft's own
        return room

    cdef int _enter(self, Table* table, const int32_t* tokens, int num_tokens) except -1 nogil:
        """Enter the places up to that of the last token."""
        cdef int end
        cdef int64_t num_entries = <int64_t>num_tokens * (self.longest - self.shortest + 1)
        if num_tokens > table.num_known and num_entries * SPARSENESS > <int64_t>table.mask:
            self._grow(table, num_entries)
        for end in range(table.num_known, num_tokens):
            self._enter_one(table, tokens, end)
        table.num_known = max(table.num_known, num_tokens)
        return 0

    cdef void _enter_one(self, Table* table, const int32_t* tokens, int end) noexcept nogil:
        """Enter ``end`` as the place behind the n-grams that end before it."""
        cdef uint64_t hash = SEED
        cdef int length
        for length in range(1, min(self.longest, end) + 1):
            hash = extended(hash, tokens[end - length])
            if length >= self.shortest:
                table.places[finished(hash) & table.mask] = end

    cdef int _grow(self, Table* table, int64_t num_entries) except -1 nogil:
        """Room for twice as many entries; all are to be entered again."""
        cdef int64_t size = MIN_PLACES
        while size <= 2 * SPARSENESS * num_entries:
            size *= 2
        free(table.places)
        table.num_known = 0
        table.places = <int32_t*>calloc(size, sizeof(int32_t))
        table.mask = <uint32_t>(size - 1) if table.places != NULL else 0
        if table.places == NULL:
            with gil:
                raise MemoryError(f"no memory for {size} places")
        return 0

    cdef int _place(self, Table* table, const int32_t* tokens, int num_tokens) noexcept nogil:
        """Where the longest n-gram that ends with the last token led to before; 0: nowhere."""
        cdef uint64_t hash = SEED
        cdef int length, place, found = 0
        for length in range(1, min(self.longest, num_tokens - 1) + 1):
            hash = extended(hash, tokens[num_tokens - length])
            if length >= self.shortest:
                place = table.places[finished(hash) & table.mask]
                if place >= length and is_equal(&tokens[place - length], &tokens[num_tokens - length], length):
                    found = place
        return found


cdef inline bint is_equal(const int32_t* a, const int32_t* b, int length) noexcept nogil:
    cdef int i
    for i in range(length):
        if a[i] != b[i]:
            return False
    return True
