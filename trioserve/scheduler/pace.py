"""How much of prompts a step takes while sequences decode, by what steps took of late."""

from collections import deque
from typing import Final

from trioserve.core.step import StepResult

_LEAST_TOKENS: Final = 32
"""Of prompts in a step, whatever they cost."""
_NUM_STEPS: Final = 8
"""Over which the prompts that are known are spread where the target would let fewer do: the time between two tokens is
more even then, and those that decode need these steps anyway."""
_LEAST_TOKEN_S: Final = 1e-9
"""What a token of a prompt is taken to cost at least."""
_FIRST_TOKENS: Final = 64
"""Of prompts in a step, while none is back."""
_GRAIN: Final = 16
"""Tokens of prompts are whole groups of so many; blocks are, too."""
_TARGET_S: Final = 0.05
"""Of steps with decodes, where no other is asked for and the model is fast enough for it: faster than people read."""
_LONGER_THAN_ONE: Final = 4.0
"""How many times a step with a single decode others may take where no target is asked for. Most of that is reading the
weights, which with fewer tokens of prompts in a step would be done more often for the same prompts."""
_LONGER_THAN_DECODES: Final = 1.5
"""The same of a step with the same decodes and no prompts."""
_AIM: Final = 0.9
"""Of the target, what steps are planned to take, so that those that take a little longer keep to it, too."""
_RATE: Final = 0.2
"""Weight of the last step in what steps are expected to take."""
_MOST_CHANGE: Final = 2.0
"""By what factor a single step may say that steps take more or less than was expected."""
_MANY_DECODES: Final = 16
_MANY_TOKENS: Final = 32
"""Decodes, and tokens of prompts, that take as long as there being any, as far as nothing else is known."""


class Pace:
    """Keeps the steps in which sequences decode near a target.

    A step is taken to last as long as there being one takes, which is mostly the weights that are read, and so much for
    each decode and for each token of a prompt. When a result is back, all three move towards what its step took, each
    by its part in it, so that what is expected of steps like the last ones is what these took. A step counts by the
    rank's own clock, however many have been planned since.
    """

    def __init__(self, target_s: float | None) -> None:
        """Let steps with decodes take ``target_s`` seconds; None: what suits the model; 0: as long as they do."""
        self._target_s: Final = target_s
        self._on_the_way: Final = deque[tuple[int, int]]()  # decodes and tokens of prompts of each plan
        self._any_s = self._decode_s = self._token_s = 0.0

    def expected_s(self, num_decodes: int, num_prompt_tokens: int = 0) -> float:
        """Seconds that a step should take; 0.0 where nothing is known."""
        return self._any_s + num_decodes * self._decode_s + num_prompt_tokens * self._token_s

    def room(self, num_decodes: int, num_to_come: int, most: int) -> int:
        """How many of the ``num_to_come`` tokens of prompts that are known a step may take beside so many decodes:
        ``most`` where there are none, else a part of them for which the target leaves time, but always some."""
        if self._target_s == 0 or not num_decodes:
            return most
        num_tokens = min(self._num_in_time(num_decodes), num_to_come // _NUM_STEPS + _GRAIN - 1)
        return min(max(num_tokens - num_tokens % _GRAIN, _LEAST_TOKENS), most)

    def _num_in_time(self, num_decodes: int) -> int:
        """Tokens of prompts for which the target leaves time."""
        decodes_s = self.expected_s(num_decodes)
        if not decodes_s:
            return _FIRST_TOKENS
        spare_s = max(_AIM * self._may_take_s(decodes_s) - decodes_s, 0.0)
        return int(spare_s / max(self._token_s, _LEAST_TOKEN_S))

    def _may_take_s(self, decodes_s: float) -> float:
        """Seconds that a step may take whose decodes take ``decodes_s``."""
        if self._target_s is not None:
            return self._target_s
        return max(_TARGET_S, _LONGER_THAN_ONE * self.expected_s(1), _LONGER_THAN_DECODES * decodes_s)

    def note_plan(self, num_decodes: int, num_prompt_tokens: int) -> None:
        """A step is planned that computes so many tokens of sequences that decode, and of prompts."""
        self._on_the_way.append((num_decodes, num_prompt_tokens))

    def note_result(self, result: StepResult) -> None:
        """The first of the steps on their way is back. One with guesses says nothing about steps with prompts."""
        num_decodes, num_prompt_tokens = self._on_the_way.popleft()
        if not result.num_drafted:
            self._learn(num_decodes, num_prompt_tokens, result.step_s)

    def _learn(self, num_decodes: int, num_prompt_tokens: int, step_s: float) -> None:
        decodes, tokens = num_decodes / _MANY_DECODES, num_prompt_tokens / _MANY_TOKENS
        expected_s = self.expected_s(num_decodes, num_prompt_tokens)
        if expected_s:
            changed_s = min(max(step_s, expected_s / _MOST_CHANGE), expected_s * _MOST_CHANGE) - expected_s
            change_s = _RATE * changed_s / (1.0 + decodes * decodes + tokens * tokens)
        else:
            change_s = step_s / (1.0 + decodes + tokens)
            decodes = tokens = 1.0
        self._any_s = max(self._any_s + change_s, 0.0)
        self._decode_s = max(self._decode_s + change_s * decodes / _MANY_DECODES, 0.0)
        self._token_s = max(self._token_s + change_s * tokens / _MANY_TOKENS, 0.0)
