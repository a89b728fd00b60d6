"""Settings come from defaults, file, variables and flags, in that order; wrong ones are told in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from trioserve.cli import main
from trioserve.errors import SettingsError
from trioserve.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_flags_win_over_variables_and_variables_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("trioserve.toml").write_text("port = 1\nmax_num_seqs = 2\nmax_model_len = 3\n", encoding="utf-8")
    monkeypatch.setenv("TRIOSERVE_MAX_NUM_SEQS", "20")
    monkeypatch.setenv("TRIOSERVE_PORT", "10")
    settings = load_settings(port="100")
    assert (settings.port, settings.max_num_seqs, settings.max_model_len, settings.host) == (
        100,
        20,
        3,
        "127.0.0.1",
    )


def test_another_file_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("other.toml").write_text("port = 7\n", encoding="utf-8")
    monkeypatch.setenv("TRIOSERVE_CONFIG", "other.toml")
    assert load_settings().port == 7
    monkeypatch.setenv("TRIOSERVE_CONFIG", "absent.toml")
    with pytest.raises(SettingsError, match=r"'absent\.toml', which is not a file"):
        load_settings()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"port": "x"}, r"port = 'x': input should be a valid integer"),
        ({"dtype": "int3"}, r"dtype = 'int3': input should be 'auto', 'bfloat16'"),
        ({"max_num_seqs": 0}, r"max_num_seqs = 0: input should be greater than or equal to 1"),
        ({"block_size": 24}, r"block_size = 24: input should be a multiple of 16"),
        ({"max_num_batched_tokens": 8}, r"max_num_batched_tokens = 8 must be at least max_num_seqs = 128"),
    ],
)
def test_a_wrong_value_is_named_with_its_limit(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load_settings(**flags)


def test_a_misspelt_name_is_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIOSERVE_MAX_NUMSEQS", "4")
    with pytest.raises(SettingsError, match="Unknown setting TRIOSERVE_MAX_NUMSEQS"):
        load_settings()
    monkeypatch.delenv("TRIOSERVE_MAX_NUMSEQS")
    Path("trioserve.toml").write_text("prot = 1\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="prot is not a setting"):
        load_settings()


def test_what_kubernetes_adds_for_a_service_of_our_name_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIOSERVE_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("TRIOSERVE_PORT_8000_TCP_ADDR", "10.0.0.1")
    load_settings()


def test_a_broken_file_is_told() -> None:
    Path("trioserve.toml").write_text("port = = 1\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"trioserve\.toml cannot be read"):
        load_settings()


def test_names_may_be_separated_by_spaces_or_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIOSERVE_SERVED_MODEL_NAME", "a b,c")
    assert load_settings().served_model_name == ("a", "b", "c")


def test_settings_do_not_change_once_built() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]  # that is the point


def test_every_setting_says_what_it_is_for() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_command_ends_with_78_and_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--max-num-seqs", "0"]) == 78
    assert capsys.readouterr().err.count("\n") == 1


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = capsys.readouterr().out
    flags = ["--" + name.replace("_", "-") for name in Settings.model_fields if name != "model"]
    assert [flag for flag in flags if flag not in shown] == []


def test_the_front_starts_without_torch() -> None:
    code = "import sys, trioserve.cli, trioserve.app; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
