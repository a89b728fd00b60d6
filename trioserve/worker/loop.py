"""A rank's life on its socket: config, load, then plan after plan, results in the same order."""

import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

from msgspec import structs

from trioserve.core.step import GrammarRequest, StepPlan, StepResult, WorkerConfig, WorkerError
from trioserve.errors import ModelError, RankLost, WireError
from trioserve.worker.answers import AnswerThread
from trioserve.worker.channel import Channel
from trioserve.worker.device_load import CUDA, Machine
from trioserve.worker.device_step_runner import DeviceStepRunner
from trioserve.worker.grammars import Grammars, GrammarThread
from trioserve.worker.load import load_runner
from trioserve.worker.phases import Phases


def serve(sock: socket.socket, started: float, model_path: str = "", *, machine: Machine = CUDA) -> int:
    """Run until the front closes the socket; returns the exit code.

    Whatever goes wrong is told to the front in the last frame; the traceback goes to stderr.

    Args:
        started: ``time.monotonic()`` when the process began.
        model_path: Where the model is, if the front does not say.
        machine: Where device "cuda" is found.
    """
    channel = Channel(sock)
    try:
        _run(channel, started, model_path, machine)
    except (BrokenPipeError, ConnectionResetError, TimeoutError):
        return 0  # the front is gone, and nobody is left to tell
    except RankLost as exc:
        print(f"a rank waits for its end, since another one is gone: {exc}", file=sys.stderr)
        channel.wait_closed()  # the front knows better what has happened to the other
        return 1
    except Exception as exc:  # noqa: BLE001 # the outermost wall: the front must hear of it whatever it is
        if not isinstance(exc, ModelError):
            traceback.print_exc()
        with suppress(OSError):
            channel.send(_error_frame(exc))
        return 1
    return 0


def _run(channel: Channel, started: float, model_path: str, machine: Machine) -> None:
    config = channel.receive()
    if config is None:
        return
    if not isinstance(config, WorkerConfig):
        raise WireError(f"the first frame is a {type(config).__name__}, not a WorkerConfig")
    config = structs.replace(config, model_path=config.model_path or model_path)
    grammars = Grammars(config)
    with GrammarThread(grammars, channel.send) as thread:
        runner, ready = load_runner(
            config, channel.send, started, grammars, meanwhile=thread.start, machine=machine
        )
        phases = Phases(time.monotonic())
        thread.wait_loaded()
        phases.end("tokenizer")
        channel.send(structs.replace(ready, phases_s=ready.phases_s | phases.seconds))
        answer = channel.send if config.tp_rank == 0 else _say_nothing
        if isinstance(runner, DeviceStepRunner):
            with AnswerThread(runner, answer, channel.stop_receiving) as answers:
                _carry_out(channel, answers.start, thread)
        else:
            _carry_out(channel, lambda plan: answer(runner.run(plan)), thread)


def _carry_out(channel: Channel, do: Callable[[StepPlan], None], grammars: GrammarThread) -> None:
    """Have plan after plan done, until the front has closed."""
    while (message := channel.receive()) is not None:
        match message:
            case StepPlan():
                do(message)
            case GrammarRequest():
                grammars.take(message)
            case _:
                raise WireError(f"a {type(message).__name__} came where a StepPlan belongs")


def _say_nothing(result: StepResult) -> None:
    """What ranks that follow answer."""


def _error_frame(exc: Exception) -> WorkerError:
    """The sentence of a ModelError, or the kind and first line of anything else."""
    if isinstance(exc, ModelError):
        return WorkerError("model", str(exc))
    lines = str(exc).splitlines()
    return WorkerError("internal", f"{type(exc).__name__}: {lines[0]}" if lines else type(exc).__name__)
