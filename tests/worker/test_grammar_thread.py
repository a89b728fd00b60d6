"""How grammars become ready: in a thread beside the steps, kept until they are forgotten, with an answer for each."""

import json
import os
import threading
from typing import Any

import pytest

from tests.worker.driver import Front, worker_config
from tests.worker.test_grammars import (
    FOLDER,
    PERSON,
    PROMPT,
    SETTINGS,
    grammar,
    json_grammar,
    params,
    regex,
    run,
    text_of,
)
from tests.worker.test_loop import served
from trioserve.core.sampling import Grammar
from trioserve.core.step import Admission, FromWorker, GrammarReady, GrammarRequest, WorkerReady
from trioserve.grammars.guidance import GuidanceEngine
from trioserve.worker.grammars import Grammars, GrammarThread


class Ready:
    """Takes what the thread of grammars sends."""

    def __init__(self) -> None:
        self.answers: list[FromWorker] = []
        self._come = threading.Condition()

    def send(self, message: FromWorker) -> None:
        with self._come:
            self.answers.append(message)
            self._come.notify()

    def wait(self, count: int) -> list[FromWorker]:
        with self._come:
            assert self._come.wait_for(lambda: len(self.answers) >= count, 30)
        return self.answers


def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are compiled from now on, in order."""
    compile_, texts = GuidanceEngine.compile, list[str]()

    def noted(self: GuidanceEngine, text: str) -> Any:
        texts.append(text)
        return compile_(self, text)

    monkeypatch.setattr(GuidanceEngine, "compile", noted)
    return texts


def test_grammars_are_made_ready_in_order_and_those_that_cannot_be_answer_why() -> None:
    ready = Ready()
    with GrammarThread(Grammars(worker_config(FOLDER, **SETTINGS)), ready.send) as thread:
        thread.start()
        thread.wait_loaded()
        thread.take(GrammarRequest(regex("a")))
        thread.take(GrammarRequest(grammar("start: nothing\n", b"bad")))
        thread.take(GrammarRequest(regex("b")))
        good, bad, last = ready.wait(3)
    assert (good, last) == (GrammarReady(regex("a").key), GrammarReady(regex("b").key))
    assert isinstance(bad, GrammarReady)
    assert bad.key == b"bad"
    assert "nothing" in bad.error


def test_a_grammar_that_is_ready_is_compiled_once_until_it_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = compilations(monkeypatch)
    grammars, ready = Grammars(worker_config(FOLDER, **SETTINGS)), Ready()
    one, other = regex("a"), regex("b")
    admission = Admission(0, 1, PROMPT, len(PROMPT), 0, [], params(grammar=one))
    with GrammarThread(grammars, ready.send) as thread:
        thread.start()
        thread.take(GrammarRequest(one))
        thread.take(GrammarRequest(one))
        ready.wait(2)
        grammars.constraint(admission)
        assert texts == [one.text]
        thread.take(GrammarRequest(other, [one.key, b"never heard of"]))
        ready.wait(3)
        grammars.constraint(admission)
    assert texts == [one.text, other.text, one.text]


def test_no_more_grammars_are_kept_than_asked_for_and_the_last_used_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = compilations(monkeypatch)
    grammars = Grammars(worker_config(FOLDER, **SETTINGS, max_cached_grammars=2))
    for pattern in "abacabc":
        grammars.make_ready(regex(pattern))
    assert texts == [regex(pattern).text for pattern in "abcbc"]


def test_the_thread_that_compiles_runs_last_and_ends_with_its_block() -> None:
    niceness: list[int] = []
    ready = Ready()

    def send(message: FromWorker) -> None:
        niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        ready.send(message)

    with GrammarThread(Grammars(worker_config(FOLDER, **SETTINGS)), send) as thread:
        thread.start()
        thread.take(GrammarRequest(regex("a")))
        ready.wait(1)
    assert niceness == [15]
    assert not any(other.name == "grammars" for other in threading.enumerate())


def test_a_library_that_fails_otherwise_than_it_should_is_an_answer_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Panic(BaseException):
        pass

    def panic(self: Grammars, one: Grammar) -> None:
        raise Panic

    monkeypatch.setattr(Grammars, "make_ready", panic)
    ready = Ready()
    with GrammarThread(Grammars(worker_config(FOLDER, **SETTINGS)), ready.send) as thread:
        thread.start()
        thread.take(GrammarRequest(regex("a")))
        (answer,) = ready.wait(1)
    assert isinstance(answer, GrammarReady)
    assert answer.error
    assert "Panic" in capfd.readouterr().err


def test_grammars_and_steps_share_a_socket() -> None:
    with served() as (wire, exit_codes):
        assert isinstance(wire.start(worker_config(FOLDER, **SETTINGS))[-1], WorkerReady)
        one = params(grammar=json_grammar(PERSON))
        assert one.grammar is not None
        wire.send(GrammarRequest(one.grammar))
        at = Front(wire.execute)
        assert wire.receive() == GrammarReady(one.grammar.key)
        output = run(at, 0, one)
        assert set(json.loads(text_of(output))) == set(PERSON["properties"])
        wire.send(GrammarRequest(grammar("start: (\n", b"bad")))
        answer = wire.receive()
        assert isinstance(answer, GrammarReady)
        assert answer.error
    assert exit_codes == [0]
