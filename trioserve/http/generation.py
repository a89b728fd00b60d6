"""One request's way through the engine, streamed or whole; the same for every endpoint that generates."""

import math
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from collections.abc import Sequence as SequenceOf
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec
import trio
from msgspec import UNSET, UnsetType
from quart import Response, request

from trioserve.core.delta import OutputDelta, merge
from trioserve.core.sampling import Grammar, SamplingParams, ThinkingBudget
from trioserve.core.sequence import FinishReason, Sequence
from trioserve.engine.face import EngineFace
from trioserve.engine.mailbox import Mailbox, Take
from trioserve.errors import EngineError, InvalidGrammar, InvalidRequest, PromptTooLong, RequestTimeout
from trioserve.http import sse
from trioserve.http.errors import guarded
from trioserve.http.event_writer import EventWriter
from trioserve.http.held import hold
from trioserve.http.owner import owner_of_request
from trioserve.http.request_id import request_id_of
from trioserve.http.services import ServedModel
from trioserve.http.shortcut import Shortcut
from trioserve.protocol.fields import GenerationFields
from trioserve.protocol.sampling import params_of_choice, params_of_prompt, sampling_params

_FINISH: Final = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.REPETITION: "repetition",
}


BeforeEnd = Callable[[], Awaitable[None]]


async def at_once() -> None:
    """There is nothing to wait for."""


@dataclass(frozen=True, slots=True)
class Heading:
    """What every answer and every chunk of it repeats."""

    id: str
    model: str
    fingerprint: str
    service_tier: str | UnsetType = UNSET
    """Where the request named one."""
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(
        cls,
        served: ServedModel,
        asked_model: str | None,
        *,
        prefix: str,
        service_tier: str | UnsetType = UNSET,
    ) -> "Heading":
        """A heading with a new id."""
        name = served.answer_name(asked_model)
        return cls(prefix + uuid.uuid4().hex, name, served.fingerprint, service_tier)


@dataclass(frozen=True, slots=True)
class Generation:
    """The sequences of one request, not yet given to the engine: until then nothing needs to be taken back."""

    engine: EngineFace
    sequences: list[Sequence]
    """Try k of prompt p is number p * num_tries + k; usually every try is a choice."""
    deadline: float
    """On trio's clock."""
    time_limit_s: float
    request_id: str
    eos_token_ids: tuple[int, ...]
    """With these the model itself ends an answer: the usual thing, which no ``stop_reason`` needs to name."""

    async def results(self) -> list[OutputDelta]:
        """All that each choice came to, as one delta.

        Raises:
            RequestTimeout: The deadline passed first.
            TryAgain: The engine does not take the request.
            EngineError: The engine gave a choice up.
            InvalidGrammar: The grammar of a choice cannot be used, or cannot go on.
        """
        deltas: list[list[OutputDelta]] = [[] for _ in self.sequences]
        with self.engine.stream(self.sequences) as mailbox:
            while not mailbox.is_done:
                for index, delta in await self._receive(mailbox, until=math.inf):
                    deltas[index].append(delta)
        return [merge(parts) for parts in deltas]

    async def response(
        self, writer: EventWriter, *, keep_alive_s: float, before_end: BeforeEnd = at_once
    ) -> Response:
        """The answer that streams what ``writer`` makes of the deltas, once the engine has taken the request.

        Raises:
            TryAgain: The engine does not take it.
        """
        events = await self.events(writer, keep_alive_s=keep_alive_s, before_end=before_end)
        return sse.response(guarded(events, self.request_id))

    async def events(
        self,
        writer: EventWriter,
        *,
        keep_alive_s: float,
        keep_alive: bytes = sse.KEEP_ALIVE,
        before_end: BeforeEnd = at_once,
    ) -> AsyncGenerator[bytes, None]:
        """Give the request to the engine; what ``writer`` makes of the deltas, as they come.

        Args:
            keep_alive: Sent after ``keep_alive_s`` of silence.
            before_end: Done once the last event is written and before it goes out.

        Raises:
            TryAgain: The engine does not take the request.
        """
        stack = ExitStack()
        hold(request, stack.close)
        mailbox = stack.enter_context(self.engine.stream(self.sequences))
        await mailbox.wait_admitted()
        return self._events(
            stack,
            mailbox,
            writer,
            Shortcut.of(request, writer),
            silence_s=keep_alive_s or math.inf,
            keep_alive=keep_alive,
            before_end=before_end,
        )

    async def _events(
        self,
        stack: ExitStack,
        mailbox: Mailbox,
        writer: EventWriter,
        shortcut: Shortcut,
        *,
        silence_s: float,
        keep_alive: bytes,
        before_end: BeforeEnd,
    ) -> AsyncGenerator[bytes, None]:
        """Leaves ``stack``, with the engine's stream on it, at its end; the request does so where this never begins."""
        with stack:
            if opening := writer.opening():
                yield opening
            told_at = trio.current_time()
            while not mailbox.is_done:
                deltas = await self._receive(mailbox, shortcut.take, until=told_at + silence_s)
                told_at = max(told_at, shortcut.told_at)
                await read_prompts(writer, deltas)
                data = b"".join([writer.feed(index, delta) for index, delta in deltas])
                if not data and trio.current_time() >= told_at + silence_s:
                    data = keep_alive
                if data:
                    yield data
                    told_at = trio.current_time()
        closing = writer.closing()
        await before_end()
        yield closing

    async def _receive(
        self, mailbox: Mailbox, take: Take | None = None, *, until: float
    ) -> SequenceOf[tuple[int, OutputDelta]]:
        """What is in the mailbox next that ``take`` does not; nothing when ``until`` comes first."""
        deltas: SequenceOf[tuple[int, OutputDelta]] = ()
        with trio.move_on_at(min(until, self.deadline)):
            deltas = await mailbox.receive(take)
        if not deltas and trio.current_time() >= self.deadline:
            raise RequestTimeout(f"the request took longer than request_timeout_s = {self.time_limit_s:g}")
        return [(index, self._checked(delta)) for index, delta in deltas]

    def _checked(self, delta: OutputDelta) -> OutputDelta:
        if delta.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
            raise EngineError(delta.error or "the request was aborted")
        if delta.finish_reason is FinishReason.GRAMMAR:
            raise InvalidGrammar(delta.error or "the grammar cannot be used")
        if delta.stop_reason in self.eos_token_ids:
            return msgspec.structs.replace(delta, stop_reason=None)
        return delta


