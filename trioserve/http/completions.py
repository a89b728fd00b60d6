"""POST /v1/completions."""

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import trio
from quart import Response

from trioserve.core.delta import OutputDelta
from trioserve.core.sequence import FinishReason
from trioserve.http import sse
from trioserve.http.event_writer import PromptPart
from trioserve.http.exchange import Exchange, open_exchange
from trioserve.http.generation import finish_reason_of
from trioserve.http.services import Services
from trioserve.http.writer import CompletionsWriter, pieces
from trioserve.protocol.common import UsageBody, usage_body
from trioserve.protocol.completion import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionLogprobsWriter,
    CompletionRequest,
    encoded,
    joined,
)

CompletionExchange = Exchange[CompletionRequest]


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What is continued."""

    token_ids: list[int]
    echo: str
    """What the text begins with."""


async def completions(services: Services) -> Response:
    """Continue texts, as one JSON object or as a stream of chunks."""
    exchange = await open_exchange(services, CompletionRequest)
    grammar = await exchange.asked_grammar()
    prompts = [await _prompt(exchange, given) for given in exchange.asked.prompts]
    param = "prompt" if exchange.asked.prompt_token_ids is None else "prompt_token_ids"
    generation = exchange.prepare([prompt.token_ids for prompt in prompts], param=param, grammar=grammar)
    return await exchange.answer(generation, CompletionWriter(exchange, prompts))


async def _prompt(exchange: CompletionExchange, given: str | list[int]) -> _Prompt:
    asked = exchange.asked
    token_ids = await _token_ids(exchange, given)
    kept = exchange.truncated(token_ids)
    if not asked.echo:
        return _Prompt(kept, "")
    if isinstance(given, str) and len(kept) == len(token_ids):
        return _Prompt(kept, given)
    return _Prompt(kept, exchange.served.renderer.tokenizer.decode(kept))


async def _token_ids(exchange: CompletionExchange, given: str | list[int]) -> list[int]:
    renderer, limit = exchange.served.renderer, exchange.max_prompt_tokens
    adds = exchange.asked.add_special_tokens is not False
    if exchange.asked.suffix:
        return await renderer.infill(given, exchange.asked.suffix, add_special_tokens=adds, max_tokens=limit)
    if isinstance(given, str):
        return await renderer.text(given, add_special_tokens=adds, max_tokens=limit)
    return given


def likeliest(results: SequenceOf[OutputDelta], *, n: int, num_tries: int) -> list[OutputDelta]:
    """Of each prompt's ``num_tries`` results the ``n`` with the highest mean logprob of a token, best first."""
    if n == num_tries:
        return list(results)
    by_prompt = [results[at : at + num_tries] for at in range(0, len(results), num_tries)]
    return [result for tries in by_prompt for result in sorted(tries, key=_mean_logprob, reverse=True)[:n]]


def _mean_logprob(result: OutputDelta) -> float:
    logprobs = [token.logprob for token in result.logprobs]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


