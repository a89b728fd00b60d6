"""Ranks that share a model compute what one computes, on torch's layers over Gloo and natively over shared memory."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.model.checkpoints import MODELS, Checkpoints, prompt_of
from tests.model.pieces import Bench, Piece
from tests.model.ranks import exchanges, gloo_ranks, native_part, torch_part
from tests.model.test_decoder import TOLERANCE, difference
from tests.model.test_native import NATIVE, error
from tests.model.test_native import TOLERANCE as NATIVE_TOLERANCE
from trioserve._speedups.exchange import Exchange
from trioserve.errors import ModelError
from trioserve.model.config import read_config
from trioserve.model.decoder import Decoder
from trioserve.model.layers import Linear
from trioserve.model.loader import load_weights
from trioserve.model.native import obstacle
from trioserve.model.native_matrices import Quantization
from trioserve.model.parts import WHOLE, Part
from trioserve.model.ranks import GroupRanks, Ranks

TEXT = prompt_of(75, seed=1)
BLOCKS = [9, 2, 30, 4, 17]


def fitting(checkpoints: Checkpoints, name: str) -> list[int]:
    """The numbers of ranks, 2 to 4, that can share a model."""
    config = read_config(checkpoints.folder(name))
    found = []
    for tp_size in (2, 3, 4):
        try:
            Part(0, tp_size).refuse_uneven(config)
        except ModelError:
            continue
        found.append(tp_size)
    assert found, f"no number of ranks can share {name}"
    return found


def run_in_pieces(model: Decoder) -> Tensor:
    """A prompt in two chunks, and a decode beside another prompt: logits of every token."""
    bench = Bench(model)
    first = bench.run(Piece(TEXT, 0, 33, BLOCKS)).clone()
    second = bench.run(Piece(TEXT, 33, 74, BLOCKS)).clone()
    mixed = bench.run(Piece(prompt_of(11, seed=3), 0, 11, [50]), Piece(TEXT, 74, 75, BLOCKS)).clone()
    return torch.cat([first, second, mixed[11:]])


def assert_alike(results: list[Tensor]) -> Tensor:
    """All ranks have the same bits."""
    first, *others = results
    for other in others:
        assert torch.equal(first, other)
    return first


# ---- torch's layers, over Gloo ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_torchs_layers_give_the_logits_of_transformers_on_any_number_of_ranks(
    checkpoints: Checkpoints, name: str
) -> None:
    folder, expected = checkpoints.folder(name), checkpoints.logits(name, TEXT)
    for tp_size in fitting(checkpoints, name):
        found = assert_alike(
            gloo_ranks(tp_size, lambda ranks: run_in_pieces(torch_part(folder, torch.float32, ranks)))
        )
        assert difference(found, expected) < TOLERANCE


def test_a_row_has_the_same_bits_whatever_else_the_ranks_compute(checkpoints: Checkpoints) -> None:
    folder = checkpoints.folder("llama-odd-heads-tied")

    def run(ranks: GroupRanks) -> tuple[Tensor, Tensor]:
        bench = Bench(torch_part(folder, torch.float32, ranks))
        alone = bench.run(Piece(TEXT, 0, 40, BLOCKS))[-1].clone()
        beside = bench.run(Piece(prompt_of(17, seed=4), 0, 17, [50, 51]), Piece(TEXT, 39, 40, BLOCKS))[-1]
        return alone, beside

    for alone, beside in gloo_ranks(3, run):
        assert difference(alone, beside) < 1e-5


def test_half_precision_is_summed_in_float32_and_rounded_once() -> None:
    """256 + 1 + 1 is 258 in bfloat16, and 256 if each sum is rounded."""
    numbers = torch.tensor([[256.0], [1.0], [1.0]], dtype=torch.bfloat16)
    for total in gloo_ranks(3, lambda ranks: ranks.sum(numbers[ranks.tp_rank])):
        assert total.dtype == torch.bfloat16 and total.item() == 258.0


# ---- native layers, over shared memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NATIVE)
def test_native_layers_err_no_more_than_one_rank_does(checkpoints: Checkpoints, name: str) -> None:
    folder, expected = checkpoints.folder(name, dtype=torch.bfloat16), checkpoints.logits(name, TEXT)
    for tp_size in fitting(checkpoints, name):
        if obstacle(
            read_config(folder), torch.bfloat16, tp_size=tp_size
        ):  # their heads are normalised together
            assert name.startswith("olmo")
            continue
        found = assert_alike(exchanges(tp_size, lambda ranks: run_in_pieces(native_part(folder, ranks))))
        assert error(found, expected) < NATIVE_TOLERANCE


@pytest.mark.parametrize("num_threads", [2, 3])
def test_native_ranks_with_threads_of_their_own_give_the_same_bits(
    checkpoints: Checkpoints, num_threads: int
) -> None:
    folder = checkpoints.folder("llama", dtype=torch.bfloat16)
    one = exchanges(2, lambda ranks: run_in_pieces(native_part(folder, ranks)))
    many = exchanges(2, lambda ranks: run_in_pieces(native_part(folder, ranks, num_threads=num_threads)))
    assert_alike(one + many)


def test_a_native_row_has_the_same_bits_in_any_chunk_and_batch(checkpoints: Checkpoints) -> None:
    folder = checkpoints.folder("llama", dtype=torch.bfloat16)

    def run(ranks: Exchange) -> tuple[Tensor, Tensor]:
        model = native_part(folder, ranks)
        return Bench(model).run(Piece(TEXT, 0, 75, BLOCKS)).clone(), run_in_pieces(model)

    for whole, pieces in exchanges(4, run):
        assert torch.equal(whole, pieces)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized_parts_err_as_the_quantized_whole_does(
    checkpoints: Checkpoints, quantization: Quantization
) -> None:
    folder, expected = checkpoints.folder("llama", dtype=torch.bfloat16), checkpoints.logits("llama", TEXT)
    found = assert_alike(
        exchanges(2, lambda ranks: run_in_pieces(native_part(folder, ranks, quantization=quantization)))
    )
    assert error(found, expected) < {"int8": 0.1, "int4": 0.35}[quantization]


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen2"])
def test_ranks_read_no_more_of_the_files_together_than_one_rank_does(
    checkpoints: Checkpoints, name: str
) -> None:
    """Matrices are read where they are mapped, cut by columns too; KV heads are as many as ranks."""
    folder = checkpoints.folder(name, dtype=torch.bfloat16)

    def num_borrowed_bytes(part: Part) -> int:
        model = Decoder(read_config(folder), torch.bfloat16, num_positions=8, part=part)
        load_weights(model, folder, may_borrow=True)
        linears = [layer for layer in model.modules() if isinstance(layer, Linear)]
        return sum(linear.num_borrowed_bytes for linear in linears)

    parts = [num_borrowed_bytes(Part(tp_rank, 2)) for tp_rank in range(2)]
    assert parts[0] == parts[1] > 0
    assert sum(parts) == num_borrowed_bytes(WHOLE)


# ---- meetings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meet", [gloo_ranks, exchanges])
def test_all_ranks_know_what_rank_0_says_and_the_least_number(
    meet: Callable[..., list[list[int]]],
) -> None:
    def work(ranks: Ranks) -> list[int]:
        heard = []
        for size in (3, 200_000, 1, 0, 5):  # more than a place had room for, and nothing at all
            numbers = np.arange(size) + (7 if ranks.tp_rank == 0 else 100)
            ranks.share(numbers)
            heard.append(int(numbers.sum()))
        return [*heard, ranks.least(5 - ranks.tp_rank)]

    for heard in meet(3, work):
        assert heard == [*(size * (size - 1) // 2 + 7 * size for size in (3, 200_000, 1, 0, 5)), 3]


def test_a_rank_that_comes_early_waits_and_reads_what_the_late_ones_brought() -> None:
    def work(ranks: Exchange) -> list[int]:
        generator, heard = np.random.default_rng(ranks.tp_rank), []
        for number in range(2000):
            if generator.random() < 0.01:
                torch.randn(100, 100) @ torch.randn(100, 100)
            numbers = np.array([number * 10])
            ranks.share(numbers)
            heard.append(int(numbers[0]) + ranks.least(number + ranks.tp_rank))
        return heard

    for heard in exchanges(4, work):
        assert heard == [11 * number for number in range(2000)]
