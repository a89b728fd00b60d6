"""The native decoder against float32, on every instruction set this processor has; and rows are on their own."""

import gc
import os
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.checkpoints import MODELS, VOCAB_SIZE, Checkpoints, prompt_of
from tests.model.pieces import BLOCK_SIZE, Bench, Piece, batch_of
from trioserve._speedups.decoder import available_isas
from trioserve.kernels.shapes import ShapeError
from trioserve.model.batch import LayerCache
from trioserve.model.config import DecoderConfig, read_config
from trioserve.model.decoder import Decoder
from trioserve.model.families import NormConfig, Scales
from trioserve.model.loader import load_weights
from trioserve.model.native import Crew, Spare
from trioserve.model.native_matrices import QUANTIZATIONS, Quantization
from trioserve.model.rope_config import RopeConfig

TOLERANCE = 0.03
"""Of the root mean square of the logits: what bf16 weights and activations cost."""
TEXT = prompt_of(75, seed=1)
BLOCKS = [9, 2, 30, 4, 17]
ISAS = available_isas() + (("amx_emulated",) if "avx512" in available_isas() else ())
NATIVE = sorted(set(MODELS) - {"llama-odd-width"})


LAYER_NORMS = NormConfig(kind="layer", has_bias=True)
POST_NORMS = NormConfig(
    offset=1.0,
    after_attention="after_attention_norm",
    before_mlp="before_mlp_norm",
    after_mlp="after_mlp_norm",
)
NO_PRE_NORMS = replace(POST_NORMS, offset=0.0, before_attention=None, before_mlp=None, heads_together=True)
BOUNDS = Scales(attention=0.4, attention_bound=1.5, embedding=4.0, logits_bound=3.0)
LOCAL_ROPE = RopeConfig("half", 100.0)


def config_of(**changes: Any) -> DecoderConfig:
    config = DecoderConfig(
        architecture="LlamaForCausalLM",
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=96,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        activation="silu",
        rope=RopeConfig("half", 10_000.0),
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        tie_word_embeddings=False,
        sliding_windows=(None, None),
        dtype="bfloat16",
    )
    return replace(config, **changes)


def made(config: DecoderConfig, dtype: torch.dtype, num_positions: int = 2048) -> Decoder:
    """The same weights in every type: they are exact in bf16."""
    model = Decoder(config, dtype, num_positions)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        one = 1 - config.norm.offset
        values = one + 0.2 * noise if name.endswith("norm.weight") else 0.15 * noise
        parameter.data.copy_(values.bfloat16())
    return model


def native_bench(
    config: DecoderConfig,
    isa: str = ISAS[-1],
    num_threads: int = 1,
    num_blocks: int = 64,
    quantization: Quantization = "none",
) -> Bench:
    model = made(config, torch.bfloat16)
    name = isa if quantization == "none" else f"{isa} {quantization}"
    threads = "1 thread" if num_threads == 1 else f"{num_threads} threads"
    crew = Crew(num_threads, isa=isa, alone_work=0)
    assert model.pack(crew, quantization) == f"native {name}, {threads}"
    return Bench(model, num_blocks)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def loaded(checkpoints: Checkpoints, name: str, dtype: torch.dtype = torch.bfloat16) -> Decoder:
    folder = checkpoints.folder(name)
    model = Decoder(read_config(folder), dtype, num_positions=256)
    load_weights(model, folder)
    return model


