# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False, autotestdict=False
"""The KV blocks of one replica: who holds them, which to give out next, and what the full ones contain.

A block is unreferenced (in one of two lists, least recently used first) or referenced (in neither). A full block has
a 128-bit hash of its tokens and of everything before them; the prefix map finds a block by that hash.

    take -> refs 1 -> register -> release -> list of cached blocks -> match -> refs 1 ...
                                                                   -> take (evicts the entry)
         -> refs 1 -> release -> list of bare blocks -> take

Behind the pool there may be blocks of host memory. What a cached block holds is copied to one of them when the block is
taken, or before, so that little is left to copy when many are taken at once; ``match_host`` finds it there.
"""

cimport cython
from cpython.buffer cimport PyBUF_CONTIG_RO, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.long cimport PyLong_AsLongLong, PyLong_Check
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int16_t, int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from trioserve.errors import NoFreeBlocks

cdef extern from "siphash.h":
    ctypedef struct Hash128:
        uint64_t low
        uint64_t high

    Hash128 sip_hash(Hash128 key, const void* bytes, size_t size) noexcept
    Hash128 sip_hash_after(Hash128 key, Hash128 parent, const void* bytes, size_t size) noexcept

cdef extern from "host_blocks.h":
    ctypedef struct HostBlock:
        uint32_t plan
        int32_t is_filled

    ctypedef struct HostBlocks:
        int32_t count
        int32_t num_filled
        uint32_t plan
        HostBlock* blocks

    bint host_open(HostBlocks* host, int32_t count) noexcept
    void host_close(HostBlocks* host) noexcept
    int32_t host_find(const HostBlocks* host, Hash128 hash) noexcept
    void host_use(HostBlocks* host, int32_t id) noexcept
    int32_t host_enter(HostBlocks* host, Hash128 hash) noexcept
    void host_forget_all(HostBlocks* host) noexcept
    const char* host_fault(const HostBlocks* host) noexcept

cdef extern from *:
    """
    #define prefetch(address) __builtin_prefetch(address)
    """
    void prefetch(const void* address) noexcept

cdef extern from "Python.h":
    object PySequence_Fast(object sequence, const char* message)
    Py_ssize_t PySequence_Fast_GET_SIZE(object fast) noexcept
    PyObject** PySequence_Fast_ITEMS(object fast) noexcept
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1

cdef enum:
    MAX_BLOCKS = 1 << 28
    MAX_BLOCK_SIZE = 1 << 16
    AHEAD = 4           # one block in so many is kept ready to be taken without losing what it holds

cdef enum Mark:
    BARE        # no hash: not full, or not registered
    MAPPED      # has a hash, and the prefix map leads to it
    TWIN        # has a hash that the map leads to another block by
    STALE       # filled before the last reset_prefix_cache; neither it nor what follows it enters the map again

cdef struct Slot:           # of the prefix map
    uint32_t tag            # the low half of hash.low: where a probe for it starts; spares most looks at a block
    int32_t block_id        # -1: empty

cdef struct Block:
    Hash128 hash        # meaningful for MAPPED and TWIN
    int32_t refs
    int16_t mark        # a Mark; an unreferenced block is BARE or MAPPED
    int16_t is_passed   # whether it is cached, unreferenced and was copied to the host, as far as there was room
    int32_t before      # neighbours in the list of an unreferenced block
    int32_t after

cdef struct Move:
    int32_t block_id
    int32_t host_id


