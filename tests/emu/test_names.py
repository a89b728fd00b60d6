"""A kernel, its launch function and its reference call the same thing by the same name."""

import inspect
from collections.abc import Callable
from dataclasses import fields

import pytest

from trioserve.kernels.activation import activation_mul, activation_mul_ref
from trioserve.kernels.attention_plan import AttentionPlan
from trioserve.kernels.catalogue import kernels
from trioserve.kernels.copy_blocks import copy_blocks_gpu, copy_blocks_ref
from trioserve.kernels.invariant_linear import invariant_linear_gpu, invariant_linear_ref
from trioserve.kernels.layer_norm import add_layer_norm_gpu, add_layer_norm_ref
from trioserve.kernels.paged_attention_gpu import paged_attention_gpu, paged_attention_gpu_ref
from trioserve.kernels.quantized_linear import PackedWeight
from trioserve.kernels.rms_norm import (
    add_normed_gpu,
    add_normed_ref,
    add_rms_norm,
    add_rms_norm_ref,
    rms_norm,
    rms_norm_ref,
)
from trioserve.kernels.rope import apply_rope
from trioserve.kernels.rope_store_kv import rope_store_kv_gpu, rope_store_kv_ref
from trioserve.kernels.sampling_gpu import Edited, RowTables, SlotTables
from trioserve.kernels.source import inlined, signature
from trioserve.kernels.store_kv import store_kv, store_kv_ref

Faces = tuple[Callable[..., object], ...]
FACES: dict[str, Faces] = {
    "rms_norm": (rms_norm, rms_norm_ref),
    "add_rms_norm": (add_rms_norm, add_rms_norm_ref),
    "add_normed": (add_normed_gpu, add_normed_ref),
    "add_layer_norm": (add_layer_norm_gpu, add_layer_norm_ref),
    "activation_mul": (activation_mul, activation_mul_ref),
    "apply_rope": (apply_rope,),
    "store_kv": (store_kv, store_kv_ref),
    "rope_store_kv": (rope_store_kv_gpu, rope_store_kv_ref),
    "copy_blocks": (copy_blocks_gpu, copy_blocks_ref),
    "invariant_linear": (invariant_linear_gpu, invariant_linear_ref),
    "paged_decode": (paged_attention_gpu, paged_attention_gpu_ref),
    "paged_decode_single": (paged_attention_gpu, paged_attention_gpu_ref),
    "paged_prefill": (paged_attention_gpu, paged_attention_gpu_ref),
    "paged_prefill_sm90": (paged_attention_gpu, paged_attention_gpu_ref),
}
CHOICES = {"interleaved", "activation"}
"""Arguments that choose an instantiation."""


@pytest.mark.parametrize("base", FACES)
def test_a_kernel_takes_what_its_faces_take(base: str) -> None:
    """A face takes nothing that its kernel does not know, and a plan is its tables."""
    kernel = next(kernel for kernel in kernels() if kernel.base == base)
    known = {argument.name for argument in signature(kernel)} | CHOICES
    for face in FACES[base]:
        names = set(inspect.signature(face).parameters) - {"gpu"}
        if "plan" in names:
            tables = set(AttentionPlan.__annotations__) - {"num_splits", "has_decodes", "has_prefills"}
            names = names - {"plan"} | (tables - {"split_size"} if "paged_prefill" in base else tables)
        if base == "paged_prefill_sm90":
            names -= {"k_scales", "v_scales"}  # of a cache that it does not take
        assert names <= known, names - known


@pytest.mark.parametrize(
    "base",
    ["channel_linear", "channel_linear_single", "group_linear", "group_linear_single", "merge_products"],
)
def test_a_product_takes_a_packed_weight_by_its_names(base: str) -> None:
    kernel = next(kernel for kernel in kernels() if kernel.base == base)
    known = {field.name for field in fields(PackedWeight)} | {
        *("out", "x", "bias", "num_tokens", "x_stride"),
        *("sums", "num_splits"),
    }
    assert {argument.name for argument in signature(kernel)} <= known


@pytest.mark.parametrize(
    "base", ["survey_logits", "edit_logits", "weigh_logits", "choose_tokens", "score_tokens"]
)
def test_a_sampling_kernel_takes_tables_by_their_names(base: str) -> None:
    """Beside the tables: logits, what passes from kernel to kernel, what is written, and sizes."""
    kernel = next(kernel for kernel in kernels() if kernel.base == base)
    tables = {field.name for table in (RowTables, SlotTables, Edited) for field in fields(table)}
    passed = {"logits", "outcomes", "sums", "token_ids", "logprobs", "top_ids"}
    for argument in signature(kernel):
        assert not argument.is_tensor or argument.name in tables | passed, argument.name


@pytest.mark.parametrize("base", sorted({kernel.base for kernel in kernels()}))
def test_the_head_of_a_file_tells_of_every_argument(base: str) -> None:
    """Tensors with their shapes, and what a template is given."""
    kernel = next(kernel for kernel in kernels() if kernel.base == base)
    head = inlined(kernel.file).partition("template <")[0].partition("#include")[0]
    head = head.partition("// Ladder")[0]
    for argument in signature(kernel):
        assert not argument.is_tensor or argument.name in head, (
            f"{kernel.file} says nothing of {argument.name}"
        )
    assert "grid" in head and "block" in head
