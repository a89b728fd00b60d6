from collections.abc import Mapping, Sequence
from typing import Self, final

def available_isas() -> tuple[str, ...]: ...

@final
class Decoder:
    @property
    def isa(self) -> str: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...
    def __new__(
        cls,
        *,
        num_layers: int,
        hidden_size: int,
        intermediate_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        vocab_size: int,
        num_positions: int,
        num_pairs: int,
        rms_norm_eps: float,
        norm_kind: str,
        heads_together: bool,
        activation: str,
        is_interleaved: bool,
        is_parallel: bool,
        scales: Mapping[str, float],
        embeddings: int,
        num_threads: int,
        cpus: Sequence[int],
        alone_work: int,
        isa: str,
        kv_format: str,
        exchange: int = 0,
        first_token: int = 0,
    ) -> Self: ...
    def set_layer(
        self,
        layer: int,
        *,
        qkv_proj: Sequence[tuple[int, int, int]],
        o_proj: Sequence[tuple[int, int, int]],
        gate_up_proj: Sequence[tuple[int, int, int]],
        down_proj: Sequence[tuple[int, int, int]],
        formats: Mapping[str, str],
        grids: Mapping[str, int],
        sliding_window: int,
        rope_table: int,
    ) -> None: ...
    def set_norms(self, layer: int, *, weights: Mapping[str, int], biases: Mapping[str, int]) -> None: ...
    def set_biases(
        self, layer: int, *, qkv_proj: int, o_proj: int, gate_up_proj: int, down_proj: int
    ) -> None: ...
    def set_head(
        self,
        *,
        norm: int,
        norm_bias: int,
        lm_head: Sequence[tuple[int, int, int]],
        head_format: str,
        grids: int = 0,
    ) -> None: ...
    def pack(self) -> None: ...
    def forward(
        self,
        hidden: int,
        *,
        token_ids: int,
        positions: int,
        slot_mapping: int,
        cu_seqlens_q: int,
        seq_lens: int,
        block_tables: int,
        sample_rows: int,
        k_caches: list[int],
        v_caches: list[int],
        num_tokens: int,
        num_seqs: int,
        num_samples: int,
        max_blocks: int,
        num_blocks: int,
        block_size: int,
    ) -> None: ...
    def compute_logits(self, out: int, hidden: int, *, num_rows: int) -> None: ...
    def time_products(self, name: str, *, num_rows: int) -> float: ...
