"""Forms of answers, examined by real processes with the built-in model's tokenizer."""

import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import trio
import trio.testing

from trioserve.core.forms import AnswerForm, Body, ChoiceForm, GrammarForm, JsonForm, RegexForm
from trioserve.core.sampling import Grammar
from trioserve.engine.checkpoint import ModelFolder, open_model
from trioserve.errors import InvalidGrammar, QueueFull, SettingsError, Unavailable, UnsupportedParameter
from trioserve.examiner import client as client_module
from trioserve.examiner.client import Examiner
from trioserve.settings import Settings

MODEL = open_model(Settings())
WEATHER = JsonForm(
    schema=json.dumps({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]})
)
MANY_CHOICES = ChoiceForm(tuple(f"c{i}" for i in range(20_000)))
"""Takes some 40 MB."""
MANY_PROPERTIES = JsonForm(
    schema=json.dumps({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(6000)}})
)
"""Takes more than a second."""


@asynccontextmanager
async def examining(model: ModelFolder = MODEL, **settings: Any) -> AsyncIterator[Examiner]:
    """An examiner whose first process is ready."""
    examiner = Examiner(Settings(**settings), model)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(examiner.run)
        await until(lambda: bool(examiner.statistics().pids))
        yield examiner
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110  # of other processes
            await trio.sleep(0.005)


def form(body: Body) -> AnswerForm:
    return AnswerForm(body=body)


async def text_of(examiner: Examiner, body: Body) -> str:
    """Of the grammar of a form."""
    return (await examiner.grammar(form(body), param="x")).text


async def refusal(examiner: Examiner, body: Body) -> str:
    with pytest.raises(InvalidGrammar) as info:
        await examiner.grammar(form(body), param="guided_json")
    assert info.value.param == "guided_json"
    assert str(info.value).startswith("guided_json: ")
    return str(info.value)


def of_process(pid: int, what: str) -> bytes:
    return Path(f"/proc/{pid}/{what}").read_bytes()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    "body",
    [WEATHER, RegexForm("a+b"), ChoiceForm(("yes", "no", "größer")), GrammarForm('root ::= "a" root | "b"')],
)
async def test_a_form_becomes_a_grammar(body: Body) -> None:
    async with examining() as examiner:
        grammar = await examiner.grammar(form(body), param="guided_json")
    assert (grammar.backend, len(grammar.key)) == ("guidance", 16)
    assert grammar.text


async def test_equal_forms_have_one_grammar_and_are_examined_once() -> None:
    async with examining(guided_decoding_backend="guidance") as examiner:
        found: list[Grammar] = []

        async def ask() -> None:
            found.append(await examiner.grammar(form(WEATHER), param="x"))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert examiner.statistics().num_waiting <= 1
        assert len(set(map(id, found))) == 1
        assert examiner.statistics().num_known == 1
        os.kill(examiner.statistics().pids[0], signal.SIGSTOP)  # nobody is asked again
        with trio.fail_after(1):
            assert await text_of(examiner, WEATHER) == found[0].text


async def test_the_grammars_asked_for_last_are_kept_and_a_few_refusals() -> None:
    async with examining(max_cached_grammars=2) as examiner:
        for pattern in ("a", "b", "a", "c"):
            await examiner.grammar(form(RegexForm(pattern)), param="x")
        await refusal(examiner, RegexForm("("))
        assert examiner.statistics().num_known == 3
        (pid,) = examiner.statistics().pids
        os.kill(pid, signal.SIGSTOP)
        for pattern in ("a", "c"):
            await examiner.grammar(form(RegexForm(pattern)), param="x")
        assert await refusal(examiner, RegexForm("("))
        with trio.move_on_after(0.2) as scope:
            await examiner.grammar(form(RegexForm("b")), param="x")
        assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (RegexForm("("), ""),
        (RegexForm("(" * 400 + "a" + ")" * 400), ""),
        (RegexForm("[b-a]"), ""),
        (GrammarForm("nothing that is a grammar"), ""),
        (JsonForm(schema="{"), ""),
        (JsonForm(schema='{"type": "nonsense"}'), ""),
        (JsonForm(schema='{"properties":{"a":' * 400 + "{}" + "}}" * 400), ""),
        (JsonForm(schema="false"), ""),
        (
            JsonForm(schema=json.dumps({"enum": ["x" * 100] * 3000})),
            "at most max_grammar_bytes = 262144 bytes",
        ),
        (ChoiceForm(("ä" * (1 << 17), "b")), "at most max_grammar_bytes = 262144 bytes, not 262145"),
    ],
)
async def test_what_is_no_good_is_refused_and_the_process_lives(body: Body, reason: str) -> None:
    async with examining() as examiner:
        pids = examiner.statistics().pids
        told = await refusal(examiner, body)
        assert reason in told
        assert len(told) < 500
        assert examiner.statistics().pids == pids


