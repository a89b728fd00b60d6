"""Forms of answers at the HTTP room: examined before anything runs, and handed to the engine with the sequence.

The rank recites whatever the form is; that answers keep to it is shown in tests/e2e.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.http.house import House, make_tokenizer, open_house
from trioserve.core.sampling import SamplingParams
from trioserve.engine.engine import Engine

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
    TEXT: {"prompt": "x", "max_tokens": 2},
}


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reciter")
    make_tokenizer().backend.save(str(path / "tokenizer.json"))
    return path


@asynccontextmanager
async def examining_house(tokenizer_path: Path, **settings: Any) -> AsyncIterator[House]:
    given = {"guided_decoding_backend": "guidance", **settings}
    async with open_house(tokenizer_path=tokenizer_path, **given) as house:
        yield house


async def refusal(house: House, path: str, **fields: Any) -> Any:
    answer = await house.post(path, {**BODIES[path], **fields})
    assert answer.status == 400, answer.body
    return answer.error


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_the_grammar_goes_with_every_sequence(
    tokenizer_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[SamplingParams] = []
    stream = Engine.stream

    def spy(engine: Engine, sequences: Any) -> Any:
        given.extend(sequence.params for sequence in sequences)
        return stream(engine, sequences)

    async with examining_house(tokenizer_path) as house:
        monkeypatch.setattr(Engine, "stream", spy)
        grammars = house.services.model.grammars
        await house.post(path, {**BODIES[path], "guided_regex": "a+", "n": 2})
        await house.post(path, {**BODIES[path], "n": 2})
        assert grammars.statistics().num_known == 1
    formed, free = given[:2], given[2:]
    assert len(formed) == len(free) == 2
    for params in formed:
        assert params.grammar is not None
        assert params.grammar.backend == "guidance"
    assert [params.grammar for params in free] == [None, None]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_form_that_is_no_good_is_a_400_before_anything_runs(
    tokenizer_path: Path, path: str, stream: bool
) -> None:
    async with examining_house(tokenizer_path) as house:
        error = await refusal(house, path, guided_regex="(", stream=stream)
        assert (error["param"], error["code"]) == ("guided_regex", "invalid_grammar")
        error = await refusal(house, path, guided_regex="a", regex="b", stream=stream)
        assert (error["param"], error["code"]) == ("regex", "invalid_value")
        error = await refusal(house, path, guided_choice=["x" * 2_000_000], stream=stream)
        assert error["param"] == "guided_choice"
        assert house.executor.rank.num_computed == 0


async def test_the_backend_must_be_the_one_that_is_used(tokenizer_path: Path) -> None:
    async with examining_house(tokenizer_path) as house:
        for fields in ({"guided_regex": "a"}, {}):
            error = await refusal(house, TEXT, guided_decoding_backend="outlines", **fields)
            assert (error["param"], error["code"]) == ("guided_decoding_backend", "unsupported_parameter")


async def test_a_client_that_leaves_while_its_form_is_examined_leaves_nothing(tokenizer_path: Path) -> None:
    async with examining_house(tokenizer_path) as house:
        leaves = trio.Event()
        async with trio.open_nursery() as nursery:
            ask = {**BODIES[TEXT], "guided_choice": [f"c{i}" for i in range(5000)]}

            async def leave() -> None:
                await house.ask("POST", TEXT, ask, leaves=leaves)

            nursery.start_soon(leave)
            await trio.sleep(0.01)
            leaves.set()
        statistics = house.engine.statistics()
        assert (statistics.num_running, statistics.num_waiting) == (0, 0)


async def test_without_a_backend_every_form_is_refused_and_text_is_not() -> None:
    async with open_house() as house:
        error = await refusal(house, CHAT, response_format={"type": "json_object"})
        assert (error["param"], error["code"]) == ("response_format", "unsupported_parameter")
        assert "guided_decoding_backend is off" in error["message"]
        answer = await house.post(CHAT, {**BODIES[CHAT], "response_format": {"type": "text"}})
        assert answer.status == 200
