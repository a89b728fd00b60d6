"""Builds the tensors of a step the plain way, token by token."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trioserve.model.batch import CacheLayout, ForwardBatch, LayerCache
from trioserve.model.decoder import Decoder

BLOCK_SIZE = 16


@dataclass
class Piece:
    """Tokens ``start`` to ``end`` of a sequence whose KV lies in ``blocks``."""

    token_ids: list[int]
    start: int
    end: int
    blocks: list[int]


@dataclass
class Bench:
    """A decoder with a cache of its own."""

    model: Decoder
    num_blocks: int = 64
    layout: CacheLayout | None = None
    """None: numbers of the model's type."""
    caches: list[LayerCache] = field(init=False)

    def __post_init__(self) -> None:
        config = self.model.part.shape(self.model.config)
        layout = self.layout or CacheLayout(str(self.model.dtype).removeprefix("torch."), config.head_dim)
        self.caches = [
            layout.empty(self.num_blocks, config.num_kv_heads, BLOCK_SIZE)
            for _ in range(config.num_hidden_layers)
        ]
        for cache in self.caches:
            for tensor in (cache.k, cache.v):
                tensor.view(torch.uint8).fill_(0xFF)  # no number in any type: what is read unwritten shows

    @torch.inference_mode()
    def run(self, *pieces: Piece) -> Tensor:
        """Logits of every token of every piece, [num_tokens, vocab_size] float32."""
        logits: Tensor = self.model.compute_logits(self.model(batch_of(pieces), self.caches))
        return logits.float()


def batch_of(pieces: tuple[Piece, ...]) -> ForwardBatch:
    """One step that computes all pieces and samples after every token."""
    places = [(piece, at) for piece in pieces for at in range(piece.start, piece.end)]
    bounds = [0]
    for piece in pieces:
        bounds.append(bounds[-1] + piece.end - piece.start)
    width = max(len(piece.blocks) for piece in pieces)
    return ForwardBatch(
        token_ids=torch.tensor([piece.token_ids[at] for piece, at in places]),
        positions=torch.tensor([at for _, at in places]),
        slot_mapping=torch.tensor(
            [piece.blocks[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE for piece, at in places]
        ),
        cu_seqlens_q=torch.tensor(bounds, dtype=torch.int32),
        seq_lens=torch.tensor([piece.end for piece in pieces], dtype=torch.int32),
        block_tables=torch.tensor(
            [piece.blocks + [0] * (width - len(piece.blocks)) for piece in pieces], dtype=torch.int32
        ),
        sample_rows=torch.arange(bounds[-1]),
    )
