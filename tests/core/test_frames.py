"""Frames arrive whole however the stream is cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve.core.frames import MAX_FRAME_BYTES, FrameReader, encode_frame
from trioserve.core.sampling import SamplingParams
from trioserve.core.step import Admission, SlotWork, StepPlan, StepResult, ToWorker, WorkerConfig
from trioserve.errors import WireError

PARAMS = SamplingParams(max_tokens=4, stop=("a", "b"), logit_bias=((1, 2.0),), logprobs=3)
PLAN = StepPlan(
    7, [2], [Admission(0, 9, [1, 2, 3], 2, 0, [3], PARAMS)], [SlotWork(0, 2, []), SlotWork(1, 1, [8])]
)
CONFIG = WorkerConfig(
    model_path="folder",
    device="cpu",
    dtype="auto",
    tp_rank=0,
    tp_size=1,
    block_size=16,
    max_num_seqs=4,
    max_num_batched_tokens=64,
    max_model_len=128,
    num_blocks=None,
    kv_cache_bytes=0,
    num_threads=1,
)
BYTES = encode_frame(CONFIG) + encode_frame(PLAN) + encode_frame(PLAN)


@given(st.lists(st.integers(1, len(BYTES)), max_size=12))
def test_any_cut_gives_the_same_messages(cuts: list[int]) -> None:
    reader: FrameReader[ToWorker] = FrameReader(ToWorker)
    edges = [0, *sorted(cuts), len(BYTES)]
    pieces = [BYTES[start:end] for start, end in itertools.pairwise(edges)]
    assert [message for piece in pieces for message in reader.feed(piece)] == [CONFIG, PLAN, PLAN]
    reader.flush()


@given(st.binary(max_size=200))
def test_noise_is_a_wire_error_or_nothing(noise: bytes) -> None:
    reader: FrameReader[ToWorker] = FrameReader(ToWorker)
    try:
        messages = reader.feed(noise)
    except WireError:
        return
    assert all(isinstance(message, StepPlan | WorkerConfig) for message in messages)


def test_text_that_is_no_utf_8_is_a_wire_error() -> None:
    frame = encode_frame(CONFIG)
    at = frame.index(b"folder")
    with pytest.raises(WireError, match="does not decode"):
        FrameReader[ToWorker](ToWorker).feed(frame[:at] + b"\xff" + frame[at + 1 :])


def test_a_frame_that_is_cut_off_is_told() -> None:
    reader: FrameReader[ToWorker] = FrameReader(ToWorker)
    reader.feed(BYTES[:-1])
    with pytest.raises(WireError, match="bytes into a frame"):
        reader.flush()


def test_a_frame_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="exceeds"):
        FrameReader[ToWorker](ToWorker).feed((MAX_FRAME_BYTES + 1).to_bytes(4, "little"))


def test_a_message_of_another_kind_is_refused() -> None:
    with pytest.raises(WireError, match="does not decode"):
        FrameReader[ToWorker](ToWorker).feed(encode_frame(StepResult(1, [], 0.5)))


def test_a_decode_step_of_256_sequences_is_small() -> None:
    plan = StepPlan(1, [], [], [SlotWork(slot, 1, []) for slot in range(256)])
    assert len(encode_frame(plan)) < 2048


def test_a_bound_of_ones_own_holds_both_ways() -> None:
    frame = encode_frame(PLAN)
    size = len(frame) - 4
    assert encode_frame(PLAN, max_bytes=size) == frame
    with pytest.raises(WireError, match=f"a frame of {size} bytes exceeds {size - 1}"):
        encode_frame(PLAN, max_bytes=size - 1)
    assert FrameReader[ToWorker](ToWorker, max_bytes=size).feed(frame) == [PLAN]
    with pytest.raises(WireError, match=f"exceeds {size - 1}"):
        FrameReader[ToWorker](ToWorker, max_bytes=size - 1).feed(frame)