def siphash_128(bytes data not None, *, bytes key not None):
    """Hash ``data`` with the function that the prefix map uses; for tests."""
    cdef Hash128 hash = sip_hash(_as_key(key), PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    return (<const char*>&hash)[:sizeof(Hash128)]


cdef Hash128 _as_key(bytes key) except *:
    cdef Hash128 words
    if PyBytes_GET_SIZE(key) != sizeof(Hash128):
        raise ValueError(f"key has {len(key)} bytes, not 16")
    memcpy(&words, PyBytes_AS_STRING(key), sizeof(Hash128))
    return words


@cython.final
cdef class BlockPool:
    """Hands out block ids ``0 .. num_blocks - 1``, and again those that hold a prefix already computed."""

    cdef readonly int num_blocks
    cdef readonly int block_size
    cdef readonly int num_free
    cdef readonly int num_cached

    cdef Hash128 _key
    cdef Block* _blocks         # [num_blocks + 2]: the last two are the ends of the circular lists below
    cdef int _bare              # list of unreferenced BARE blocks
    cdef int _cached            # list of unreferenced MAPPED blocks
    cdef Slot* _slots           # [_mask + 1] with linear probing, never more than half full
    cdef uint32_t _mask
    cdef int _num_idle          # blocks in the list of cached ones
    cdef int _next_copied       # the first in it that was not passed, or its end
    cdef int _num_passed        # those before
    cdef HostBlocks _host
    cdef Move* _outward         # [_max_moves], of which the plan that is being made has _num_outward
    cdef int _max_moves
    cdef int _num_outward
    cdef list _inward

    def __cinit__(
        self, object num_blocks, object block_size, *, bytes key not None, object num_host_blocks=0, object max_moves=0
    ):
        cdef int block_id
        if not 1 <= num_blocks <= MAX_BLOCKS:
            raise ValueError(f"num_blocks is {num_blocks}, not in 1 .. {MAX_BLOCKS}")
        if not 1 <= block_size <= MAX_BLOCK_SIZE:
            raise ValueError(f"block_size is {block_size}, not in 1 .. {MAX_BLOCK_SIZE}")
        if not 0 <= num_host_blocks <= MAX_BLOCKS:
            raise ValueError(f"num_host_blocks is {num_host_blocks}, not in 0 .. {MAX_BLOCKS}")
        if not 0 <= max_moves <= MAX_BLOCKS:
            raise ValueError(f"max_moves is {max_moves}, not in 0 .. {MAX_BLOCKS}")
        self._key = _as_key(key)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._mask = 1
        while self._mask < 2 * <uint32_t>self.num_blocks - 1:
            self._mask = 2 * self._mask + 1
        self._blocks = <Block*>calloc(<size_t>self.num_blocks + 2, sizeof(Block))     # no refs, all BARE
        self._slots = <Slot*>malloc((<size_t>self._mask + 1) * sizeof(Slot))
        self._max_moves = min(max_moves, self.num_blocks) if num_host_blocks else 0
        self._outward = <Move*>malloc((<size_t>self._max_moves + 1) * sizeof(Move))
        self._inward = []
        if (
            self._blocks == NULL
            or self._slots == NULL
            or self._outward == NULL
            or (num_host_blocks and not host_open(&self._host, num_host_blocks))
        ):
            raise MemoryError(f"no memory for {num_blocks} blocks")
        self._clear_map()
        self._bare = self.num_blocks
        self._cached = self.num_blocks + 1
        self._clear_list(self._bare)
        self._clear_list(self._cached)
        self._next_copied = self._cached
        for block_id in range(self.num_blocks):
            self._append(self._bare, block_id)
        self.num_free = self.num_blocks

    def __dealloc__(self):
        free(self._blocks)
        free(self._slots)
        free(self._outward)
        host_close(&self._host)

    # ---- taking and releasing -------------------------------------------------------------------------------------

    def take(self, object count):
        """Take ``count`` blocks, or none of them."""
        cdef int number, i, block_id
        cdef list taken
        cdef object item
        if count < 0:
            raise ValueError(f"count is {count}, below 0")
        if count > self.num_free:
            raise NoFreeBlocks(f"{count} blocks asked for, {self.num_free} of {self.num_blocks} are free")
        number = count
        taken = PyList_New(number)
        block_id = self._bare
        for i in range(number):         # all that may fail for want of memory comes before the pool changes
            block_id = self._blocks[block_id].after
            if block_id == self._bare:
                block_id = self._blocks[self._cached].after
            # Evicting it will look there; until then the next blocks are walked.
            prefetch(&self._slots[<uint32_t>self._blocks[block_id].hash.low & self._mask])
            item = block_id
            Py_INCREF(item)
            PyList_SET_ITEM(taken, i, item)
        for i in range(number):
            block_id = self._blocks[self._bare].after
            if block_id == self._bare:
                block_id = self._blocks[self._cached].after
                if self._host.count:
                    self._copy_outward(block_id)
                self._unmap(block_id)
                self._num_idle -= 1
            self._hold(block_id)
        return taken

    def release(self, object block_ids):
        """Give back one reference to each block of the list."""
        cdef object fast = PySequence_Fast(block_ids, "block_ids is not a sequence of block ids")
        cdef PyObject** items = PySequence_Fast_ITEMS(fast)
        cdef Py_ssize_t count = PySequence_Fast_GET_SIZE(fast)
        cdef Py_ssize_t done = 0
        cdef int block_id
        # The first pass proves that every reference exists, a block named twice included. No Python code runs between
        # the passes, so the list stays as it is.
        try:
            while done < count:
                block_id = self._referenced(<object>items[done])
                self._blocks[block_id].refs -= 1
                done += 1
        finally:
            for i in range(done):
                self._blocks[<int>PyLong_AsLongLong(<object>items[i])].refs += 1
        for i in range(count - 1, -1, -1):
            block_id = <int>PyLong_AsLongLong(<object>items[i])
            self._blocks[block_id].refs -= 1
            if self._blocks[block_id].refs == 0:
                self._shelve(block_id)

    def ref_count(self, object block_id):
        """Count the references to a block; 0 means that it may be evicted."""
        return self._blocks[self._in_range(block_id)].refs

    # ---- the prefix map -------------------------------------------------------------------------------------------

    def match(self, object token_ids, Py_ssize_t max_tokens, bytes salt not None):
        """Take a reference to each block of the longest cached prefix."""
        cdef Py_buffer tokens
        cdef Py_ssize_t i
        cdef Hash128 hash
        cdef int block_id
        cdef list matched = []
        if max_tokens < 0:
            raise ValueError(f"max_tokens is {max_tokens}, below 0")
        self._open_tokens(token_ids, &tokens)
        try:
            hash = self._root(salt)
            for i in range(min(max_tokens, tokens.len // <Py_ssize_t>sizeof(int)) // self.block_size):
                hash = self._hash_of(hash, &tokens, i)
                block_id = self._slots[self._slot_of(hash)].block_id
                if block_id < 0:
                    break
                matched.append(block_id)
        finally:
            PyBuffer_Release(&tokens)
        for block_id in matched:
            if self._blocks[block_id].refs:
                self._blocks[block_id].refs += 1
            else:
                self._hold(block_id)
        return matched

    def register(self, object token_ids, object block_table, Py_ssize_t first, Py_ssize_t last, bytes salt not None):
        """Enter the full and computed blocks ``first .. last - 1`` of a sequence in the prefix map."""
        cdef object fast = PySequence_Fast(block_table, "block_table is not a sequence of block ids")
        cdef PyObject** items = PySequence_Fast_ITEMS(fast)
        cdef Py_ssize_t count = PySequence_Fast_GET_SIZE(fast)
        cdef Py_ssize_t i
        cdef Py_buffer tokens
        cdef Hash128 hash
        cdef bint stale = False
        if not 0 <= first <= last <= count:
            raise ValueError(f"blocks {first} .. {last} are not within a table of {count}")
        if first == last:
            return
        for i in range(first, last):
            self._referenced(<object>items[i])
        self._open_tokens(token_ids, &tokens)
        try:
            if tokens.len // <Py_ssize_t>sizeof(int) // self.block_size < last:
                raise ValueError(f"{len(token_ids)} tokens do not fill {last} blocks of {self.block_size}")
            if first == 0:
                hash = self._root(salt)
            else:
                hash = self._parent(<object>items[first - 1], &stale)
            for i in range(first, last):
                hash = self._hash_of(hash, &tokens, i)
                stale = self._enter(<int>PyLong_AsLongLong(<object>items[i]), hash, stale)
        finally:
            PyBuffer_Release(&tokens)

    def reset_prefix_cache(self):
        """Forget every entry; references stay."""
        cdef int forgotten = self.num_cached
        cdef int block_id
        self._clear_map()
        for block_id in range(self.num_blocks):
            if self._blocks[block_id].refs:
                if self._blocks[block_id].mark != BARE:
                    self._blocks[block_id].mark = STALE
            else:
                self._blocks[block_id].mark = BARE
                self._blocks[block_id].is_passed = False
        self._num_idle = self._num_passed = 0
        if self._host.count:
            host_forget_all(&self._host)
        while self._blocks[self._cached].after != self._cached:
            block_id = self._blocks[self._cached].after
            self._unlink(block_id)
            self._append(self._bare, block_id)
        return forgotten

    cdef Hash128 _root(self, bytes salt) noexcept:
        # A salt cannot be made to look like a parent and its tokens: the hash of a parent is known to nobody outside.
        return sip_hash(self._key, PyBytes_AS_STRING(salt), PyBytes_GET_SIZE(salt))

    cdef Hash128 _hash_of(self, Hash128 parent, Py_buffer* tokens, Py_ssize_t i) noexcept:
        cdef size_t size = <size_t>self.block_size * sizeof(int)
        return sip_hash_after(self._key, parent, <const char*>tokens.buf + i * size, size)

    cdef Hash128 _parent(self, object item, bint* stale) except *:
        cdef int block_id = self._referenced(item)
        if self._blocks[block_id].mark == BARE:
            raise ValueError(f"block {block_id} has no hash to continue from")
        stale[0] = self._blocks[block_id].mark == STALE
        return self._blocks[block_id].hash

    cdef bint _enter(self, int block_id, Hash128 hash, bint stale) except -1:
        """Give a referenced block its hash; True where it must stay out of the map, as must all that follow it."""
        cdef Block* block = &self._blocks[block_id]
        cdef uint32_t slot
        if stale or block.mark == STALE:
            if block.mark == MAPPED:
                self._unmap(block_id)
            block.mark = STALE
            return True
        if block.mark != BARE:
            if block.hash.low != hash.low or block.hash.high != hash.high:
                raise ValueError(f"block {block_id} is registered with other tokens")
            return False
        block.hash = hash
        slot = self._slot_of(hash)
        if self._slots[slot].block_id < 0:
            self._slots[slot].tag = <uint32_t>hash.low
            self._slots[slot].block_id = block_id
            self.num_cached += 1
            block.mark = MAPPED
        else:
            block.mark = TWIN
        return False

    cdef void _clear_map(self) noexcept:
        cdef size_t slot
        for slot in range(<size_t>self._mask + 1):
            self._slots[slot].block_id = -1
        self.num_cached = 0

    cdef uint32_t _slot_of(self, Hash128 hash) noexcept:
        """Find the slot that leads to ``hash``, or the empty one where it belongs."""
        cdef uint32_t tag = <uint32_t>hash.low
        cdef uint32_t slot = tag & self._mask
        cdef Hash128* other
        while self._slots[slot].block_id >= 0:
            if self._slots[slot].tag == tag:
                other = &self._blocks[self._slots[slot].block_id].hash
                if other.low == hash.low and other.high == hash.high:
                    break
            slot = (slot + 1) & self._mask
        return slot

    cdef void _unmap(self, int block_id) noexcept:
        """Take a MAPPED block out of the map, and close the gap so that every probe still ends where it should."""
        cdef uint32_t hole = <uint32_t>self._blocks[block_id].hash.low & self._mask
        cdef uint32_t slot
        while self._slots[hole].block_id != block_id:
            hole = (hole + 1) & self._mask
        slot = hole
        while True:
            slot = (slot + 1) & self._mask
            if self._slots[slot].block_id < 0:
                break
            if ((slot - self._slots[slot].tag) & self._mask) >= ((slot - hole) & self._mask):
                self._slots[hole] = self._slots[slot]
                hole = slot
        self._slots[hole].block_id = -1
        self._blocks[block_id].mark = BARE
        self.num_cached -= 1

    # ---- the host's blocks ----------------------------------------------------------------------------------------

    @property
    def num_host_blocks(self):
        return self._host.count

    @property
    def num_host_cached(self):
        return self._host.num_filled

    def match_host(self, object token_ids, object matched, Py_ssize_t max_tokens, bytes salt not None):
        """Find the host's blocks that go on where ``matched`` ends, and keep them until the moves are taken."""
        cdef object fast = PySequence_Fast(matched, "matched is not a sequence of block ids")
        cdef Py_ssize_t first = PySequence_Fast_GET_SIZE(fast)
        cdef Py_ssize_t i
        cdef Py_buffer tokens
        cdef Hash128 hash
        cdef bint stale = False
        cdef int host_id
        cdef list found = []
        if not self._host.count:
            return found
        hash = self._parent(<object>PySequence_Fast_ITEMS(fast)[first - 1], &stale) if first else self._root(salt)
        self._open_tokens(token_ids, &tokens)
        try:
            for i in range(first, min(max_tokens, tokens.len // <Py_ssize_t>sizeof(int)) // self.block_size):
                hash = self._hash_of(hash, &tokens, i)
                host_id = host_find(&self._host, hash)
                if stale or host_id < 0:
                    break
                found.append(host_id)
        finally:
            PyBuffer_Release(&tokens)
        for host_id in found:
            host_use(&self._host, host_id)
        return found

    def move_in(self, object host_ids, object block_ids):
        """Copy what the host's blocks hold to as many referenced ones."""
        cdef list moves = []
        cdef int host_id
        for host_id, block_id in zip(host_ids, block_ids, strict=True):
            if not 0 <= host_id < self._host.count or not self._host.blocks[host_id].is_filled:
                raise ValueError(f"host block {host_id} holds nothing")
            if self._host.blocks[host_id].plan != self._host.plan:
                raise ValueError(f"host block {host_id} was not matched since the last moves")
            moves.append((self._referenced(block_id), host_id))
        self._inward += moves

    def take_moves(self):
        """Say what to copy before anything else of the plan, and begin the next one."""
        cdef int i
        self._copy_ahead()
        outward = [(self._outward[i].block_id, self._outward[i].host_id) for i in range(self._num_outward)]
        inward, self._inward = self._inward, []
        self._num_outward = 0
        self._host.plan += 1
        return outward, inward

    cdef void _copy_outward(self, int block_id) noexcept:
        """See to it that the host has what a MAPPED block holds, if there is room in the plan and at the host."""
        cdef Hash128 hash = self._blocks[block_id].hash
        cdef int host_id = host_find(&self._host, hash)
        if host_id >= 0:
            host_use(&self._host, host_id)
        elif self._num_outward < self._max_moves:
            host_id = host_enter(&self._host, hash)
            if host_id >= 0:
                self._outward[self._num_outward] = Move(block_id, host_id)
                self._num_outward += 1

    cdef void _copy_ahead(self) noexcept:
        """Copy what will be taken next, until a part of the pool can be taken without losing anything."""
        cdef int goal = min(self.num_blocks // AHEAD, self._host.count)
        cdef int num_bare = self.num_free - self._num_idle
        cdef int block_id
        while self._num_outward < self._max_moves and num_bare + self._num_passed < goal:
            block_id = self._next_copied
            if block_id == self._cached:
                break
            self._next_copied = self._blocks[block_id].after
            self._blocks[block_id].is_passed = True
            self._num_passed += 1
            self._copy_outward(block_id)

    # ---- references and lists -------------------------------------------------------------------------------------

    cdef void _hold(self, int block_id) noexcept:
        """Give an unreferenced block its first reference."""
        if self._blocks[block_id].mark == MAPPED:
            self._num_idle -= 1
        if self._blocks[block_id].is_passed:
            self._blocks[block_id].is_passed = False
            self._num_passed -= 1
        self._unlink(block_id)
        self._blocks[block_id].refs = 1
        self.num_free -= 1

    cdef void _shelve(self, int block_id) noexcept:
        """Put a block that lost its last reference at the end of its list."""
        if self._blocks[block_id].mark == MAPPED:
            self._append(self._cached, block_id)
            self._num_idle += 1
            if self._next_copied == self._cached:
                self._next_copied = block_id
        else:
            self._blocks[block_id].mark = BARE
            self._append(self._bare, block_id)
        self.num_free += 1

    cdef void _clear_list(self, int end) noexcept:
        self._blocks[end].before = end
        self._blocks[end].after = end

    cdef void _append(self, int end, int block_id) noexcept:
        cdef int before = self._blocks[end].before
        self._blocks[block_id].before = before
        self._blocks[block_id].after = end
        self._blocks[before].after = block_id
        self._blocks[end].before = block_id

    cdef void _unlink(self, int block_id) noexcept:
        cdef int before = self._blocks[block_id].before
        cdef int after = self._blocks[block_id].after
        self._blocks[before].after = after
        self._blocks[after].before = before
        if self._next_copied == block_id:
            self._next_copied = after

    # ---- checks ---------------------------------------------------------------------------------------------------

    cdef int _in_range(self, object item) except -1:
        cdef int overflow = 0
        cdef long long block_id
        if not PyLong_Check(item):
            raise TypeError(f"block id {item!r} is not an int")
        block_id = PyLong_AsLongLongAndOverflow(item, &overflow)
        if overflow or not 0 <= block_id < self.num_blocks:
            raise ValueError(f"block id {item} is not in 0 .. {self.num_blocks - 1}")
        return <int>block_id

    cdef int _referenced(self, object item) except -1:
        cdef int block_id = self._in_range(item)
        if self._blocks[block_id].refs == 0:
            raise ValueError(f"block {block_id} is free")
        return block_id

    cdef int _open_tokens(self, object token_ids, Py_buffer* tokens) except -1:
        PyObject_GetBuffer(token_ids, tokens, PyBUF_CONTIG_RO | PyBUF_FORMAT)
        if tokens.format == NULL or tokens.format[0] != c"i" or tokens.format[1] != 0:
            PyBuffer_Release(tokens)
            raise ValueError("token_ids is not an array of C ints, array('i')")
        return 0

    def check_integrity(self):
        """Compare everything that is written down twice; O(num_blocks), for tests and debugging."""
        cdef int block_id
        cdef Block* block
        seen = self._walk(self._bare, BARE) + self._walk(self._cached, MAPPED)
        if len(set(seen)) != len(seen):
            raise AssertionError("a block is in the lists twice")
        if len(seen) != self.num_free:
            raise AssertionError(f"num_free is {self.num_free}, the lists hold {len(seen)}")
        mapped = 0
        for block_id in range(self.num_blocks):
            block = &self._blocks[block_id]
            if block.refs < 0:
                raise AssertionError(f"block {block_id} has {block.refs} references")
            if block.mark == MAPPED:
                mapped += 1
                if self._slots[self._slot_of(block.hash)].block_id != block_id:
                    raise AssertionError(f"the map does not lead to block {block_id}")
        if mapped != self.num_cached:
            raise AssertionError(f"num_cached is {self.num_cached}, {mapped} blocks are mapped")
        entries = sum(self._slots[slot].block_id >= 0 for slot in range(<size_t>self._mask + 1))
        if entries != mapped:
            raise AssertionError(f"the map has {entries} entries for {mapped} blocks")
        unreferenced = sum(self._blocks[i].refs == 0 for i in range(self.num_blocks))
        if unreferenced != self.num_free:
            raise AssertionError(f"num_free is {self.num_free}, {unreferenced} blocks have no reference")
        self._check_copied()

    cdef int _check_copied(self) except -1:
        cdef int block_id = self._blocks[self._cached].after
        cdef int num_passed = 0
        cdef int num_idle = 0
        while block_id != self._next_copied:
            num_passed += self._blocks[block_id].is_passed
            num_idle += 1
            block_id = self._blocks[block_id].after
        if not num_passed == num_idle == self._num_passed:
            raise AssertionError(f"{num_passed} of {num_idle} blocks are passed, not {self._num_passed}")
        while block_id != self._cached:
            if self._blocks[block_id].is_passed:
                raise AssertionError(f"block {block_id} is passed too early")
            num_idle += 1
            block_id = self._blocks[block_id].after
        if num_idle != self._num_idle:
            raise AssertionError(f"_num_idle is {self._num_idle}, the list holds {num_idle}")
        if self._host.count and host_fault(&self._host) != NULL:
            raise AssertionError(host_fault(&self._host).decode())

    cdef list _walk(self, int end, int mark):
        cdef list seen = []
        cdef int before = end
        cdef int block_id = self._blocks[end].after
        while block_id != end:
            if self._blocks[block_id].before != before:
                raise AssertionError(f"block {block_id} does not know its neighbour {before}")
            if self._blocks[block_id].refs or self._blocks[block_id].mark != mark:
                raise AssertionError(f"block {block_id} is in the wrong list")
            if len(seen) > self.num_blocks:
                raise AssertionError("a list has no end")
            seen.append(block_id)
            before, block_id = block_id, self._blocks[block_id].after
        return seen
