"""Thinking is counted by bytes, in tokens."""

from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.output.test_stream import VOCABULARY
from trioserve._speedups.detokenizer import Vocabulary
from trioserve.core.sampling import SamplingParams, ThinkingBudget
from trioserve.core.sequence import Sequence
from trioserve.core.step import SampledToken
from trioserve.core.thinking import ThinkingCounter
from trioserve.output.stream import OutputStream


def thinking(
    *, begins: tuple[str, ...] = ("<a>",), ends: tuple[str, ...] = ("</a>",), is_open: bool
) -> ThinkingBudget:
    return ThinkingBudget(begins=begins, ends=ends, is_open=is_open, max_tokens=None, forced_end=())


def count(pieces: list[bytes], budget: ThinkingBudget) -> int:
    counter = ThinkingCounter(budget)
    for piece in pieces:
        counter.feed(piece)
    return counter.num_tokens


def length_of_thinking(text: bytes, budget: ThinkingBudget) -> int:
    """Bytes up to the end of thinking, both found in the whole text; 0 where it does not think."""
    start = 0
    if not budget.is_open:
        bare = text.lstrip()
        begun = [len(begin) for begin in map(str.encode, budget.begins) if bare.startswith(begin)]
        if not begun:
            return 0
        start = len(text) - len(bare) + min(begun)
    found = [at + len(end) for end in map(str.encode, budget.ends) if (at := text.find(end, start)) >= 0]
    return min(found, default=len(text) + 1)


MARKERS = st.lists(st.text("<>/a", min_size=1, max_size=4), max_size=2).map(tuple)
TEXTS = st.lists(st.sampled_from(["<a>", "</a>", "<", "/", "a", ">", " ", "\n", "é"]), max_size=20)


@given(
    text=TEXTS.map(lambda parts: "".join(parts).encode()),
    cuts=st.lists(st.integers(0, 60), max_size=30),
    begins=MARKERS | st.just(("<a>",)),
    ends=MARKERS | st.just(("</a>",)),
    is_open=st.booleans(),
)
@example(text=b" <a></a>", cuts=[], begins=("<a>",), ends=("</a>",), is_open=False)
@example(text=b"</</a>", cuts=[1, 2, 3, 4, 5], begins=(), ends=("</a>",), is_open=True)
@example(text=b"<a/>", cuts=[2], begins=("<a",), ends=("a/>", "/>"), is_open=False)
def test_the_tokens_of_the_bytes_up_to_the_end_count_wherever_they_are_cut(
    text: bytes, cuts: list[int], begins: tuple[str, ...], ends: tuple[str, ...], is_open: bool
) -> None:
    budget = thinking(begins=begins, ends=ends, is_open=is_open)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[edges[i] : edges[i + 1]] for i in range(len(edges) - 1)]
    length = length_of_thinking(text, budget)
    reached = list(accumulate(map(len, pieces)))
    expected = next((i + 1 for i, end in enumerate(reached) if end >= length), len(pieces)) if length else 0
    assert count(pieces, budget) == expected


@pytest.mark.parametrize(
    ("pieces", "is_open", "num_tokens"),
    [
        ([b"so", b"</a>", b"yes"], True, 2),
        ([b"so", b"</", b"a", b">yes", b"</a>"], True, 4),
        ([b"so", b"on"], True, 2),
        ([b"\n", b"<a>", b"so", b"</a>", b"yes"], False, 4),
        ([b"<", b"a", b">so</a>"], False, 3),
        ([b"yes", b"<a>", b"</a>"], False, 0),
        ([b" ", b"<"], False, 0),
        ([b" ", b"<", b"b"], False, 0),
        ([], True, 0),
    ],
)
def test_thinking_is_told_from_the_answer(pieces: list[bytes], is_open: bool, num_tokens: int) -> None:
    assert count(pieces, thinking(is_open=is_open)) == num_tokens


def test_white_space_without_end_is_not_kept() -> None:
    counter = ThinkingCounter(thinking(is_open=False))
    for _ in range(1000):
        counter.feed(b" \n")
    assert counter._held == b""
    for piece in (b"<a>", b"x", b"</a>", b"y"):
        counter.feed(piece)
    assert counter.num_tokens == 1003


def usages(vocabulary: Vocabulary, token_ids: list[int], budget: ThinkingBudget | None) -> list[int]:
    seq = Sequence([0], SamplingParams(max_tokens=99, thinking=budget))
    stream = OutputStream(seq, vocabulary)
    counts = []
    for token_id in token_ids:
        seq.token_ids.append(token_id)
        (delta,) = OutputStream.feed_step([(stream, SampledToken(0, seq.seq_id, token_id))])
        counts.append(delta.usage.num_reasoning_tokens)
    return counts


def test_markers_count_that_the_text_leaves_out() -> None:
    vocabulary = Vocabulary(
        [b"<a>", b"</a>", b"x"], [True, True, False], byte_tokens=None, strip_leading_space=False
    )
    assert usages(vocabulary, [0, 2, 2, 1, 2], thinking(is_open=False)) == [1, 2, 3, 4, 4]
    assert usages(vocabulary, [2, 1, 2], thinking(is_open=True)) == [1, 2, 2]


def test_where_nobody_asks_nothing_is_counted() -> None:
    assert usages(VOCABULARY, [1, 2], None) == [0, 0]
