"""The short form of ``make fuzz``: every target with its seeds, with changed seeds and with any bytes."""

import random
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz import targets

NAMES = sorted(path.stem for path in Path(targets.__path__[0]).glob("[a-z]*.py"))
NUM_CHANGED = 60


@pytest.fixture(params=NAMES)
def target(request: pytest.FixtureRequest) -> ModuleType:
    return import_module(f"tests.fuzz.targets.{request.param}")


def test_seeds_break_no_promise(target: ModuleType) -> None:
    assert target.SEEDS
    for seed in target.SEEDS:
        target.check(seed)


def test_changed_seeds_break_no_promise(target: ModuleType) -> None:
    draw = random.Random(7)
    for _ in range(NUM_CHANGED):
        data = bytearray(draw.choice(target.SEEDS))
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(data) + 1)
            data[at : at + draw.randint(0, 2)] = draw.randbytes(draw.randint(0, 3))
        target.check(bytes(data))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200))
@example(data=b"")
def test_any_bytes_break_no_promise(name: str, data: bytes) -> None:
    import_module(f"tests.fuzz.targets.{name}").check(data)
