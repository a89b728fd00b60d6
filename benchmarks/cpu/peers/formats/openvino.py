"""OpenVINO's, by optimum-intel. VARIANT is fp16 or int8: that of the weights."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nncf
import openvino
from optimum.exporters.openvino import main_export
from optimum.intel import OVConfig


def convert(folder: str, to: str, variant: str) -> None:
    """Write the checkpoint in ``folder`` to the folder ``to``, with its tokenizer."""
    main_export(
        folder, to, task="text-generation-with-past", ov_config=OVConfig(dtype="fp16"), convert_tokenizer=True
    )
    if variant == "int8":
        _compress(Path(to))


def _compress(folder: Path) -> None:
    """Weights in int8, per channel."""
    path = folder / "openvino_model.xml"
    with TemporaryDirectory(dir=folder) as draft:
        model = nncf.compress_weights(openvino.Core().read_model(path))
        openvino.save_model(model, Path(draft) / path.name)
        for file in Path(draft).iterdir():
            file.replace(folder / file.name)


if __name__ == "__main__":
    convert(*sys.argv[1:4])
