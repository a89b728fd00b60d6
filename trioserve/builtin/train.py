"""Make the built-in model from nothing: ``python -m trioserve.builtin.train``.

The corpus is drawn as the training goes, from fixed seeds; tokenizer, config and weights land in the model folder.
``--start FOLDER`` goes on from the weights and the tokenizer of another folder instead: a second round, with a
learning rate that rises and falls again.
The recipe is for two CPU cores with bfloat16 matrix units: one process per core, each with batches of its own, that
add up their gradients once per step; hidden matrices by Muon, the rest by AdamW; weights kept in float32 and computed
with in bfloat16.
"""

import argparse
import ctypes
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from trioserve.builtin import MODEL_DIR
from trioserve.builtin.batches import Batch, Encoder, batches
from trioserve.builtin.corpus import EVERYTHING, SINGLE_TURNS
from trioserve.builtin.folder import save_config, save_weights
from trioserve.builtin.network import Network, Shape
from trioserve.builtin.template import TEMPLATE_PATH
from trioserve.builtin.tokenizer import save_tokenizer, train_tokenizer


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights, apart from the corpus itself."""

    seed: int = 2
    num_steps: int = 6000
    single_turn_share: float = 0.35
    """The first part of the steps, of short conversations alone."""
    num_ranks: int = 2
    num_tokens: int = 2048
    """Tokens per step and rank."""
    warmup_steps: int = 100
    decay_share: float = 0.7
    """The last part of the steps, over which the learning rates fall to zero in a straight line."""
    muon_rate: float = 0.015
    adam_rate: float = 0.003


SECOND_ROUND: Final = Recipe(
    seed=3,
    num_steps=4500,
    single_turn_share=0.0,
    num_tokens=3072,
    warmup_steps=50,
    decay_share=0.95,
    muon_rate=0.009,
    adam_rate=0.0015,
)
"""For weights that have learned the facts: larger batches and smaller steps, for arithmetic and copying."""

_CHECKPOINT_STEPS: Final = 250


class Trainer:
    """The weights being learned, twice: float32 to add up small changes, bfloat16 to compute with."""

    def __init__(
        self, recipe: Recipe, shape: Shape, *, start: Path | None = None, compiled: bool = True
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.master = Network(shape)
        if start is not None:
            self.master.load_state_dict(load_file(start / "model.safetensors"))
        self.network = Network(shape).to(torch.bfloat16)
        self._publish()
        if compiled:
            self.network.compile_layers()
        named = list(self.master.named_parameters())
        matrices = [weight for name, weight in named if _is_hidden_matrix(name, weight)]
        others = [weight for name, weight in named if not _is_hidden_matrix(name, weight)]
        self._optimizers = (
            torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.01),
            torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        )

    def step(self, number: int, batch: Batch) -> float:
        """Learn from one batch, and from those of the other ranks.

        Returns:
            The mean loss over the tokens of this batch that the model must write, in nats per token.
        """
        counting = batch.weights.nonzero().squeeze(1)
        targets, weights = batch.targets[counting], batch.weights[counting]
        hidden = self.network(batch.token_ids, batch.positions, batch.blocks)[counting]
        losses = functional.cross_entropy(self.network.logits(hidden).float(), targets, reduction="none")
        (torch.dot(losses, weights) / weights.sum()).backward()  # type: ignore[no-untyped-call]
        self._descend(number)
        return float(losses.detach()[weights == 1].mean())

    def _descend(self, number: int) -> None:
        """Move the weights by the gradients, and take the gradients away."""
        scale = rate_scale(self.recipe, number)
        gradients = _summed([weight.grad for weight in self.network.parameters()])
        for master, gradient in zip(self.master.parameters(), gradients, strict=True):
            master.grad = gradient
        self.network.zero_grad(set_to_none=True)
        nn.utils.clip_grad_norm_(self.master.parameters(), 1.0)
        rates = (self.recipe.muon_rate, self.recipe.adam_rate)
        for optimizer, rate in zip(self._optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
            optimizer.step()
        self._publish()

    @torch.no_grad()
    def _publish(self) -> None:
        for master, weight in zip(self.master.parameters(), self.network.parameters(), strict=True):
            weight.copy_(master)


def rate_scale(recipe: Recipe, step: int) -> float:
    """What the learning rates are multiplied with: up, level, and down to nothing."""
    up = (step + 1) / recipe.warmup_steps
    down = (recipe.num_steps - step) / (recipe.decay_share * recipe.num_steps)
    return min(1.0, up, down)


def train(
    recipe: Recipe, shape: Shape, folder: Path, *, start: Path | None = None, compiled: bool = True
) -> None:
    """Write the whole model folder; the weights every few steps, so that a broken run leaves something.

    ``start``: a model folder of the same shape whose weights and tokenizer to go on from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if start is None:
        tokenizer = train_tokenizer(shape.vocab_size)
        save_tokenizer(tokenizer, folder, model_max_length=shape.max_position_embeddings)
    elif start.resolve() != folder.resolve():
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(start / name, folder)
    save_config(shape, folder)
    if folder.resolve() != MODEL_DIR:
        shutil.copy(TEMPLATE_PATH, folder)
    with tempfile.TemporaryDirectory() as meeting:
        ranks = [
            multiprocessing.get_context("spawn").Process(
                target=_run_rank,
                args=(rank, recipe, shape, folder, start, compiled, f"{meeting}/store"),
                daemon=True,
            )
            for rank in range(1, recipe.num_ranks)
        ]
        for process in ranks:
            process.start()
        _run_rank(0, recipe, shape, folder, start, compiled, f"{meeting}/store")
        for process in ranks:
            process.join()