async def read_prompts(writer: EventWriter, deltas: Iterable[tuple[int, OutputDelta]]) -> None:
    """Hand ``writer`` what ``deltas`` say of prompts."""
    for index, delta in deltas:
        if delta.prompt_logprobs:
            await writer.read_prompt(index, delta.prompt_logprobs)


def prepare(
    served: ServedModel,
    asked: GenerationFields,
    prompts: SequenceOf[list[int]],
    *,
    param: str,
    started_at: float,
    time_limit_s: float,
    num_tries: int | None = None,
    num_prompt_logprobs: int | None = None,
    grammar: Grammar | None = None,
    thinking: ThinkingBudget | None = None,
) -> Generation:
    """Check that the engine takes ``prompts``, which came in the field ``param``, and make their sequences.

    Args:
        num_tries: Sequences to each prompt, where there are to be more than choices.
        num_prompt_logprobs: Alternatives to compute for each token of the prompts, where they are wanted.
        grammar: What every answer must spell. The model ends it, whatever the request says of the model's end.
        thinking: How the answers' thinking is told from the rest.
    Raises:
        RequestError: A prompt is too long, a parameter does not fit the model, or another model is asked for.
        TryAgain: Nothing is served now, or too much waits already.
    """
    served.check_name(asked.model)
    engine, n = served.engine, num_tries or asked.num_choices
    num_sequences = len(prompts) * n
    for prompt in prompts:
        _check_token_ids(prompt, served.defaults.vocab_size, param)
    try:
        rooms = [engine.check(len(prompt)) for prompt in prompts]
    except PromptTooLong as exc:
        exc.param = param
        raise
    mean_tokens = -(-sum(map(len, prompts)) // len(prompts))
    engine.check(mean_tokens, num_sequences=num_sequences)
    salt, owner = (asked.cache_salt or "").encode(), owner_of_request()
    encode = partial(served.renderer.tokenizer.encode, add_special_tokens=False)
    eos_token_ids = served.defaults.eos_token_ids if grammar is not None or not asked.ignore_eos else ()
    shared = _constrained(
        sampling_params(asked, served.defaults, room=max(rooms), encode=encode),
        grammar,
        thinking,
        eos_token_ids,
    )
    draw_seed = served.defaults.draw_seed if asked.seed is None else None
    sequences = []
    for prompt, room in zip(prompts, rooms, strict=True):
        params = params_of_prompt(shared, room=room, draw_seed=draw_seed)
        if num_prompt_logprobs is not None:
            params = msgspec.structs.replace(params, prompt_logprobs=num_prompt_logprobs)
        sequences += [
            Sequence(
                prompt,
                params_of_choice(params, k),
                priority=asked.priority or 0,
                cache_salt=salt,
                owner=owner,
            )
            for k in range(n)
        ]
    return Generation(
        engine=engine,
        sequences=sequences,
        deadline=started_at + (time_limit_s or math.inf),
        time_limit_s=time_limit_s,
        request_id=request_id_of(request),
        eos_token_ids=eos_token_ids,
    )


def _constrained(
    params: SamplingParams,
    grammar: Grammar | None,
    thinking: ThinkingBudget | None,
    eos_token_ids: tuple[int, ...],
) -> SamplingParams:
    """``params`` with what an answer must spell: the model's end then is the only thing left when it is spelt."""
    stop_token_ids = params.stop_token_ids
    if grammar is not None:
        stop_token_ids = tuple(dict.fromkeys([*eos_token_ids, *stop_token_ids]))
    return msgspec.structs.replace(params, grammar=grammar, thinking=thinking, stop_token_ids=stop_token_ids)


def _check_token_ids(prompt: list[int], vocab_size: int, param: str) -> None:
    """An id beyond the embedding would fail the whole step; some tokenizers know more tokens than their model."""
    if not prompt:
        raise InvalidRequest(f"{param}: it has no tokens at all", param=param)
    highest = max(prompt)
    if highest >= vocab_size:
        raise InvalidRequest(
            f"{param}: the model's token ids end at {vocab_size - 1}, not {highest}", param=param
        )


def finish_reason_of(delta: OutputDelta) -> str | None:
    """The wire's word for why a choice ended, or None while it goes on."""
    return None if delta.finish_reason is None else _FINISH[delta.finish_reason]
