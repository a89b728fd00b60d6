"""What a sequence's tokens must be: what its grammar allows, and what a budget of thinking that is spent wants."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from trioserve.core.sampling import MAX_FORCED_TOKENS, SamplingParams
from trioserve.grammars.backend import FORBIDDEN, Matcher
from trioserve.sampling.thinking import ThinkingWatch

_NO_END: Final = "the grammar does not let the thinking end where its budget is spent"


class Turn(NamedTuple):
    """What a sampled token has led to."""

    forced: list[int]
    """Ids that follow it without a choice, at most MAX_FORCED_TOKENS."""
    is_last: bool
    """Whether the sequence has all the tokens now that it may ever have."""
    failure: str
    """Why the sequence cannot go on; empty if it can."""


class Constraint:
    """One sequence's: which tokens come without a choice, and when there will be no more.

    A sequence that wants to know how likely each token was is forced one token a step, since each needs logits of its
    own.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        num_prompt_tokens: int,
        max_len: int,
        eos_token_ids: Sequence[int],
        matcher: Matcher | None = None,
        watch: ThinkingWatch | None = None,
        failure: str = "",
    ) -> None:
        """Before the answer's first token.

        Args:
            max_len: Tokens of prompt and answer at most, whatever the parameters say.
            eos_token_ids: Those that end an answer that the grammar lets end.
            failure: Why there is no matcher, where there should be one.
        """
        self.matcher = matcher
        self._watch = watch
        self._failure = failure
        self._may_force = params.logprobs is None and params.early_stop is None
        self._max_tokens = min(num_prompt_tokens + params.max_tokens, max_len)
        self._stop_ids = frozenset(params.stop_token_ids)
        # a grammar that lets an answer end leaves nothing else, so the answer may be shorter than was asked for
        self._first_stop = 0 if matcher is not None else num_prompt_tokens + params.min_tokens
        self._end = [token_id for token_id in params.stop_token_ids if token_id in eos_token_ids][:1]

    def replay(self, token_ids: Sequence[int]) -> None:
        """Take in the answer's tokens so far."""
        if self.matcher is not None and not self.matcher.accept(token_ids):
            self._failure = self.matcher.failure or FORBIDDEN
        if self._watch is not None:
            for token_id in token_ids:
                self._watch.add(token_id)

    def due(self) -> int | None:
        """The token that the budget of thinking wants next, taken in with that; None: the grammar and the model say."""
        if self._watch is None or (token_id := self._watch.due) is None:
            return None
        if self.matcher is not None and not self.matcher.accept((token_id,)):
            if not self._watch.is_over:
                self._failure = self.matcher.failure or _NO_END
            return None
        self._watch.add(token_id)
        return token_id

    def take(self, token_id: int, position: int) -> Turn | None:
        """Take in a token that was chosen, number ``position`` of the sequence, from 0; None: just go on."""
        if self._take(token_id):
            return self.follow(token_id, position)
        return Turn([], True, self._failure)

    def follow(self, token_id: int, position: int) -> Turn | None:
        """What follows ``token_id``, which was taken in as number ``position`` of the sequence; None: just go on."""
        forced: list[int] = []
        is_last = self._is_last(token_id, position)
        if self._may_force and not is_last:
            is_last = self._force(forced, position + 1)
        if self.matcher is not None and not self._failure:
            self._failure = self.matcher.failure
        if not forced and not is_last and not self._failure:
            return None
        return Turn(forced, is_last or bool(self._failure), self._failure)

    def _take(self, token_id: int) -> bool:
        if self.matcher is not None and not self.matcher.take(token_id):
            self._failure = self.matcher.failure or FORBIDDEN
            return False
        if self._watch is not None:
            self._watch.add(token_id)
        return True

    def _force(self, forced: list[int], position: int) -> bool:
        """Append what comes without a choice from ``position`` on; returns whether the sequence is then complete."""
        queue: list[int] = []
        while len(forced) < MAX_FORCED_TOKENS and (token_id := self._next(queue)) is not None:
            forced.append(token_id)
            if self._is_last(token_id, position):
                return True
            position += 1
        return False

    def _next(self, queue: list[int]) -> int | None:
        """The next token that comes without a choice, taken in.

        ``queue`` has what the grammar forces, the next one last; it is filled and emptied here.
        """
        if self._watch is not None and (token_id := self.due()) is not None:
            queue.clear()
            return token_id
        if self.matcher is None or self._failure:
            return None
        if not queue:
            queue += reversed(self.matcher.forced() or (self._end if self.matcher.is_over else ()))
            if not queue:
                return None
        token_id = queue.pop()
        return token_id if self._take(token_id) else None

    def _is_last(self, token_id: int, position: int) -> bool:
        is_stop = token_id in self._stop_ids and position >= self._first_stop
        return is_stop or position + 1 >= self._max_tokens
