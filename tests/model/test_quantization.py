"""Weights in int8 and int4: whole sums are exact on every instruction set, and a model says nearly the same."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import Tensor

from tests.model.checkpoints import Checkpoints
from tests.model.pieces import Bench, Piece
from tests.model.test_native import BLOCKS, ISAS, NATIVE, TEXT, config_of, error, loaded, made, native_bench
from trioserve._speedups.decoder import Decoder as NativeCall
from trioserve.builtin import MODEL_DIR
from trioserve.errors import ModelError
from trioserve.model.config import read_config
from trioserve.model.decoder import Decoder
from trioserve.model.loader import load_weights
from trioserve.model.native import Crew
from trioserve.model.native_matrices import Quantization, layer_formats

GROUP = 32
"""Weights of a column that share a scale in int4."""
FORMATS: tuple[Quantization, ...] = ("int8", "int4")
TOLERANCES = {"int8": 0.1, "int4": 0.3}
"""Of the root mean square of the logits, for tiny random models, in which nothing evens out."""
CONVERSATION = (
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    "The capital of France is Paris.<|im_end|>\n<|im_start|>user\nWhat is 12 plus 30?<|im_end|>\n"
    "<|im_start|>assistant\n12 + 30 = 42.<|im_end|>\n"
)


class Product:
    """One matrix [num_columns, depth], packed as the head of a decoder."""

    def __init__(
        self, weights: Tensor, form: str, isa: str, num_threads: int = 1, grids: Tensor | None = None
    ) -> None:
        """Of ``weights``; or of codes, which ``grids`` say the meaning of."""
        self._weights = weights.bfloat16().contiguous() if grids is None else weights.contiguous()
        self._num_columns, depth = weights.shape
        self._call = NativeCall(
            num_layers=1,
            hidden_size=depth,
            intermediate_size=1,
            num_heads=1,
            num_kv_heads=1,
            head_dim=16,
            vocab_size=self._num_columns,
            num_positions=1,
            num_pairs=8,
            rms_norm_eps=1e-6,
            norm_kind="rms",
            heads_together=False,
            activation="silu",
            is_interleaved=False,
            is_parallel=False,
            scales=dict.fromkeys(("embedding", "residual", "attention", "logits"), 1.0)
            | dict.fromkeys(("attention_bound", "logits_bound"), 0.0),
            kv_format="bfloat16",
            embeddings=0,
            num_threads=num_threads,
            cpus=(),
            alone_work=0,
            isa=isa,
        )
        norm = torch.ones(depth)
        pieces = [(self._weights.data_ptr(), self._num_columns, depth)]
        self._call.set_head(
            norm=norm.data_ptr(),
            norm_bias=0,
            lm_head=pieces,
            head_format=form,
            grids=0 if grids is None else grids.data_ptr(),
        )
        self._call.pack()

    def __call__(self, rows: Tensor) -> Tensor:
        rows = rows.bfloat16().contiguous()
        out = torch.full((len(rows), self._num_columns), torch.nan)
        self._call.compute_logits(out.data_ptr(), rows.data_ptr(), num_rows=len(rows))
        return out


def whole_weights(form: str, num_columns: int, depth: int, seed: int) -> Tensor:
    """Whole numbers that the format holds exactly: each scale comes out as 1."""
    generator = torch.Generator().manual_seed(seed)
    if form == "int8":
        weights = torch.randint(-127, 128, (num_columns, depth), generator=generator)
        weights[:, seed % depth] = 127
        return weights
    weights = torch.randint(0, 16, (num_columns, depth), generator=generator)
    for first in range(0, depth, GROUP):
        weights[:, first] = 15
        if first + 1 < depth:
            weights[:, first + 1] = 0
    return weights


def whole_rows(num_rows: int, depth: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    rows = torch.randint(-127, 128, (num_rows, depth), generator=generator)
    rows[:, seed % depth] = -127
    return rows


# ---- one product -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(FORMATS),
    num_rows=st.integers(1, 30),
    num_columns=st.integers(1, 80),
    depth=st.integers(1, 150),
    seed=st.integers(0, 1000),
)
def test_sums_of_whole_numbers_are_exact_on_every_instruction_set(
    form: str, num_rows: int, num_columns: int, depth: int, seed: int
) -> None:
    weights, rows = whole_weights(form, num_columns, depth, seed), whole_rows(num_rows, depth, seed)
    expected = (rows @ weights.T).float()
    for isa in ISAS:
        assert torch.equal(Product(weights, form, isa)(rows), expected), isa


@pytest.mark.parametrize("form", FORMATS)
def test_the_largest_numbers_overflow_nothing(form: str) -> None:
    """A depth of 9,000: the sums pass what 16 and 24 bits hold, and are still whole numbers in 32."""
    depth, most = 9000, 127 if form == "int8" else 15
    weights = torch.full((3, depth), most)
    weights[1], weights[2, ::2] = -most if form == "int8" else 0, 0
    rows = torch.stack([torch.full((depth,), 127), torch.full((depth,), -127)])
    expected = (rows @ weights.T).float()
    for isa in ISAS:
        assert torch.equal(Product(weights, form, isa)(rows), expected), isa


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("depth", [40, 896])
def test_instruction_sets_agree_to_the_bit(form: str, depth: int) -> None:
    """Rows and weights are rounded alike, and each step from whole sums to floats is exact or the same."""
    generator = torch.Generator().manual_seed(depth)
    weights, rows = (torch.randn(size, depth, generator=generator) for size in (70, 21))
    first, *others = (Product(weights, form, isa, num_threads=2)(rows) for isa in ISAS)
    assert all(torch.equal(other, first) for other in others)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_a_product_is_as_near_as_rounding_allows(form: str, isa: str) -> None:
    generator = torch.Generator().manual_seed(8)
    weights, rows = (torch.randn(size, 320, generator=generator).bfloat16() for size in (50, 9))
    weights[:, 5] *= 20  # a channel that stands out
    found = Product(weights, form, isa)(rows).double()
    w, a = weights.double(), rows.double()
    half_steps = a.abs().amax(1, keepdim=True) / 254
    if form == "int8":
        weight_error = a.abs() @ (w.abs().amax(1) / 254).expand(320, 50)
    else:
        # the best grid's error is no larger than that of the one from the least to the largest, rounded to bf16
        groups = w.view(50, -1, GROUP)
        ranges = groups.amax(-1) - groups.amin(-1)
        errors = GROUP**0.5 * (ranges / 30 + (ranges + groups.abs().amax(-1)) / 256)
        weight_error = a.view(9, -1, GROUP).norm(dim=-1) @ errors.T
    row_error = half_steps * (w.abs().sum(1) + weight_error / a.abs().amax(1, keepdim=True))
    assert ((found - a @ w.T).abs() <= (weight_error + row_error) * 1.01).all()
    assert error(found, a @ w.T) < (0.03 if form == "int8" else 0.12)


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_not_finite_stays_where_it_is(form: str) -> None:
    """As in bf16: a row or a column with such a number has no other results, all others have theirs."""
    weights, rows = torch.randn(40, 100), torch.randn(14, 100)
    clean = Product(weights, form, ISAS[-1])(rows)
    weights[7, 99], rows[3, 5], rows[4, 6] = torch.nan, torch.nan, torch.inf
    rows[5] = 0.0
    for isa in ISAS:
        found = Product(weights, form, isa)(rows)
        is_lost = torch.zeros_like(found, dtype=torch.bool)
        is_lost[:, 7], is_lost[3], is_lost[4] = True, True, True
        assert torch.equal(found.isfinite(), ~is_lost)
        assert not found[5, :7].any()
        is_lost[5] = True
        assert torch.equal(found[~is_lost], clean[~is_lost])


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(FORMATS),
    num_rows=st.integers(1, 30),
    num_columns=st.integers(1, 80),
    depth=st.integers(1, 150),
    seed=st.integers(0, 1000),
)
def test_codes_that_a_checkpoint_brings_are_multiplied_as_they_are(
    form: str, num_rows: int, num_columns: int, depth: int, seed: int
) -> None:
    """Scales are powers of two, so all is exact; no other code would do, and none has to be the largest."""
    generator = torch.Generator().manual_seed(seed)
    powers = 2.0 ** torch.randint(-3, 4, (num_columns, -(-depth // GROUP)), generator=generator)
    if form == "int8":
        codes = torch.randint(0, 256, (num_columns, depth), generator=generator)
        grids = powers[:, 0].contiguous()
        weights = (codes - 128) * grids[:, None]
    else:
        codes = torch.randint(0, 16, (num_columns, depth), generator=generator)
        least = powers * torch.randint(-15, 1, powers.shape, generator=generator)
        grids = torch.stack([powers, least], dim=-1).bfloat16()
        scales, least = (each.repeat_interleave(GROUP, 1)[:, :depth] for each in (powers, least))
        weights = codes * scales + least
    rows = whole_rows(num_rows, depth, seed)
    expected = (rows.double() @ weights.double().T).float()
    for isa in ISAS:
        assert torch.equal(Product(codes.to(torch.uint8), form, isa, grids=grids)(rows), expected), isa


# ---- a whole decoder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("name", NATIVE)
def test_every_family_is_near_transformers(
    checkpoints: Checkpoints, name: str, quantization: Quantization
) -> None:
    model = loaded(checkpoints, name)
    model.pack(Crew(1), quantization)
    found = Bench(model).run(Piece(TEXT, 0, len(TEXT), BLOCKS))
    assert error(found, checkpoints.logits(name, TEXT)) < TOLERANCES[quantization]


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 24, "intermediate_size": 10},
        {"hidden_size": 33, "intermediate_size": 31, "num_hidden_layers": 1, "sliding_windows": (None,)},
        {"hidden_size": 100, "intermediate_size": 65, "head_dim": 48, "vocab_size": 33, "mlp_bias": True},
        {"head_dim": 16, "num_heads": 7, "num_kv_heads": 1, "tie_word_embeddings": True, "qkv_bias": True},
    ],
    ids=str,
)
def test_odd_shapes_are_near_float32_on_every_instruction_set(
    changes: dict[str, Any], quantization: Quantization
) -> None:
    config = config_of(**changes)
    text = [token % config.vocab_size for token in TEXT]
    piece = Piece(text, 0, 75, BLOCKS)
    expected = Bench(made(config, torch.float32)).run(piece)
    for isa in ISAS:
        found = native_bench(config, isa, quantization=quantization).run(piece)
        assert error(found, expected) < TOLERANCES[quantization], isa


def test_int4_keeps_the_last_layer_and_what_attention_takes_in_int8() -> None:
    first, last = (layer_formats("int4", layer, 2) for layer in (0, 1))
    assert first == {"qkv_proj": "int8", "o_proj": "int4", "gate_up_proj": "int4", "down_proj": "int4"}
    assert set(last.values()) == {"int8"}
    sizes = {}
    for quantization in ("none", "int8", "int4"):
        wide = config_of(hidden_size=512, intermediate_size=1536)
        model = made(wide, torch.bfloat16)
        model.pack(Crew(1), quantization)
        kept = sum(parameter.nbytes for parameter in model.parameters() if parameter.dim() == 2)
        assert kept == wide.vocab_size * wide.hidden_size * 2, "the embeddings, and no matrix in rows"
        sizes[quantization] = (model.packed_bytes or 0) - kept
    assert sizes["int8"] < 0.55 * sizes["none"]
    assert sizes["int4"] < 0.9 * sizes["int8"]


def test_tied_embeddings_are_read_from_the_packed_head() -> None:
    model = made(config_of(tie_word_embeddings=True), torch.bfloat16)
    model.pack(Crew(1), "int8")
    assert not any(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)


def test_what_cannot_run_natively_is_not_quantized_and_says_what_to_change(checkpoints: Checkpoints) -> None:
    refused = [
        ("llama-odd-width", torch.bfloat16, "head_dim 20 is no multiple of 16; leave it out"),
        ("llama", torch.float32, "weights are float32, not bfloat16; give dtype bfloat16 or leave it out"),
    ]
    for name, dtype, why in refused:
        model = loaded(checkpoints, name, dtype)
        with pytest.raises(ModelError, match=f"^quantization int8 cannot be obeyed: {why}$"):
            model.pack(Crew(1), "int8")


# ---- the built-in model ----------------------------------------------------------------------------------------------


def builtin_logits(quantization: Quantization, token_ids: list[int]) -> Tensor:
    model = Decoder(read_config(MODEL_DIR), torch.bfloat16, num_positions=256)
    load_weights(model, MODEL_DIR)
    model.pack(Crew(1), quantization)
    return Bench(model).run(Piece(token_ids, 0, len(token_ids), list(range(16))))


def test_the_builtin_model_says_nearly_the_same() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    token_ids = tokenizer.encode(CONVERSATION).ids
    starts = [at + 1 for at, token in enumerate(token_ids) if token == tokenizer.token_to_id("<|im_start|>")]
    expected = builtin_logits("none", token_ids).double().log_softmax(-1)
    answers = torch.zeros(len(token_ids), dtype=torch.bool)
    for start, end in pairwise([*starts, len(token_ids)]):
        if "assistant" in tokenizer.decode(token_ids[start : start + 2]):
            answers[start + 2 : end - 2] = True
    assert answers.sum() > 15
    kls = {}
    for quantization in FORMATS:
        found = builtin_logits(quantization, token_ids).double().log_softmax(-1)
        kls[quantization] = float((expected.exp() * (expected - found)).sum(-1).mean())
        assert torch.equal(found.argmax(-1)[answers], expected.argmax(-1)[answers])
    assert kls["int8"] < 0.003
    assert kls["int8"] < kls["int4"] < 0.03
