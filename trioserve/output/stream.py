"""Turns the tokens of a step into one delta for each sequence."""

from array import array
from collections.abc import Iterable

from trioserve._speedups.detokenizer import Detokenizer, Vocabulary, feed_batch
from trioserve.core.delta import OutputDelta, TokenLogprob, TopToken, Usage
from trioserve.core.sequence import FinishReason, Sequence
from trioserve.core.step import PromptLogprobs, SampledToken
from trioserve.core.thinking import ThinkingCounter


class OutputStream:
    """The text side of one sequence."""

    def __init__(self, seq: Sequence, vocabulary: Vocabulary) -> None:
        self.seq = seq
        self._vocabulary = vocabulary
        params = seq.params
        self.detokenizer = Detokenizer(
            vocabulary,
            stop=params.stop,
            include_stop=params.include_stop,
            skip_special_tokens=params.skip_special_tokens,
            min_tokens=params.min_tokens,
        )
        self._thinking = None if params.thinking is None else ThinkingCounter(params.thinking)
        self._prompt_logprobs: list[TokenLogprob | None] = []
        """Of the first tokens of the prompt, until the first delta takes them all."""

    @property
    def usage(self) -> Usage:
        """Counts up to now."""
        seq = self.seq
        num_reasoning_tokens = 0 if self._thinking is None else self._thinking.num_tokens
        return Usage(
            seq.num_prompt_tokens, seq.num_cached_tokens, seq.num_output_tokens, num_reasoning_tokens
        )

    @property
    def hides_last_token(self) -> bool:
        """Whether the newest token is a stop token that the text leaves out."""
        return isinstance(self.seq.stop_reason, int) and not self.seq.params.include_stop

    def ended(self, reason: FinishReason, error: str | None = None) -> OutputDelta:
        """The last delta of a sequence that something else than a token ends; text that was held back is dropped."""
        return OutputDelta("", (), (), self.usage, finish_reason=reason, error=error)

    def add_prompt_logprobs(self, scored: PromptLogprobs) -> None:
        """Keep the log probabilities of a stretch of the prompt; after a preemption it may come again."""
        logprobs, top_ids, top_logprobs, ranks = array("f"), array("i"), array("f"), array("i")
        logprobs.frombytes(scored.logprobs)
        top_ids.frombytes(scored.top_ids)
        top_logprobs.frombytes(scored.top_logprobs)
        ranks.frombytes(scored.ranks)
        num_top = len(top_ids) // len(logprobs)
        kept = self._prompt_logprobs or [None]
        assert scored.start <= len(kept), f"prompt token {scored.start} is scored, {len(kept)} is not"
        del kept[scored.start :]
        token_ids = self.seq.token_ids[scored.start : scored.start + len(logprobs)]
        for number, (token_id, logprob, rank) in enumerate(zip(token_ids, logprobs, ranks, strict=True)):
            top = slice(number * num_top, (number + 1) * num_top)
            kept.append(self._logprob(token_id, logprob, top_ids[top], top_logprobs[top], rank))
        self._prompt_logprobs = kept

    def delta(self, sampled: SampledToken, text: str) -> OutputDelta:
        """What one token came to; ``text`` is what the detokenizer made of it."""
        reason, stop_reason = self.seq.finish_reason, self.seq.stop_reason
        if self.detokenizer.stop_reason is not None:
            reason, stop_reason = FinishReason.STOP, self.detokenizer.stop_reason
        elif reason is not None:
            text += self.detokenizer.flush()
        if self._thinking is not None:
            self._thinking.feed(self._vocabulary.piece(sampled.token_id))
        found = sampled.logprobs
        return OutputDelta(
            text=text,
            token_ids=(sampled.token_id,),
            logprobs=()
            if found is None
            else (self._logprob(sampled.token_id, found.logprob, found.top_ids, found.top_logprobs),),
            usage=self.usage,
            finish_reason=reason,
            stop_reason=stop_reason,
            prompt_logprobs=self._take_prompt_logprobs(),
        )

    @staticmethod
    def feed_step(step: Iterable[tuple["OutputStream", SampledToken]]) -> list[OutputDelta]:
        """The deltas of a whole step, in its order; the detokenizers run in one native call."""
        step = list(step)
        shown = [(stream, sampled) for stream, sampled in step if not stream.hides_last_token]
        texts = iter(
            feed_batch(
                [stream.detokenizer for stream, _ in shown], [sampled.token_id for _, sampled in shown]
            )
        )
        return [
            stream.delta(sampled, "" if stream.hides_last_token else next(texts)) for stream, sampled in step
        ]

    def _take_prompt_logprobs(self) -> tuple[TokenLogprob | None, ...]:
        if self.seq.params.prompt_logprobs is None or self.seq.num_output_tokens != 1:
            return ()
        taken, self._prompt_logprobs = (
            self._prompt_logprobs or [None],
            [],
        )  # a prompt of one token has no score
        return tuple(taken)

    def _logprob(
        self,
        token_id: int,
        logprob: float,
        top_ids: Iterable[int],
        top_logprobs: Iterable[float],
        rank: int | None = None,
    ) -> TokenLogprob:
        piece = self._vocabulary.piece
        return TokenLogprob(
            token_id=token_id,
            piece=piece(token_id),
            logprob=logprob,
            top=tuple(
                TopToken(top_id, piece(top_id), top_logprob)
                for top_id, top_logprob in zip(top_ids, top_logprobs, strict=True)
            ),
            rank=rank,
        )
