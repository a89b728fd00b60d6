# distutils: language = c++
# cython: language_level = 3, boundscheck = False, wraparound = False, auto_pickle = False, autotestdict = False
"""Where the ranks of one model meet, over memory that they share; ``exchange.h`` says how."""

cimport cython
from libc.stdint cimport int64_t, uintptr_t
from libc.string cimport memcpy
from libcpp.memory cimport unique_ptr


cdef extern from "exchange.h" namespace "trioserve" nogil:
    int64_t COMMON "trioserve::Exchange::kCommon"
    int MOST "trioserve::Exchange::kMostRanks"

    cppclass CExchange "trioserve::Exchange":
        CExchange(int fd, int rank, int num_ranks) except +
        int rank()
        int num_ranks()
        void reserve(size_t num_bytes) except +
        T* mine[T]()
        const T* of[T](int rank)
        void meet()


MOST_RANKS = MOST
"""Ranks that can meet."""
COMMON_OFFSET = COMMON
"""Where in the file something lies that is nobody's and that all write into together."""


@cython.final
cdef class Exchange:
    """One rank's end; its meetings are those of the others, in the same order."""

    cdef unique_ptr[CExchange] _exchange
    cdef readonly int fd

    def __cinit__(self, int fd, int tp_rank, int tp_size):
        assert 0 <= tp_rank < tp_size <= MOST, f"rank {tp_rank} of {tp_size}"
        self._exchange.reset(new CExchange(fd, tp_rank, tp_size))
        self.fd = fd

    @property
    def tp_rank(self):
        return self._exchange.get().rank()

    @property
    def tp_size(self):
        return self._exchange.get().num_ranks()

    @property
    def address(self):
        """Of the C++ object, for a decoder, which must not outlive this one."""
        return <uintptr_t>self._exchange.get()

    def share(self, numbers):
        """Make ``numbers``, contiguous int64 of one shape everywhere, those of rank 0."""
        cdef int64_t[::1] flat = numbers.reshape(-1)
        cdef size_t num_bytes = flat.shape[0] * sizeof(int64_t)
        cdef CExchange* exchange = self._exchange.get()
        if not num_bytes:
            return
        exchange.reserve(num_bytes)
        if exchange.rank() == 0:
            memcpy(exchange.mine[int64_t](), &flat[0], num_bytes)
        with nogil:
            exchange.meet()
            if exchange.rank() != 0:
                memcpy(&flat[0], exchange.of[int64_t](0), num_bytes)

    def least(self, int64_t number):
        """The least of what all ranks say."""
        cdef CExchange* exchange = self._exchange.get()
        exchange.mine[int64_t]()[0] = number
        with nogil:
            exchange.meet()
        return min(exchange.of[int64_t](rank)[0] for rank in range(exchange.num_ranks()))
