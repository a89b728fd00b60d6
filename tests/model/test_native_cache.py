"""What the native decoder keeps of keys and values, in every format and on every instruction set."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.model.checkpoints import prompt_of
from tests.model.pieces import BLOCK_SIZE, Bench, Piece, batch_of
from tests.model.test_native import ISAS, SHAPES, TEXT, TOLERANCE, config_of, error, made
from trioserve.kernels.attention import visible_mask
from trioserve.kernels.rope import apply_rope
from trioserve.model.batch import CacheLayout, LayerCache
from trioserve.model.config import DecoderConfig
from trioserve.model.decoder import Decoder, DecoderLayer
from trioserve.model.families import Scales
from trioserve.model.native import Crew
from trioserve.worker.kv_cache import block_bytes

FORMATS = ["bfloat16", "int8", "fp8"]
GROUP = 16
HALF_STEP = {"bfloat16": 2**-9, "int8": 0.5 / 127, "fp8": 2**-4}
"""The most that a number may be off: int8 of the largest of its head, the others of itself."""
BLOCKS = [9, 2, 30, 4, 17]


def bench_of(
    config: DecoderConfig, name: str, isa: str = ISAS[-1], num_threads: int = 1, num_blocks: int = 64
) -> Bench:
    model = made(config, torch.bfloat16)
    layout = CacheLayout(name, config.head_dim)
    model.pack(Crew(num_threads, isa=isa, alone_work=0), layout=layout)
    return Bench(model, num_blocks, layout)


# ---- the layout, as kv_cache.h says ----------------------------------------------------------------------------------


def decoded(cache: Tensor, name: str, head_dim: int, *, is_key: bool) -> Tensor:
    """[num_blocks, num_kv_heads, block_size, head_dim] float32."""
    blocks, heads = cache.shape[:2]
    per_word = 2 if name == "bfloat16" else 4
    groups = cache.contiguous().view(torch.uint8).view(blocks, heads, BLOCK_SIZE // GROUP, -1)
    codes = groups[..., : GROUP * head_dim * 4 // per_word].contiguous()
    numbers = {"bfloat16": torch.bfloat16, "int8": torch.int8, "fp8": torch.float8_e4m3fn}[name]
    found = codes.view(numbers).float()
    if is_key:
        words = found.view(blocks, heads, -1, head_dim // per_word, GROUP, per_word)
        rows = _in_order(words).permute(0, 1, 2, 4, 3, 5)
    else:
        words = found.view(blocks, heads, -1, GROUP // per_word, head_dim, per_word)
        rows = _in_order(words).permute(0, 1, 2, 3, 5, 4)
    rows = rows.reshape(blocks, heads, -1, GROUP, head_dim)
    if name != "bfloat16":
        rows = rows * groups[..., -4 * GROUP :].contiguous().view(torch.float32)[..., None]
    return rows.reshape(blocks, heads, BLOCK_SIZE, head_dim)


def _in_order(words: Tensor) -> Tensor:
    return words if words.shape[-1] == 2 else words[..., [0, 2, 1, 3]]


def kept(bench: Bench, layer: int, name: str, blocks: list[int], count: int) -> tuple[Tensor, Tensor]:
    """Keys and values of the first ``count`` tokens, each [count, num_kv_heads, head_dim] float32."""
    head_dim, cache = bench.model.config.head_dim, bench.caches[layer]
    found = []
    for tensor, is_key in ((cache.k, True), (cache.v, False)):
        rows = decoded(tensor[blocks], name, head_dim, is_key=is_key)
        found.append(rows.transpose(1, 2).reshape(-1, rows.shape[1], head_dim)[:count])
    return found[0], found[1]


def exact(model: Decoder, token_ids: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the first layer, of a float32 model."""
    layer = model.model.layers[0]
    assert isinstance(layer, DecoderLayer)
    config, attention, norm = model.config, layer.self_attn, layer.norm_named("input_layernorm")
    assert norm is not None
    x = norm(model.model.embed_tokens(torch.tensor(token_ids)))
    heads = attention.qkv_proj(x).view(len(token_ids), -1, config.head_dim)
    q, k, v = heads.split([config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=1)
    if attention.q_norm is not None and attention.k_norm is not None:
        q, k = attention.q_norm(q), attention.k_norm(k)
    q, k = q.contiguous(), k.contiguous()
    interleaved = config.rope.style == "interleaved"
    apply_rope(q, k, torch.arange(len(token_ids)), model.model.rope_table, interleaved=interleaved)
    return q, k, v


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_kept_is_within_half_a_step_of_what_was_computed(name: str, isa: str) -> None:
    for changes in ({"head_dim": 80, "qk_norm": True}, {"head_dim": 16, "num_heads": 2}):
        config = config_of(**changes)
        one = bench_of(config, name, isa)
        one.run(Piece(TEXT, 0, 40, BLOCKS))
        one.run(Piece(TEXT, 40, 75, BLOCKS))
        _, *expected = exact(made(config, torch.float32), TEXT)
        for found, numbers in zip(kept(one, 0, name, BLOCKS, 75), expected, strict=True):
            most = numbers.abs().amax(-1, keepdim=True)
            size = most if name == "int8" else numbers.abs() + most / 28_672
            noise = 0.02 * most  # of the bf16 activations that keys and values are made from
            assert ((found - numbers).abs() <= HALF_STEP[name] * size + noise).all()
            assert (found - numbers).abs().mean() <= 0.6 * (
                HALF_STEP[name] * size
            ).mean() + 0.004 * most.mean()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMATS)
