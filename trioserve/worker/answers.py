"""Results of steps that were started ahead, sent as they are done."""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from trioserve.core.step import StepPlan, StepResult
from trioserve.worker.device_step_runner import DeviceStepRunner
from trioserve.worker.pending import Pending


class AnswerThread:
    """Waits for the steps of a device in their order, so that who starts them waits for none.

    The two threads share nothing but what ``Pending`` says. What goes wrong here is raised where the block ends.
    """

    def __init__(
        self,
        runner: DeviceStepRunner,
        send: Callable[[StepResult], None],
        stop_receiving: Callable[[], None],
    ) -> None:
        """
        Args:
            send: Called in the thread, for each result.
            stop_receiving: Called in the thread when something went wrong: there will be no more results.
        """
        self._runner = runner
        self._send = send
        self._stop_receiving = stop_receiving
        self._started = SimpleQueue[Pending | None]()
        self._failure: BaseException | None = None
        # a device that never answers must not keep the process, which tells the front what else went wrong
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what was started, unless something went wrong.

        Raises:
            KernelError: The device failed.
            OSError: The front is gone.
        """
        self._started.put(None)
        if exc is None:
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def start(self, plan: StepPlan) -> None:
        """Start a step, whose result will be sent."""
        self._started.put(self._runner.launch(plan))

    def _run(self) -> None:
        try:
            while (pending := self._started.get()) is not None:
                self._send(pending.result())
        except BaseException as failure:  # noqa: BLE001 # the thread's outermost wall: it is raised in the other one
            self._failure = failure
            self._stop_receiving()
