"""OpenVINO GenAI's continuous batching."""

from typing import Any

import numpy as np
import openvino
import openvino_genai

from benchmarks.cpu.peers.face import Timeline

_CACHE_GB = 2


class OpenVino:
    """One pipeline."""

    def __init__(self, path: str, num_threads: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = _CACHE_GB
        scheduler.max_num_seqs = 64
        scheduler.max_num_batched_tokens = 512
        properties = {"INFERENCE_NUM_THREADS": num_threads}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(path, scheduler, "CPU", properties)
        self._num_requests = 0

    def generate(self, prompts: list[list[int]], timeline: Timeline) -> list[list[int]]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = timeline.num_tokens
        config.ignore_eos = True
        config.do_sample = False
        handles: list[Any] = []
        for prompt in prompts:
            self._num_requests += 1
            tensor = openvino.Tensor(np.array([prompt], dtype=np.int64))
            handles.append(self._pipeline.add_request(self._num_requests, tensor, config))
        answers: list[list[int]] = [[] for _ in prompts]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for index, handle in enumerate(handles):
                if handle.can_read():
                    (output,) = handle.read().values()
                    answers[index] += output.generated_ids
                    timeline.tick([index] * len(output.generated_ids))
        return answers


def open_driver(path: str, variant: str, num_threads: int) -> OpenVino:
    """``variant`` lies in the folder."""
    return OpenVino(path, num_threads)
