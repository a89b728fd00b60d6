"""Which parsers a server has: by setting, from packages, in every process; and what stops a start."""

from pathlib import Path

import pytest

from tests.e2e.harness import TRIOSERVE, running_server
from tests.e2e.test_tools import CHAT, RAIN, TOOLS, user, whole
from tests.e2e.test_workers import client_of, wait_both_ready

PLUGIN = """
from trioserve.parsers.dialects import ReasoningDialect, ToolDialect
from trioserve.parsers.envelope import EnvelopeReader
from trioserve.parsers.formats import ToolShape
from trioserve.parsers.reasoning import MarkedReasoning, ReasoningFormat

form = ReasoningFormat(begins=("<think>",), ends=(".\\n</think>",), forced_end=".\\n</think>\\n\\n")


def open_reader(tools):
    return EnvelopeReader(tools, begins=("<tool_call>",), ends=("</tool_call>",)).machine()


tools = ToolDialect(
    name="mine",
    open=open_reader,
    shape=ToolShape(
        call='<tool_call>\\n{"name": "NAME", "arguments": ',
        call_end="}\\n</tool_call>",
        triggers=("<tool_call>",),
    ),
)
reasoning = ReasoningDialect(name="mine", form=form, open=lambda prompt: MarkedReasoning(form, prompt))
"""


@pytest.fixture
def entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an installed package with the module ``my_parsers`` says what it brings."""
    info = tmp_path / "my_parsers-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-parsers\nVersion: 1\n")
    (tmp_path / "my_parsers.py").write_text(PLUGIN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return info / "entry_points.txt"


def test_an_installed_package_parses_the_answers_of_every_process(tmp_path: Path, entry_points: Path) -> None:
    entry_points.write_text(
        "[trioserve.tool_parsers]\nmine = my_parsers:tools\n"
        "[trioserve.reasoning_parsers]\nmine = my_parsers:reasoning\n"
    )
    settings = {"workers": 2, "tool_call_parser": "mine", "reasoning_parser": "mine"}
    with running_server(tmp_path / "log", command=TRIOSERVE, settings=settings) as server:
        wait_both_ready(server)
        assert (
            server.log.count("parser of tool calls: mine (tool_call_parser = mine); of thinking: mine") == 2
        )
        for worker in (0, 1):
            with client_of(server, worker) as client:
                body = {
                    "messages": user(RAIN),
                    "tools": TOOLS,
                    "enable_thinking": True,
                    "thinking_budget": 500,
                }
                for choice in ("auto", "required"):
                    answer = whole(client, **body, tool_choice=choice)
                    message = answer["choices"][0]["message"]
                    assert message["tool_calls"][0]["function"]["name"] == "kolu_meva"
                    assert message["reasoning"] and not message["reasoning"].endswith(".")
                    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


@pytest.mark.parametrize(
    ("plugin", "settings", "sentence"),
    [
        (
            "",
            {"tool_call_parser": "nobody"},
            "tool_call_parser = 'nobody' is not known: give auto, none, or one of",
        ),
        ("", {"reasoning_parser": "nobody"}, "reasoning_parser = 'nobody' is not known"),
        ("mine = my_parsers:nothing", {}, "plugin mine = my_parsers:nothing cannot be loaded"),
    ],
)
def test_a_parser_that_cannot_be_had_stops_the_start_with_one_sentence(
    plugin: str, settings: dict[str, str], sentence: str, tmp_path: Path, entry_points: Path
) -> None:
    entry_points.write_text(f"[trioserve.tool_parsers]\n{plugin}\n")
    with running_server(tmp_path / "log", command=TRIOSERVE, settings=settings, wait_ready=False) as server:
        assert server.wait(30) == 78
    assert sentence in server.log and "Traceback" not in server.log


def test_without_parsers_tools_are_refused_and_thinking_is_content(tmp_path: Path) -> None:
    settings = {"tool_call_parser": "none", "reasoning_parser": "none"}
    with running_server(tmp_path / "log", settings=settings) as server, server.client() as client:
        refused = client.post(CHAT, json={"messages": user(RAIN), "tools": TOOLS})
        assert refused.status_code == 400 and "tool_call_parser" in refused.json()["error"]["message"]
        budget = client.post(CHAT, json={"messages": user(RAIN), "thinking_budget": 5})
        assert budget.status_code == 400 and "reasoning_parser" in budget.json()["error"]["message"]
        answer = whole(client, messages=user("What is the capital of France?"), enable_thinking=True)
        message = answer["choices"][0]["message"]
        assert "</think>" in message["content"] and "reasoning" not in message
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