# ---- the numbers are right -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NATIVE)
def test_every_family_is_near_transformers(checkpoints: Checkpoints, name: str, isa: str) -> None:
    model = loaded(checkpoints, name)
    assert model.pack(Crew(1, isa=isa)).startswith("native")
    found = Bench(model).run(Piece(TEXT, 0, len(TEXT), BLOCKS))
    assert error(found, checkpoints.logits(name, TEXT)) < TOLERANCE


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 24, "intermediate_size": 10},
        {"hidden_size": 33, "intermediate_size": 31, "num_hidden_layers": 1, "sliding_windows": (None,)},
        {"hidden_size": 100, "intermediate_size": 65, "head_dim": 48, "vocab_size": 33},
        {"head_dim": 16, "num_heads": 7, "num_kv_heads": 1},
        {"head_dim": 64, "num_heads": 3, "num_kv_heads": 3, "qk_norm": True},
        {"head_dim": 80, "num_heads": 6, "num_kv_heads": 2, "rope": RopeConfig("interleaved", 10_000.0)},
        {"head_dim": 128, "num_heads": 8, "num_kv_heads": 1, "qkv_bias": True, "tie_word_embeddings": True},
        {"head_dim": 256, "num_heads": 2, "num_kv_heads": 1, "o_bias": True, "mlp_bias": True},
        {"activation": "gelu", "intermediate_size": 40, "mlp_bias": True},
        {"activation": "gelu_tanh", "sliding_windows": (7, None)},
        {"num_heads": 40, "num_kv_heads": 1, "head_dim": 16},
        {"head_dim": 80, "rope": RopeConfig("half", 10_000.0, part=0.25)},
        {"rope": RopeConfig("interleaved", 10_000.0, part=0.5), "unrotated_layers": (1,)},
        {
            "hidden_size": 33,
            "norm": LAYER_NORMS,
            "scales": Scales(logits=0.3, logits_bound=2.0),
            "vocab_size": 33,
        },
        {"hidden_size": 100, "norm": POST_NORMS, "scales": BOUNDS, "qk_norm": True, "local_rope": LOCAL_ROPE}
        | {"sliding_windows": (30, None)},
        {
            "hidden_size": 40,
            "norm": replace(LAYER_NORMS, before_mlp=None),
            "is_parallel": True,
            "mlp_bias": True,
        },
        {
            "norm": NO_PRE_NORMS,
            "qk_norm": True,
            "num_kv_heads": 4,
            "scales": Scales(residual=0.3, embedding=3.0),
        },
    ],
    ids=str,
)
def test_odd_shapes_in_a_mixed_batch_are_near_float32(changes: dict[str, Any], isa: str) -> None:
    """A chunk after a prefix, a decode and a whole prompt in one step."""
    config = config_of(**changes)
    plain, one = Bench(made(config, torch.float32)), native_bench(config, isa)
    text = [token % config.vocab_size for token in TEXT]
    fresh, long = text[::-1][:11], text * 4
    for bench in (plain, one):
        bench.run(Piece(text, 0, 40, BLOCKS), Piece(long, 0, 299, list(range(40, 59))))
    pieces = (
        Piece(text, 40, 75, BLOCKS),
        Piece(long, 299, 300, list(range(40, 59))),
        Piece(fresh, 0, 11, [33]),
    )
    assert error(one.run(*pieces), plain.run(*pieces)) < TOLERANCE


def test_a_wrong_norm_is_seen() -> None:
    """The tolerance is tight enough for the tests above to fail."""
    config, piece = config_of(), Piece(TEXT, 0, 40, BLOCKS)
    expected = Bench(made(config, torch.float32)).run(piece)
    wrong = made(config, torch.bfloat16)
    wrong.model.norm.weight.data *= 1.1
    wrong.pack(Crew(1))
    assert error(Bench(wrong).run(piece), expected) > 2 * TOLERANCE


def test_rows_are_sampled_in_the_order_asked_for() -> None:
    one = native_bench(config_of())
    piece = Piece(TEXT, 0, 20, BLOCKS)
    every = one.run(piece)
    batch = batch_of((piece,))
    for rows in ([], [3], [19, 0, 3, 3], [*range(20)] * 2):
        asked = replace(batch, sample_rows=torch.tensor(rows, dtype=torch.int64))
        hidden = one.model(asked, one.caches)
        assert hidden.shape == (len(rows), 64)
        assert torch.equal(one.model.compute_logits(hidden), every[rows])


# ---- a row's bits do not depend on its neighbours --------------------------------------------------------------------

