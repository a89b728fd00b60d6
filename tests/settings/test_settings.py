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
        ({"device": "cuda"}, r"device = 'cuda': only CPUs are computed on, no GPU"),
        ({"tensor_parallel_size": 2}, r"tensor_parallel_size = 2: .* leave it at 1"),
        ({"gpu_memory_utilization": 0.5}, r"gpu_memory_utilization = 0\.5: .* cache_max_entry_count"),
        ({"swap_space": 4}, r"swap_space = 4\.0: .* leave it at 0"),
        ({"cache_max_entry_count": 1}, r"cache_max_entry_count = 1: input should be less than 1"),
        ({"kv_cache_ratio": 0}, r"kv_cache_ratio = 0: input should be greater than 0"),
        (
            {"num_kv_blocks": 9, "kv_cache_bytes": 9},
            r"num_kv_blocks = 9 and kv_cache_bytes = 9 .* leave only one",
        ),
        ({"uds": "/tmp/s", "port": 1}, r"uds = '/tmp/s' is listened on instead .* leave out port"),
        ({"seed": -1}, r"seed = -1: input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_limit(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load_settings(**flags)


def test_a_misspelt_name_is_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIOSERVE_MAX_NUMSEQS", "4")
    with pytest.raises(
        SettingsError, match="TRIOSERVE_MAX_NUMSEQS is not a setting: did you mean TRIOSERVE_MAX_NUM_SEQS"
    ):
        load_settings()
    monkeypatch.delenv("TRIOSERVE_MAX_NUMSEQS")
    Path("trioserve.toml").write_text("prot = 1\n", encoding="utf-8")
    with pytest.raises(
        SettingsError,
        match=r"prot in trioserve\.toml is not a setting: did you mean port in trioserve\.toml\?$",
    ):
        load_settings()


def test_what_kubernetes_adds_for_a_service_of_our_name_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIOSERVE_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("TRIOSERVE_PORT_8000_TCP_ADDR", "10.0.0.1")
    load_settings()


def test_a_broken_file_is_told() -> None:
    Path("trioserve.toml").write_text("port = = 1\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"trioserve\.toml cannot be read"):
        load_settings()


def test_a_wrong_value_is_told_with_the_place_that_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("trioserve.toml").write_text("max_num_seqs = 'many'\n", encoding="utf-8")
    monkeypatch.setenv("TRIOSERVE_PORT", "here")
    with pytest.raises(SettingsError) as told:
        load_settings(backlog="x")
    assert "max_num_seqs = 'many' (trioserve.toml): input should be" in str(told.value)
    assert "port = 'here' (TRIOSERVE_PORT): input should be" in str(told.value)
    assert "backlog = 'x': input should be" in str(told.value)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("max_num_seqs = true", r"max_num_seqs in trioserve\.toml = true: should be a number, not a boolean"),
        ("model = false", r"model in trioserve\.toml = false: should be a text, not a boolean"),
        ("port = [1]", r"port = \[1\] \(trioserve\.toml\): input should be a valid integer"),
        ("[server]\nport = 1", r"server in trioserve\.toml is not a setting"),
    ],
)
def test_a_wrong_type_in_the_file_is_told_with_file_and_key(line: str, sentence: str) -> None:
    Path("trioserve.toml").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=sentence):
        load_settings()


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ({"dtype": "half"}, "dtype", "float16"),
        ({"dtype": "float"}, "dtype", "float32"),
        ({"log_level": "WARNING"}, "log_level", "warning"),
        ({"device": "auto"}, "device", "cpu"),
        ({"use_warmup": "1"}, "use_warmup", True),
        ({"gpu_memory_utilization": "0.9", "swap_space": "0"}, "swap_space", 0.0),
    ],
)
def test_other_spellings_of_a_value_mean_the_same(flags: dict[str, str], name: str, value: object) -> None:
    assert getattr(load_settings(**flags), name) == value


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
