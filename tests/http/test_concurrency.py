"""How many requests are served at a time, and how many a minute: of all and of each key."""

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from tests.http.house import Answer, open_house

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}


@pytest.mark.parametrize("stream", [True, False])
async def test_one_request_too_many_gets_429_and_the_next_one_a_place(
    stream: bool, autojump_clock: MockClock
) -> None:
    answers: list[Answer] = []
    async with open_house(max_concurrency=3) as house:

        async def ask() -> None:
            answers.append(await house.post(CHAT, {**HI, "stream": stream}))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert sorted(answer.status for answer in answers) == [200, 200, 200, 429, 429]
        refused = next(answer for answer in answers if answer.status == 429)
        assert refused.error["message"] == "3 requests are served, the limit is 3"
        assert int(refused.headers["retry-after"]) >= 1
        assert (await house.post(CHAT, HI)).status == 200


async def test_who_leaves_or_is_wrong_gives_the_place_back(autojump_clock: MockClock) -> None:
    async with open_house(max_concurrency=1, step_s=1.0) as house:
        for _ in range(3):
            leaves = trio.Event()
            async with trio.open_nursery() as nursery:
                stream = partial(house.ask, "POST", CHAT, {**HI, "stream": True}, leaves=leaves)
                nursery.start_soon(stream)
                await trio.sleep(2)
                assert (await house.post(CHAT, HI)).status == 429
                leaves.set()
        assert [(await house.post(CHAT, b"{")).status for _ in range(3)] == [400] * 3
        assert (await house.post(CHAT, HI)).status == 200


async def test_probes_are_answered_however_much_is_served(autojump_clock: MockClock) -> None:
    async with open_house(max_concurrency=1, step_s=1.0) as house:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.post, CHAT, HI)
            await trio.sleep(2)
            for path in ("/live", "/ready", "/health", "/v1/models"):
                assert (await house.ask("GET", path)).status == 200
            nursery.cancel_scope.cancel()


def as_key(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_one_key_takes_no_place_of_another(autojump_clock: MockClock) -> None:
    async with open_house(api_key=("a", "b"), max_concurrency_per_key=1, step_s=1.0) as house:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(house.post, CHAT, {**HI, "max_tokens": 5}, **as_key("a")))
            await trio.sleep(2)
            refused = await house.post(CHAT, HI, **as_key("a"))
            assert (refused.status, refused.error["code"]) == (429, "queue_full")
            assert refused.error["message"] == "1 requests of this key are served, the limit is 1"
            assert (await house.post(CHAT, HI, **as_key("b"))).status == 200
        assert (await house.post(CHAT, HI, **as_key("a"))).status == 200


async def test_a_keys_minute_is_told_and_kept_to(autojump_clock: MockClock) -> None:
    async with open_house(api_key=("a", "b"), max_requests_per_minute=3) as house:
        for remaining in (2, 1, 0):
            answer = await house.post(CHAT, HI, **as_key("a"))
            assert answer.status == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(remaining)
        assert 50 < float(answer.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
        refused = await house.post(CHAT, HI, **as_key("a"))
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        wait_s = int(refused.headers["retry-after"])
        assert 1 <= wait_s <= 20
        assert (await house.post(CHAT, HI, **as_key("b"))).status == 200
        assert (await house.ask("GET", "/v1/models", headers=as_key("a"))).status == 200, "reading is free"
        await trio.sleep(wait_s)
        assert (await house.post(CHAT, HI, **as_key("a"))).status == 200
