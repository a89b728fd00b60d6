"""A checkpoint of ours with nothing but numpy, which has no bfloat16."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]


def read_config(folder: Path) -> dict[str, Any]:
    """config.json."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def read_weights(folder: Path) -> Weights:
    """Every tensor of the one safetensors file, all of them bfloat16, widened to float32."""
    data = (folder / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:begin])
    weights: Weights = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        bits = np.frombuffer(data, np.uint16, (last - first) // 2, begin + first).reshape(entry["shape"])
        weights[name] = (bits.astype(np.uint32) << 16).view(np.float32)
    return weights