WORDS = [
    "type",
    "object",
    "array",
    "items",
    "properties",
    "anyOf",
    "allOf",
    "$ref",
    "#",
    "enum",
    "pattern",
    "minimum",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(WORDS),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(WORDS) | st.text(), inner),
)
NOISE = st.text(
    st.sampled_from('()[]{}|*+?^$\\.,:=/"<>-&~%@ \nab01_') | st.characters(exclude_categories=["Cs"])
)
BODIES = st.one_of(
    st.builds(RegexForm, NOISE),
    st.builds(GrammarForm, NOISE | NOISE.map("root ::= {}".format) | NOISE.map("start: {}".format)),
    st.builds(lambda value: JsonForm(schema=json.dumps(value)), VALUES),
    st.builds(lambda texts: ChoiceForm(tuple(texts)), st.lists(NOISE)),
)


@hypothesis.settings(max_examples=4, deadline=None)
@hypothesis.given(bodies=st.lists(BODIES, min_size=40, max_size=60))
def test_whatever_is_asked_for_becomes_a_grammar_or_is_refused(bodies: list[Body]) -> None:
    refused: list[InvalidGrammar] = []

    async def ask() -> None:
        async with examining() as examiner:
            for body in bodies:
                try:
                    assert await text_of(examiner, body)
                except InvalidGrammar as exc:
                    refused.append(exc)

    trio.run(ask)
    for error in refused:
        assert error.param == "x"
        assert str(error).startswith("x: ")
        assert "\n" not in str(error)


async def test_one_that_takes_too_long_is_killed_and_the_next_one_served() -> None:
    async with examining(grammar_timeout_s=0.2) as examiner:
        (pid,) = examiner.statistics().pids
        began = trio.current_time()
        assert "within grammar_timeout_s = 0.2" in await refusal(examiner, MANY_PROPERTIES)
        assert trio.current_time() - began < 2
        assert await text_of(examiner, WEATHER)
        assert not is_alive(pid)
        assert pid not in examiner.statistics().pids


async def test_what_took_too_long_once_may_be_tried_again() -> None:
    async with examining(grammar_timeout_s=0.3) as examiner:
        os.kill(examiner.statistics().pids[0], signal.SIGSTOP)
        assert "grammar_timeout_s" in await refusal(examiner, WEATHER)
        assert await text_of(examiner, WEATHER)


async def test_one_that_kills_its_process_is_refused_and_the_next_one_served() -> None:
    async with examining() as examiner:
        (pid,) = examiner.statistics().pids
        os.kill(pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refusal, examiner, WEATHER)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(pid, signal.SIGKILL)
        assert await text_of(examiner, WEATHER)
        assert examiner.statistics().pids != (pid,)


async def test_memory_is_limited_by_the_kernel() -> None:
    async with examining(grammar_memory_bytes=1 << 24) as examiner:
        (pid,) = examiner.statistics().pids
        told = await refusal(examiner, MANY_CHOICES)
        assert "grammar_memory_bytes = 16777216" in told
        assert await text_of(examiner, RegexForm("a"))
        assert not is_alive(pid)
    async with examining() as examiner:
        assert await text_of(examiner, MANY_CHOICES), "what is too much is the server's to say"


async def test_those_who_leave_cancel_nothing_for_others() -> None:
    async with examining() as examiner:
        (pid,) = examiner.statistics().pids
        os.kill(pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            leaver = trio.CancelScope()

            async def leave() -> None:
                with leaver:
                    await examiner.grammar(form(WEATHER), param="x")

            async def stay() -> None:
                assert await text_of(examiner, WEATHER)

            nursery.start_soon(leave)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(stay)
            await trio.testing.wait_all_tasks_blocked()
            leaver.cancel()
            await trio.testing.wait_all_tasks_blocked()
            os.kill(pid, signal.SIGCONT)


async def test_what_nobody_waits_for_any_more_is_not_examined() -> None:
    async with examining() as examiner:
        (pid,) = examiner.statistics().pids
        os.kill(pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: examiner.grammar(form(RegexForm("a")), param="x"))
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.05):
                await examiner.grammar(form(RegexForm("b")), param="x")
            os.kill(pid, signal.SIGCONT)
        assert await text_of(examiner, RegexForm("c"))
        assert examiner.statistics().num_known == 2


