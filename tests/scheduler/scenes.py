"""Random scenes of sequences that come, force tokens, are preempted and leave, and what holds at their end."""

from collections.abc import Sequence as Many
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.scheduler.test_scheduler import BLOCK_SIZE, House, expected, output
from trioserve.core.sampling import SamplingParams, ThinkingBudget
from trioserve.core.sequence import FinishReason, Sequence

BUDGET = ThinkingBudget(begins=(), ends=(), is_open=True, max_tokens=1, forced_end=())
"""Anything that lets a sequence force tokens."""


@dataclass(frozen=True)
class Asked:
    """One sequence of a scene."""

    prompt: list[int]
    max_tokens: int
    forces: bool
    priority: int
    arrives_at: int
    """Step."""
    leaves_at: int
    stops: bool
    """Whether its sixth token is a stop token."""
    scores: bool
    """Whether its prompt is scored."""

    def params(self) -> SamplingParams:
        """What it asks of the sampler."""
        return SamplingParams(
            max_tokens=self.max_tokens,
            thinking=BUDGET if self.forces else None,
            stop_token_ids=tuple(expected(self.prompt, 6)[5:]) if self.stops else (),
            prompt_logprobs=0 if self.scores else None,
        )


def asked(**fields: st.SearchStrategy[object]) -> st.SearchStrategy[list[Asked]]:
    """Scenes; ``fields`` are drawn in another way than a plain one's."""
    plain: dict[str, st.SearchStrategy[object]] = {
        "forces": st.sampled_from([False, False, True]),
        "stops": st.just(False),
        "scores": st.just(False),
    }
    one = st.builds(
        Asked,
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=31),
        max_tokens=st.integers(1, 40),
        priority=st.sampled_from([0, 0, -1]),
        arrives_at=st.integers(0, 20),
        leaves_at=st.sampled_from([10**9, 10**9, 10**9, 5, 9, 14]),
        **{**plain, **fields},
    )
    return st.lists(one, min_size=1, max_size=8)


def play(house: House, scene: Many[Asked], num_blocks: int) -> None:
    """Run a scene to its end, and see that everyone got its own tokens and left nothing behind."""
    live: list[tuple[Sequence, Asked]] = []
    for step in range(21):
        for one in scene:
            if one.arrives_at == step:
                seq = Sequence(one.prompt, one.params(), priority=one.priority)
                house.scheduler.add(seq)
                live.append((seq, one))
        for seq, one in live:
            if one.leaves_at == step:
                house.scheduler.finish(seq, FinishReason.ABORT)
        house.step()
    house.drain()
    for seq, one in live:
        assert output(seq) == expected(one.prompt, seq.num_output_tokens)
        match seq.finish_reason:
            case FinishReason.LENGTH:
                assert seq.num_output_tokens == min(one.max_tokens, num_blocks * BLOCK_SIZE - len(one.prompt))
            case FinishReason.STOP:
                assert one.stops
                assert seq.token_ids[-1] in seq.params.stop_token_ids
            case reason:
                assert reason is FinishReason.ABORT
                assert one.leaves_at <= 20
    for seq, _ in live:  # what is found of answers was computed, or the rank would say so
        if len(seq.token_ids) < num_blocks * BLOCK_SIZE:
            house.add(seq.token_ids.tolist(), max_tokens=1)
            house.drain()
    statistics = house.scheduler.statistics()
    assert (statistics.num_free_blocks, statistics.num_waiting_tokens) == (num_blocks, 0)
