"""Turns the tokens of a step into one delta for each sequence."""

from collections.abc import Iterable

from trioserve._speedups.detokenizer import Detokenizer, Vocabulary, feed_batch
from trioserve.core.delta import OutputDelta, TokenLogprob, TopToken, Usage
from trioserve.core.sequence import FinishReason, Sequence
from trioserve.core.step import SampledToken, TokenLogprobs


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

    @property
    def usage(self) -> Usage:
        """Counts up to now."""
        seq = self.seq
        return Usage(seq.num_prompt_tokens, seq.num_cached_tokens, seq.num_output_tokens)

    @property
    def hides_last_token(self) -> bool:
        """Whether the newest token is a stop token that the text leaves out."""
        return self.seq.finish_reason is FinishReason.STOP and not self.seq.params.include_stop

    def ended(self, reason: FinishReason, error: str | None = None) -> OutputDelta:
        """The last delta of a sequence that something else than a token ends; text that was held back is dropped."""
        return OutputDelta("", (), (), self.usage, finish_reason=reason, error=error)

    def delta(self, sampled: SampledToken, text: str) -> OutputDelta:
        """What one token came to; ``text`` is what the detokenizer made of it."""
        reason, stop_reason = self.seq.finish_reason, self.seq.stop_reason
        if self.detokenizer.stop_reason is not None:
            reason, stop_reason = FinishReason.STOP, self.detokenizer.stop_reason
        elif reason is not None:
            text += self.detokenizer.flush()
        return OutputDelta(
            text=text,
            token_ids=(sampled.token_id,),
            logprobs=() if sampled.logprobs is None else (self._logprob(sampled.token_id, sampled.logprobs),),
            usage=self.usage,
            finish_reason=reason,
            stop_reason=stop_reason,
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

    def _logprob(self, token_id: int, logprobs: TokenLogprobs) -> TokenLogprob:
        piece = self._vocabulary.piece
        return TokenLogprob(
            token_id=token_id,
            piece=piece(token_id),
            logprob=logprobs.logprob,
            top=tuple(
                TopToken(top_id, piece(top_id), logprob)
                for top_id, logprob in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
            ),
        )
