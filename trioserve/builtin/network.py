"""The network as it is trained: transformers' Llama, fed flat.

Conversations lie one after another on a single token axis, so no dense layer ever multiplies padding, and
attention runs on blocks of conversations of one length, so none sees another. The parameter names are those
of `LlamaForCausalLM`; a test holds the logits of the two equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the network; the fields are named as in the Hugging Face config."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 8192


@dataclass(frozen=True, slots=True)
class Block:
    """``rows`` conversations of ``length`` tokens each, from ``start`` on the flat axis."""

    start: int
    rows: int
    length: int


class Attention(nn.Module):
    """Grouped-query causal self-attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, kv_width = (n * shape.head_dim for n in (shape.num_attention_heads, shape.num_key_value_heads))
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, rotated by position.

        Shapes:
            x: [num_tokens, hidden_size]
            cos, sin: [num_tokens, 1, head_dim]
            result: [num_tokens, heads, head_dim], heads of the keys and values repeated to those of the
            queries
        """
        dim, repeats = self.shape.head_dim, self.shape.num_attention_heads // self.shape.num_key_value_heads
        q = self.q_proj(x).view(len(x), -1, dim)
        k = self.k_proj(x).view(len(x), -1, dim)
        v = self.v_proj(x).view(len(x), -1, dim)
        k = rotate(k, cos, sin).repeat_interleave(repeats, 1)
        return rotate(q, cos, sin), k, v.repeat_interleave(repeats, 1)


class MLP(nn.Module):
    """The gated feed-forward part."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One decoder layer, cut at the attention: what comes before and after works on tokens alone."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Everything up to the attention; see `Attention.project`."""
        return self.self_attn.project(self.input_layernorm(x), cos, sin)

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """Everything after it: ``x`` and ``attended`` are [num_tokens, hidden_size]."""
        x = x + self.self_attn.o_proj(attended)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)


class Network(nn.Module):
    """A Llama with tied embeddings over flat batches."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        self._init_weights()
        angles = torch.outer(torch.arange(shape.max_position_embeddings).float(), _frequencies(shape))
        self.register_buffer("cos", angles.cos().repeat(1, 2).unsqueeze(1), persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2).unsqueeze(1), persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def forward(self, token_ids: Tensor, positions: Tensor, blocks: Sequence[Block]) -> Tensor:
        """Hidden states after the last norm.

        Shapes:
            token_ids, positions: [num_tokens] int64; ``blocks`` cover the axis without gaps
            result: [num_tokens, hidden_size]
        """
        dtype = self.model.norm.weight.dtype
        cos, sin = self.cos[positions].to(dtype), self.sin[positions].to(dtype)
        x = self.model.embed_tokens(token_ids).to(dtype)
        for layer in self.model.layers:
            assert isinstance(layer, Layer)
            q, k, v = layer.before(x, cos, sin)
            x = layer.after(x, attend(q, k, v, blocks))
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden_size] -> [n, vocab_size]; the output matrix is the embedding."""
        return functional.linear(hidden, self.model.embed_tokens.weight)

    def compile_layers(self) -> None:
        """Fuse what lies between the attentions; needs a C++ compiler and batches of one size."""
        for layer in self.model.layers:
            assert isinstance(layer, Layer)
            layer.before = torch.compile(layer.before)  # type: ignore[method-assign]
            layer.after = torch.compile(layer.after)  # type: ignore[method-assign]

    def _init_weights(self) -> None:
        """Normal weights; what writes to the residual stream is smaller, by the depth that adds it up."""
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.03 / (2 * self.shape.num_hidden_layers) ** 0.5 if last else 0.03
                nn.init.normal_(weight, std=std)


def attend(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Causal attention inside each conversation of each block.

    Shapes:
        q, k, v: [num_tokens, heads, head_dim]
        result: [num_tokens, heads * head_dim]
    """
    sizes = [block.rows * block.length for block in blocks]
    parts = []
    parted = zip(*(torch.split(x, sizes) for x in (q, k, v)), strict=True)
    for block, rows in zip(blocks, parted, strict=True):
        heads = [x.unflatten(0, (block.rows, block.length)).transpose(1, 2) for x in rows]
        out = _attend_rows(heads[0], heads[1], heads[2])
        parts.append(out.transpose(1, 2).flatten(0, 1).flatten(1))
    return torch.cat(parts)


def _attend_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[rows, heads, length, head_dim] each; short rows are three times faster without the CPU's SDPA."""
    length = q.shape[2]
    if length > 256:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    mask = torch.full((length, length), float("-inf"), dtype=q.dtype).triu(1)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)) + mask
    return torch.matmul(scores.softmax(-1, dtype=q.dtype), v)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions; halves rotated, as in the Hugging Face checkpoints. Keeps the dtype of ``x``."""
    low, high = x.chunk(2, -1)
    return (x * cos + torch.cat((-high, low), -1) * sin).to(x.dtype)


def _frequencies(shape: Shape) -> Tensor:
    """[head_dim / 2] angles per position."""
    return shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
