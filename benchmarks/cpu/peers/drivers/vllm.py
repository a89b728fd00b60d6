"""vLLM's CPU build: its engine with its own scheduler and process, as ``vllm serve`` has it, without HTTP."""

from typing import Any

import vllm
from vllm.sampling_params import RequestOutputKind

from benchmarks.cpu.peers.face import Timeline


class Vllm:
    """One engine."""

    def __init__(self, path: str) -> None:
        self._engine: Any = vllm.LLM(
            model=path, dtype="bfloat16", max_model_len=2048, max_num_seqs=64, seed=0
        ).llm_engine
        self._num_requests = 0

    def generate(self, prompts: list[list[int]], timeline: Timeline) -> list[list[int]]:
        params = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=timeline.num_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        places = {}
        for index, prompt in enumerate(prompts):
            self._num_requests += 1
            places[str(self._num_requests)] = index
            self._engine.add_request(str(self._num_requests), {"prompt_token_ids": prompt}, params)
        answers: list[list[int]] = [[] for _ in prompts]
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                index, token_ids = places[output.request_id], list(output.outputs[0].token_ids)
                answers[index] += token_ids
                timeline.tick([index] * len(token_ids))
        return answers


def open_driver(path: str, variant: str, num_threads: int) -> Vllm:
    """Threads are those of ``VLLM_CPU_OMP_THREADS_BIND``."""
    return Vllm(path)
