"""Nothing that comes from outside can become code: what could make it so is nowhere in the package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import trioserve

ROOT = Path(trioserve.__file__).parent
FILES = sorted(ROOT.rglob("*.py")) + sorted((ROOT.parent / "_speedups").glob("*.pyx"))
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "code",
    "codeop",
    "runpy",
    "yaml",
}
CALLS = {"eval", "exec", "compile", "__import__", "execfile", "breakpoint"}
METHODS = {
    ("torch", "load"),
    ("os", "system"),
    ("os", "popen"),
    ("numpy", "load"),
    ("np", "load"),
    ("jinja2", "Environment"),
}


def faults(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                yield from (name.name for name in names if name.name.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in MODULES:
                yield module
            case ast.Call(func=ast.Name(name)) if name in CALLS | {"import_module"}:
                yield name
            case ast.Call(func=ast.Attribute(value=ast.Name(owner), attr=name)):
                if (owner, name) in METHODS or name in ("import_module", "extract_allow_pickle"):
                    yield f"{owner}.{name}"
            case ast.keyword(arg="shell" | "allow_pickle" | "trust_remote_code", value=ast.Constant(True)):
                yield f"{node.arg} = True"


def test_the_package_unpickles_evaluates_and_imports_nothing_that_it_is_given() -> None:
    found = {
        str(path.relative_to(ROOT)): told
        for path in FILES
        if path.suffix == ".py" and (told := set(faults(ast.parse(path.read_text("utf-8")))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.suffix == ".pyx"], ids=lambda path: path.name
)
def test_native_modules_do_not_either(path: Path) -> None:
    words = path.read_text("utf-8")
    assert not [name for name in MODULES - {"code"} if f"import {name}" in words]
    assert not [name for name in CALLS - {"compile"} if f" {name}(" in words]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "eval(x)",
        "torch.load(x)",
        "run(x, shell=True)",
        "os.system(x)",
    ],
)
def test_what_is_looked_for_is_found(source: str) -> None:
    assert list(faults(ast.parse(source)))