async def test_no_more_than_so_many_wait() -> None:
    async with examining(max_num_queued_reqs=2) as examiner:
        (pid,) = examiner.statistics().pids
        os.kill(pid, signal.SIGSTOP)
        refused = 0

        async def ask(pattern: str) -> None:
            nonlocal refused
            try:
                await examiner.grammar(form(RegexForm(pattern)), param="x")
            except QueueFull:
                refused += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "z")
            await trio.testing.wait_all_tasks_blocked()
            for pattern in "abcd":
                nursery.start_soon(ask, pattern)
            await trio.testing.wait_all_tasks_blocked()
            assert (refused, examiner.statistics().num_waiting) == (2, 2)
            os.kill(pid, signal.SIGCONT)
        assert refused == 2


async def test_more_processes_come_once_all_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_max_processes", lambda settings: 2)
    async with examining() as examiner:
        (pid,) = examiner.statistics().pids
        os.kill(pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: examiner.grammar(form(RegexForm("a")), param="x"))
            await trio.testing.wait_all_tasks_blocked()
            assert await text_of(examiner, RegexForm("b")), "another one serves meanwhile"
            assert len(examiner.statistics().pids) == 2
            os.kill(pid, signal.SIGCONT)


async def test_the_end_leaves_no_process() -> None:
    async with examining() as examiner:
        (pid,) = examiner.statistics().pids
        async with trio.open_nursery() as nursery:
            os.kill(pid, signal.SIGSTOP)
            nursery.start_soon(lambda: examiner.grammar(form(WEATHER), param="x"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert not is_alive(pid)
    assert examiner.statistics().pids == ()


async def test_whoever_waits_at_the_end_is_told() -> None:
    examiner = Examiner(Settings(), MODEL)
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await examiner.run()

        async def ask() -> None:
            with pytest.raises(Unavailable):
                await examiner.grammar(form(WEATHER), param="x")

        nursery.start_soon(run)
        await until(lambda: bool(examiner.statistics().pids))
        os.kill(examiner.statistics().pids[0], signal.SIGSTOP)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()


async def test_a_process_dies_with_its_parent() -> None:
    code = (
        "import os, signal, trio\n"
        "from tests.examiner.test_examiner import MODEL, Settings, Examiner\n"
        "async def main():\n"
        "    examiner = Examiner(Settings(), MODEL)\n"
        "    async with trio.open_nursery() as nursery:\n"
        "        nursery.start_soon(examiner.run)\n"
        "        while not examiner.statistics().pids: await trio.sleep(0.01)\n"
        "        print(examiner.statistics().pids[0], flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "trio.run(main)\n"
    )
    done = await trio.run_process([sys.executable, "-c", code], capture_stdout=True, check=False)
    pid = int(done.stdout)
    await until(lambda: not is_alive(pid), 5)


async def test_it_sees_nothing_of_our_environment_and_lets_others_go_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRIOSERVE_API_KEY", "secret")
    async with examining() as examiner:
        (pid,) = examiner.statistics().pids
        assert b"TRIOSERVE" not in of_process(pid, "environ")
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
        core = next(line for line in of_process(pid, "limits").splitlines() if b"core" in line)
        assert core.split()[4:6] == [b"0", b"0"]


async def test_no_backend_means_no_process_and_no_form() -> None:
    examiner = Examiner(Settings(guided_decoding_backend="off"), MODEL)
    await examiner.run()
    with pytest.raises(UnsupportedParameter, match=r"guided_json: .*guided_decoding_backend is off") as info:
        await examiner.grammar(form(WEATHER), param="guided_json")
    assert info.value.param == "guided_json"


def without_tokenizer(tmp_path: Path) -> ModelFolder:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    return replace(MODEL, tokenizer_path=tmp_path)


async def test_a_tokenizer_that_the_backend_cannot_use_refuses_forms_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    examiner = Examiner(Settings(), without_tokenizer(tmp_path))

    async def ask() -> None:
        with pytest.raises(UnsupportedParameter, match="guided_json: not supported by this server") as info:
            await examiner.grammar(form(WEATHER), param="guided_json")
        assert info.value.param == "guided_json"

    with caplog.at_level(logging.WARNING):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            await examiner.run()
    await ask()
    assert len(caplog.records) == 1


async def test_a_backend_that_was_asked_for_and_is_not_to_be_had_stops_the_start(tmp_path: Path) -> None:
    examiner = Examiner(Settings(guided_decoding_backend="guidance"), without_tokenizer(tmp_path))
    with pytest.raises(SettingsError):
        await examiner.run()
