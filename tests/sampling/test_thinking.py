"""Where thinking begins and ends, and when it is cut off, however tokens cut the text."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from trioserve.core.sampling import ThinkingBudget
from trioserve.sampling.thinking import ThinkingWatch

END_IDS = (901, 902)
PIECES = {901: b"\n</think>", 902: b"\n\n"}


def budget(
    max_tokens: int | None, *, is_open: bool = True, end_ids: tuple[int, ...] = END_IDS
) -> ThinkingBudget:
    return ThinkingBudget(
        begins=("<think>", "<thought>"),
        ends=("</think>", "</thought>"),
        is_open=is_open,
        max_tokens=max_tokens,
        forced_end=end_ids,
    )


def watch(answer: list[bytes], one: ThinkingBudget) -> tuple[ThinkingWatch, list[int | None]]:
    """Feed pieces as ids 0, 1, 2, ...; what was due before each and at the end."""
    pieces = PIECES | dict(enumerate(answer))
    found = ThinkingWatch(one, pieces.__getitem__)
    due = [found.due]
    for token_id in range(len(answer)):
        found.add(token_id)
        due.append(found.due)
    return found, due


def test_an_open_answer_thinks_from_its_first_token_and_is_cut_off_when_the_budget_is_spent() -> None:
    found, due = watch([b"Let", b" me", b" see"], budget(3))
    assert due == [None, None, None, 901]
    found.add(901)
    assert found.due == 902
    assert found.is_over
    found.add(902)
    assert found.due is None


def test_no_budget_at_all_ends_the_thinking_before_its_first_token() -> None:
    _, due = watch([], budget(0))
    assert due == [901]


def test_an_answer_that_does_not_think_is_never_cut_off() -> None:
    for answer in ([b"Hello", b" <think>", b" more"], [b" \n", b"<thi", b"s", b"x"], [b"</think>", b"x"]):
        found, due = watch(answer, budget(0, is_open=False))
        assert due == [None] * len(due)
        assert found.is_over


def test_thinking_that_begins_in_the_answer_is_cut_off_once_its_beginning_is_complete() -> None:
    _, due = watch([b" \n", b"<th", b"ink>", b"a"], budget(0, is_open=False))
    assert due[:4] == [None, None, None, 901]
    _, due = watch([b"<think>", b"a", b"b"], budget(3, is_open=False))
    assert due == [None, None, None, 901]


def test_thinking_that_ends_by_itself_is_left_alone() -> None:
    found, due = watch([b"a", b"</thi", b"nk>x", b"y", b"z"], budget(3))
    assert due == [None] * 6
    assert found.is_over


def test_something_else_than_what_is_due_lets_the_rest_of_it_be_forgotten() -> None:
    found, _ = watch([b"a", b"b"], budget(1))
    assert found.due is None
    assert not found.is_over
    found, _ = watch([b"a"], budget(1))
    found.add(901)
    assert found.due == 902
    found.add(0)
    assert found.due is None


def test_the_end_is_forced_once_whatever_it_says() -> None:
    found, due = watch([b"a", b"b", b"c", b"d"], budget(1, end_ids=(1,)))
    assert due == [None, 1, None, None, None]
    assert not found.is_over


def test_without_a_limit_nothing_is_ever_due() -> None:
    _, due = watch([b"a"] * 100, budget(None))
    assert due == [None] * 101


@given(
    text=st.lists(
        st.sampled_from(["<think>", "</think>", "</thought>", "<", "</th", "think>", " ", "\n", "a", "é"]),
        max_size=12,
    ).map("".join),
    cuts=st.lists(st.integers(0, 60), max_size=12),
    is_open=st.booleans(),
)
def test_whether_it_thinks_does_not_depend_on_how_tokens_cut_the_text(
    text: str, cuts: list[int], is_open: bool
) -> None:
    data = text.encode()
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in pairwise(places)]
    found, _ = watch(pieces, budget(None, is_open=is_open))
    each, _ = watch([data[at : at + 1] for at in range(len(data))], budget(None, is_open=is_open))
    inside = data if is_open else data.lstrip()
    begins = is_open or inside.startswith((b"<think>", b"<thought>"))
    may_begin = not begins and any(begin.startswith(inside) for begin in (b"<think>", b"<thought>"))
    rest = inside if is_open else inside.partition(b">")[2]
    ends = b"</think>" in rest or b"</thought>" in rest
    assert found.is_over == each.is_over == ((ends if begins else not may_begin) if data else False)
