"""docs/api.md has every field that a request may have, and names tests that there are."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from trioserve.protocol.chat import ChatCompletionRequest
from trioserve.protocol.common import WireModel
from trioserve.protocol.completion import CompletionRequest
from trioserve.protocol.interactive import GenerateRequest, TurnFields
from trioserve.protocol.messages import ChatMessage, ContentPart
from trioserve.protocol.stored import MetadataUpdate, PageQuery, StoredQuery
from trioserve.protocol.structural_tags import StructuralTags
from trioserve.protocol.tokenize import (
    ApplyTemplateRequest,
    DetokenizeRequest,
    EncodeRequest,
    TokenizeRequest,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")

BOTH, CHAT, TEXT = "Fields of both completions endpoints", "Chat", "Completions"
SECTIONS: dict[type[WireModel], tuple[str, ...]] = {
    ChatCompletionRequest: (BOTH, CHAT, "Tools", "Thinking"),
    CompletionRequest: (BOTH, TEXT),
    ChatMessage: ("Messages",),
    PageQuery: ("Stored chat completions",),
    StoredQuery: ("Stored chat completions",),
    MetadataUpdate: ("Stored chat completions",),
    GenerateRequest: ("Sessions",),
    TokenizeRequest: ("field of `/tokenize`",),
    DetokenizeRequest: ("field of `/detokenize`",),
    EncodeRequest: ("field of `/v1/encode`",),
    ApplyTemplateRequest: ("field of `/apply-template`",),
}
"""Where the fields of each request are to be found: below a heading, or in the table that begins with these words."""

_CODE = re.compile(r"[A-Z]\d+")


def sections() -> Iterator[tuple[str, list[str]]]:
    """The rows of all tables, by the heading above and by the first cell of the table."""
    heading, table, rows = "", "", list[str]()
    for line in [*PAGE.splitlines(), "# "]:
        if line.startswith("|"):
            rows.append(line)
            continue
        if rows:
            table = rows[0].split("|")[1].strip()
            yield heading, rows[2:]
            yield table, rows[2:]
            rows = []
        if line.startswith("#"):
            heading = line.lstrip("# ")


def cells(row: str) -> list[str]:
    """What a row says, column by column; its last one are the tests."""
    return [cell.strip() for cell in row.removeprefix("|").removesuffix("|").split("|")]


def rows_below(names: tuple[str, ...]) -> dict[str, list[str]]:
    """The rows of a request's tables, by field."""
    found: dict[str, list[str]] = {}
    for name, rows in sections():
        if name in names:
            found |= {cells(row)[0].strip("` "): cells(row) for row in rows}
    return found


LEGEND = {
    found[1]: found[2]
    for row in dict(sections())["Tests"]
    if (found := re.fullmatch(r"\| ([A-Z]\d+) \| `(.+)` \|", row))
}


def models_in(annotation: Any) -> set[type[WireModel]]:
    """The request models that a field's type names."""
    if isinstance(annotation, type) and issubclass(annotation, WireModel):
        return {annotation}
    return set().union(*(models_in(part) for part in get_args(annotation)))


def paths_of(model: type[WireModel], prefix: str = "") -> Iterator[str]:
    """Every name by which a client may set a field of ``model``, those of its parts included."""
    for name, field in model.model_fields.items():
        # A field that has an alias is not known by its own name, but where the model says so.
        is_known = not field.alias or model.model_config.get("populate_by_name")
        aliases = {name if is_known else None, field.alias, field.validation_alias} - {None}
        for alias in aliases:
            assert isinstance(alias, str), "an alias of several names needs rows of its own: extend this test"
            yield prefix + alias
        told_elsewhere = SECTIONS.keys() if model is ChatMessage else SECTIONS.keys() | {ContentPart}
        for part in models_in(field.annotation) - told_elsewhere:
            yield from paths_of(part, f"{prefix}{field.alias or name}.")


@pytest.mark.parametrize("model", SECTIONS, ids=lambda model: model.__name__)
def test_every_field_has_a_row_that_says_what_it_is_and_names_a_test(model: type[WireModel]) -> None:
    rows, paths = rows_below(SECTIONS[model]), set(paths_of(model))
    assert paths - rows.keys() == set(), "fields without a row"
    for path in paths:
        row = rows[path]
        assert len(row) == 5, f"{path}: field, range, default, what it does, tests"
        assert all(row), f"{path}: {row} leaves something out"
        codes = row[-1].split()
        assert codes, f"{path} names no test"
        assert all(code in LEGEND for code in codes), f"{path}: {codes} are not all in the list of tests"


def test_no_row_is_left_of_a_field_that_is_gone() -> None:
    known = {path for model in SECTIONS for path in paths_of(model)}
    listed = {name for names in SECTIONS.values() for name in rows_below(names) if "/" not in name}
    assert listed - known == set()


def test_every_request_model_is_looked_at() -> None:
    """A new one is to be added above, with the section that has its fields."""

    def below(model: type[WireModel]) -> Iterator[type[WireModel]]:
        for child in model.__subclasses__():
            yield child
            yield from below(child)

    reached = set(SECTIONS)
    for model in SECTIONS:
        reached |= {base for base in model.__mro__ if issubclass(base, WireModel)}
        reached |= {part for field in model.model_fields.values() for part in models_in(field.annotation)}
    for _ in range(5):
        reached |= {p for m in reached for f in m.model_fields.values() for p in models_in(f.annotation)}
    ours = {model for model in below(WireModel) if model.__module__.startswith("trioserve.protocol.")}
    inner = {TurnFields, *StructuralTags.__mro__}  # what a turn, and a field that may be text, is turned into
    assert ours - reached - inner == set()


def test_every_test_is_there_and_named_once_and_used() -> None:
    assert len(set(LEGEND.values())) == len(LEGEND)
    for code, where in LEGEND.items():
        file, _, name = where.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        functions = {
            node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name in functions, f"{code}: {where} is not there"
        assert file.split("/")[0] in ("e2e", "http"), f"{code} asks no server"
    used = set(_CODE.findall(PAGE.partition("## Tests")[0]))
    assert LEGEND.keys() - used == set(), "listed and named by no row"
