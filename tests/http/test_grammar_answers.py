"""What the other side of a grammar and of a budget of thinking looks like to a client."""

from functools import partial

import pytest
from trio.testing import MockClock

from tests.http.house import EOS_ID, RECITED, House, open_house, recited
from tests.http.test_streams import assert_nothing_left
from trioserve.core.sampling import Grammar, ThinkingBudget
from trioserve.http import exchange
from trioserve.http.generation import prepare

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GRAMMAR = Grammar("any", "text", b"key")
THINKING = ThinkingBudget(begins=(), ends=("One",), is_open=True, max_tokens=None, forced_end=())
LENGTH = len(RECITED.encode())
PROMPT = {"prompt": "x" * LENGTH, "max_tokens": 30}  # so that the answer begins with the text


@pytest.fixture(autouse=True)
def constrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request has a grammar and says how its thinking ends."""
    monkeypatch.setattr(exchange, "prepare", lambda *args, **given: prepare(*args, **given | WISHES))


WISHES = {"grammar": GRAMMAR, "thinking": THINKING}


def break_off(house: House) -> None:
    house.executor.rank.failure = partial(_failure, LENGTH + 5)


def _failure(length: int, token_ids: list[int]) -> str:
    return "the grammar is too complex" if len(token_ids) >= length else ""


async def test_a_grammar_that_cannot_go_on_is_the_requests_fault(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        break_off(house)
        answer = await house.post(COMPLETIONS, PROMPT)
        assert (answer.status, answer.error) == (
            400,
            {
                "message": "the grammar is too complex",
                "type": "invalid_request_error",
                "param": None,
                "code": "invalid_grammar",
            },
        )
        assert_nothing_left(house)


async def test_in_a_stream_it_is_an_event_and_the_end(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        break_off(house)
        events = await house.events(COMPLETIONS, PROMPT)
        assert "".join(event["choices"][0]["text"] for event in events[:-1]) == recited(LENGTH, 5)[:-1]
        assert events[-1]["error"]["type"] == "invalid_request_error"
        assert events[-1]["error"]["code"] == "invalid_grammar"
        assert_nothing_left(house)


async def test_a_grammar_that_ranks_refuse_is_a_400(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        house.executor.grammar_errors[b"key"] = "the grammar is too large"
        answer = await house.post(CHAT, {"messages": [{"role": "user", "content": "hi"}]})
        assert (answer.status, answer.error["code"]) == (400, "invalid_grammar")
        assert answer.error["message"] == "the grammar is too large"
        assert_nothing_left(house)


@pytest.mark.parametrize("ignore_eos", [False, True])
async def test_the_model_ends_what_a_grammar_lets_end(ignore_eos: bool, autojump_clock: MockClock) -> None:
    async with open_house() as house:
        recite = house.executor.rank.next_token
        house.executor.rank.next_token = lambda ids: EOS_ID if len(ids) == LENGTH + 12 else recite(ids)
        body = {**PROMPT, "ignore_eos": ignore_eos, "min_tokens": 20}
        (choice,) = (await house.json(COMPLETIONS, body))["choices"]
        assert (choice["finish_reason"], choice["text"]) == ("stop", recited(LENGTH, 12))
        assert choice.get("stop_reason") is None


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_tells_of_thinking(stream: bool, autojump_clock: MockClock) -> None:
    async with open_house() as house:
        body = {**PROMPT, "n": 2, "max_tokens": LENGTH, "stream_options": {"include_usage": True}}
        if stream:
            usage = (await house.events(COMPLETIONS, body))[-2]["usage"]
        else:
            del body["stream_options"]
            usage = (await house.json(COMPLETIONS, body))["usage"]
        each = RECITED.encode().index(b"One") + len(b"One")
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 2 * each
        assert usage["completion_tokens"] == 2 * LENGTH
