"""Probes and models."""

import openai.types as oai
import pytest

import trioserve
from tests.http.house import open_house
from trioserve.engine.lifecycle import Lifecycle
from trioserve.http.app import create_app
from trioserve.http.services import Services
from trioserve.settings import Settings


@pytest.mark.parametrize(
    ("moves", "state", "live", "ready"),
    [
        ([], "starting", 200, 503),
        (["works_ready"], "ready", 200, 200),
        (["works_ready", "works_lost"], "recovering", 200, 503),
        (["works_ready", "begin_drain"], "lame_duck", 200, 503),
        (["works_ready", "begin_drain", "begin_closing"], "closing", 200, 503),
        (["fail"], "failed", 503, 503),
    ],
)
async def test_probes_tell_the_servers_state(moves: list[str], state: str, live: int, ready: int) -> None:
    lifecycle = Lifecycle()
    for move in moves:
        if move == "fail":
            lifecycle.fail("why", exit_code=70)
        else:
            getattr(lifecycle, move)()
    async with open_house() as house:
        house.app = create_app(Services(Settings(), lifecycle))
        for path, status in (("/live", live), ("/health", live), ("/ready", ready)):
            answer = await house.ask("GET", path)
            assert (answer.status, answer.json["state"]) == (status, state)


async def test_health_counts() -> None:
    async with open_house() as house:
        before = (await house.ask("GET", "/health")).json
        await house.json("/v1/completions", {"prompt": "abc"})
        after = (await house.ask("GET", "/health")).json
    assert (before["last_step_age_s"], before["num_running"], before["num_waiting"]) == (None, 0, 0)
    assert 0 <= after["last_step_age_s"] < 5
    assert after["status"] == "ok"


async def test_version() -> None:
    async with open_house() as house:
        assert (await house.ask("GET", "/version")).json == {"version": trioserve.__version__}


async def test_models_by_all_their_names() -> None:
    async with open_house(names=("one", "org/two")) as house:
        listed = (await house.ask("GET", "/v1/models")).json
        single = (await house.ask("GET", "/v1/models/org/two")).json
        missing = await house.ask("GET", "/v1/models/org/three")
    assert listed["object"] == "list"
    assert [oai.Model.model_validate(card).id for card in listed["data"]] == ["one", "org/two"]
    assert single == {
        "id": "org/two",
        "object": "model",
        "created": 1_700_000_000,
        "max_model_len": 256,
        "root": "one",
        "parent": None,
        "owned_by": "trioserve",
    }
    assert (missing.status, missing.error["param"]) == (404, "model")
    assert "one, org/two" in missing.error["message"]
