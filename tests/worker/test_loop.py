"""How a rank speaks on its socket, in this process."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.model.checkpoints import Checkpoints, prompt_of
from tests.worker.driver import Front, worker_config
from tests.worker.wire import DEADLINE_S, Wire
from trioserve.core.sampling import SamplingParams
from trioserve.core.step import StepPlan, WorkerError
from trioserve.worker.loop import serve


@contextmanager
def served() -> Iterator[tuple[Wire, list[int]]]:
    """A rank in a thread; its exit code once the block is left."""
    ours, theirs = socket.socketpair()
    exit_codes: list[int] = []

    def run() -> None:
        with theirs:
            exit_codes.append(serve(theirs, time.monotonic()))

    thread = threading.Thread(target=run)
    thread.start()
    with ours:
        yield Wire(ours), exit_codes
    thread.join(DEADLINE_S)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_path": "/nonexistent"}, "is not a model folder"),
        ({"device": "cuda"}, "device cuda cannot be used: torch "),
        ({"tp_size": 4096}, "tensor_parallel_size 4096 is more than the"),
        ({"num_blocks": 3}, "lower max_model_len or give the KV cache more"),
    ],
)
def test_a_model_that_cannot_be_served_is_one_sentence_without_a_traceback(
    checkpoints: Checkpoints, capfd: pytest.CaptureFixture[str], changes: dict[str, object], sentence: str
) -> None:
    with served() as (wire, exit_codes):
        error = wire.start(worker_config(checkpoints.folder("llama"), **changes))[-1]
        assert isinstance(error, WorkerError)
        assert error.kind == "model"
        assert sentence in error.message
    assert exit_codes == [1]
    assert capfd.readouterr().err == ""


def test_a_step_that_raises_is_reported_in_one_line_and_ends_the_rank(
    checkpoints: Checkpoints, capfd: pytest.CaptureFixture[str]
) -> None:
    with served() as (wire, exit_codes):
        wire.start(worker_config(checkpoints.folder("llama")))
        wire.send(StepPlan(1, [5], [], []))
        assert wire.receive() == WorkerError("internal", "AssertionError: slot 5 is free already")
        assert wire.receive() is None
    assert exit_codes == [1]
    assert "Traceback" in capfd.readouterr().err


def test_bytes_that_are_no_frame_end_the_rank_with_an_error() -> None:
    with served() as (wire, exit_codes):
        wire.socket.sendall(b"\x02\x00\x00\x00\xc1\xc1")
        error = wire.receive()
        assert isinstance(error, WorkerError)
        assert error.kind == "internal"
        assert error.message.startswith("WireError")
    assert exit_codes == [1]


def test_a_socket_closed_before_the_config_is_a_clean_end() -> None:
    with served() as (_, exit_codes):
        pass
    assert exit_codes == [0]


def test_a_front_that_goes_while_the_model_loads_is_a_clean_end(checkpoints: Checkpoints) -> None:
    with served() as (wire, exit_codes):
        wire.send(worker_config(checkpoints.folder("llama")))
    assert exit_codes == [0]


def test_a_plan_before_the_config_is_refused() -> None:
    with served() as (wire, exit_codes):
        wire.send(StepPlan(1, [], [], []))
        assert wire.receive() == WorkerError(
            "internal", "WireError: the first frame is a StepPlan, not a WorkerConfig"
        )
    assert exit_codes == [1]


def test_logprobs_cross_the_socket(checkpoints: Checkpoints) -> None:
    prompt = prompt_of(30, seed=21)
    with served() as (wire, _):
        wire.start(worker_config(checkpoints.folder("llama")))
        front = Front(wire.execute)
        front.admit(0, prompt, SamplingParams(max_tokens=5, temperature=0.0, logprobs=2))
        (token,) = front.step(s0=30)
        expected = checkpoints.logits("llama", prompt)[-1].log_softmax(-1).topk(2)
        assert token.logprobs is not None
        assert token.logprobs.top_ids == expected.indices.tolist()
        assert token.logprobs.top_logprobs == pytest.approx(expected.values.tolist(), abs=1e-4)
        assert token.logprobs.logprob == token.logprobs.top_logprobs[0]
