# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False, autotestdict=False
"""What came after the last tokens of a sequence when it had them before: drafts of what comes now.

A sequence has one table from the hash of an n-gram to the place of the token that followed it. A newer place takes an
older one's room, whether the n-grams are equal or only their hashes are, and a lookup compares the tokens themselves.
So a token costs a hash and a write for each length, a lookup as many reads, however long the sequence is. A place is
entered when its token is known: what the last tokens lead to is always an earlier occurrence.

    tokens    a b c d a b c        places    (a b) -> 6    (b c) -> 3    (a b c) -> 3    (c d) -> 4    ...
                          ^ what now? (a b c) -> 3: d a b c
"""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cdef enum:
    MAX_LENGTH = 32
    MIN_PLACES = 256
    REST = 3            # tokens after which a sequence is looked at again in which nothing was found
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
    """The n-grams of ``shortest`` to ``longest`` tokens of sequences in slots, whose tables it reads as they are."""

    cdef readonly int shortest
    cdef readonly int longest
    cdef int32_t[:, ::1] _token_ids
    cdef const int64_t[::1] _num_tokens
    cdef const int64_t[::1] _limits
    cdef int64_t[::1] _wakes_at
    cdef Table* _tables
    cdef Py_ssize_t _num_slots

    def __cinit__(self, int32_t[:, ::1] token_ids, const int64_t[::1] num_tokens, const int64_t[::1] limits,
                  int64_t[::1] wakes_at, *, int shortest, int longest):
        """Begin with empty slots.

        Shapes:
            token_ids: [num_slots, max_len], a row a slot; drafts are written behind the known tokens
            num_tokens: [num_slots], tokens known
            limits: [num_slots], tokens that a slot has room for, its next one included
            wakes_at: [num_slots], known tokens with which a slot is looked at again; written where nothing was found
        """
        cdef Py_ssize_t num_slots = token_ids.shape[0]
        if not 1 <= shortest <= longest <= MAX_LENGTH:
            raise ValueError(f"n-grams of {shortest} to {longest} tokens: 1 to {MAX_LENGTH} can be")
        if not num_slots == num_tokens.shape[0] == limits.shape[0] == wakes_at.shape[0] > 0:
            raise ValueError(f"{num_slots} rows, {num_tokens.shape[0]} counts, {limits.shape[0]} limits")
        self.shortest, self.longest, self._num_slots = shortest, longest, num_slots
        self._token_ids, self._num_tokens, self._limits, self._wakes_at = token_ids, num_tokens, limits, wakes_at
        self._tables = <Table*>calloc(num_slots, sizeof(Table))
        if self._tables == NULL:
            raise MemoryError(f"no memory for {num_slots} tables")

    def __dealloc__(self):
        if self._tables != NULL:
            for slot in range(self._num_slots):
                free(self._tables[slot].places)
            free(self._tables)

    def forget(self, Py_ssize_t slot):
        """The next tokens of ``slot`` are another sequence's."""
        self._check(slot)
        free(self._tables[slot].places)
        self._tables[slot] = Table(NULL, 0, 0)

    def draft(self, const int64_t[::1] slots, const uint8_t[::1] is_whole, int64_t most, int64_t[::1] found):
        """Write what may follow behind the known tokens of ``slots``; returns how many tokens in all.

        A draft that reaches the last token goes on with itself: what repeats at once is continued as often as there is
        room. Tokens that were not there at the last call are entered first; known ones may not have changed.

        Shapes:
            slots, is_whole, found: [num_seqs]; is_whole: 0 for those to be left alone; found: how many tokens of each,
            at most ``most`` and as many as leave room for one more
        """
        cdef Py_ssize_t i, num_seqs = slots.shape[0]
        cdef int64_t total = 0
        if is_whole.shape[0] != num_seqs or found.shape[0] < num_seqs:
            raise ValueError(f"{num_seqs} slots, {is_whole.shape[0]} flags, room for {found.shape[0]}")
        for i in range(num_seqs):
            self._check(slots[i])
        with nogil:
            for i in range(num_seqs):
                found[i] = self._draft(slots[i], most) if is_whole[i] else 0
                total += found[i]
        return total

    cdef int _check(self, Py_ssize_t slot) except -1:
        if not 0 <= slot < self._num_slots:
            raise IndexError(f"slot {slot} of {self._num_slots}")
        if not 0 <= self._num_tokens[slot] <= self._token_ids.shape[1]:
            raise IndexError(f"slot {slot} has {self._num_tokens[slot]} tokens of {self._token_ids.shape[1]}")
        return 0

    cdef int64_t _draft(self, Py_ssize_t slot, int64_t most) except -1 nogil:
        cdef int32_t* tokens = &self._token_ids[slot, 0]
        cdef int64_t num_tokens = self._num_tokens[slot], i, place
        cdef int64_t room = min(most, min(self._limits[slot], self._token_ids.shape[1]) - num_tokens - 1)
        if room <= 0 or num_tokens < self._wakes_at[slot]:
            return 0
        self._enter(&self._tables[slot], tokens, <int>num_tokens)
        place = self._place(&self._tables[slot], tokens, <int>num_tokens)
        if place == 0:
            self._wakes_at[slot] = num_tokens + REST
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
