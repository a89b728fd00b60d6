"""The front's end of a rank's socket."""

import socket

import msgspec

from trioserve.core.frames import FrameReader, encode_frame
from trioserve.core.step import FromWorker, LoadProgress, StepPlan, StepResult, WorkerConfig

DEADLINE_S = 60.0


class Wire:
    """Sends what a front sends and receives what a rank sends."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE_S)
        self.socket = sock
        self._reader = FrameReader[FromWorker](FromWorker)
        self._held: list[FromWorker] = []

    def send(self, message: msgspec.Struct) -> None:
        self.socket.sendall(encode_frame(message))

    def receive(self) -> FromWorker | None:
        """The next frame; None at the end."""
        while not self._held:
            data = self.socket.recv(1 << 16)
            if not data:
                return None
            self._held = self._reader.feed(data)
        return self._held.pop(0)

    def start(self, config: WorkerConfig) -> list[FromWorker]:
        """Everything up to the first frame that is no progress."""
        self.send(config)
        frames: list[FromWorker] = []
        while not frames or isinstance(frames[-1], LoadProgress):
            frame = self.receive()
            assert frame is not None
            frames.append(frame)
        return frames

    def execute(self, plan: StepPlan) -> StepResult:
        self.send(plan)
        return self.result()

    def result(self) -> StepResult:
        frame = self.receive()
        assert isinstance(frame, StepResult), frame
        return frame
