"""The ranks of a model on devices: the one that chooses the tokens, and those that follow it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trioserve.core.step import Admission, PromptLogprobs
from trioserve.kernels.device import Device
from trioserve.kernels.staging import Region
from trioserve.model.batch import DeviceCache
from trioserve.model.device import DeviceDecoder
from trioserve.model.ranks import ALONE, Ranks
from trioserve.sampling.constraint import Turn
from trioserve.sampling.device_sampler import Choice, DeviceSampler, Readout, is_bound_by
from trioserve.worker.device_step_runner import (
    UNKNOWN,
    DeviceShape,
    DeviceStepRunner,
    ShareTokens,
    Swaps,
)
from trioserve.worker.grammars import Grammars
from trioserve.worker.pending import Chosen
from trioserve.worker.scoring import Stretch
from trioserve.worker.slots import NEWS_WIDTH


class DeviceRunner(DeviceStepRunner):
    """The rank that chooses the tokens."""

    _waits = False
    """Whether the host needs to know every token before the next step."""

    def __init__(
        self,
        model: DeviceDecoder,
        caches: list[DeviceCache],
        device: Device,
        shape: DeviceShape,
        grammars: Grammars,
        *,
        ranks: Ranks = ALONE,
        share_tokens: ShareTokens | None = None,
        swaps: Swaps | None = None,
    ) -> None:
        super().__init__(model, caches, device, shape, ranks=ranks, share_tokens=share_tokens, swaps=swaps)
        self._grammars = grammars
        self._scored_logits = torch.empty(0)
        self._sampler = DeviceSampler(
            device, shape.max_num_seqs, shape.vocab_size, shape.max_num_seqs, grammars.fill_masks
        )

    def _enter(self, admission: Admission, token_ids: NDArray[np.int32], region: Region) -> None:
        self._sampler.admit(
            admission.slot,
            admission.params,
            token_ids,
            admission.num_prompt_tokens,
            region,
            self._grammars.constraint(admission),
        )

    def _leave(self, slot: int) -> None:
        self._sampler.release(slot)

    def _send_wishes(self, region: Region) -> None:
        self._sampler.send(region)

    def _choice_of(self, slots: NDArray[np.int64]) -> Choice:
        return self._sampler.choice_of(slots)

    def _pick(self, logits: Tensor, num_rows: int, choice: Choice) -> Tensor:
        return self._sampler.choose(logits, *self._inputs.samples(num_rows), choice)

    def _choose_for(
        self,
        slots: NDArray[np.int64],
        logits: Tensor | None,
        bucket: int | None,
        choice: Choice,
        region: Region,
    ) -> Chosen:
        table, sampler = self._slots, self._sampler
        num_known, is_bound = table.num_tokens[slots], sampler.binds(slots)
        follow = sampler.constrain(slots, region) if is_bound else []
        self._start_choice(len(slots), logits, bucket, choice)
        readout = sampler.read(len(slots), choice, region)
        chosen = Chosen(slots, table.seq_ids[slots], readout, sampler.wanted(slots))
        if is_bound:
            sampler.unconstrain(len(slots))
        if is_bound or self._waits:
            chosen.turns = self._settle(slots, num_known, readout, follow, region)
        else:
            table.append(slots, np.full(len(slots), UNKNOWN))
        return chosen

    def _settle(
        self,
        slots: NDArray[np.int64],
        num_known: NDArray[np.int64],
        readout: Readout,
        follow: list[tuple[int, bool]],
        region: Region,
    ) -> dict[int, Turn]:
        """Wait for the tokens of a step with bound slots, and append what they lead to."""
        table = self._slots
        self._device.record().wait()
        token_ids: NDArray[np.int32] = readout.token_ids.numpy().copy()
        table.append(slots, token_ids.astype(np.int64))
        turns = self._sampler.take(slots, num_known, token_ids, follow)
        for row, turn in turns.items():
            slot = int(slots[row])
            table.follow(slot, turn.forced)
            if turn.is_last:
                table.end(slot)
            if turn.forced:
                self._sampler.count_anew(slot, table.token_ids[slot, : table.num_tokens[slot]], region)
        if self._ranks.tp_size > 1:
            self._ranks.share(table.news(slots, num_known))
        return turns

    def _score(self, stretches: list[Stretch], hidden: Tensor) -> list[PromptLogprobs]:
        return self._scorer.score(stretches, hidden, self._logits_on_host, self._slots)

    def _logits_on_host(self, hidden: Tensor) -> Tensor:
        """Logits of ``hidden``, of use until the next; waits for them."""
        logits = self._model.compute_logits(hidden)
        if logits.numel() > self._scored_logits.numel():
            self._scored_logits = self._device.pinned(logits.numel(), dtype=logits.dtype)
        pinned = self._scored_logits[: logits.numel()].view(logits.shape)
        pinned.copy_(logits, non_blocking=True)
        self._device.record().wait()
        return pinned


class FollowingDeviceRunner(DeviceStepRunner):
    """A rank that has a part of the model, carries out the same plans, and has its tokens from rank 0 on the device.

    It knows no parameters, no grammar and no random numbers. Of a step with bound slots, which may have got more than
    one token each, rank 0 tells it by ``Ranks.share``. Its results say nothing.
    """

    def __init__(
        self,
        model: DeviceDecoder,
        caches: list[DeviceCache],
        device: Device,
        shape: DeviceShape,
        *,
        ranks: Ranks,
        share_tokens: ShareTokens,
        swaps: Swaps | None = None,
    ) -> None:
        super().__init__(model, caches, device, shape, ranks=ranks, share_tokens=share_tokens, swaps=swaps)
        self._is_bound = np.zeros(shape.max_num_seqs, np.bool_)
        self._tokens = torch.zeros(shape.max_num_seqs, dtype=torch.int32, device=device.torch_device)

    def _enter(self, admission: Admission, token_ids: NDArray[np.int32], region: Region) -> None:
        self._is_bound[admission.slot] = is_bound_by(admission.params)

    def _leave(self, slot: int) -> None:
        pass

    def _send_wishes(self, region: Region) -> None:
        pass

    def _choice_of(self, slots: NDArray[np.int64]) -> Choice:
        return Choice.PLAIN

    def _pick(self, logits: Tensor, num_rows: int, choice: Choice) -> Tensor:
        return self._tokens[:num_rows]

    def _choose_for(
        self,
        slots: NDArray[np.int64],
        logits: Tensor | None,
        bucket: int | None,
        choice: Choice,
        region: Region,
    ) -> None:
        table = self._slots
        self._start_choice(len(slots), logits, bucket, choice)
        if self._is_bound[slots].any():
            news = np.empty((len(slots), NEWS_WIDTH), np.int64)
            self._ranks.share(news)
            table.take_over(slots, news)
        else:
            table.append(slots, np.full(len(slots), UNKNOWN))

    def _score(self, stretches: list[Stretch], hidden: Tensor) -> list[PromptLogprobs]:
        self._scorer.skip(stretches, hidden, self._model.compute_logits)
        return []