SHAPES: list[dict[str, Any]] = [
    {"num_heads": 6, "num_kv_heads": 2, "qkv_bias": True, "intermediate_size": 200, "hidden_size": 96},
    {"head_dim": 80, "qk_norm": True, "sliding_windows": (None, 300)},
    {"norm": POST_NORMS, "scales": BOUNDS, "local_rope": LOCAL_ROPE, "sliding_windows": (300, None)},
    {
        "hidden_size": 72,
        "norm": replace(LAYER_NORMS, before_mlp=None),
        "is_parallel": True,
        "head_dim": 80,
        "rope": RopeConfig("half", 10_000.0, part=0.25),
        "unrotated_layers": (0,),
        "scales": Scales(logits=0.3),
    },
    {"norm": NO_PRE_NORMS, "qk_norm": True, "scales": Scales(residual=0.3, logits_bound=2.0)},
]


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_a_prompt_has_the_same_bits_alone_cut_and_after_a_prefix_hit(
    changes: dict[str, Any], isa: str, quantization: Quantization
) -> None:
    one = native_bench(config_of(**changes), isa, quantization=quantization)
    text = prompt_of(600, seed=2)
    blocks, others = list(range(38)), list(range(38, 62))
    alone = one.run(Piece(text, 0, 600, blocks))
    for cuts in ([0, 1, 255, 256, 257, 600], [0, 13, 100, 301, 580, 599, 600]):
        parts = [one.run(Piece(text, start, end, blocks)) for start, end in pairwise(cuts)]
        assert torch.equal(torch.cat(parts), alone)
    # the first 320 tokens are another sequence's, whose blocks are shared
    one.run(Piece(text[:320] + text[:5], 0, 325, [*others[:21]]))
    hit = one.run(Piece(text, 320, 600, [*others[:20], *range(18)]))
    assert torch.equal(hit, alone[320:])


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize(
    ("num_threads", "changes"), [(1, SHAPES[0]), (2, SHAPES[0]), (2, SHAPES[2])], ids=str
)
@pytest.mark.parametrize("isa", ISAS)
def test_a_sequence_has_the_same_bits_alone_and_in_a_batch_of_32(
    isa: str, num_threads: int, changes: dict[str, Any], quantization: Quantization
) -> None:
    """Decodes of many lengths, then one of them among chunks; with one thread and with two, which split contexts."""
    config = config_of(**changes)
    one = native_bench(config, isa, num_threads, num_blocks=400, quantization=quantization)
    lengths = [1, 2, 15, 16, 17, 255, 256, 257, 900, *range(30, 53)]
    texts = [prompt_of(length + 1, seed=9 + i) for i, length in enumerate(lengths)]
    tables, first = [], 0
    for length in lengths:
        needed = length // BLOCK_SIZE + 1
        tables.append(list(range(first, first + needed)))
        first += needed
    alone = []
    for text, table in zip(texts, tables, strict=True):
        one.run(Piece(text, 0, len(text) - 1, table))
        alone.append(one.run(Piece(text, len(text) - 1, len(text), table)))
    decodes = [
        Piece(text, len(text) - 1, len(text), table) for text, table in zip(texts, tables, strict=True)
    ]
    assert torch.equal(one.run(*decodes), torch.cat(alone))
    mixed = one.run(Piece(texts[8], 300, 870, tables[8]), *decodes[:8])
    assert torch.equal(mixed[570:], torch.cat(alone[:8]))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_two_threads_find_the_same_bits_as_one(isa: str, quantization: Quantization) -> None:
    text = prompt_of(900, seed=4)
    pieces = (Piece(text, 0, 900, list(range(57))), Piece(TEXT[:9], 0, 9, [60]))
    config = config_of(**SHAPES[1])
    one, two = (native_bench(config, isa, num_threads, quantization=quantization) for num_threads in (1, 2))
    assert torch.equal(one.run(*pieces), two.run(*pieces))
    decode = Piece(text, 899, 900, list(range(57)))
    assert torch.equal(one.run(decode), two.run(decode))


# ---- what stays on torch's layers, and what is refused ---------------------------------------------------------------


def test_what_cannot_be_described_stays_on_torch_and_says_why(checkpoints: Checkpoints) -> None:
    crew = Crew(1)
    odd = loaded(checkpoints, "llama-odd-width")
    assert odd.pack(crew) == "torch layers: head_dim 20 is no multiple of 16"
    wide = loaded(checkpoints, "llama", torch.float32)
    assert wide.pack(crew) == "torch layers: weights are float32, not bfloat16"
    assert (
        loaded(checkpoints, "llama", torch.float16).pack(crew).startswith("torch layers: weights are float16")
    )
    expected = checkpoints.logits("llama-odd-width", TEXT)
    assert error(Bench(odd).run(Piece(TEXT, 0, 75, BLOCKS)), expected) < TOLERANCE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("token_ids", VOCAB_SIZE),
        ("token_ids", -1),
        ("positions", 2048),
        ("slot_mapping", 64 * BLOCK_SIZE),
        ("sample_rows", 20),
        ("block_tables", 64),
        ("block_tables", -1),
        ("seq_lens", 21 * BLOCK_SIZE),
        ("seq_lens", 19),
        ("cu_seqlens_q", 21),
    ],
)
def test_a_step_that_points_outside_is_refused_before_anything_is_written(field: str, value: int) -> None:
    one = native_bench(config_of())
    batch = batch_of((Piece(TEXT, 0, 20, BLOCKS),))
    wrong = getattr(batch, field).clone()
    wrong.view(-1)[-1 if field != "block_tables" else 1] = value
    with pytest.raises(IndexError, match=f"{field}.* of the step: out of range"):
        one.model(replace(batch, **{field: wrong}), one.caches)
    assert all(cache.k.isnan().all() for cache in one.caches)


