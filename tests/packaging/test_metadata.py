"""What pyproject.toml lists by hand is what there is."""

import tomllib
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
