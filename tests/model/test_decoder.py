"""The decoder against transformers, family by family."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.model.checkpoints import MODELS, Checkpoints, prompt_of
from tests.model.pieces import Bench, Piece
from trioserve.model.config import read_config
from trioserve.model.decoder import Decoder, DecoderLayer
from trioserve.model.loader import load_weights

TOLERANCE = 1e-4
TEXT = prompt_of(75, seed=1)
BLOCKS = [9, 2, 30, 4, 17]


def bench(checkpoints: Checkpoints, name: str, dtype: torch.dtype = torch.float32) -> Bench:
    folder = checkpoints.folder(name)
    model = Decoder(read_config(folder), dtype, num_positions=256)
    load_weights(model, folder)
    return Bench(model)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return (found - expected).abs().max().item()


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_a_prompt_in_one_piece_are_those_of_transformers(
    checkpoints: Checkpoints, name: str
) -> None:
    found = bench(checkpoints, name).run(Piece(TEXT, 0, len(TEXT), BLOCKS))
    assert difference(found, checkpoints.logits(name, TEXT)) < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_logits_do_not_depend_on_how_the_prompt_is_cut(checkpoints: Checkpoints, name: str) -> None:
    expected = checkpoints.logits(name, TEXT)
    one = bench(checkpoints, name)
    for cuts in ([0, 1, 16, 17, 50, 75], [0, 31, 32, 33, 75], list(range(60, 76))):
        first = one.run(Piece(TEXT, 0, cuts[0], BLOCKS)) if cuts[0] else expected[:0]
        parts = [one.run(Piece(TEXT, start, end, BLOCKS)) for start, end in pairwise(cuts)]
        assert difference(torch.cat([first, *parts]), expected) < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_sequences_that_share_blocks_and_a_mixed_batch_keep_their_logits(
    checkpoints: Checkpoints, name: str
) -> None:
    """A prefix hit, a decode and a fresh prefill in one step."""
    other = TEXT[:32] + prompt_of(20, seed=2)
    fresh = prompt_of(11, seed=3)
    one = bench(checkpoints, name)
    one.run(Piece(TEXT, 0, 74, BLOCKS))
    pieces = (Piece(other, 32, 52, [9, 2, 40, 41]), Piece(TEXT, 74, 75, BLOCKS), Piece(fresh, 0, 11, [50]))
    hit, decode, prefill = torch.split(one.run(*pieces), [20, 1, 11])
    assert difference(hit, checkpoints.logits(name, other)[32:]) < TOLERANCE
    assert difference(decode, checkpoints.logits(name, TEXT)[74:]) < TOLERANCE
    assert difference(prefill, checkpoints.logits(name, fresh)) < TOLERANCE


@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "ernie", "mistral-sliding", "gemma2", "gemma3", "olmo2", "cohere", "stablelm"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(checkpoints: Checkpoints, name: str, dtype: torch.dtype) -> None:
    found = bench(checkpoints, name, dtype).run(Piece(TEXT, 0, len(TEXT), BLOCKS))
    expected = checkpoints.logits(name, TEXT)
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 0.03 if dtype == torch.bfloat16 else error < 0.004


@pytest.mark.parametrize("name", ["llama", "qwen2", "ernie-biased"])
def test_packing_the_weights_changes_nothing(checkpoints: Checkpoints, name: str) -> None:
    """Tied and untied heads, with biases and without."""
    plain, packed = bench(checkpoints, name, torch.bfloat16), bench(checkpoints, name, torch.bfloat16)
    packed.model.pack()
    piece = Piece(TEXT, 0, len(TEXT), BLOCKS)
    assert difference(packed.run(piece), plain.run(piece)) < 0.01


def test_a_wrong_rotation_is_seen(checkpoints: Checkpoints) -> None:
    """The tolerance is tight enough for the tests above to fail."""
    one = bench(checkpoints, "llama")
    one.model.model.rope_table[40:] *= 1.001
    found = one.run(Piece(TEXT, 0, len(TEXT), BLOCKS))
    assert difference(found, checkpoints.logits("llama", TEXT)) > 2 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "part", "wrong"),
    [
        ("gemma2", "scales", {"attention_bound": None}),
        ("gemma2", "scales", {"logits_bound": None}),
        ("gemma2", "scales", {"embedding": 1.0}),
        ("gemma3", "scales", {"attention": None}),
        ("gemma3", "norm", {"offset": 0.0}),
        ("gemma3", "config", {"local_rope": None}),
        ("glm4", "rope", {"style": "half"}),
        ("granite", "scales", {"residual": 1.0}),
        ("granite", "scales", {"logits": 1.0}),
        ("smollm3", "config", {"unrotated_layers": ()}),
        ("cohere", "norm", {"kind": "rms"}),
        ("cohere2", "config", {"sliding_windows": (None,) * 4}),
        ("stablelm-parallel", "config", {"is_parallel": False}),
    ],
)
def test_what_tells_families_apart_is_seen(
    checkpoints: Checkpoints, name: str, part: str, wrong: dict[str, Any]
) -> None:
    """By far more than the native decoder errs."""
    folder = checkpoints.folder(name)
    config = read_config(folder)
    changes = wrong if part == "config" else {part: replace(getattr(config, part), **wrong)}
    model = Decoder(replace(config, **changes), torch.float32, num_positions=256)
    load_weights(model, folder)
    found, expected = Bench(model).run(Piece(TEXT, 0, len(TEXT), BLOCKS)), checkpoints.logits(name, TEXT)
    assert (found - expected).square().mean().sqrt() > 0.06 * expected.square().mean().sqrt()


def test_a_sliding_window_one_token_too_wide_is_seen(checkpoints: Checkpoints) -> None:
    one = bench(checkpoints, "mistral-sliding")
    layer = one.model.model.layers[1]
    assert isinstance(layer, DecoderLayer)
    layer.self_attn._sliding_window = 8
    found = one.run(Piece(TEXT, 0, len(TEXT), BLOCKS))
    assert difference(found, checkpoints.logits("mistral-sliding", TEXT)) > 2 * TOLERANCE