def test_tensors_that_do_not_fit_each_other_are_refused() -> None:
    one = native_bench(config_of())
    batch = batch_of((Piece(TEXT, 0, 20, BLOCKS),))
    with pytest.raises(ShapeError, match="positions"):
        one.model(replace(batch, positions=batch.positions[:-1]), one.caches)
    with pytest.raises(ShapeError, match="block_size 8 is no multiple of 16"):
        one.model(batch, [LayerCache(cache.k[:, :, :8], cache.v[:, :, :8]) for cache in one.caches])
    with pytest.raises(ShapeError, match="hidden_size"):
        one.model.compute_logits(torch.zeros(1, 63, dtype=torch.bfloat16))


def test_packing_frees_the_matrices_in_rows() -> None:
    """A tied head is packed once, and embeddings are read from it."""
    for tied, expected in ((True, set()), (False, {"model.embed_tokens.weight"})):
        model = made(config_of(tie_word_embeddings=tied), torch.bfloat16)
        model.pack(Crew(1))
        assert {name for name, parameter in model.named_parameters() if parameter.dim() == 2} == expected


def test_spare_memory_is_used_again_once_nobody_holds_a_tensor_on_it() -> None:
    spare = Spare()
    first = spare.empty(3, 5).fill_(1.0)
    kept = first[1]
    del first
    second = spare.empty(3, 5).fill_(2.0)
    assert kept.tolist() == [1.0] * 5
    again = second.data_ptr()
    values = second.numpy()
    del second
    assert spare.empty(1, 1).data_ptr() != again, "an array is still on it"
    assert values.sum() == 30.0
    third = spare.empty(2, 7)
    place = third.data_ptr()
    del third
    assert spare.empty(2, 6).data_ptr() == place
    assert spare.empty(0, 9).shape == (0, 9)


# ---- the threads -----------------------------------------------------------------------------------------------------


def threads_now() -> set[str]:
    return {task.name for task in Path("/proc/self/task").iterdir()}


def test_threads_end_with_their_decoder() -> None:
    for _ in range(3):
        before = threads_now()
        bench = native_bench(config_of(), num_threads=3)
        bench.run(Piece(TEXT, 0, 20, BLOCKS))
        started = threads_now() - before
        assert len(started) == 2
        del bench
        gc.collect()
        assert not started & threads_now()


def test_threads_sleep_between_steps() -> None:
    bench = native_bench(config_of(), num_threads=3)
    for _ in range(3):
        bench.run(Piece(TEXT, 0, 20, BLOCKS))
        time.sleep(0.02)
        spent = time.process_time()
        time.sleep(0.1)
        assert time.process_time() - spent < 0.02


def test_the_caller_may_run_where_it_could_before() -> None:
    """A step keeps it on one core; what other libraries start after must not inherit that."""
    allowed = os.sched_getaffinity(0)
    model = made(config_of(), torch.bfloat16)
    model.pack(Crew(2, sorted(allowed)[:2], alone_work=0))
    Bench(model).run(Piece(TEXT, 0, 20, BLOCKS))
    assert os.sched_getaffinity(0) == allowed


def test_other_threads_run_while_a_step_does() -> None:
    """The interpreter's lock is given up: a step of some 100 ms does not hold up a thread that wants it."""
    bench = native_bench(config_of(num_hidden_layers=24, sliding_windows=(None,) * 24), num_blocks=70)
    text = prompt_of(1000, seed=4)
    turns, is_over = [], threading.Event()

    def take_turns() -> None:
        while not is_over.wait(0.001):
            turns.append(time.monotonic())

    thread = threading.Thread(target=take_turns)
    thread.start()
    began = time.monotonic()
    bench.run(Piece(text, 0, 1000, list(range(63))))
    ended = time.monotonic()
    is_over.set()
    thread.join()
    assert sum(began < turn < ended for turn in turns) > 3


def test_timing_products_leaves_steps_as_they_are() -> None:
    """Every matrix can be timed by its name, and no number of a step lies where the rows of a measurement do."""
    bench = native_bench(config_of(), num_threads=2)
    piece = Piece(TEXT, 0, len(TEXT), BLOCKS)
    before = bench.run(piece)
    for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"):
        assert bench.model.time_products(name, len(TEXT) + 1) > 0
    assert torch.equal(bench.run(piece), before)
    with pytest.raises(ValueError, match=r"not in tuple"):
        bench.model.time_products("embed_tokens", 1)
