"""What it takes to load quantized checkpoints, and what is added to the error of their weights.

    python -m benchmarks.cpu.quantized [--rounds 3] [--skip-load]

Loads: random codes in a Llama of 1.1 billion weights (the shape of TinyLlama), in a process each, from the mapped file
to packed weights: seconds, memory of the weights, and the most memory of its own that the process had over what it
needed without a model. Weights: a normal matrix of 512 x 1024, as each format keeps it and as the native decoder has
it; root mean squares of what is off, in parts of that of the weights.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from tests.model.quantized import Form, awq, float8, gptq, packed_ints, plain_int8
from trioserve.model.config import read_config
from trioserve.model.decoder import Decoder
from trioserve.model.loader import load_weights
from trioserve.model.native import Crew
from trioserve.model.native_matrices import Quantization
from trioserve.model.quantized_formats import read_quantization
from trioserve.model.quantized_tensors import Span, Stored
from trioserve.model.quantized_weights import Piece, QuantizedWeight

HIDDEN, WIDTH, KV, LAYERS, VOCAB = 2048, 5632, 256, 22, 32000
SIZES: Final = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDTH, HIDDEN),
    "mlp.up_proj": (WIDTH, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDTH),
}
LOADS: Final[tuple[tuple[str, Quantization], ...]] = (
    ("awq", "auto"),
    ("gptq", "auto"),
    ("gptq, desc_act", "auto"),
    ("awq", "int8"),
    ("awq", "none"),
)
FORMS: Final[dict[str, Form]] = {
    "AWQ, groups of 128": awq(128),
    "GPTQ, groups of 128": gptq(4, 128),
    "GPTQ, desc_act": gptq(4, 128, desc_act=True),
    "int4, bfloat16 scales": packed_ints(4, 128, torch.bfloat16),
    "int8, rows": plain_int8(),
    "fp8, rows": float8("channel"),
}


# ---- loads -----------------------------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, kind: str) -> None:
    """A checkpoint with random codes."""
    generator = torch.Generator().manual_seed(0)
    is_awq = kind == "awq"
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "quantization_config": {"quant_method": kind.split(",")[0], "bits": 4, "group_size": 128},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def words(*shape: int) -> Tensor:
        return torch.randint(-(1 << 31), (1 << 31) - 1, shape, dtype=torch.int32, generator=generator)

    tensors = {
        name: torch.zeros(VOCAB, HIDDEN).half() for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    tensors["model.norm.weight"] = torch.ones(HIDDEN).half()
    for layer in range(LAYERS):
        path = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{path}{name}.weight"] = torch.ones(HIDDEN).half()
        for name, (rows, columns) in SIZES.items():
            module = path + name
            tensors[f"{module}.qweight"] = words(columns, rows // 8) if is_awq else words(columns // 8, rows)
            tensors[f"{module}.qzeros"] = words(columns // 128, rows // 8)
            tensors[f"{module}.scales"] = torch.rand(columns // 128, rows, generator=generator).half() / 100
            if kind.endswith("desc_act"):
                tensors[f"{module}.g_idx"] = (torch.randperm(columns, generator=generator) // 128).int()
    save_file(tensors, folder / "model.safetensors")


class Peak(threading.Thread):
    """Watches how much memory of its own the process has."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self.most = _own_bytes()

    def run(self) -> None:
        while True:
            self.most = max(self.most, _own_bytes())
            time.sleep(0.002)


def _own_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def load(folder: Path, quantization: Quantization) -> dict[str, Any]:
    """Load and pack in this process."""
    peak = Peak()
    peak.start()
    began = time.perf_counter()
    model = Decoder(read_config(folder), torch.bfloat16, num_positions=64)
    load_weights(model, folder, may_borrow=True)
    said = model.pack(Crew(torch.get_num_threads()), quantization)
    seconds = time.perf_counter() - began
    assert model.packed_bytes is not None, said
    return {
        "s": seconds,
        "mb": model.packed_bytes / 1e6,
        "peak_mb": (peak.most - peak.first) / 1e6,
        "said": said,
    }


def measure_loads(rounds: int, console: Console) -> None:
    """Each of LOADS, in turn."""
    with tempfile.TemporaryDirectory() as name:
        folders: dict[str, Path] = {}
        for kind, _ in LOADS:
            if kind not in folders:
                folders[kind] = Path(name) / kind.replace(", ", "-")
                folders[kind].mkdir()
                write_checkpoint(folders[kind], kind)
        found: dict[tuple[str, Quantization], list[dict[str, Any]]] = {each: [] for each in LOADS}
        for _ in range(rounds):
            for kind, quantization in LOADS:
                command = [sys.executable, "-m", __spec__.name, "--load", str(folders[kind])]
                out = subprocess.run([*command, "--as", quantization], check=True, capture_output=True).stdout
                found[kind, quantization].append(json.loads(out))
    table = Table("checkpoint", "quantization", "s, median", "s, range", "weights, MB", "peak, MB", "decoder")
    for (kind, quantization), runs in found.items():
        times = [run["s"] for run in runs]
        peak = median(run["peak_mb"] for run in runs)
        spread = f"{min(times):.1f}-{max(times):.1f}"
        last = runs[-1]
        table.add_row(
            kind,
            quantization,
            f"{median(times):.1f}",
            spread,
            f"{last['mb']:.0f}",
            f"{peak:.0f}",
            last["said"],
        )
    console.print(table)


# ---- weights ---------------------------------------------------------------------------------------------------------


def measure_errors(console: Console) -> None:
    """What each of FORMS is off by, and what the native decoder adds."""
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(1))
    table = Table("checkpoint", "its own", "native", "added", "both")
    for name, form in FORMS.items():
        written = form.write(weight)
        module = "model"
        stored = {f"{module}.{each}" for each in written.tensors}
        storage = read_quantization(form.config).storage_of(module, stored)
        assert storage is not None, "its tensors are not found"
        matrix = Stored(module, storage, weight.shape[0], weight.shape[1], written.tensors)
        own = QuantizedWeight([Piece(matrix, Span(0, weight.shape[0]), Span(0, weight.shape[1]))])
        native = native_weights(own)
        said = f"{own.native_format}, kept" if own.native_format else "int8"
        errors = (written.truth - weight, native - written.truth, native - weight)
        parts = [f"{100 * float(each.norm() / weight.norm()):.2f} %" for each in errors]
        table.add_row(name, parts[0], said, parts[1], parts[2])
    console.print(table)


def native_weights(own: QuantizedWeight) -> Tensor:
    """What the native decoder multiplies with, float64: ``_speedups/quantize.h``."""
    if own.native_format is None:
        dense = own.dense(torch.bfloat16).double()
        scales = dense.abs().amax(1, keepdim=True) / 127
        return (dense / scales).round() * scales
    codes, grids = (each.double() for each in own.native())
    if own.native_format == "int8":
        return (codes - 128) * grids[:, None]
    scale, least = grids.repeat_interleave(32, dim=1).unbind(-1)
    return codes * scale + least


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-load", action="store_true")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--as", dest="quantization", default="auto", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load is not None:
        print(json.dumps(load(args.load, args.quantization)))
        return
    console = Console()
    if not args.skip_load:
        measure_loads(args.rounds, console)
    measure_errors(console)


if __name__ == "__main__":
    main()
