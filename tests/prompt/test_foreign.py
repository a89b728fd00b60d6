"""Templates of requests: rendered elsewhere, and killed when they take too much."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from trioserve.errors import InvalidRequest, QueueFull
from trioserve.prompt.foreign import ForeignTemplates, RequestTemplate
from trioserve.prompt.sandbox import Job, render
from trioserve.prompt.template import ChatTemplate, Conversation

HI = Conversation(messages=[{"role": "user", "content": "hi ü"}], variables={"name": "x"})
FOREVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def template(source: str, **limits: Any) -> RequestTemplate:
    given = {"timeout_s": 60.0, "memory_bytes": 128 << 20, "max_bytes": 1 << 20, "max_waiting": 8, **limits}
    return RequestTemplate(source=source, **given)


async def refusal(source: str, **limits: Any) -> str:
    with pytest.raises(InvalidRequest) as info:
        await ForeignTemplates().render(template(source, **limits), HI)
    assert info.value.param == "chat_template"
    return str(info.value)


def num_processes() -> int:
    found = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += b"trioserve.prompt.sandbox" in entry.read_bytes()
        except OSError:
            continue
    return found


async def test_it_renders_as_the_models_own_would() -> None:
    source = (
        "{{ messages[0].content | tojson }}{{ name }}{% if add_generation_prompt %}>{% endif %}{{ tools }}"
    )
    assert await ForeignTemplates().render(template(source), HI) == HI.rendered_by(ChatTemplate(source))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('never') }}", "the request's chat template says: never"),
        ("{% for %}", "does not compile"),
        ("{% break %}", "does not compile: 'break' outside loop"),
        ("{{ messages[7].content }}", "cannot render these messages: UndefinedError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot render these messages: SecurityError"),
        ("{{ 'a' * 200000000 }}", "template_memory_bytes"),
        ("{% set x = 'ab' * 300 * 300 %}{{ (x * 300) | length }}{{ x * 3000 }}", "template_memory_bytes"),
        ("{{ 'a' * 2000000 }}", "2000000 characters, more than max_body_bytes = 1048576"),
    ],
)
async def test_what_it_does_wrong_is_told(source: str, message: str) -> None:
    assert message in await refusal(source)


async def test_a_process_that_is_killed_in_the_middle_of_its_answer_has_taken_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_process = trio.run_process

    async def cut(*args: Any, **kwargs: Any) -> Any:
        done = await run_process(*args, **kwargs)
        done.stdout = done.stdout[:-3]
        return done

    monkeypatch.setattr(trio, "run_process", cut)
    assert "template_memory_bytes" in await refusal("{{ name }}")


async def test_one_that_never_ends_is_killed_and_holds_up_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    templates = ForeignTemplates()
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        with pytest.raises(InvalidRequest, match=r"did not render within template_timeout_s = 1\.5"):
            await templates.render(template(FOREVER, timeout_s=1.5), HI)
        nursery.cancel_scope.cancel()
    assert turns > 20
    assert num_processes() == 0
    assert await templates.render(template("{{ name }}"), HI) == "x"


async def test_a_client_that_leaves_takes_its_process_with_it() -> None:
    with trio.move_on_after(1) as scope:
        await ForeignTemplates().render(template(FOREVER), HI)
    assert scope.cancelled_caught
    assert num_processes() == 0


async def test_no_more_than_so_many_wait() -> None:
    templates = ForeignTemplates()
    refused = 0

    async def ask(scope: trio.CancelScope) -> None:
        nonlocal refused
        try:
            await templates.render(template(FOREVER, max_waiting=1), HI)
        except QueueFull:
            refused += 1
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask, nursery.cancel_scope)
    assert refused > 0
    assert num_processes() == 0


async def test_it_sees_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    run_process = trio.run_process

    async def spy(*args: Any, **kwargs: Any) -> Any:
        seen.update(kwargs["env"])
        return await run_process(*args, **kwargs)

    monkeypatch.setenv("TRIOSERVE_API_KEY", "secret")
    monkeypatch.setattr(trio, "run_process", spy)
    assert await ForeignTemplates().render(template("{{ name }}"), HI) == "x"
    assert "PATH" in seen
    assert not [name for name in seen if name.startswith("TRIOSERVE")]


@pytest.mark.parametrize(
    ("source", "check"),
    [
        ("{{ name }}", lambda rendered: rendered.text == "x" and rendered.refusal is None),
        ("{{ name * 9 }}", lambda rendered: "9 characters, more than" in rendered.refusal),
        ("{" * 50_000 + "{ a", lambda rendered: "does not compile" in rendered.refusal),
        (
            "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
            lambda rendered: "does not compile" in rendered.refusal,
        ),
    ],
)
def test_a_job_has_a_text_or_a_reason(source: str, check: Callable[[Any], bool]) -> None:
    job = Job(source=source, conversation=HI, timeout_s=1, memory_bytes=1 << 20, max_bytes=8)
    assert check(render(job))
