"""transformers: ``generate`` with a static cache on one static batch."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from benchmarks.cpu.peers.face import Timeline


class _Ticking(StoppingCriteria):
    """Never stops; called after every step."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self._timeline.tick(range(self._timeline.num_seqs))
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Transformers:
    """One model."""

    def __init__(self, path: str, dtype: torch.dtype, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        self._model.eval()  # type: ignore[no-untyped-call]  # theirs
        self._model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], timeline: Timeline) -> list[list[int]]:
        token_ids = torch.tensor(prompts)
        found = self._model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=timeline.num_tokens,
            do_sample=False,
            cache_implementation="static",
            stopping_criteria=StoppingCriteriaList([_Ticking(timeline)]),
        )
        answers: list[list[int]] = found[:, token_ids.shape[1] :].tolist()
        return answers


def open_driver(path: str, variant: str, num_threads: int) -> Transformers:
    """``variant`` is the name of a dtype of torch."""
    return Transformers(path, getattr(torch, variant), num_threads)
