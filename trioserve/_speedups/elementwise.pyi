def available_isas() -> tuple[str, ...]: ...
def rms_norm(
    out: int,
    x: int,
    residual: int,
    weight: int,
    *,
    num_rows: int,
    inner: int,
    stride: int,
    size: int,
    eps: float,
    is_bf16: bool,
    num_threads: int,
    isa: str,
) -> None: ...
def rope(
    x: int,
    positions: int,
    table: int,
    *,
    num_tokens: int,
    stride: int,
    num_heads: int,
    half: int,
    interleaved: bool,
    is_bf16: bool,
    num_threads: int,
    isa: str,
) -> None: ...
def silu_mul(
    out: int, gate_up: int, *, num_tokens: int, size: int, is_bf16: bool, num_threads: int, isa: str
) -> None: ...
def store_kv(
    cache: int,
    states: int,
    slot_mapping: int,
    *,
    num_tokens: int,
    stride_bytes: int,
    num_heads: int,
    block_size: int,
    head_bytes: int,
    num_threads: int,
) -> None: ...
