"""Flags by the names of other servers: obeyed as ours, or refused with a sentence; the pages that list them."""

import re
import tomllib
from pathlib import Path

import pytest

from trioserve import cli
from trioserve.cli import main
from trioserve.errors import SettingsError
from trioserve.flags import ALIASES, SHORT_FLAGS, canonical, shown
from trioserve.not_obeyed import NOT_OBEYED
from trioserve.reference import NOTES, SYSTEMS, pages
from trioserve.settings import ENV_PREFIX, GROUPS, Settings, load_settings

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parsed(*words: str) -> Settings:
    """The settings of ``trioserve serve`` with ``words``."""
    return load_settings(**{k: v for k, v in cli._parse(["serve", *words]).items() if k not in NOT_SETTINGS})


NOT_SETTINGS = {"command", "show_settings"}


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--tp 2", "tensor_parallel_size", 2),
        ("--enforce-eager", "enforce_eager", True),
        ("--eager-mode", "enforce_eager", True),
        ("-tp 2", "tensor_parallel_size", 2),
        ("--session-len 99", "max_model_len", 99),
        ("--session_len=99", "max_model_len", 99),
        ("--max_batch_size 7", "max_num_seqs", 7),
        ("--cache-block-seq-len 64", "block_size", 64),
        ("--num-gpu-blocks-override 5", "num_kv_blocks", 5),
        ("--max-prefill-token-num 4096", "max_num_batched_tokens", 4096),
        ("--server-name ::1 --server-port 9", "port", 9),
        ("--shutdown-timeout 3", "drain_timeout_s", 3.0),
        ("--uvicorn-log-level ERROR", "log_level", "error"),
        ("--model-name a b", "served_model_name", ("a", "b")),
        ("--served-model-name a --served-model-name b,c", "served_model_name", ("a", "b", "c")),
        ("--model here", "model", "here"),
        ("here", "model", "here"),
        ("--model-path here", "model", "here"),
        ("here --model here", "model", "here"),
        ("--use-warmup", "use_warmup", True),
        ("--use-warmup 0", "use_warmup", False),
        ("--use_warmup=true", "use_warmup", True),
        ("--use-warmup here", "model", "here"),
        ("--no-enable-prefix-caching", "enable_prefix_caching", False),
        ("--no_enable_prefix_caching here", "model", "here"),
        ("--enforce-eager here", "model", "here"),
        ("--no-trust-remote-code here", "model", "here"),
    ],
)
def test_a_flag_may_be_spelled_as_users_know_it(words: str, name: str, value: object) -> None:
    assert getattr(parsed(*words.split()), name) == value


@pytest.mark.parametrize("alias", ["session_len", "max_model_len"])
def test_an_alias_works_alike_as_flag_variable_and_key(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("trioserve.toml").write_text(f"{alias} = 11\n", encoding="utf-8")
    assert load_settings().max_model_len == 11
    monkeypatch.setenv(ENV_PREFIX + alias.upper(), "22")
    assert load_settings().max_model_len == 22
    assert load_settings(max_model_len="33").max_model_len == 33
    assert load_settings(session_len="33").max_model_len == 33


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--tp 1 --tensor-parallel-size 2", "--tp = '1' .* two values of one setting"),
        ("--model a --model-path b", "two values of one setting"),
        ("a --model b", "MODEL = 'a' and --model = 'b': leave one out"),
        ("a b", "'b' is one MODEL too many"),
        ("--max-num-seq 4", "^--max-num-seq is not a setting: did you mean --max-num-seqs\\?$"),
        ("--max-num 4", "^--max-num is not a setting"),
        ("--max_modle_len=4", "did you mean --max-model-len"),
        ("-port 4", "-port is not a flag: did you mean --port"),
        ("--port", "--port: expected one argument: see trioserve serve --help"),
        (
            "--quantization awq",
            "^quantization = 'awq': weights are quantized at load, to int8, int4 or on a GPU fp8, ",
        ),
        ("-q awq", "^quantization = 'awq': weights"),
        ("--trust-remote-code", "--trust-remote-code = 'true' is not obeyed: no code but"),
        ("--no-disable-log-requests", "'false' is not obeyed: prompts and answers are never logged"),
        ("--data-parallel-size 2", "'2' is not obeyed: one server is one replica"),
        ("--lora-modules a=b c=d", "'a=b c=d' is not obeyed: adapters"),
        ("--speculative-model draft", "without a second model; set speculative_config"),
    ],
)
def test_what_cannot_be_obeyed_ends_with_78_and_one_sentence(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *words.split()]) == 78
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.search(sentence, told.removeprefix("trioserve: ").removeprefix("Bad settings: ").strip())