class CompletionWriter(CompletionsWriter[CompletionRequest]):
    """Streams what there is to say of a prompt, text, and a finish chunk for each choice."""

    def __init__(self, exchange: CompletionExchange, prompts: SequenceOf[_Prompt]) -> None:
        super().__init__(exchange, exchange.heading("cmpl-"), [prompt.token_ids for prompt in prompts])
        asked = exchange.asked
        self._piece = exchange.served.engine.vocabulary.piece
        self._echoes = [prompt.echo for prompt in prompts for _ in range(asked.num_choices)]
        self._logprobs = [
            CompletionLogprobsWriter(
                num_top=asked.logprobs or 0,
                as_ids=bool(asked.return_tokens_as_token_ids),
                num_chars=len(echo),
            )
            for echo in self._echoes
        ]
        self._echoed_logprobs: dict[int, CompletionLogprobs] = {}  # by prompt

    async def read_prompt(self, index: int, logprobs: PromptPart) -> None:
        await super().read_prompt(index, logprobs)
        asked = self.asked
        number, choice = index // asked.num_tries, index // asked.num_tries * asked.num_choices
        if not asked.echo or asked.logprobs is None or number in self._echoed_logprobs:
            return
        writer = CompletionLogprobsWriter(
            num_top=asked.logprobs, as_ids=bool(asked.return_tokens_as_token_ids)
        )
        first_id = self.prompts[choice][0]
        parts = [writer.begin_prompt(self._echoes[choice], first_id, self._piece(first_id))]
        for piece in pieces(logprobs[1:], asked.logprobs):
            parts.append(encoded(writer.feed([token for token in piece if token is not None])))
            await trio.lowlevel.checkpoint()
        self._echoed_logprobs[number] = joined(parts)

    def begin(self, index: int) -> bytes:
        asked = self.asked
        if not (self._echoes[index] or asked.return_token_ids or asked.prompt_logprobs is not None):
            return b""
        return self._event(self._beginning(index))

    def feed(self, index: int, delta: OutputDelta) -> bytes:
        return super().feed(index, self._shown(delta))

    def tell(self, index: int, delta: OutputDelta) -> bytes:
        events = b""
        if self.only_text(delta):
            if delta.text:
                events = self.stencilled(index, partial(self._text_event, index), delta.text)
        elif delta.text or self.says_more(delta):
            events = self._event(self._addition(index, delta))
        if delta.finish_reason is not None:
            events += self._event(
                CompletionChoice(
                    index,
                    "",
                    finish_reason=finish_reason_of(delta),
                    stop_reason=delta.stop_reason,
                    arrival_time=self.arrival_time(),
                )
            )
        return events

    def usage_event(self, usage: UsageBody) -> bytes:
        return sse.event(self._completion([], usage=usage))

    def whole(self, results: SequenceOf[OutputDelta]) -> Completion:
        asked = self.asked
        shown = [self._shown(result) for result in results]
        chosen = likeliest(shown, n=asked.num_choices, num_tries=asked.num_tries)
        return self._completion(
            [self._choice(index, result) for index, result in enumerate(chosen)],
            usage=usage_body([result.usage for result in shown], n=asked.num_tries),
        )

    # --- parts of a choice ---

    def _beginning(self, index: int) -> CompletionChoice:
        """What is known of a choice from its prompt."""
        return CompletionChoice(
            index,
            self._echoes[index],
            self._echoed_logprobs.get(index // self.asked.num_choices),
            prompt_token_ids=self.shown_ids(self.prompts[index]),
            prompt_logprobs=self.shown_prompt_logprobs(index),
            arrival_time=self.arrival_time(),
        )

    def _addition(self, index: int, delta: OutputDelta) -> CompletionChoice:
        """What a delta adds to it."""
        has_logprobs = self.asked.logprobs is not None and bool(delta.logprobs)
        token_ids = self.shown_ids(delta.token_ids)
        return CompletionChoice(
            index,
            delta.text,
            self._logprobs[index].feed(delta.logprobs) if has_logprobs else None,
            token_ids=token_ids,
            completion_token_ids=token_ids,
            arrival_time=self.arrival_time(),
        )

    def _choice(self, index: int, result: OutputDelta) -> CompletionChoice:
        """All of it."""
        begun, added = self._beginning(index), self._addition(index, result)
        logprobs = begun.logprobs or added.logprobs
        if begun.logprobs and added.logprobs:
            logprobs = joined([begun.logprobs, added.logprobs])
        return msgspec.structs.replace(
            added,
            text=begun.text + added.text,
            logprobs=logprobs,
            finish_reason=finish_reason_of(result),
            stop_reason=result.stop_reason,
            prompt_token_ids=begun.prompt_token_ids,
            prompt_logprobs=begun.prompt_logprobs,
        )

    def _shown(self, delta: OutputDelta) -> OutputDelta:
        """Without what had to be generated although only the prompt was asked for."""
        if not self.asked.only_echo:
            return delta
        return msgspec.structs.replace(
            delta,
            text="",
            token_ids=(),
            logprobs=(),
            usage=msgspec.structs.replace(delta.usage, num_output_tokens=0),
            finish_reason=delta.finish_reason and FinishReason.LENGTH,
            stop_reason=None,
        )

    def _text_event(self, index: int, text: str) -> bytes:
        return self._event(CompletionChoice(index, text))

    def _event(self, choice: CompletionChoice) -> bytes:
        completion = self._completion(
            [choice], usage=self.usage_so_far(), obfuscation=self.padding(choice.text)
        )
        return sse.event(completion)

    def _completion(self, choices: list[CompletionChoice], **fields: Any) -> Completion:
        heading = self.heading
        return Completion(
            id=heading.id,
            created=heading.created,
            model=heading.model,
            choices=choices,
            system_fingerprint=heading.fingerprint,
            service_tier=heading.service_tier,
            **fields,
        )
