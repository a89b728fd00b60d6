"""How much of prompts a step takes while sequences decode, by what steps took of late."""

from collections import deque
from typing import Final

from trioserve.core.step import StepResult

_LEAST_TOKENS: Final = 32
"""Of prompts in a step, whatever they cost."""
_NUM_STEPS: Final = 8
"""Over which the prompts that are known are spread where the target would let fewer do: the time between two tokens is
more even then, and those that decode need these steps anyway."""
_LEAST_PRICE_S: Final = 1e-9
"""Of a token of a prompt, so that there is one."""
_FIRST_TOKENS: Final = 64
"""While it is not known what they cost."""
_GRAIN: Final = 16
"""Tokens of prompts are whole groups of so many; blocks are, too."""
_TARGET_S: Final = 0.05
"""Of steps with decodes, where no other is asked for and the model is fast enough for it: faster than people read."""
_LONGER_THAN_ONE: Final = 3.0
"""How many times a step with a single decode others may take where no target is asked for. Most of that is reading the
weights, which with fewer tokens of prompts in a step would be done more often for the same prompts."""
_LONGER_THAN_DECODES: Final = 1.5
"""The same of a step with the same decodes and no prompts."""
_AIM: Final = 0.9
"""Of the target, what steps are planned to take, so that those that take a little longer keep to it, too."""
_KEPT: Final = 0.875
"""What is kept of the steps before at each new one, for the price of prompts."""
_ENOUGH_TOKENS: Final = 64
"""After which the price of prompts is known well enough to tell a step that is out of the ordinary."""
_MOST_CHANGE: Final = 2.0
"""By what factor a single step may say that steps take longer, or prompts more or less, than was known."""
_LEAST_PART: Final = 0.125
"""Of what a token of a step takes on average, what one of a prompt takes at least, whatever decodes should take."""
_RATE: Final = 0.2
"""Weight of the last step in what decodes take."""
_MANY: Final = 16
"""Decodes that take as long as there being any, as far as nothing is known."""


class Pace:
    """Keeps the steps in which sequences decode near a target.

    A step is taken to last as long as its decodes alone would, which is something for there being any and something for
    each, and a price for each token of prompts. Decodes are learned from steps without prompts, the price from the
    others: it covers whatever the decodes' time is wrong by, so that what is expected of steps like the last ones is
    what these took. A step counts when its result is back, by the rank's own clock, however many have been planned
    since.
    """

    def __init__(self, target_s: float | None) -> None:
        """Let steps with decodes take ``target_s`` seconds; None: what suits the model; 0: as long as they do."""
        self._target_s: Final = target_s
        self._on_the_way: Final = deque[tuple[int, int]]()  # decodes and tokens of prompts of each plan
        self._any_s = self._each_s = 0.0  # what decodes take
        self._prompts_s = self._num_prompt_tokens = 0.0  # of late, later ones counting more

    def expected_s(self, num_decodes: int, num_prompt_tokens: int = 0) -> float:
        """Seconds that a step should take; 0.0 where nothing is known of its like."""
        prompts_s = num_prompt_tokens * self._prompts_s / (self._num_prompt_tokens or 1.0)
        return self._any_s + num_decodes * self._each_s + prompts_s

    def room(self, num_decodes: int, num_to_come: int, most: int) -> int:
        """How many of the ``num_to_come`` tokens of prompts that are known a step may take beside so many decodes:
        ``most`` where there are none, else a part of them for which the target leaves time, but always some."""
        if self._target_s == 0 or not num_decodes:
            return most
        num_tokens = self._num_in_time(num_decodes) if self._num_prompt_tokens else _FIRST_TOKENS
        num_tokens = min(num_tokens, num_to_come // _NUM_STEPS + _GRAIN - 1)
        return min(max(num_tokens - num_tokens % _GRAIN, _LEAST_TOKENS), most)

    def _num_in_time(self, num_decodes: int) -> int:
        """Tokens of prompts for which the target leaves time."""
        decodes_s = self.expected_s(num_decodes)
        spare_s = max(_AIM * self._may_take_s(decodes_s) - decodes_s, 0.0)
        price_s = max(self._prompts_s / self._num_prompt_tokens, _LEAST_PRICE_S)
        return int(spare_s / price_s)

    def _may_take_s(self, decodes_s: float) -> float:
        """Seconds that a step may take whose decodes take ``decodes_s``."""
        if self._target_s is not None:
            return self._target_s
        return max(_TARGET_S, _LONGER_THAN_ONE * self.expected_s(1), _LONGER_THAN_DECODES * decodes_s)

    def note_plan(self, num_decodes: int, num_prompt_tokens: int) -> None:
        """A step is planned that computes so many tokens of sequences that decode, and of prompts."""
        self._on_the_way.append((num_decodes, num_prompt_tokens))

    def note_result(self, result: StepResult) -> None:
        """The first of the steps on their way is back. One with guesses says nothing about steps with prompts, and a
        few tokens of a prompt say little about its others."""
        num_decodes, num_prompt_tokens = self._on_the_way.popleft()
        decodes_s, step_s = self.expected_s(num_decodes), result.step_s
        if num_prompt_tokens >= _GRAIN:
            least_s = _LEAST_PART * step_s * num_prompt_tokens / (num_decodes + num_prompt_tokens)
            self._learn_prompts(max(step_s - decodes_s, least_s), num_prompt_tokens)
        if not (num_prompt_tokens and step_s >= decodes_s) and not result.num_drafted:
            self._learn_decodes(num_decodes, step_s)

    def _learn_prompts(self, spent_s: float, num_tokens: int) -> None:
        """So many tokens of prompts took ``spent_s`` beside what decodes would have taken without them."""
        if self._prompts_s and self._num_prompt_tokens >= _ENOUGH_TOKENS:
            usual_s = num_tokens * self._prompts_s / self._num_prompt_tokens
            spent_s = min(max(spent_s, usual_s / _MOST_CHANGE), usual_s * _MOST_CHANGE)
        self._prompts_s = _KEPT * self._prompts_s + spent_s
        self._num_prompt_tokens = _KEPT * self._num_prompt_tokens + num_tokens

    def _learn_decodes(self, num_decodes: int, step_s: float) -> None:
        """Move both parts of what decodes take towards a step of nothing else, each by its part in it."""
        expected_s, weight = self.expected_s(num_decodes), num_decodes / _MANY
        if not expected_s:
            self._any_s = step_s / (1.0 + weight)
            self._each_s = self._any_s / _MANY
            return
        missing_s = min(step_s, expected_s * _MOST_CHANGE) - expected_s
        change_s = _RATE * missing_s / (1.0 + weight * weight)
        self._any_s = max(self._any_s + change_s, 0.0)
        self._each_s = max(self._each_s + change_s * weight / _MANY, 0.0)
