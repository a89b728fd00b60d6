"""Cubins in the memory of a GPU: CuPy loads them, and keeps them for as long as the process lives.

CuPy is imported when a GPU is first used, and by nothing else here.
"""

from dataclasses import dataclass
from types import ModuleType

from trioserve.errors import KernelError
from trioserve.kernels.build import Built
from trioserve.kernels.nvrtc import INSTALL


@dataclass(frozen=True, slots=True)
class Loaded:
    """A kernel that can be launched on one device."""

    function: int
    """The address of the driver's function, for a ``Launcher``."""
    owner: object
    """Keeps it where it is."""


class Loader:
    """Loads kernels onto the device ``index``.

    Args:
        driver_version: Of CUDA, as a ``Driver`` has it: 13000 is 13.0.
    Raises:
        KernelError: CuPy is missing, or the driver is too old for it.
    """

    def __init__(self, index: int, driver_version: int) -> None:
        self._cupy = _imported()
        self._index = index
        self._driver = _spelled(driver_version)
        self._check(
            _spelled(self._cupy.cuda.runtime.runtimeGetVersion()), f"CuPy {self._cupy.__version__} is for"
        )

    def __call__(self, built: Built, shared_bytes: int) -> Loaded:
        """Load a kernel that will be launched with up to ``shared_bytes`` of dynamic shared memory.

        The device is this thread's current one afterwards, whatever torch's was before: that is for the caller to
        restore.

        Raises:
            KernelError: The driver refuses it, or is older than the compiler.
        """
        self._check(built.cuda, f"{built.path.name} was compiled by")
        try:
            self._cupy.cuda.Device(self._index).use()
            kernel = self._cupy.RawModule(path=str(built.path)).get_function(built.mangled)
            if shared_bytes > kernel.max_dynamic_shared_size_bytes:
                kernel.max_dynamic_shared_size_bytes = shared_bytes
            return Loaded(kernel.kernel.ptr, kernel)
        except RuntimeError as exc:  # which all errors of CUDA are in CuPy
            raise KernelError(f"GPU {self._index} cannot load {built.path} ({exc})") from exc

    def _check(self, cuda: str, what: str) -> None:
        """A driver knows all that is made for its major version of CUDA and for those before it."""
        if _major(self._driver) < _major(cuda):
            raise KernelError(
                f"the NVIDIA driver is for CUDA {self._driver} and {what} CUDA {cuda}: install a newer driver"
            )


def _imported() -> ModuleType:
    try:
        import cupy
    except ImportError as exc:
        raise KernelError(
            f"CuPy, which loads the CUDA kernels, cannot be imported ({exc}): {INSTALL}"
        ) from exc
    module: ModuleType = cupy
    return module


def _spelled(version: int) -> str:
    """As people write it: 13020 is 13.2."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _major(version: str) -> int:
    return int(version.partition(".")[0])
