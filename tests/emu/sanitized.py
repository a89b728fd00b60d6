"""What test_sanitizers.py runs in a process of its own, with AddressSanitizer loaded first: kernels of every kind, then
faults that only a sanitizer sees, each in a fork that must not survive it.

The argument is a folder to build in. Exits with 0 where all kernels are clean; says which faults were survived.
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch

from tests.emu.build import HERE, build
from tests.emu.device import EmulatedGpu, emulated
from tests.emu.paged import BF16, FP8, TOLERANCE, Options, error, make_batch
from tests.emu.sampled import Wish, choose_on_cpu, tables
from tests.emu.tensors import random
from trioserve.kernels.activation import activation_mul_gpu
from trioserve.kernels.activation import kernel as activation_kernel
from trioserve.kernels.copy_blocks import KERNEL as COPY_KERNEL
from trioserve.kernels.copy_blocks import copy_blocks_gpu
from trioserve.kernels.invariant_linear import SOME, invariant_linear_gpu, invariant_linear_ref
from trioserve.kernels.invariant_linear import kernel as invariant_kernel
from trioserve.kernels.paged_attention_gpu import (
    decode_kernel,
    merge_kernel,
    prefill_kernel,
    single_kernel,
    sm90_prefill_kernel,
)
from trioserve.kernels.quantized_linear import (
    channel_kernel,
    group_kernel,
    merge_products_kernel,
    pack_codes,
    pack_nibbles,
    quantize_int4,
    quantize_int8,
    quantized_linear_gpu,
    quantized_linear_ref,
)
from trioserve.kernels.rms_norm import THREADS, norm_kernel, rms_norm_gpu, rms_norm_ref
from trioserve.kernels.rope_store_kv import kernel as rope_store_kernel
from trioserve.kernels.rope_store_kv import rope_store_kv_gpu
from trioserve.kernels.sampling_gpu import (
    CHOOSE,
    SCORE,
    WEIGH,
    choose_tokens_gpu,
    edit_kernel,
    edit_logits_gpu,
    score_tokens_gpu,
    survey_kernel,
)

HEAD_DIM = 80
FAULTS = {"local_beyond": 4, "shift_too_far": 40}


def attention(gpu: EmulatedGpu) -> None:
    lengths = [(1, 130), (20, 70), (1, 1), (3, 3), (0, 9)]
    for num_heads in (6, 2):
        batch = make_batch(
            lengths,
            num_heads=num_heads,
            num_kv_heads=2,
            head_dim=HEAD_DIM,
            block_size=16,
            dtype=BF16,
            kv_dtype=FP8,
        )
        plan, options = batch.plan(), Options(10.0, 40)
        assert error(batch.run(gpu.taking(7), plan, options), batch.expected(plan, options)) < TOLERANCE[BF16]


def attention_of_warpgroups(gpu: EmulatedGpu) -> None:
    batch = make_batch(
        [(20, 170), (3, 3)],
        num_heads=6,
        num_kv_heads=2,
        head_dim=64,
        block_size=16,
        dtype=BF16,
        kv_dtype=BF16,
    )
    plan, options = batch.plan(), Options(10.0, 140)
    assert error(batch.run(gpu.taking(7), plan, options), batch.expected(plan, options)) < TOLERANCE[BF16]


def others(gpu: EmulatedGpu) -> None:
    x, weight = random(3, 640, dtype=BF16), random(640, dtype=BF16, seed=1)
    assert torch.equal(rms_norm_gpu(gpu, x, weight, eps=1e-5), rms_norm_ref(x, weight, eps=1e-5))
    activation_mul_gpu(gpu, x, "gelu_tanh")
    cache = torch.zeros(2, 2, 16, HEAD_DIM).to(FP8)
    q, k, v = torch.split(random(3, 8, HEAD_DIM, dtype=BF16), [4, 2, 2], dim=1)
    rope_store_kv_gpu(
        gpu,
        *(q, k, v, torch.arange(3), torch.ones(3, 2, HEAD_DIM // 2), cache, cache.clone()),
        torch.tensor([31, -1, 0]),
        k_scales=torch.zeros(2, 2, 16),
        v_scales=torch.zeros(2, 2, 16),
        interleaved=True,
    )
    copy_blocks_gpu(gpu, cache, cache, torch.tensor([[1, 0]]))


def sampling(gpu: EmulatedGpu) -> None:
    wishes = [
        Wish(
            temperature=1.0, top_k=20, top_p=0.9, mask=tuple(range(0, 4100, 5)), num_top=3, scope=(1.0, 0.8)
        ),
        Wish(
            temperature=1.0,
            min_p=0.1,
            stops=(4098,),
            bias={4099: 2.0},
            penalties=(1.1, 0.1, 0.1),
            output=(4099,),
        ),
        Wish(allowed=(4097,)),
    ]
    logits = random(3, 4100, dtype=BF16)
    rows, slots = tables(wishes, 4100)
    token_ids = choose_tokens_gpu(gpu, edit_logits_gpu(gpu, logits, rows, slots), rows, slots)
    assert token_ids.tolist() == choose_on_cpu(wishes, logits)[0]
    raw = edit_logits_gpu(gpu, logits, rows, slots, has_edits=False)
    score_tokens_gpu(gpu, token_ids, raw, rows, slots, max_top=3)


def products(gpu: EmulatedGpu) -> None:
    """Of a depth that is split and of one that is not, with a bias; and one that no batch changes."""
    deep, flat = random(17, 2112, dtype=torch.float32), random(17, 192, dtype=torch.float32)
    x, bias = random(20, 2112, dtype=BF16), random(17, dtype=BF16)
    packed = (
        pack_codes(*quantize_int8(deep)),
        pack_nibbles(*quantize_int4(flat, group_size=32), has_zero_points=False, dtype=BF16),
    )
    rows, dense = x[:, :192], flat.to(BF16)
    found, exact = invariant_linear_gpu(gpu, rows, dense, bias), invariant_linear_ref(rows, dense, bias)
    assert float((found.double() - exact.double()).abs().max() / exact.abs().max()) < 2.0**-8
    for of in packed:
        for num_tokens in (9, 1):
            tokens = x[:num_tokens, : of.in_size]
            found, exact = quantized_linear_gpu(gpu, tokens, of, bias), quantized_linear_ref(tokens, of, bias)
            assert (gpu.launched[-1][0].base == "merge_products") == (of.in_size == 2112)
            assert float((found.double() - exact.double()).abs().max() / exact.abs().max()) < 2.0**-8


def survives(name: str, folder: Path) -> bool:
    """Whether a process goes on after the fault ``name``."""
    out = torch.zeros(1, dtype=torch.float32 if name == "local_beyond" else torch.int32)
    library = build(HERE / "local_faults.cu", [*FAULTS], folder)
    child = os.fork()
    if not child:
        library.launch(name, *(out, FAULTS[name]), grid=(1,), block=(1,))
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    kernels = [
        merge_kernel("bf16"),
        sm90_prefill_kernel("bf16", 64),
        *(make("bf16", "e4m3", HEAD_DIM) for make in (decode_kernel, prefill_kernel, single_kernel)),
        rope_store_kernel("bf16", "e4m3", HEAD_DIM),
        norm_kernel("bf16", 8, THREADS, 1),
        activation_kernel("bf16", "gelu_tanh", 8),
        COPY_KERNEL,
        *(survey_kernel("bf16", 4), edit_kernel("bf16", 4), WEIGH, CHOOSE, SCORE),
        merge_products_kernel("bf16"),
        *(channel_kernel("bf16", "u8", num_tiles) for num_tiles in (0, 2)),
        *(group_kernel("bf16", True, num_tiles) for num_tiles in (0, 2)),
        invariant_kernel("bf16", SOME),
    ]
    gpu = emulated(kernels, emulate=partial(build, folder=folder))
    attention(gpu)
    attention_of_warpgroups(gpu.of("sm_90a"))
    others(gpu)
    sampling(gpu)
    products(gpu)
    print("clean")
    for name in FAULTS:
        print(name, "survived" if survives(name, folder) else "seen")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
