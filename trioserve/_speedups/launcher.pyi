"""Kernels of an NVIDIA GPU, started through its driver."""

from typing import Self, final

@final
class Driver:
    """The driver's library, opened when the first of these is made.

    Raises:
        KernelError: It is not there or too old.
    """

    @property
    def path(self) -> str: ...
    @property
    def version(self) -> int:
        """Of CUDA, the newest that the driver knows: 13000 is 13.0."""

    def __new__(cls, path: str = "libcuda.so.1") -> Self: ...

@final
class Launcher:
    """One kernel, with its block and the kinds of its arguments.

    Args:
        function: The address of the driver's function, which must stay loaded for as long as this lives.
        kinds: A letter for each argument: p an address, i int32, l int64, u uint32, f float32.
        block: Threads along x, y and z.
    Raises:
        ValueError: There is no such kind or block.
    """

    @property
    def name(self) -> str: ...
    def __new__(
        cls,
        driver: Driver,
        function: int,
        name: str,
        kinds: str,
        block: tuple[int, int, int],
        shared_bytes: int = 0,
    ) -> Self: ...
    def __call__(self, stream: int, x: int, y: int, z: int, *values: float) -> None:
        """Start the kernel on ``stream`` in a grid of ``x * y * z`` blocks with these arguments.

        Raises:
            TypeError, OverflowError: The arguments are not of their kinds, or too many or few; nothing is started.
            KernelError: The driver refuses the launch.
        """