def _run_rank(
    rank: int, recipe: Recipe, shape: Shape, folder: Path, start: Path | None, compiled: bool, store: str
) -> None:
    """One process: its own batches, the common weights. Rank 0 reports and saves."""
    _keep_freed_memory()
    torch.set_num_threads(1)
    if recipe.num_ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=recipe.num_ranks)
    trainer = Trainer(recipe, shape, start=start, compiled=compiled)
    source = enumerate(_source(recipe, folder, rank))
    if rank == 0:
        _learn_and_report(trainer, source, folder)
    else:
        for number, batch in source:
            trainer.step(number, batch)
    if recipe.num_ranks > 1:
        dist.destroy_process_group()


def _source(recipe: Recipe, folder: Path, rank: int) -> Iterator[Batch]:
    """One batch per step: first of short conversations, then of all kinds."""
    encoder = Encoder(Tokenizer.from_file(str(folder / "tokenizer.json")))
    num_short = int(recipe.single_turn_share * recipe.num_steps)
    phases = ((SINGLE_TURNS, num_short), (EVERYTHING, recipe.num_steps - num_short))
    for at, (shares, num_steps) in enumerate(phases):
        seed = f"train {recipe.seed} phase {at} rank {rank}"
        yield from islice(batches(encoder, seed, num_tokens=recipe.num_tokens, shares=shares), num_steps)


def _learn_and_report(trainer: Trainer, source: Iterator[tuple[int, Batch]], folder: Path) -> None:
    """Rank 0's steps, with a progress bar, a line per checkpoint, and the weights saved at each."""
    recipe = trainer.recipe
    started, losses = time.monotonic(), [0.0]
    with _progress() as progress:
        task = progress.add_task("training", total=recipe.num_steps, loss=0.0, speed=0.0)
        for number, batch in source:
            losses.append(trainer.step(number, batch))
            done, elapsed_s = number + 1, time.monotonic() - started
            loss = sum(losses[-100:]) / len(losses[-100:])
            speed = done * recipe.num_tokens * recipe.num_ranks / elapsed_s
            progress.update(task, advance=1, loss=loss, speed=speed)
            if done % _CHECKPOINT_STEPS == 0 or done == recipe.num_steps:
                save_weights(trainer.master, folder / "model.safetensors")
                progress.console.print(
                    f"step {done}: loss {loss:.4f}, {speed:.0f} tokens/s, {elapsed_s:.0f} s"
                )


def _summed(gradients: list[Tensor | None]) -> list[Tensor]:
    """The gradients of all ranks, averaged, in float32."""
    own = [gradient for gradient in gradients if gradient is not None]
    flat = torch.cat([gradient.flatten().float() for gradient in own])
    if dist.is_initialized():
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
    parts = torch.split(flat, [gradient.numel() for gradient in own])
    return [part.view_as(gradient) for part, gradient in zip(parts, own, strict=True)]


def _is_hidden_matrix(name: str, weight: Tensor) -> bool:
    return weight.dim() == 2 and "embed_tokens" not in name


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[speed]:.0f} tokens/s"),
        TimeRemainingColumn(),
    )


def _keep_freed_memory() -> None:
    """Let glibc reuse large buffers: by default each is mapped and zeroed anew, which costs a tenth."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, -1)  # M_TRIM_THRESHOLD


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description="Train the built-in model.")
    parser.add_argument("folder", nargs="?", type=Path, default=MODEL_DIR, help="default: the package's own")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="go on from this folder's weights")
    parser.add_argument("--steps", type=int, help="default: as the recipe says")
    parser.add_argument("--rate", type=float, default=1.0, metavar="FACTOR", help="of the learning rates")
    parser.add_argument("--no-compile", action="store_true", help="needs no C++ compiler, is a third slower")
    args = parser.parse_args()
    recipe = Recipe() if args.start is None else SECOND_ROUND
    recipe = replace(
        recipe,
        num_steps=args.steps or recipe.num_steps,
        muon_rate=args.rate * recipe.muon_rate,
        adam_rate=args.rate * recipe.adam_rate,
    )
    train(recipe, Shape(), args.folder, start=args.start, compiled=not args.no_compile)


if __name__ == "__main__":
    main()
