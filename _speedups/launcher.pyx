# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False, autotestdict=False
"""Kernels of an NVIDIA GPU, started through its driver, which is opened when it is first asked for.

A launcher is bound to a kernel once: which function, what block, what kinds of arguments. A launch then writes numbers
into one buffer and calls the driver, some 0.2 us of our own; nothing is looked up and no object is made.
"""

cimport cython
from cpython.long cimport PyLong_Check
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from trioserve.errors import KernelError


cdef extern from "<dlfcn.h>" nogil:
    void* dlopen(const char* path, int mode)
    void* dlsym(void* library, const char* name)
    const char* dlerror()
    int RTLD_NOW

cdef extern from *:
    """
    typedef int (*launch_function)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*,
                                   void**, void**);
    typedef int (*version_function)(int*);
    typedef int (*explain_function)(int, const char**);
    """
    ctypedef int (*launch_function)(
        void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**) noexcept nogil
    ctypedef int (*version_function)(int*) noexcept nogil
    ctypedef int (*explain_function)(int, const char**) noexcept nogil

cdef enum:
    MAX_THREADS = 1024


@cython.final
cdef class Driver:
    """The driver's library, and what of it is needed here."""

    cdef version_function _version
    cdef explain_function _explain
    cdef launch_function _launch
    cdef readonly str path

    def __cinit__(self, str path not None="libcuda.so.1"):
        cdef void* library = dlopen(path.encode(), RTLD_NOW)
        if library is NULL:
            raise KernelError(f"the NVIDIA driver cannot be loaded ({dlerror().decode()}): install it, or use a CPU")
        self.path = path
        self._version = <version_function>self._symbol(library, b"cuDriverGetVersion")
        self._explain = <explain_function>self._symbol(library, b"cuGetErrorString")
        self._launch = <launch_function>self._symbol(library, b"cuLaunchKernel")

    cdef void* _symbol(self, void* library, bytes name) except NULL:
        cdef void* symbol = dlsym(library, name)
        if symbol is NULL:
            raise KernelError(f"{self.path} has no {name.decode()}: install a newer NVIDIA driver")
        return symbol

    cdef int _check(self, int result, str what) except -1:
        cdef const char* text = NULL
        if result == 0:
            return 0
        self._explain(result, &text)
        reason = "" if text is NULL else f", {text.decode()}"
        raise KernelError(f"{what}: CUDA error {result}{reason}")

    @property
    def version(self):
        """Of CUDA, the newest that the driver knows: 13000 is 13.0."""
        cdef int version = 0
        self._check(self._version(&version), "cuDriverGetVersion")
        return version


@cython.final
cdef class Launcher:
    """One kernel, with its block and the kinds of its arguments."""

    cdef Driver _driver
    cdef void* _function
    cdef unsigned int _block[3]
    cdef unsigned int _shared_bytes
    cdef int _count
    cdef char* _kinds       # [count]
    cdef int64_t* _values   # [count], each in the first bytes of its own
    cdef void** _pointers   # [count], to the values, as the driver wants them
    cdef readonly str name

    def __cinit__(
        self, Driver driver not None, uintptr_t function, str name not None, str kinds not None, tuple block not None,
        unsigned int shared_bytes=0
    ):
        cdef int i
        cdef uint64_t num_threads = 1
        if len(block) != 3:
            raise ValueError(f"block is {block}, not of three numbers")
        self._count = len(kinds)
        self._kinds = <char*>malloc(self._count + 1)
        self._values = <int64_t*>malloc((self._count + 1) * sizeof(int64_t))
        self._pointers = <void**>malloc((self._count + 1) * sizeof(void*))
        if self._kinds is NULL or self._values is NULL or self._pointers is NULL:
            raise MemoryError(f"no memory for the arguments of {name}")
        memset(self._values, 0, self._count * sizeof(int64_t))
        for i in range(self._count):
            if kinds[i] not in "piluf":
                raise ValueError(f"{kinds[i]!r} is no kind of argument")
            self._kinds[i] = <char>ord(kinds[i])
            self._pointers[i] = &self._values[i]
        for i in range(3):
            self._block[i] = block[i]
            num_threads *= self._block[i]
        if not 1 <= num_threads <= MAX_THREADS:
            raise ValueError(f"a block of {num_threads} threads, not of 1 .. {MAX_THREADS}")
        self._driver = driver
        self._function = <void*>function
        self._shared_bytes = shared_bytes
        self.name = name

    def __dealloc__(self):
        free(self._kinds)
        free(self._values)
        free(self._pointers)

    def __call__(self, uintptr_t stream, unsigned int x, unsigned int y, unsigned int z, *values):
        """Start the kernel on ``stream`` in a grid of ``x * y * z`` blocks with these arguments.

        Raises:
            TypeError, OverflowError: The arguments are not of their kinds, or too many or few; nothing is started.
            KernelError: The driver refuses the launch.
        """
        cdef int i, result
        cdef char kind
        cdef object value
        if len(values) != self._count:
            raise TypeError(f"{self.name} takes {self._count} arguments, not {len(values)}")
        for i in range(self._count):
            kind = self._kinds[i]
            value = values[i]
            if kind == c"f":
                (<float*>&self._values[i])[0] = <float>value
            elif not PyLong_Check(value):
                raise TypeError(f"argument {i} of {self.name} is {value!r}, not an int")
            elif kind == c"p":
                (<uint64_t*>&self._values[i])[0] = <uint64_t>value
            elif kind == c"i":
                (<int32_t*>&self._values[i])[0] = <int32_t>value
            elif kind == c"l":
                self._values[i] = <int64_t>value
            else:
                (<uint32_t*>&self._values[i])[0] = <uint32_t>value
        result = self._driver._launch(
            self._function, x, y, z, self._block[0], self._block[1], self._block[2], self._shared_bytes,
            <void*>stream, self._pointers, NULL)
        if result:
            self._driver._check(result, f"launching {self.name} in a grid of {x} x {y} x {z}")
