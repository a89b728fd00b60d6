"""Chat templates: what they may do, what they refuse, where they come from."""

from pathlib import Path
from typing import Any

import pytest

from tests.prompt.folders import write_folder
from trioserve.errors import InvalidRequest, ModelError, NoChatTemplate, SettingsError
from trioserve.prompt.template import ChatTemplate, ChatTemplates, load_templates

HI: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
ECHO = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
PARTS_ONLY = "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}"


def test_a_refusal_says_the_templates_words() -> None:
    template = ChatTemplate("{{ raise_exception('only ' ~ messages | length ~ ' turns, please') }}")
    with pytest.raises(InvalidRequest, match="chat template says: only 1 turns, please") as info:
        template.render(HI)
    assert info.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[5].content }}",
        "{{ messages + 1 }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content.nothing.at_all }}",
        "{{ range(1000000000) | list }}",
        "{{ messages | tojson(indent='x', separators=5) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ strftime_now(5) }}",
    ],
)
def test_a_template_that_fails_is_the_requests_error_not_the_servers(source: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot render these messages") as info:
        ChatTemplate(source).render(HI)
    assert len(str(info.value)) < 500


@pytest.mark.parametrize(
    "source", ["{% for %}", "{% break %}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"]
)
def test_a_template_that_does_not_compile_stops_the_start(source: str) -> None:
    """Jinja leaves it to Python to say that there is no loop to break."""
    with pytest.raises(ModelError, match="does not compile"):
        ChatTemplate(source)


def test_roles_that_a_template_does_not_know_go_by_the_nearest_name() -> None:
    messages = [{"role": "developer", "content": "a"}, {"role": "function", "content": "b"}]
    assert ChatTemplate(ECHO).render(messages) == "system:a;tool:b;"
    knows = ECHO + "{% if messages[0].role == 'developer' %}!{% endif %}"
    assert ChatTemplate(knows).render(messages) == "developer:a;tool:b;!"


def test_content_comes_in_the_form_that_the_template_reads() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert ChatTemplate(ECHO).render(parts) == "user:a\nb;"
    assert ChatTemplate(PARTS_ONLY).render(parts) == "[a][b]"
    assert ChatTemplate(PARTS_ONLY).render(HI) == "[hi]"


def test_fields_that_are_null_are_left_out() -> None:
    template = ChatTemplate("{{ messages[0].name is defined }}")
    assert template.render([{"role": "user", "content": "x", "name": None}]) == "False"


def test_a_model_without_a_template_says_so() -> None:
    with pytest.raises(NoChatTemplate, match="/v1/completions"):
        ChatTemplates({}).choose(has_tools=False)


def test_conversations_with_tools_may_have_a_template_of_their_own() -> None:
    templates = ChatTemplates({"default": "plain", "tool_use": "tools"})
    assert templates.choose(has_tools=True).render(HI) == "tools"
    assert templates.choose(has_tools=False).render(HI) == "plain"
    assert ChatTemplates({"default": "plain"}).choose(has_tools=True).render(HI) == "plain"


def test_a_setting_replaces_the_folders_template(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", jinja="the folder's")
    file = tmp_path / "own.jinja"
    file.write_text("the file's {{ messages | length }}")

    def rendered(override: str | None) -> str:
        return load_templates(folder, override=override).choose(has_tools=False).render(HI)

    assert rendered(None) == "the folder's"
    assert rendered(str(file)) == "the file's 1"
    assert rendered("{{ messages[0].content }}!") == "hi!"
    with pytest.raises(SettingsError, match="neither a Jinja template nor a file"):
        rendered(str(tmp_path / "missing.jinja"))


def test_templates_of_a_folder_win_over_its_configuration(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", jinja="file", chat_template="configuration")
    extra = folder / "additional_chat_templates"
    extra.mkdir()
    (extra / "tool_use.jinja").write_text("with tools")
    templates = load_templates(folder)
    assert templates.choose(has_tools=False).render(HI) == "file"
    assert templates.choose(has_tools=True).render(HI) == "with tools"


def test_a_folder_without_templates_has_none(tmp_path: Path) -> None:
    with pytest.raises(NoChatTemplate):
        load_templates(write_folder(tmp_path / "model")).choose(has_tools=False)


@pytest.mark.parametrize("value", [5, [{"name": "default"}], ["x"]])
def test_a_damaged_configuration_stops_the_start(tmp_path: Path, value: Any) -> None:
    folder = write_folder(tmp_path / "model", chat_template=value)
    with pytest.raises(ModelError, match="chat_template"):
        load_templates(folder)


def test_a_message_that_the_template_does_not_show_cannot_go_on() -> None:
    said = [*HI, {"role": "assistant", "content": "and then"}]
    assert ChatTemplate(ECHO).render(said, continue_final_message=True).endswith("assistant:and then")
    for source in (
        "{{ messages[0].content }}",
        "{{ messages[-1].content[4:] }}",
        "{{ messages[-1].content | upper }}",
    ):
        with pytest.raises(InvalidRequest, match="nothing can go on with it") as info:
            ChatTemplate(source).render(said, continue_final_message=True)
        assert info.value.param == "continue_final_message"


def test_an_empty_message_may_go_on() -> None:
    assert (
        ChatTemplate(ECHO)
        .render([*HI, {"role": "assistant"}], continue_final_message=True)
        .endswith("assistant:")
    )


def test_a_template_knows_what_it_reads() -> None:
    template = ChatTemplate("{% macro m(a) %}{{ a }}{{ documents }}{% endmacro %}{{ messages[0].verbosity }}")
    assert template.reads("documents")
    assert template.reads("messages")
    assert not template.reads("verbosity")
    assert not template.reads("a")


def test_documents_and_variables_reach_the_template() -> None:
    template = ChatTemplate("{{ documents[0].text }}{{ style }}{{ messages | length }}")
    text = template.render(HI, documents=[{"text": "d"}], variables={"style": "s", "messages": [1, 2, 3]})
    assert text == "ds1"


@pytest.mark.parametrize("sent", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("read", ["m.reasoning_content", "m.reasoning", "m['thinking']"])
def test_what_was_thought_goes_by_the_name_that_the_template_reads(sent: str, read: str) -> None:
    template = ChatTemplate("{% for m in messages %}" + "{{ " + read + " }}{% endfor %}")
    assert template.render([{"role": "assistant", "content": "x", sent: "hm"}]) == "hm"


def test_a_thought_has_no_name_that_the_template_does_not_read() -> None:
    template = ChatTemplate("{{ messages[0] | tojson }}{{ messages[0].reasoning }}")
    shown = template.render([{"role": "assistant", "content": "x", "reasoning_content": "hm"}])
    assert "thinking" not in shown and shown.endswith("hm")
