"""Make the built-in model from nothing: ``python -m trioserve.builtin.train``.

The corpus is drawn as the training goes, from fixed seeds; tokenizer, config and weights land in the model
folder. The recipe is for two CPU cores with bfloat16 matrix units: hidden matrices by Muon, the rest by
AdamW, weights kept in float32 and computed with in bfloat16.
"""

import argparse
import ctypes
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional

from trioserve.builtin import MODEL_DIR
from trioserve.builtin.batches import Batch, Encoder, batches
from trioserve.builtin.folder import save_config, save_weights
from trioserve.builtin.network import Network, Shape
from trioserve.builtin.template import TEMPLATE_PATH
from trioserve.builtin.tokenizer import save_tokenizer, train_tokenizer


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights, apart from the corpus itself."""

    seed: int = 2
    num_steps: int = 2000
    num_tokens: int = 4096
    """Tokens per step."""
    warmup_steps: int = 60
    decay_share: float = 0.7
    """The last part of the steps, over which the learning rates fall to zero in a straight line."""
    muon_rate: float = 0.02
    adam_rate: float = 0.004


_CHECKPOINT_STEPS: Final = 100


class Trainer:
    """The weights being learned, twice: float32 to add up small changes, bfloat16 to compute with."""

    def __init__(self, recipe: Recipe, shape: Shape, *, compiled: bool) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.master = Network(shape)
        self.network = Network(shape).to(torch.bfloat16)
        self._publish()
        if compiled:
            self.network.compile_layers()
        matrices = [
            weight for name, weight in self.master.named_parameters() if _is_hidden_matrix(name, weight)
        ]
        others = [
            weight for name, weight in self.master.named_parameters() if not _is_hidden_matrix(name, weight)
        ]
        self._optimizers = (
            torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.01),
            torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        )

    def step(self, number: int, batch: Batch) -> float:
        """Learn from one batch.

        Returns:
            The mean loss over the tokens the model must write, in nats per token.
        """
        counting = batch.weights.nonzero().squeeze(1)
        targets, weights = batch.targets[counting], batch.weights[counting]
        hidden = self.network(batch.token_ids, batch.positions, batch.blocks)[counting]
        losses = functional.cross_entropy(self.network.logits(hidden).float(), targets, reduction="none")
        (torch.dot(losses, weights) / weights.sum()).backward()  # type: ignore[no-untyped-call]
        self._descend(number)
        return float(losses.detach()[weights == 1].mean())

    def _descend(self, number: int) -> None:
        scale = rate_scale(self.recipe, number)
        for master, weight in zip(self.master.parameters(), self.network.parameters(), strict=True):
            assert weight.grad is not None
            master.grad, weight.grad = weight.grad.float(), None
        nn.utils.clip_grad_norm_(self.master.parameters(), 1.0)
        for optimizer, rate in zip(
            self._optimizers, (self.recipe.muon_rate, self.recipe.adam_rate), strict=True
        ):
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


def train(recipe: Recipe, shape: Shape, folder: Path, *, compiled: bool = True) -> None:
    """Write the whole model folder; the weights every few steps, so that a broken run leaves something."""
    tokenizer = train_tokenizer(shape.vocab_size)
    save_tokenizer(tokenizer, folder, model_max_length=shape.max_position_embeddings)
    save_config(shape, folder)
    if folder.resolve() != MODEL_DIR:
        shutil.copy(TEMPLATE_PATH, folder)
    trainer = Trainer(recipe, shape, compiled=compiled)
    source = batches(Encoder(tokenizer), f"train {recipe.seed}", num_tokens=recipe.num_tokens)
    started, mean_loss = time.monotonic(), 0.0
    with _progress() as progress:
        task = progress.add_task("training", total=recipe.num_steps, loss=0.0, speed=0.0)
        for number in range(recipe.num_steps):
            loss = trainer.step(number, next(source))
            mean_loss = loss if number == 0 else 0.98 * mean_loss + 0.02 * loss
            elapsed_s = time.monotonic() - started
            speed = (number + 1) * recipe.num_tokens / elapsed_s
            progress.update(task, advance=1, loss=mean_loss, speed=speed)
            if (number + 1) % _CHECKPOINT_STEPS == 0 or number + 1 == recipe.num_steps:
                save_weights(trainer.master, folder / "model.safetensors")
                progress.console.print(
                    f"step {number + 1}: loss {mean_loss:.4f}, {speed:.0f} tokens/s, {elapsed_s:.0f} s"
                )


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
    parser.add_argument(
        "folder", nargs="?", type=Path, default=MODEL_DIR, help="where to write (default: the package)"
    )
    parser.add_argument(
        "--steps", type=int, default=Recipe().num_steps, help="training steps (default: %(default)s)"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="do without torch.compile, which needs a C++ compiler"
    )
    args = parser.parse_args()
    _keep_freed_memory()
    args.folder.mkdir(parents=True, exist_ok=True)
    train(Recipe(num_steps=args.steps), Shape(), args.folder, compiled=not args.no_compile)


if __name__ == "__main__":
    main()