def test_two_values_of_one_setting_in_one_place_are_told_and_equal_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRIOSERVE_TP", "1")
    monkeypatch.setenv("TRIOSERVE_TENSOR_PARALLEL_SIZE", "1")
    assert load_settings().tensor_parallel_size == 1
    monkeypatch.setenv("TRIOSERVE_TP", "2")
    with pytest.raises(SettingsError, match="TRIOSERVE_TENSOR_PARALLEL_SIZE = '1' and TRIOSERVE_TP = '2'"):
        load_settings()


def test_other_servers_flags_are_refused_as_variables_and_keys_too(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("trioserve.toml").write_text("enable_lora = true\n", encoding="utf-8")
    monkeypatch.setenv("TRIOSERVE_QUANT_POLICY", "8")
    with pytest.raises(
        SettingsError, match=r"TRIOSERVE_QUANT_POLICY = '8' .* enable_lora in trioserve\.toml = True"
    ):
        load_settings()
    Path("trioserve.toml").write_text("enable_lora = false\ndata_parallel_size = 1\n", encoding="utf-8")
    monkeypatch.setenv("TRIOSERVE_QUANT_POLICY", "0")
    load_settings()


@pytest.mark.parametrize(
    "words",
    [
        "--enable-chunked-prefill --disable-log-requests --no-trust-remote-code --dtype auto",
        "--engine-worker-queue-port 8002 --cache-queue-port 8003 --tensor-parallel-size 1 --swap-space 0",
        "--gpu-memory-utilization 0.9 --kv-cache-dtype auto --async-scheduling --scheduling-policy priority",
        "--device auto --use-cudagraph --quant-policy 0 --model-format hf --dp 1 --max-log-len 10",
    ],
)
def test_a_flag_that_asks_for_what_is_the_case_is_obeyed(words: str) -> None:
    assert parsed(*words.split()) == Settings()


@pytest.mark.parametrize(
    "flags", [{"api_key": "sk-1"}, {"api_keys": "sk-1"}, {"scheduler_password": "sk-1"}, {"hf_token": "sk-1"}]
)
def test_no_message_repeats_a_secret(flags: dict[str, str]) -> None:
    _, faults = canonical(flags, {"port"}, spell=str)
    assert faults
    assert "sk-1" not in " ".join(faults)
    assert shown("max_num_queued_tokens", 3) == "3"


def test_the_effective_settings_are_shown_with_their_source_and_can_be_read_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("trioserve.toml").write_text("session_len = 77\n", encoding="utf-8")
    monkeypatch.setenv("TRIOSERVE_BACKLOG", "5")
    assert main(["serve", "here", "--show-settings", "--max-num-seqs", "3", "--model-name", "a", "b"]) == 0
    out = capsys.readouterr().out
    sources = {line.split()[0]: line.rsplit("# ", 1)[1] for line in out.splitlines() if " = " in line}
    assert sources["model"] == sources["max_num_seqs"] == sources["served_model_name"] == "flag"
    assert (sources["backlog"], sources["max_model_len"], sources["port"]) == (
        "variable",
        "trioserve.toml",
        "default",
    )
    monkeypatch.delenv("TRIOSERVE_BACKLOG")
    Path("trioserve.toml").write_text(out, encoding="utf-8")
    again = load_settings()
    assert (again.model, again.max_num_seqs, again.served_model_name) == ("here", 3, ("a", "b"))
    assert (again.backlog, again.max_model_len) == (5, 77)
    assert len(tomllib.loads(out)) + out.count("\n# ") >= len(Settings.model_fields)


def test_help_is_grouped_and_eighty_columns_wide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main(["serve", "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if len(line) > 80] == []
    titles = [line.removesuffix(":") for line in out.splitlines() if re.fullmatch(r"[A-Z][\w ]+:", line)]
    assert titles == [group.__doc__ for group in GROUPS]
    assert [
        alias
        for alias in ALIASES
        if ALIASES[alias] in Settings.model_fields and f"--{_dashed(alias)}" not in out
    ] == []


def _dashed(name: str) -> str:
    return name.replace("_", "-")


# --- the tables ---


def test_a_flag_that_is_a_setting_is_not_listed_as_not_obeyed() -> None:
    """Take it out of ``NOT_OBEYED``: it is dead there."""
    assert sorted(set(NOT_OBEYED) & set(Settings.model_fields)) == []


def test_no_alias_hides_a_setting_and_every_alias_leads_somewhere() -> None:
    assert sorted(set(ALIASES) & (set(Settings.model_fields) | set(NOT_OBEYED))) == []
    assert [
        name for name in ALIASES.values() if name not in Settings.model_fields and name not in NOT_OBEYED
    ] == []
    flags = {"--" + _dashed(name) for name in [*Settings.model_fields, *ALIASES, *NOT_OBEYED]}
    assert [flag for flag in SHORT_FLAGS.values() if flag not in flags] == []


def test_every_listed_flag_has_a_fate_and_every_fate_a_server_that_has_the_flag() -> None:
    listed = {name for flags in SYSTEMS.values() for name in flags.split()}
    known = {*Settings.model_fields, *ALIASES, *NOT_OBEYED}
    assert sorted(listed - known) == []
    assert sorted({*NOT_OBEYED, *ALIASES} - listed) == ["model_tag"]  # vLLM's name of the word without a flag
    assert sorted(set(NOTES) - listed) == []


def test_every_reason_is_one_clause() -> None:
    for name, entry in NOT_OBEYED.items():
        assert not entry.reason.endswith("."), name
        assert len(entry.reason) < 120, name


@pytest.mark.parametrize("page", ["settings.md", "migration.md"])
def test_the_pages_say_what_the_code_does(page: str) -> None:
    """``python -m trioserve.reference docs`` writes them anew."""
    assert (DOCS / page).read_text(encoding="utf-8") == pages()[page]


# --- the flags that users of other servers try first ---

FAMILIAR: dict[str, tuple[str, object]] = {
    "model": ("here", "here"),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("9000", 9000),
    "metrics_port": ("9001", 9001),
    "tensor_parallel_size": ("1", 1),
    "tp": ("1", 1),
    "max_model_len": ("99", 99),
    "session_len": ("99", 99),
    "max_num_seqs": ("7", 7),
    "max_num_batched_tokens": ("4096", 4096),
    "block_size": ("64", 64),
    "num_gpu_blocks_override": ("5", 5),
    "gpu_memory_utilization": ("0.9", 0.9),
    "kv_cache_ratio": ("0.75", 0.75),
    "cache_max_entry_count": ("0.3", 0.3),
    "use_warmup": ("true", True),
    "enable_logprob": ("false", False),
    "enable_prefix_caching": ("false", False),
    "enable_chunked_prefill": ("false", False),
    "swap_space": ("0", 0.0),
    "served_model_name": ("a b", ("a", "b")),
    "chat_template": ("mine.jinja", "mine.jinja"),
    "dtype": ("half", "float16"),
    "seed": ("3", 3),
    "revision": ("v2", "v2"),
    "tokenizer": ("words", "words"),
    "download_dir": ("hub", Path("hub")),
    "load_format": ("dummy", "dummy"),
    "api_key": ("sk-1 sk-2", ("sk-1", "sk-2")),
}
"""A flag's text, and what it comes to."""
IMPOSSIBLE_HERE = {"gpu_memory_utilization": "0.5", "swap_space": "4"}


def value_of(settings: Settings, name: str) -> object:
    """What the setting that goes by ``name`` is, secrets told."""
    value = getattr(settings, ALIASES.get(name, name))
    return tuple(key.get_secret_value() for key in value) if name == "api_key" else value


@pytest.mark.parametrize("name", FAMILIAR)
def test_a_familiar_name_is_a_flag_a_variable_and_a_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, expected = FAMILIAR[name]
    assert value_of(parsed(f"--{_dashed(name)}", *text.split()), name) == expected
    assert value_of(parsed(*f"--{name} {text}".split()), name) == expected
    monkeypatch.setenv(ENV_PREFIX + name.upper(), text)
    assert value_of(load_settings(), name) == expected
    monkeypatch.delenv(ENV_PREFIX + name.upper())
    is_bare = text in ("true", "false") or (re.fullmatch(r"[\d.]+", text) and text.count(".") < 2)
    Path("trioserve.toml").write_text(f"{name} = {text if is_bare else repr(text)}\n", encoding="utf-8")
    assert value_of(load_settings(), name) == expected


@pytest.mark.parametrize("name", IMPOSSIBLE_HERE)
@pytest.mark.parametrize("place", ["flag", "variable", "file"])
def test_what_no_cpu_can_obey_is_refused_with_a_sentence(
    name: str, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["serve"]
    if place == "flag":
        words += [f"--{_dashed(name)}", IMPOSSIBLE_HERE[name]]
    elif place == "variable":
        monkeypatch.setenv(ENV_PREFIX + name.upper(), IMPOSSIBLE_HERE[name])
    else:
        Path("trioserve.toml").write_text(f"{name} = {IMPOSSIBLE_HERE[name]}\n", encoding="utf-8")
    assert main(words) == 78
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"{ALIASES.get(name, name)} = {IMPOSSIBLE_HERE[name]}" in told


def test_help_has_each_familiar_name_below_its_groups_title(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    out = capsys.readouterr().out
    for group in GROUPS:
        part = re.split(r"\n(?=[A-Z][\w ]+:\n)", out.partition(f"\n{group.__doc__}:\n")[2])[0]
        for name in FAMILIAR:
            if ALIASES.get(name, name) in group.model_fields:
                assert f"--{_dashed(name)}" in part, f"--{_dashed(name)} below {group.__doc__}"
