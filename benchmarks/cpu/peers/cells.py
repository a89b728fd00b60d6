"""What is measured: batches of prompts, and how many tokens follow them."""

import random
from typing import Final, NamedTuple

_FIRST_ID: Final = 300
"""Behind the single bytes."""
_LAST_ID: Final = 40_000
"""In every vocabulary that is measured."""


class Cell(NamedTuple):
    """One kind of batch."""

    name: str
    num_seqs: int
    prompt_tokens: int
    num_tokens: int
    """Of each answer; 1: what counts is the time until it is there."""

    @property
    def is_decode(self) -> bool:
        return self.num_tokens > 1

    def prompts(self, seed: str) -> list[list[int]]:
        """Random ones, the same for the same seed, so that no cache knows them and every engine gets the same."""
        rng = random.Random(f"{self.name} {seed}")
        return [
            [rng.randrange(_FIRST_ID, _LAST_ID) for _ in range(self.prompt_tokens)]
            for _ in range(self.num_seqs)
        ]

    def rate(self, answer: dict[str, float]) -> float:
        """Tokens a second, of prompts or of answers, from what ``child.py`` answers."""
        if self.is_decode:
            return answer["decode_rate"]
        return self.num_seqs * self.prompt_tokens / answer["prefill_s"]


CELLS: Final = {
    cell.name: cell
    for cell in (
        Cell("decode 1", 1, 128, 128),
        Cell("decode 8", 8, 128, 128),
        Cell("decode 32", 32, 128, 128),
        Cell("prefill 1x1024", 1, 1024, 1),
        Cell("prefill 8x512", 8, 512, 1),
    )
}
AGREEMENT: Final = Cell("agreement", 8, 64, 32)
"""The prompts and the length of the answers that are compared with the reference's."""
