"""What pyproject.toml lists by hand is what there is."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import trioserve

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]


def test_every_package_is_listed() -> None:
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "trioserve").rglob("__init__.py")}
    assert set(SETUPTOOLS["packages"]) == {".".join(folder.parts) for folder in folders} | {"trioserve.cuda"}


def test_every_cython_module_is_listed_and_has_a_face() -> None:
    names = {path.stem for path in (ROOT / "_speedups").glob("*.pyx")}
    modules = {entry["name"]: entry["sources"] for entry in SETUPTOOLS["ext-modules"]}
    assert modules == {f"trioserve._speedups.{name}": [f"_speedups/{name}.pyx"] for name in names}
    assert {path.stem for path in (ROOT / "trioserve" / "_speedups").glob("*.pyi")} == names


def test_the_version_is_the_same_everywhere() -> None:
    assert PYPROJECT["project"]["version"] == trioserve.__version__
    assert f"## {trioserve.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_dependency_is_pinned_by_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    asked = PYPROJECT["project"]["dependencies"] + PYPROJECT["project"]["optional-dependencies"]["dev"]
    names = {requirement.split(">")[0].split("=")[0].split("<")[0].strip().lower() for requirement in asked}
    assert names - pinned == set()


def test_the_lock_is_of_the_constraints_and_has_hashes() -> None:
    """All but torch, of which each kind of machine has another build."""
    pinned = dict(
        re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    )
    text = (ROOT / "requirements.lock").read_text("utf-8")
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    locked = {}
    for entry in entries:
        name, version = re.match(r"([\w.-]+)==([^\s;]+)", entry).groups()  # type: ignore[union-attr]  # it was split there
        locked[name.replace("_", "-").lower()] = version
        assert "--hash=sha256:" in entry, name
    assert locked == {
        name.replace("_", "-").lower(): version for name, version in pinned.items() if name != "torch"
    }


def imported(folder: Path) -> Iterator[tuple[str, Path]]:
    """The top-level modules that are imported anywhere below ``folder``, and where."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                yield name.partition(".")[0], path


def test_nothing_is_imported_that_is_not_declared() -> None:
    project = PYPROJECT["project"]
    asked = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    declared = {re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-") for requirement in asked}
    known = packages_distributions()
    ours = {"trioserve", *sys.stdlib_module_names}
    undeclared = {
        f"{path.relative_to(ROOT)} imports {name}"
        for name, path in imported(ROOT / "trioserve")
        if name not in ours
        and not {one.lower().replace("_", "-") for one in known.get(name, [name])} & declared
    }
    assert undeclared == set()