def test_attention_is_that_of_float64_over_what_is_kept(name: str, isa: str) -> None:
    """A layer is followed by hand from the attention on, with the keys and values as the cache has them."""
    config = config_of(num_hidden_layers=1, sliding_windows=(None,), num_heads=6, num_kv_heads=2, head_dim=48)
    text = prompt_of(300, seed=3)
    blocks = list(range(19))
    one, plain = bench_of(config, name, isa), made(config, torch.float32)
    found = one.run(Piece(text, 0, 300, blocks))
    k, v = kept(one, 0, name, blocks, 300)
    q, exact_k, exact_v = exact(plain, text)
    expected = logits_after(plain, text, attended(q, k, v))
    assert error(found, expected) < TOLERANCE
    without = error(expected, logits_after(plain, text, attended(q, exact_k, exact_v)))
    assert without < {"bfloat16": 0.01, "int8": 0.02, "fp8": 0.1}[name]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("name", "tolerance"), [("bfloat16", 0.02), ("int8", 0.03), ("fp8", 0.12)])
def test_bounds_are_of_scores_that_have_their_scales(name: str, tolerance: float, isa: str) -> None:
    bounds = Scales(attention=1.0, attention_bound=1.5)
    config, free = (config_of(scales=scales) for scales in (bounds, replace(bounds, attention_bound=None)))
    piece = Piece(TEXT, 0, 75, BLOCKS)
    expected = Bench(made(config, torch.float32)).run(piece)
    assert error(bench_of(config, name, isa).run(piece), expected) < tolerance
    assert error(bench_of(free, name, isa).run(piece), expected) > 3 * tolerance


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, float64: [num_tokens, num_heads * head_dim]."""
    group = q.shape[1] // k.shape[1]
    keys, values = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * q.shape[2] ** -0.5
    scores = scores.masked_fill(~visible_mask(len(q), len(q), None), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).flatten(1).float()


def logits_after(model: Decoder, token_ids: list[int], seen: Tensor) -> Tensor:
    """What the last layer makes of what attention saw."""
    layer = model.model.layers[-1]
    assert isinstance(layer, DecoderLayer)
    residual = model.model.embed_tokens(torch.tensor(token_ids))
    norm = layer.norm_named("post_attention_layernorm")
    assert norm is not None
    x = layer.mlp(norm.add(layer.self_attn.o_proj(seen), residual))
    logits: Tensor = model.lm_head(model.model.norm.add(x, residual))
    return logits


@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_heads_of_any_size_are_kept(data: st.DataObject) -> None:
    """Zeros, very large and very small numbers: the error is bounded by the head's own largest."""
    name = data.draw(st.sampled_from(["int8", "fp8"]))
    isa = data.draw(st.sampled_from(ISAS))
    size = data.draw(st.sampled_from([0.0, 1e-20, 1e-6, 1.0, 1e3, 1e18]))
    config = config_of(num_hidden_layers=1, sliding_windows=(None,), qkv_bias=True)
    model = made(config, torch.bfloat16)
    layer = model.model.layers[0]
    assert isinstance(layer, DecoderLayer)
    qkv = layer.self_attn.qkv_proj
    assert qkv.bias is not None
    rows = config.num_kv_heads * config.head_dim
    qkv.weight.data[-rows:] = 0.0
    values = data.draw(st.lists(st.floats(-1, 1, width=16), min_size=rows, max_size=rows))
    qkv.bias.data[-rows:] = torch.tensor(values) * size
    expected = qkv.bias.data[-rows:].float().view(config.num_kv_heads, config.head_dim)
    layout = CacheLayout(name, config.head_dim)
    model.pack(Crew(1, isa=isa), layout=layout)
    bench = Bench(model, 4, layout)
    assert bench.run(Piece(TEXT, 0, 3, [1])).isfinite().all() or size > 1e17
    _, found = kept(bench, 0, name, [1], 3)
    most = expected.abs().amax(-1, keepdim=True)
    bound = most * {"int8": 0.5 / 127, "fp8": 16 / 448}[name] * 1.001 + 1e-30
    assert ((found - expected).abs() <= bound).all()


