"""POST /v1/chat/completions."""

from collections.abc import Sequence as SequenceOf
from functools import partial

import msgspec
import trio
from msgspec import UNSET
from quart import Response, request

from trioserve.core.delta import OutputDelta, Usage
from trioserve.http import sse
from trioserve.http.body import read_json_body
from trioserve.http.generation import Heading, finish_reason_of, prepare
from trioserve.http.services import Services
from trioserve.http.stored import Keeper
from trioserve.protocol.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    chat_logprobs,
)
from trioserve.protocol.common import UsageBody, parse, usage_body


async def chat_completions(services: Services) -> Response:
    """Answer a conversation, as one JSON object or as a stream of chunks."""
    started_at = trio.current_time()
    settings = services.settings
    asked = parse(ChatCompletionRequest, await read_json_body(request, settings))
    asked.check(settings)
    keeper = Keeper(services, asked)
    served = services.model
    limit = served.engine.max_model_len
    prompt = await served.renderer.chat(asked.template_messages(), max_tokens=limit)
    generation = prepare(
        served,
        asked,
        [prompt],
        param="messages",
        started_at=started_at,
        time_limit_s=settings.request_timeout_s,
    )
    heading = Heading.of(served, asked.model, prefix="chatcmpl-")
    answer_of = partial(chat_answer, heading, with_logprobs=asked.num_logprobs is not None)
    if asked.stream:
        writer = ChatWriter(heading, num_choices=asked.num_choices, include_usage=asked.include_usage)
        kept = keeper.beside(writer, asked.num_choices, answer_of)
        return generation.response(kept, keep_alive_s=settings.sse_keep_alive_s)
    answer = answer_of(await generation.results())
    keeper.keep(answer)
    return Response(msgspec.json.encode(answer), content_type="application/json")


def chat_answer(heading: Heading, results: SequenceOf[OutputDelta], *, with_logprobs: bool) -> ChatCompletion:
    """The answer as one object; ``results`` by choice."""
    return ChatCompletion(
        id=heading.id,
        created=heading.created,
        model=heading.model,
        choices=[
            ChatChoice(
                index=index,
                message=AssistantMessage(content=result.text),
                finish_reason=finish_reason_of(result) or "stop",
                logprobs=chat_logprobs(result.logprobs) if with_logprobs else None,
                stop_reason=result.stop_reason,
            )
            for index, result in enumerate(results)
        ],
        usage=usage_body([result.usage for result in results], n=len(results)),
        system_fingerprint=heading.fingerprint,
    )


class ChatWriter:
    """The events of a streamed answer: role once, text, a finish chunk for each choice, usage, ``[DONE]``."""

    def __init__(self, heading: Heading, *, num_choices: int, include_usage: bool) -> None:
        self._heading = heading
        self._usages: list[Usage] = [Usage(0, 0, 0)] * num_choices
        self._include_usage = include_usage

    def opening(self) -> bytes:
        delta = ChatDelta(role="assistant", content="")
        return b"".join(self._event([ChatChunkChoice(i, delta)]) for i in range(len(self._usages)))

    def feed(self, index: int, delta: OutputDelta) -> bytes:
        self._usages[index] = delta.usage
        events = b""
        if delta.text or delta.logprobs:
            logprobs = chat_logprobs(delta.logprobs) if delta.logprobs else None
            events = self._event([ChatChunkChoice(index, ChatDelta(content=delta.text), logprobs)])
        if delta.finish_reason is not None:
            finish = finish_reason_of(delta)
            events += self._event(
                [ChatChunkChoice(index, ChatDelta(), finish_reason=finish, stop_reason=delta.stop_reason)]
            )
        return events

    def closing(self) -> bytes:
        if not self._include_usage:
            return sse.DONE
        return self._event([], usage_body(self._usages, n=len(self._usages))) + sse.DONE

    def _event(self, choices: list[ChatChunkChoice], usage: UsageBody | None = None) -> bytes:
        heading = self._heading
        return sse.event(
            ChatCompletionChunk(
                id=heading.id,
                created=heading.created,
                model=heading.model,
                choices=choices,
                system_fingerprint=heading.fingerprint,
                usage=usage if self._include_usage else UNSET,
            )
        )
