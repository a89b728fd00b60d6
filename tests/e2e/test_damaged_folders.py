"""What a folder may have suffered: each is told in one sentence through the real server, and ends the start with 78."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.harness import TRIOSERVE, running_server
from tests.e2e.test_checkpoints import folder

__all__ = ["folder"]  # the fixture


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def cut_short(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])


def of_another_size(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 64', '"hidden_size": 128'))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a head that is cut short": (lambda folder: first_shard(folder).write_bytes(b"\x08\0\0"), "model-00001"),
    "noise for weights": (lambda folder: first_shard(folder).write_bytes(b"\xff" * 999), "model-00001"),
    "a file that is not there": (lambda folder: first_shard(folder).unlink(), "model-00001"),
    "weights of another size": (of_another_size, "embed_tokens"),
    "a config that is cut short": (lambda folder: cut_short(folder / "config.json", 40), "config.json"),
    "a tokenizer that is cut short": (
        lambda folder: cut_short(folder / "tokenizer.json", 40),
        "tokenizer.json",
    ),
    "an index that is none": (
        lambda folder: cut_short(folder / "model.safetensors.index.json", 40),
        "index.json",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_stops_the_start_with_one_sentence(folder: Path, tmp_path: Path, name: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    do_damage, sentence = DAMAGES[name]
    do_damage(broken)
    with running_server(
        tmp_path / "log", command=TRIOSERVE, settings={"model": broken}, wait_ready=False
    ) as server:
        assert server.wait(30) == 78
    (reason,) = [line for line in server.log.splitlines() if '"critical"' in line]
    assert sentence in reason
    assert "Traceback" not in server.log
