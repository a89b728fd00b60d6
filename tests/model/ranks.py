"""Several ranks in threads of this process, meeting as the processes of a server do."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import torch

from trioserve._speedups.exchange import Exchange
from trioserve.model.config import read_config
from trioserve.model.decoder import Decoder
from trioserve.model.loader import load_weights
from trioserve.model.native import Crew
from trioserve.model.native_matrices import Quantization
from trioserve.model.parts import Part
from trioserve.model.ranks import GroupRanks, join_gloo

DEADLINE_S: Final = 60.0
T = TypeVar("T")


@contextmanager
def meeting_place() -> Iterator[int]:
    """The memory that the executor makes for ranks."""
    fd = os.memfd_create("ranks")
    try:
        yield fd
    finally:
        os.close(fd)


def on_ranks(tp_size: int, work: Callable[[int, int], T]) -> list[T]:
    """``work(meeting_fd, tp_rank)`` on every rank at once; what each returns."""
    results: dict[int, T] = {}
    failures: list[Exception] = []

    def run(meeting_fd: int, tp_rank: int) -> None:
        try:
            results[tp_rank] = work(meeting_fd, tp_rank)
        except Exception as exc:  # noqa: BLE001 # the thread's outermost wall
            failures.append(exc)

    with meeting_place() as fd:
        threads = [
            threading.Thread(target=run, args=(fd, tp_rank), daemon=True) for tp_rank in range(tp_size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
            if failures:
                raise failures[0]
            assert not thread.is_alive(), "a rank waits for the others for ever"
    return [results[tp_rank] for tp_rank in range(tp_size)]


def gloo_ranks(tp_size: int, work: Callable[[GroupRanks], T]) -> list[T]:
    """``work`` on ranks that meet over Gloo."""
    return on_ranks(tp_size, lambda fd, tp_rank: work(join_gloo(fd, tp_rank, tp_size)))


def exchanges(tp_size: int, work: Callable[[Exchange], T]) -> list[T]:
    """``work`` on ranks that meet over shared memory."""
    return on_ranks(tp_size, lambda fd, tp_rank: work(Exchange(fd, tp_rank, tp_size)))


def torch_part(folder: Path, dtype: torch.dtype, ranks: GroupRanks) -> Decoder:
    """A rank's part of the model, on torch's layers."""
    part = Part(ranks.tp_rank, ranks.tp_size, ranks)
    model = Decoder(read_config(folder), dtype, num_positions=256, part=part)
    load_weights(model, folder)
    model.pack()
    return model


def native_part(
    folder: Path, exchange: Exchange, *, num_threads: int = 1, quantization: Quantization = "none"
) -> Decoder:
    """A rank's part of the model, native."""
    part = Part(exchange.tp_rank, exchange.tp_size)
    model = Decoder(read_config(folder), torch.bfloat16, num_positions=256, part=part)
    load_weights(model, folder, may_borrow=True)
    crew = Crew(num_threads, alone_work=0)
    assert model.pack(crew, quantization, exchange=exchange).startswith("native")
    return model
