"""Which generation_config.json the sampling defaults come from."""

import json
from pathlib import Path

import pytest

from trioserve.builtin import MODEL_DIR
from trioserve.engine.checkpoint import open_model
from trioserve.errors import ModelError, SettingsError
from trioserve.settings import Settings

MODELS_OWN = json.loads((MODEL_DIR / "generation_config.json").read_text(encoding="utf-8"))


def test_auto_takes_the_models_own() -> None:
    assert open_model(Settings()).generation_config == MODELS_OWN


@pytest.mark.parametrize("word", ["none", "vllm"])
def test_none_takes_none_but_keeps_what_ends_an_answer(word: str) -> None:
    model = open_model(Settings(generation_config=word))
    assert model.generation_config == {}
    assert model.eos_token_ids == tuple(MODELS_OWN["eos_token_id"])


def test_a_folder_may_hold_another(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"top_k": 3}', encoding="utf-8")
    model = open_model(Settings(generation_config=str(tmp_path)))
    assert model.generation_config == {"top_k": 3}
    assert model.eos_token_ids == tuple(MODELS_OWN["eos_token_id"])
    (tmp_path / "generation_config.json").write_text("[", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be read"):
        open_model(Settings(generation_config=str(tmp_path)))


def test_a_word_that_is_no_folder_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"generation_config = '.*' is neither"):
        open_model(Settings(generation_config=str(tmp_path)))
