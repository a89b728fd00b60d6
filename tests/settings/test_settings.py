"""Settings come from defaults, file, variables and flags, in that order; wrong ones are told in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from trioserve.cli import main
from trioserve.errors import SettingsError
from trioserve.settings import EarlyStopConfig, GenerationOverrides, Settings, load_settings


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
        ({"kv_cache_dtype": "fp8_e5m2"}, r"kv_cache_dtype = 'fp8_e5m2': input should be 'auto', .* or 'fp8'"),
        ({"max_num_seqs": 0}, r"max_num_seqs = 0: input should be greater than or equal to 1"),
        ({"block_size": 24}, r"block_size = 24: input should be a multiple of 16"),
        (
            {"override_generation_config": "{x"},
            r"override_generation_config = '{x': input should be a JSON object",
        ),
        (
            {"override_generation_config": '{"temprature": 1}'},
            r"override_generation_config = .*: temprature is not one of temperature, top_p, top_k",
        ),
        (
            {"override_generation_config": '{"top_p": 2}'},
            r"override_generation_config = .*: top_p = 2: input should be less than or equal to 1",
        ),
        (
            {"override_generation_config": "3"},
            r"override_generation_config = '3': input should be a JSON object",
        ),
        (
            {"early_stop_config": '{"threshold": 1}'},
            r"early_stop_config = .*: threshold = 1: input should be less than 1",
        ),
        (
            {"early_stop_config": '{"window": 1}'},
            r"early_stop_config = .*: window is not one of enable_early_stop, strategy",
        ),
        ({"speculative_config": "{}"}, r"speculative_config = '\{\}': method is missing"),
        ({"speculative_config": '"ngram"'}, r"speculative_config = .*: input should be a JSON object"),
        (
            {"speculative_config": '{"method": "eagle"}'},
            r"speculative_config = .*: method = 'eagle': input should be 'ngram'",
        ),
        (
            {"speculative_config": '{"method": "ngram", "num_speculative_tokens": -1}'},
            r"num_speculative_tokens = -1: input should be greater than or equal to 1",
        ),
        (
            {"speculative_config": '{"method": "ngram", "num_speculative_tokens": 17}'},
            r"num_speculative_tokens = 17: input should be less than or equal to 16",
        ),
        (
            {"speculative_config": '{"method": "ngram", "prompt_lookup_min": 0}'},
            r"prompt_lookup_min = 0: input should be greater than or equal to 1",
        ),
        (
            {"speculative_config": '{"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 3}'},
            r"speculative_config = .*: prompt_lookup_min = 5 is more than prompt_lookup_max = 3: lower it",
        ),
        (
            {"speculative_config": '{"method": "ngram", "model": "other"}'},
            r"model is not one of method, num_speculative_tokens, prompt_lookup_max, prompt_lookup_min",
        ),
        ({"max_logprobs": 1001}, r"max_logprobs = 1001: input should be less than or equal to 1000"),
        (
            {"max_logprobs": 100, "max_num_batched_tokens": 1 << 20},
            r"max_logprobs = 100 with max_num_batched_tokens = 1048576 makes .* lower one of them",
        ),
        ({"max_num_batched_tokens": 8}, r"max_num_batched_tokens = 8 must be at least max_num_seqs = 128"),
        ({"load_format": "gguf"}, r"load_format = 'gguf': input should be 'auto', 'safetensors' or 'dummy'"),
        ({"device": "tpu"}, r"device = 'tpu': input should be 'auto', 'cpu' or 'cuda'"),
        (
            {"tensor_parallel_size": 65},
            r"tensor_parallel_size = 65: input should be less than or equal to 64",
        ),
        ({"gpu_memory_utilization": 0.5}, r"gpu_memory_utilization = 0\.5: .* cache_max_entry_count"),
        ({"swap_space": 4}, r"swap_space = 4\.0: .* leave it at 0"),
        ({"quantization": "fp8"}, r"quantization = fp8: a CPU computes with int8 or int4 weights"),
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
        ({"kv_cache_dtype": "fp8_e4m3"}, "kv_cache_dtype", "fp8"),
        ({"kv_cache_dtype": "int8"}, "kv_cache_dtype", "int8"),
        ({"pin_threads": "0"}, "pin_threads", False),
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


@pytest.mark.parametrize("source", ["flag", "variable", "file"])
def test_an_object_may_be_json_or_a_table(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {}
    if source == "flag":
        flags = {"override_generation_config": '{"temperature": 0.25, "top_k": 5}'}
    elif source == "variable":
        monkeypatch.setenv("TRIOSERVE_OVERRIDE_GENERATION_CONFIG", '{"temperature": 0.25, "top_k": 5}')
    else:
        table = "[override_generation_config]\ntemperature = 0.25\ntop_k = 5\n"
        Path("trioserve.toml").write_text(table, encoding="utf-8")
    wishes = load_settings(**flags).override_generation_config
    assert wishes == GenerationOverrides(temperature=0.25, top_k=5)


def test_an_early_stop_is_turned_on_by_either_setting() -> None:
    assert load_settings().early_stop is None
    assert load_settings(early_stop_config='{"window_size": 9}').early_stop is None
    assert load_settings(enable_early_stop=True).early_stop == EarlyStopConfig(
        window_size=3000, threshold=0.99
    )
    config = load_settings(early_stop_config='{"enable_early_stop": true, "window_size": 9}').early_stop
    assert config is not None
    assert (config.window_size, config.threshold) == (9, 0.99)


@pytest.mark.parametrize(
    ("keys", "num_tokens", "lookup"),
    [
        ("", 4, (2, 4)),
        (', "num_speculative_tokens": 7', 7, (2, 4)),
        (', "prompt_lookup_max": 1', 4, (1, 1)),
        (', "prompt_lookup_max": 9', 4, (2, 9)),
        (', "prompt_lookup_min": 6', 4, (6, 6)),
        (', "prompt_lookup_min": 1, "prompt_lookup_max": 3', 4, (1, 3)),
    ],
)
def test_lengths_to_look_up_that_are_left_out_go_with_those_that_are_given(
    keys: str, num_tokens: int, lookup: tuple[int, int]
) -> None:
    config = load_settings(speculative_config='{"method": "ngram"' + keys + "}").speculative_config
    assert config is not None
    assert (config.num_speculative_tokens, config.lookup) == (num_tokens, lookup)


def test_guessing_is_set_by_flag_variable_and_file_alike_and_may_be_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_settings().speculative_config is None
    assert load_settings(speculative_config="none").speculative_config is None
    Path("trioserve.toml").write_text(
        '[speculative_config]\nmethod = "ngram"\nnum_speculative_tokens = 3\n', encoding="utf-8"
    )
    config = load_settings().speculative_config
    assert config is not None
    assert config.num_speculative_tokens == 3
    monkeypatch.setenv("TRIOSERVE_SPECULATIVE_CONFIG", '{"method": "ngram", "num_speculative_tokens": 2}')
    config = load_settings().speculative_config
    assert config is not None
    assert config.num_speculative_tokens == 2
    monkeypatch.setenv("TRIOSERVE_SPECULATIVE_CONFIG", "null")
    assert load_settings().speculative_config is None
