"""Names that settings go by elsewhere, and what a source of settings comes to by our own names.

A name works alike as a flag, as a variable and as a key of the file.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from trioserve.not_obeyed import NOT_OBEYED, as_text

ALIASES: Final[Mapping[str, str]] = {
    "model_path": "model",
    "model_tag": "model",
    "model_name": "served_model_name",
    "session_len": "max_model_len",
    "tp": "tensor_parallel_size",
    "max_batch_size": "max_num_seqs",
    "max_prefill_token_num": "max_num_batched_tokens",
    "cache_block_seq_len": "block_size",
    "num_gpu_blocks_override": "num_kv_blocks",
    "kv_cache_memory_bytes": "kv_cache_bytes",
    "eager_mode": "enforce_eager",
    "max_concurrent_requests": "max_concurrency",
    "server_name": "host",
    "server_port": "port",
    "api_keys": "api_key",
    "allow_origins": "allowed_origins",
    "allow_methods": "allowed_methods",
    "allow_headers": "allowed_headers",
    "timeout_graceful_shutdown": "drain_timeout_s",
    "shutdown_timeout": "drain_timeout_s",
    "uvicorn_log_level": "log_level",
    "api_server_count": "workers",
    "disable_fastapi_docs": "disable_docs",
}
"""Another server's name -> ours."""

SHORT_FLAGS: Final[Mapping[str, str]] = {
    "-tp": "--tp",
    "-q": "--quantization",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-dcp": "--decode-context-parallel-size",
    "-asc": "--workers",
}

_SECRET: Final = re.compile(r"(?:^|_)(?:keys?|passwords?|secrets?)(?:_|$)|hf_token")


def canonical(
    given: Mapping[str, Any], names: Collection[str], *, spell: Callable[[str], str]
) -> tuple[dict[str, Any], list[str]]:
    """What one source gives, by the names of our own settings, and what is wrong with it, a clause each.

    Args:
        given: Values by setting, alias or flag of another server.
        names: Our own settings.
        spell: How the source writes a name.
    """
    values: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    faults: list[str] = []
    for name, value in given.items():
        target = ALIASES.get(name, name)
        other = None if target in names else NOT_OBEYED.get(target)
        if other is not None:
            if not other.allows(value):
                faults.append(f"{spell(name)} = {shown(target, value)} is not obeyed: {other.reason}")
        elif target not in names:
            faults.append(f"{spell(name)} is not a setting: {_advice(name, names, spell)}")
        elif target in values and as_text(values[target]) != as_text(value):
            faults.append(
                f"{spelled[target]} = {shown(target, values[target])} and {spell(name)} = {shown(target, value)} "
                "are two values of one setting: leave one out"
            )
        else:
            values[target], spelled[target] = value, spell(name)
    return values, faults


def shown(name: str, value: Any) -> str:
    """``value`` as messages may show it: secrets not at all."""
    return "***" if _SECRET.search(name) else repr(value)


def aliases_of(name: str) -> list[str]:
    """What else the setting ``name`` is called."""
    return [alias for alias, target in ALIASES.items() if target == name]


def _advice(name: str, names: Collection[str], spell: Callable[[str], str]) -> str:
    similar = difflib.get_close_matches(name, [*names, *ALIASES, *NOT_OBEYED], n=1, cutoff=0.75)
    return f"did you mean {spell(similar[0])}?" if similar else "correct the name or remove it"
