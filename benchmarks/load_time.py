"""How long the real server takes from its start to /ready, and with what: a checkpoint of the shape of Qwen2.5-0.5B.

    python benchmarks/load_time.py [--starts 5] [--model FOLDER] [FLAGS OF trioserve serve]

Weights are random, bfloat16, 988 MB; the tokenizer is a byte-level BPE of 151,643 tokens, as large as the model's own.
Both lie in the page cache. The first start is not counted. Phases of the front and of the rank overlap: the front reads
the tokenizer while the rank loads.
"""

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ROOT: Final = Path(__file__).resolve().parents[1]
CONFIG: Final[dict[str, Any]] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_hidden_layers": 24,
    "hidden_size": 896,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "eos_token_id": 0,
}
NUM_TOKENS: Final = 151_643
"""Of the tokenizer; the embedding has some rows more."""
_POLL_S: Final = 0.01
_LONGEST_TOKEN: Final = 16


# ---- the checkpoint --------------------------------------------------------------------------------------------------


def write_checkpoint(folder: Path) -> None:
    """A model that has learned nothing, in the Hugging Face format."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(folder)
    # by a process of its own, whose memory is given back
    subprocess.run(
        [sys.executable, "-m", "benchmarks.load_time", "--weights-of", folder], cwd=ROOT, check=True
    )


def write_weights(folder: Path) -> None:
    """Noise where the config asks for weights."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.03, 0.03, generator=generator)
        for name, shape in shapes()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the checkpoint's tensors."""
    hidden, wide = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    kv_size = CONFIG["num_key_value_heads"] * hidden // CONFIG["num_attention_heads"]
    yield "model.embed_tokens.weight", (CONFIG["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    for number in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        for name, size in (("q", hidden), ("k", kv_size), ("v", kv_size)):
            yield f"{layer}.self_attn.{name}_proj.weight", (size, hidden)
            yield f"{layer}.self_attn.{name}_proj.bias", (size,)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{layer}.mlp.gate_proj.weight", (wide, hidden)
        yield f"{layer}.mlp.up_proj.weight", (wide, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, wide)


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE with the bytes and merges of random pairs; the template is a line a message."""
    rng = random.Random(1)
    special = "<|endoftext|>"
    pieces = [special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    known, merges = set(pieces), []
    while len(pieces) < NUM_TOKENS:
        left, right = (pieces[rng.randrange(1, len(pieces))] for _ in "lr")
        if len(left + right) <= _LONGEST_TOKEN and left + right not in known:
            pieces.append(left + right)
            known.add(left + right)
            merges.append((left, right))
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([special])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": special, "chat_template": template}
        )
    )


# ---- a start ---------------------------------------------------------------------------------------------------------


def start(folder: Path, flags: list[str]) -> dict[str, float]:
    """Start a server and end it; when what could be seen of it, in seconds, and how long the rank's phases took."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "trioserve.cli", "serve", str(folder), "--port", str(port)]
    command += ["--drain-delay-s", "0", "--log-level", "warning", *flags]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        listening = wait_for(process, url + "/live") - started
        ready = wait_for(process, url + "/ready") - started
        phases = httpx.get(url + "/server_info", timeout=30).json()["works"]["phases_s"]
        rank = {f"the rank: {name}": seconds for name, seconds in phases.items()}
        return {
            "from the start to the first answer, /live": listening,
            **rank,
            "from /live, when loading begins, to /ready": ready - listening,
            "from the start to /ready": ready,
        }
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def wait_for(process: subprocess.Popen[bytes], url: str) -> float:
    """Ask until the answer is 200; the time then."""
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=30).status_code == 200:
                return time.monotonic()
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        time.sleep(_POLL_S)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", type=int, default=5, help="starts that count")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="another checkpoint")
    parser.add_argument("--weights-of", type=Path, help=argparse.SUPPRESS)
    options, flags = parser.parse_known_args()
    if options.weights_of:
        write_weights(options.weights_of)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or Path(temporary)
        if options.model is None:
            write_checkpoint(folder)
        start(folder, flags)
        starts = [start(folder, flags) for _ in range(options.starts)]
    table = Table("", "seconds, median (least-most)")
    for name in starts[0]:
        times = [each[name] for each in starts]
        table.add_row(name, f"{statistics.median(times):.2f} ({min(times):.2f}-{max(times):.2f})")
    Console().print(table)


if __name__ == "__main__":
    main()
