"""The native decoder's products of few rows, by matrix: bytes and operations a second, and the share of the limit.

    python -m benchmarks.cpu.few_rows [--shapes S M] [--formats bf16 int8] [--rows 1 2 4 8 12 16 32] [--threads N]

Shapes are those of ``benchmarks.cpu.decoder``. A measurement is one matrix of all layers, layer after layer, with other
weights read before it, so that nothing is in a cache; the median of some. The limit is the least time in which the
weights can be read at the machine's bandwidth, or, if that is more, in which oneDNN would do as many operations in a
large product of bfloat16, which int8 may exceed.
"""

import argparse
import statistics
from typing import Final

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cpu.decoder import BITS, SHAPES, layer_sizes, make_config, make_model, read_bandwidth
from benchmarks.cpu.products import best_rate
from trioserve.model.config import DecoderConfig
from trioserve.model.decoder import Decoder
from trioserve.model.native import Crew

FORMATS: Final = ("bf16", "int8")
HEAD: Final = "lm_head"
LARGE: Final = (2048, 2048, 2048)
_ROUNDS: Final = 7


def sizes_of(config: DecoderConfig) -> dict[str, int]:
    """Weights of each matrix, those of all layers together."""
    sizes = {name: size * config.num_hidden_layers for name, size in layer_sizes(config).items()}
    return {**sizes, HEAD: config.vocab_size * config.hidden_size}


def median_seconds(model: Decoder, name: str, num_rows: int) -> float:
    """Of the products with all matrices of that name."""
    other = "gate_up_proj" if name == HEAD else HEAD
    spent = []
    for _ in range(_ROUNDS):
        model.time_products(other, 1)
        spent.append(model.time_products(name, num_rows))
    return statistics.median(spent)


def measure(shape: str, format_name: str, rows: list[int], crew: Crew, rate: float) -> Table:
    """A table of one shape and format; the bandwidth is measured anew for each matrix, since others read as well."""
    config = make_config(shape)
    model = make_model(config, format_name, crew)
    table = Table(
        "matrix", *map(str, rows), title=f"{shape} {format_name}: GB/s, TFLOP/s (share of the limit) by rows"
    )
    for name, size in sizes_of(config).items():
        bandwidth, num_bytes = read_bandwidth(), size * BITS[format_name] / 8
        cells = []
        for num_rows in rows:
            seconds, operations = median_seconds(model, name, num_rows), 2.0 * size * num_rows
            limit = max(num_bytes / bandwidth, operations / rate)
            cells.append(
                f"{num_bytes / seconds / 1e9:.0f}, {operations / seconds / 1e12:.2f} ({limit / seconds:.0%})"
            )
        table.add_row(f"{name} at {bandwidth / 1e9:.0f} GB/s", *cells)
    return table


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["S", "M"])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 12, 16, 32], metavar="N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rate = best_rate(*LARGE)
    print(f"a large product: {rate / 1e12:.2f} TFLOP/s")
    for shape in options.shapes:
        for format_name in options.formats:
            table = measure(shape, format_name, options.rows, Crew(options.threads), rate)
            Console(width=max(160, Console().width)).print(table)


if __name__ == "__main__":
    main()
