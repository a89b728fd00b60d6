"""CTranslate2: one static batch."""

from typing import Any

import ctranslate2

from benchmarks.cpu.peers.face import Timeline


class CTranslate2:
    """One generator; its tokens are the decimal digits of ids."""

    def __init__(self, path: str, compute_type: str, num_threads: int) -> None:
        self._generator: Any = ctranslate2.Generator(
            path, compute_type=compute_type, inter_threads=1, intra_threads=num_threads
        )

    def generate(self, prompts: list[list[int]], timeline: Timeline) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]

        def take(step: Any) -> bool:
            answers[step.batch_id].append(step.token_id)
            timeline.tick((step.batch_id,))
            return False

        self._generator.generate_batch(
            [[str(token_id) for token_id in prompt] for prompt in prompts],
            max_length=timeline.num_tokens,
            min_length=timeline.num_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=take,
            max_batch_size=0,
        )
        return answers


def open_driver(path: str, variant: str, num_threads: int) -> CTranslate2:
    """``variant`` is CTranslate2's compute type."""
    return CTranslate2(path, variant, num_threads)
