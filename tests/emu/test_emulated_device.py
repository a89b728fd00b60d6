"""The emulated device does what a GPU's stream, events and graphs do, also where that is not what was meant."""

import numpy as np
import pytest
import torch

from tests.emu.conftest import MakeGpu
from tests.emu.emulated_device import EmulatedDevice
from trioserve.kernels.copy_blocks import copy_blocks_gpu, instances
from trioserve.kernels.staging import Region, Staging


@pytest.fixture
def device(make_gpu: MakeGpu) -> EmulatedDevice:
    return EmulatedDevice(make_gpu(instances()))


def test_a_graph_computes_from_what_its_tensors_hold_when_it_is_replayed(device: EmulatedDevice) -> None:
    x, rows, out = torch.arange(6.0), torch.tensor([2, 0]), torch.zeros(2, 2)

    def work() -> None:
        first, second = (x * 2).view(3, 2).index_select(0, rows).unbind()
        out[0].copy_(first)
        out[1:].copy_(second + 1)

    graph = device.capture(work)
    assert not out.any(), "nothing is computed while a graph is captured"
    x += 10
    rows.copy_(torch.tensor([1, 1]))
    graph.replay()
    assert out.tolist() == [[24, 26], [25, 27]]


def test_a_number_of_the_hosts_is_frozen_in_a_graph(device: EmulatedDevice) -> None:
    number, out = 3, torch.zeros(1)
    graph = device.capture(lambda: out.fill_(number))
    number = 4
    graph.replay()
    assert out.item() == 3


def test_tensors_that_a_graph_makes_are_its_own(device: EmulatedDevice) -> None:
    x, made = torch.ones(2), list[torch.Tensor]()
    graph = device.capture(lambda: made.append(x + 1))
    graph.replay()
    assert made[0].tolist() == [2, 2]
    x.fill_(5)
    graph.replay()
    assert made[0].tolist() == [6, 6]


def test_a_graph_can_neither_look_at_numbers_nor_wait(device: EmulatedDevice) -> None:
    x = torch.ones(1)
    with pytest.raises(AssertionError, match="cannot look"):
        device.capture(lambda: x.add_(x.item()))
    with pytest.raises(AssertionError, match="waits for nobody"):
        device.capture(lambda: device.record().wait())


def test_a_kernel_must_have_run_before_it_is_captured(device: EmulatedDevice) -> None:
    source, target = torch.randn(4, 2, 16, 8), torch.zeros(4, 2, 16, 8)
    pairs = torch.tensor([[1, 3]])

    def copy() -> None:
        copy_blocks_gpu(device.gpu, target, source, pairs)

    with pytest.raises(AssertionError, match="has not run before"):
        device.capture(copy)
    copy()
    graph = device.capture(copy)
    pairs.copy_(torch.tensor([[0, 2]]))
    assert not target[2].any()
    graph.replay()
    assert torch.equal(target[2], source[0])


def test_nothing_is_done_before_somebody_waits_for_it(device: EmulatedDevice) -> None:
    target = torch.zeros(2)
    with device.deferring():
        early, late = torch.ones(2), torch.ones(2)
        target.add_(early)
        first = device.record(timed=True)
        target.add_(late)
        second = device.record(timed=True)
        assert (target.numpy().tolist(), first.is_done) == ([0, 0], False)
        first.wait()
        assert (target.numpy().tolist(), first.is_done, second.is_done) == ([1, 1], True, False)
        first.wait()
        assert device.num_waits == 1, "who comes when it is done does not wait"
        assert target[0].item() == 2, "who looks waits for all of it"
        assert device.num_waits == 2
    assert second.seconds_since(first) > 0


def test_a_copy_that_is_on_its_way_has_what_lies_there_then(device: EmulatedDevice) -> None:
    pinned, target = device.pinned(2, dtype=torch.float32), torch.zeros(2)
    pinned.numpy()[:] = 1
    with device.deferring():
        target.copy_(pinned, non_blocking=True)
        pinned.numpy()[:] = 2
    assert target.tolist() == [2, 2]


def test_regions_of_steps_under_way_are_not_each_others(device: EmulatedDevice) -> None:
    staging, targets = Staging(device), [torch.zeros(3, dtype=torch.int64) for _ in range(4)]
    with device.deferring():
        held = list[tuple[Region, object]]()
        for number, target in enumerate(targets):
            region = staging.take()
            target.copy_(region.send(np.full(3, number)), non_blocking=True)
            held.append((region, device.record()))
            if number == 2:
                done, event = held.pop(0)
                event.wait()  # type: ignore[attr-defined] # an event
                staging.give_back(done)
    assert [target.tolist() for target in targets] == [[number] * 3 for number in range(4)]


def test_a_region_grows_and_keeps_what_is_on_its_way(device: EmulatedDevice) -> None:
    region, target = Region(device), torch.zeros(3, dtype=torch.int64)
    with device.deferring():
        target.copy_(region.put(np.arange(3)), non_blocking=True)
        large = region.room(3 << 20, dtype=torch.uint8)
        large.numpy()[:] = 255
    assert target.tolist() == [0, 1, 2]
    region.clear()
    again = region.room(3 << 20, dtype=torch.uint8)
    assert again.data_ptr() == large.data_ptr(), "it stays as large as it had to be"


def test_the_most_that_work_takes_is_measured(device: EmulatedDevice) -> None:
    kept = torch.zeros(1000)

    def work() -> None:
        a = kept + 1
        b = a * 2
        del a
        c = b.view(10, 100) - 1
        del b, c

    assert device.peak_bytes(work) == 8000