# ---- a row's bits do not depend on its neighbours --------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_a_prompt_has_the_same_bits_alone_cut_and_after_a_prefix_hit(
    changes: dict[str, Any], name: str, isa: str
) -> None:
    one = bench_of(config_of(**changes), name, isa)
    text = prompt_of(600, seed=2)
    blocks, others = list(range(38)), list(range(38, 62))
    alone = one.run(Piece(text, 0, 600, blocks))
    for cuts in ([0, 1, 255, 256, 257, 600], [0, 13, 100, 301, 580, 599, 600]):
        parts = [one.run(Piece(text, start, end, blocks)) for start, end in pairwise(cuts)]
        assert torch.equal(torch.cat(parts), alone)
    one.run(Piece(text[:320] + text[:5], 0, 325, [*others[:21]]))
    assert torch.equal(one.run(Piece(text, 320, 600, [*others[:20], *range(18)])), alone[320:])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_a_decode_has_the_same_bits_alone_and_in_a_batch_of_two_threads(name: str, isa: str) -> None:
    one = bench_of(config_of(**SHAPES[0]), name, isa, num_threads=2, num_blocks=160)
    lengths = [1, 15, 16, 17, 255, 256, 257, 900]
    tables, first = [], 0
    for length in lengths:
        tables.append(list(range(first, first + length // BLOCK_SIZE + 1)))
        first = tables[-1][-1] + 1
    texts = [prompt_of(length + 1, seed=9 + i) for i, length in enumerate(lengths)]
    alone = []
    for text, table in zip(texts, tables, strict=True):
        one.run(Piece(text, 0, len(text) - 1, table))
        alone.append(one.run(Piece(text, len(text) - 1, len(text), table)))
    decodes = [
        Piece(text, len(text) - 1, len(text), table) for text, table in zip(texts, tables, strict=True)
    ]
    assert torch.equal(one.run(*decodes), torch.cat(alone))
    mixed = one.run(Piece(texts[7], 300, 870, tables[7]), *decodes[:7])
    assert torch.equal(mixed[570:], torch.cat(alone[:7]))


# ---- sizes -----------------------------------------------------------------------------------------------------------


def test_bytes_are_codes_and_a_scale_for_each_token_and_head() -> None:
    config = config_of(head_dim=64)
    numbers, codes = (block_bytes(config, 16, CacheLayout(name, 64)) for name in ("bfloat16", "int8"))
    assert codes == 2 * 2 * 2 * 16 * (64 + 4)
    assert 1.88 < numbers / codes < 1.89


@pytest.mark.parametrize("block_size", [16, 32, 48])
@pytest.mark.parametrize("name", FORMATS)
def test_blocks_of_any_size_give_the_same_bits(name: str, block_size: int) -> None:
    """A block is whole groups, which lie one after the other."""
    expected = bench_of(config_of(), name).run(Piece(TEXT, 0, 75, BLOCKS))
    one = bench_of(config_of(), name)
    assert one.layout is not None
    one.caches = [one.layout.empty(9, 2, block_size) for _ in one.caches]
    batch = batch_of((Piece(TEXT, 0, 75, BLOCKS),))
    at = torch.arange(75)
    table = torch.tensor([5, 3, 8, 1, 0])
    slots = table[at // block_size] * block_size + at % block_size
    batch = replace(batch, slot_mapping=slots, block_tables=table[None].int())
    assert torch.equal(one.model.compute_logits(one.model(batch, one.caches)), expected)


def test_a_cache_of_another_layout_is_refused() -> None:
    one = bench_of(config_of(), "int8")
    batch = batch_of((Piece(TEXT, 0, 20, BLOCKS),))
    with pytest.raises(AssertionError, match="int8"):
        one.model(batch, [LayerCache(cache.k.char(), cache.v.char()) for cache in one.caches])
