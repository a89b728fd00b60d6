"""``python -m tests.emu.worker FD``: a rank whose GPU is the emulator, with kernels that it compiles as it goes."""

import socket
import sys
import tempfile
import time
from pathlib import Path

from trioserve.worker.process import become_rank


def main() -> int:
    """As ``python -m trioserve.worker``."""
    started = time.monotonic()
    become_rank()
    import torch

    from tests.emu.emulated_device import EmulatedDevice
    from tests.emu.works import make_device
    from trioserve.core.step import WorkerConfig
    from trioserve.worker.device_load import Machine, meet_over_nccl
    from trioserve.worker.loop import serve

    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(fileno=int(sys.argv[1])) as sock,
    ):

        def open_device(config: WorkerConfig) -> EmulatedDevice:
            return make_device(Path(folder), "fp16" if config.dtype == "float16" else "bf16")

        return serve(sock, started, machine=Machine(open_device, meet_over_nccl))


if __name__ == "__main__":
    sys.exit(main())
