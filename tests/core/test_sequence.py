"""Sequences move by their table only; deltas merge without loss."""

import pytest

from trioserve.core.delta import OutputDelta, Usage, merge
from trioserve.core.sampling import SamplingParams
from trioserve.core.sequence import FinishReason, Sequence, SequenceStatus


def make_sequence() -> Sequence:
    return Sequence([1, 2, 3], SamplingParams(max_tokens=4))


def test_a_preempted_sequence_keeps_its_tokens_and_gives_its_blocks_back() -> None:
    seq = make_sequence()
    seq.start(0, [5, 6], 2)
    seq.token_ids.append(9)
    assert seq.preempt() == [5, 6]
    assert (seq.status, seq.num_computed_tokens, seq.num_output_tokens) == (SequenceStatus.WAITING, 0, 1)


def test_an_illegal_move_is_a_bug_that_names_itself() -> None:
    seq = make_sequence()
    seq.finish(FinishReason.ABORT)
    with pytest.raises(AssertionError, match="cannot become running"):
        seq.start(0, [], 0)


def test_merged_deltas_say_what_the_single_ones_said() -> None:
    usage = [Usage(3, 0, n) for n in (1, 2)]
    first = OutputDelta("a", (1,), (), usage[0])
    last = OutputDelta("b", (2,), (), usage[1], finish_reason=FinishReason.STOP, stop_reason="c")
    assert merge([first, last]) == OutputDelta("ab", (1, 2), (), usage[1], FinishReason.STOP, "c")
