"""A rank on a device that guesses tokens: a step waits for its own result, since the next guesses need it."""

import time

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trioserve.core.step import Admission, PromptLogprobs, SampledToken, Speculation, StepPlan
from trioserve.kernels.device import Device
from trioserve.kernels.staging import Region
from trioserve.model.batch import DeviceCache
from trioserve.model.device import DeviceDecoder
from trioserve.sampling.device_sampler import records
from trioserve.sampling.sampler import Samples
from trioserve.sampling.verify import Guesses, verify
from trioserve.worker.device_runner import DeviceRunner
from trioserve.worker.device_step_runner import DeviceShape, Swaps, Work
from trioserve.worker.drafts import Drafter
from trioserve.worker.grammars import Grammars
from trioserve.worker.pending import Chosen, Pending, Rounds


class GuessingDeviceRunner(DeviceRunner):
    """As ``DeviceRunner``, and steps may compute guesses behind the known tokens; the only rank."""

    drafter: Drafter | None

    _waits = True

    def __init__(
        self,
        model: DeviceDecoder,
        caches: list[DeviceCache],
        device: Device,
        shape: DeviceShape,
        grammars: Grammars,
        speculation: Speculation,
    ) -> None:
        self._speculation = speculation
        self._is_whole, self._num_guesses = False, 0
        """Of the last step: whether every sequence sampled, and how many tokens were guessed."""
        super().__init__(model, caches, device, shape, grammars)

    def use(self, caches: list[DeviceCache], swaps: Swaps | None = None) -> None:
        """Have the KV blocks of these, while nobody has a slot and before there are graphs."""
        super().use(caches, swaps)
        self.drafter = Drafter(self._speculation, self._slots)

    def _enter(self, admission: Admission, token_ids: NDArray[np.int32], region: Region) -> None:
        super()._enter(admission, token_ids, region)
        assert self.drafter is not None, "nobody guesses"
        self.drafter.admit(admission.slot, admission.params)

    def launch(self, plan: StepPlan) -> Pending:
        """Carry out ``plan``; all but what others wait for is done when this returns."""
        began, self._is_whole, self._num_guesses = time.perf_counter(), False, 0
        pending = super().launch(plan)
        if self.drafter is not None and plan.num_drafts and self._is_whole:
            self.drafter.time(len(plan.work), self._num_guesses, time.perf_counter() - began)
        return pending

    def _compute(
        self, work: Work, num_drafts: int, region: Region
    ) -> tuple[Chosen | Rounds | None, list[PromptLogprobs]]:
        assert self.drafter is not None, "nobody guesses"
        counts = self.drafter.guess(work.slots, work.samples, num_drafts) if num_drafts else None
        self._is_whole = bool(work.samples.all())
        if counts is None:
            return super()._compute(work, num_drafts, region)
        self._num_guesses = int(counts.sum())
        guesses = Guesses(self._slots.behind(work.slots, int(counts.max())), counts)
        return self._verified(work, guesses, region), []

    def _verified(self, work: Work, guesses: Guesses, region: Region) -> Rounds:
        """Compute known tokens and guesses, and choose for each sequence up to the first wrong one."""
        assert self.drafter is not None, "nobody guesses"
        table = self._slots
        wider = Work(work.slots, work.counts + guesses.counts, work.ends + guesses.counts, work.samples)
        sampling, tried = work.slots[work.samples], guesses.of(work.samples)
        firsts = (wider.counts.cumsum() - 1 - guesses.counts)[work.samples]
        rows = np.concatenate(tried.rows(firsts))
        logits = self._logits(self._mixed(wider, rows, region))
        table.num_computed[work.slots] = work.ends
        rounds, num_right = list[list[SampledToken]](), np.zeros_like(sampling)
        choice = _Chooser(self, region)
        known = table.num_tokens[sampling]
        for place, (members, samples) in enumerate(verify(choice, logits, sampling, known, tried)):
            num_right[members] += bool(place)
            rounds.append(self._told(sampling[members], samples))
        table.num_computed[sampling] += num_right
        self.drafter.learn(sampling, tried.counts, num_right)
        return Rounds(rounds, guesses.num_with)

    def choose_now(
        self, logits: Tensor, slots: NDArray[np.int64], num_known: NDArray[np.int64], region: Region
    ) -> Samples:
        """A token for each row, appended with what it leads to; as ``Sampler.sample``."""
        sampler, num_rows = self._sampler, len(slots)
        self._inputs.send_samples(slots, num_known, num_rows, region)
        choice, is_bound = sampler.choice_of(slots), sampler.binds(slots)
        follow = sampler.constrain(slots, region) if is_bound else []
        self._choose(logits.contiguous(), num_rows, choice)
        readout = sampler.read(num_rows, choice, region)
        if is_bound:
            sampler.unconstrain(num_rows)
        turns = self._settle(slots, num_known, readout, follow, region)
        logprobs, is_certain = records(readout, sampler.wanted(slots))
        return Samples(readout.token_ids.numpy().astype(np.int64), logprobs, is_certain, turns)

    def _told(self, slots: NDArray[np.int64], samples: Samples) -> list[SampledToken]:
        rows = zip(
            slots.tolist(),
            self._slots.seq_ids[slots].tolist(),
            samples.token_ids.tolist(),
            samples.logprobs,
            samples.is_certain.tolist(),
            strict=True,
        )
        return Chosen.turned([SampledToken(*row) for row in rows], samples.turns)


class _Chooser:
    """What ``verify`` asks, in one step."""

    def __init__(self, runner: GuessingDeviceRunner, region: Region) -> None:
        self._runner = runner
        self._region = region

    def sample(self, logits: Tensor, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> Samples:
        """As ``Sampler.sample``."""
        return self._runner.choose_now(logits, slots, positions, self._region)
