import sys
from pathlib import Path
from typing import Final

import pytest
from tokenizers import Tokenizer

from benchmarks.cpu.checkpoints import make_checkpoint, make_tokenizer
from benchmarks.cpu.peers.cells import CELLS, Cell
from benchmarks.cpu.peers.engines import ENGINES, OURS, REFERENCE, find_interpreters
from benchmarks.cpu.peers.face import Timeline
from benchmarks.cpu.peers.process import EngineFailed, EngineProcess, started
from benchmarks.cpu.peers.results import Results
from benchmarks.cpu.peers.rounds import compare_greedy, run_round
from benchmarks.cpu.peers.targets import rows

TINY: Final = {
    "architectures": ["Qwen2ForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 41_000,
}
OURS_BF16: Final = ENGINES[0]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the timelines take for the time, in seconds; a list of one."""
    now = [0.0]
    monkeypatch.setattr("benchmarks.cpu.peers.face.time.perf_counter", lambda: now[0])
    return now


def test_decoding_is_timed_while_every_sequence_decodes(clock: list[float]) -> None:
    timeline = Timeline(2, 4, began=0.0)
    for at, indices in ((1.0, [0]), (3.0, [0, 1]), (4.0, [0, 1]), (5.0, [0, 1]), (9.0, [1])):
        clock[0] = at
        timeline.tick(indices)
    timeline.check()
    assert timeline.prefill_s() == 3.0
    assert timeline.decode_rate() == 2.0  # four tokens between 3 and 5 s


def test_an_answer_of_another_length_is_no_figure() -> None:
    timeline = Timeline(1, 3)
    timeline.tick([0, 0])
    with pytest.raises(ValueError, match="3 tokens"):
        timeline.check()


def test_every_engine_gets_the_same_prompts_and_no_round_those_of_another() -> None:
    cell = CELLS["decode 8"]
    assert cell.prompts("1") == cell.prompts("1")
    assert cell.prompts("1") != cell.prompts("2")
    assert {len(prompt) for prompt in cell.prompts("1")} == {128}


@pytest.mark.parametrize("vocab_size", [300, 20_000, 151_936])
def test_a_tokenizer_has_every_id_and_keeps_any_text(vocab_size: int) -> None:
    tokenizer = make_tokenizer(vocab_size)
    assert tokenizer.get_vocab_size() == vocab_size
    assert tokenizer.id_to_token(vocab_size - 1) is not None
    text = "the people, naïve: 世界 <x>\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_best_peer_of_equal_weights_is_who_counts() -> None:
    results = Results()
    found = {f"{OURS} bf16": 100.0, "llama.cpp bf16": 40.0, "vllm bf16": 50.0, "llama.cpp q8_0": 99.0}
    for engine, rate in found.items():
        results.add("S", "decode 8", engine, rate)
        results.add("S", "prefill 8x512", engine, rate)
    decode, prefill = rows(results)
    assert (decode.peer, decode.ratio, decode.is_met) == ("vllm bf16", 2.0, False)
    assert (prefill.peer, prefill.is_met) == ("llama.cpp q8_0", False)


def test_results_are_added_to_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for rate in (1.0, 5.0, 3.0):
        results = Results.read(path)
        results.add("S", "decode 1", "vllm bf16", rate)
        results.write(path)
    assert str(Results.read(path).measured("S", "decode 1")["vllm bf16"]) == "3 (1-5)"


def test_an_interpreter_is_asked_for_by_a_known_name() -> None:
    assert find_interpreters([f"vllm={sys.executable}"])["vllm"] == sys.executable
    for wrong in ("else=python", "vllm=/no/such/python"):
        with pytest.raises(
            ValueError, match=wrong.split("=")[0] if wrong.startswith("else") else "cannot be run"
        ):
            find_interpreters([wrong])


def test_our_engine_and_transformers_continue_a_checkpoint_alike(tmp_path: Path) -> None:
    folder = make_checkpoint("tiny", tmp_path, TINY)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == TINY["vocab_size"]
    results = Results()
    with started(
        [REFERENCE, OURS_BF16], find_interpreters([]), {REFERENCE: folder, OURS_BF16: folder}, 1
    ) as processes:
        compare_greedy(processes, shape="tiny", results=results)
        run_round(processes, [Cell("short", 3, 20, 5)], seed="1", shape="tiny", results=results)
    assert results.agreement["tiny"][OURS_BF16.name] > 0.9
    assert len(results.measured("tiny", "short")[OURS_BF16.name].rates) == 1


def test_an_engine_that_cannot_load_says_why(tmp_path: Path) -> None:
    process = EngineProcess(REFERENCE, sys.executable, tmp_path / "nothing", 1)
    try:
        with pytest.raises(EngineFailed, match="nothing"):
            process.wait_ready()
    finally:
        process.close()
