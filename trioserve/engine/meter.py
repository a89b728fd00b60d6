"""What the engine counts while it runs: plain numbers, read when someone scrapes them.

A step costs one pass over its sequences and one observation for each distinct gap between tokens, of which a batch
that decodes has one: well below a microsecond a token (``benchmarks/meter.py``).
"""

from bisect import bisect_left
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Final

from trioserve.core.sequence import FinishReason, Sequence

REQUEST_S: Final = (
    0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
FIRST_TOKEN_S: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
)  # fmt: skip
STEP_TOKENS: Final = tuple(float(1 << i) for i in (0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14))
"""Bounds of buckets, in seconds and tokens; vLLM's, with finer ones below where small models are at home."""

_ENDED: Final = frozenset({FinishReason.STOP, FinishReason.LENGTH, FinishReason.REPETITION})
"""Reasons of answers that came to an end, rather than were cut off."""


def token_bounds(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 and so on up to ``most``."""
    steps = (float(mantissa * 10**exponent) for exponent in count() for mantissa in (1, 2, 5))
    return tuple(takewhile(lambda bound: bound <= most, steps))


class Histogram:
    """How often values fell between bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: SequenceOf[float]) -> None:
        self.bounds = tuple(bounds)
        """Ascending; a value that equals one belongs below it."""
        self.counts = [0] * (len(self.bounds) + 1)
        """Of each bucket by itself; the last one has no bound."""
        self.sum = 0.0
        """Of all values."""

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``value`` so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


@dataclass(slots=True, kw_only=True)
class Timeline:
    """When things happened to a sequence, in seconds on trio's clock; None where they have not."""

    arrived_at: float
    admitted_at: float | None = None
    """First; a preempted sequence keeps it."""
    first_token_at: float | None = None
    last_token_at: float | None = None


class Meter:
    """Counts of everything since the start of the server; restarts of the works change none of them.

    They add up: each token of ``num_output_tokens`` is one observation of ``time_to_first_token_s`` or of
    ``inter_token_latency_s``, and each sequence that was ended by the model or its limit is one of every other time.
    """

    def __init__(self, *, max_model_len: int) -> None:
        lengths = token_bounds(max_model_len)
        self.num_prompt_tokens = 0
        """Of all sequences at their first admission; cached ones included."""
        self.num_cached_tokens = 0
        """Of those, found in the prefix cache."""
        self.num_output_tokens = 0
        self.num_steps = 0
        """Whose results are back."""
        self.num_drafts = 0
        """Times that tokens of a sequence were guessed."""
        self.num_draft_tokens = 0
        self.num_accepted_tokens: list[int] = []
        """Guesses that were right: the first ones of a sequence in a step, the second ones, and so on."""
        self.num_finished = dict.fromkeys(FinishReason, 0)
        """Sequences that ended. ABORT: whoever asked is gone, or its time was up. ERROR: the engine gave it up."""
        self.step_tokens = Histogram(STEP_TOKENS)
        """Tokens that a step was to compute when it was planned."""
        self.time_to_first_token_s = Histogram(FIRST_TOKEN_S)
        """From arrival."""
        self.inter_token_latency_s = Histogram(TOKEN_S)
        """From one token of a sequence to its next."""
        self.time_per_output_token_s = Histogram(TOKEN_S)
        """A sequence's mean of the tokens after its first; those with one token have none."""
        self.e2e_latency_s = Histogram(REQUEST_S)
        """From arrival to the last token."""
        self.queue_s = Histogram(REQUEST_S)
        """From arrival to the first admission."""
        self.prefill_s = Histogram(REQUEST_S)
        """From admission to the first token."""
        self.decode_s = Histogram(REQUEST_S)
        """From the first token to the last."""
        self.inference_s = Histogram(REQUEST_S)
        """From admission to the last token."""
        self.prompt_tokens = Histogram(lengths)
        self.output_tokens = Histogram(lengths)
        self.max_tokens = Histogram(lengths)
        """Tokens that a sequence was allowed."""
        self.most_output_tokens = Histogram(lengths)
        """Of the longest answer of a request."""

    def admitted(self, timeline: Timeline, seq: Sequence, now: float) -> None:
        """A sequence has got its slot; a second time, after a preemption, counts for nothing."""
        if timeline.admitted_at is None:
            timeline.admitted_at = now
            self.num_prompt_tokens += seq.num_prompt_tokens
            self.num_cached_tokens += seq.num_cached_tokens

    def stepped(self, *, num_computed: int) -> None:
        """A step is back."""
        self.num_steps += 1
        self.step_tokens.observe(num_computed)

    def guessed(self, num_tried: SequenceOf[int], num_right: SequenceOf[int]) -> None:
        """A step had so many first guesses, second guesses and so on, and of them so many were right."""
        self.num_drafts += num_tried[0]
        self.num_draft_tokens += sum(num_tried)
        self.num_accepted_tokens += [0] * (len(num_tried) - len(self.num_accepted_tokens))
        for place, times in enumerate(num_right):
            self.num_accepted_tokens[place] += times

    def generated(self, timelines: SequenceOf[Timeline], *, now: float) -> None:
        """There is a token for each of ``timelines``; this runs for every token that is generated."""
        self.num_output_tokens += len(timelines)
        times: dict[float, int] = {}  # by when the token before came: of most sequences with the same step
        for timeline in timelines:
            last = timeline.last_token_at
            if last is None:
                timeline.first_token_at = now
                self.time_to_first_token_s.observe(now - timeline.arrived_at)
            else:
                times[last] = times.get(last, 0) + 1
            timeline.last_token_at = now
        for last, num_tokens in times.items():
            self.inter_token_latency_s.observe(now - last, num_tokens)

    def finished(self, timeline: Timeline, seq: Sequence, reason: FinishReason) -> None:
        """A sequence has ended."""
        self.num_finished[reason] += 1
        admitted_at, first_at, last_at = timeline.admitted_at, timeline.first_token_at, timeline.last_token_at
        if reason not in _ENDED or admitted_at is None or first_at is None or last_at is None:
            return  # it failed, or its client stopped it before it had a token
        self.e2e_latency_s.observe(last_at - timeline.arrived_at)
        self.queue_s.observe(admitted_at - timeline.arrived_at)
        self.prefill_s.observe(first_at - admitted_at)
        self.decode_s.observe(last_at - first_at)
        self.inference_s.observe(last_at - admitted_at)
        if seq.num_output_tokens > 1:
            self.time_per_output_token_s.observe((last_at - first_at) / (seq.num_output_tokens - 1))
        self.prompt_tokens.observe(seq.num_prompt_tokens)
        self.output_tokens.observe(seq.num_output_tokens)
        self.max_tokens.observe(seq.params.max_tokens)

    def answered(self, sequences: Iterable[Sequence]) -> None:
        """A request is over; it counts if each of its sequences was ended by the model or its limit."""
        sequences = list(sequences)
        if all(seq.finish_reason in _ENDED for seq in sequences):
            self.most_output_tokens.observe(max(seq.num_output_tokens for seq in sequences))
