"""POST /v1/chat/completions."""

from collections.abc import Sequence as SequenceOf
from typing import Any

from msgspec import UNSET, UnsetType
from quart import Response

from trioserve.core.delta import OutputDelta, TokenLogprob
from trioserve.errors import UnsupportedParameter
from trioserve.http import sse
from trioserve.http.exchange import Exchange, open_exchange
from trioserve.http.generation import finish_reason_of
from trioserve.http.services import Services
from trioserve.http.stored import Keeper
from trioserve.http.writer import CompletionsWriter
from trioserve.prompt.foreign import RequestTemplate
from trioserve.protocol.answer import PromptLogprobs
from trioserve.protocol.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    ChatLogprobs,
    chat_logprobs,
)
from trioserve.protocol.common import UsageBody, usage_body

ChatExchange = Exchange[ChatCompletionRequest]


async def chat_completions(services: Services) -> Response:
    """Answer a conversation, as one JSON object or as a stream of chunks."""
    exchange = await open_exchange(services, ChatCompletionRequest)
    keeper = Keeper(services, exchange.asked)
    grammar = await exchange.asked_grammar()
    prompt = exchange.truncated(await _prompt(exchange))
    generation = exchange.prepare([prompt], param=_param_of_prompt(exchange.asked), grammar=grammar)
    writer = ChatWriter(exchange, exchange.heading("chatcmpl-"), [prompt])
    return await exchange.answer(generation, keeper.beside(writer), before_end=keeper.keep)


async def _prompt(exchange: ChatExchange) -> list[int]:
    asked, renderer, limit = exchange.asked, exchange.served.renderer, exchange.max_prompt_tokens
    if asked.prompt_ids is not None:
        return asked.prompt_ids
    if asked.disable_chat_template:
        adds = asked.add_special_tokens is not False
        return await renderer.text(asked.plain_text(), add_special_tokens=adds, max_tokens=limit)
    template = _request_template(exchange)
    if template is None:
        _check_variables(exchange)
    return await renderer.chat(
        asked.template_messages(),
        documents=asked.documents,
        add_generation_prompt=asked.opens_answer,
        continue_final_message=bool(asked.continue_final_message),
        template_variables=asked.template_variables,
        template=template,
        add_special_tokens=bool(asked.add_special_tokens),
        max_tokens=limit,
    )


def _param_of_prompt(asked: ChatCompletionRequest) -> str:
    return "messages" if asked.prompt_token_ids is None else "prompt_token_ids"


def _request_template(exchange: ChatExchange) -> RequestTemplate | None:
    settings = exchange.settings
    if not exchange.asked.chat_template:
        return None
    return RequestTemplate(
        source=exchange.asked.chat_template,
        timeout_s=settings.template_timeout_s,
        memory_bytes=settings.template_memory_bytes,
        max_bytes=settings.max_body_bytes,
        max_waiting=settings.max_num_queued_reqs,
    )


def _check_variables(exchange: ChatExchange) -> None:
    """What the model would never see is refused, rather than left out in silence."""
    asked = exchange.asked
    asks = {"documents": bool(asked.documents), "verbosity": asked.verbosity in ("low", "high")}
    for name, is_asked in asks.items():
        if is_asked and not exchange.served.renderer.reads(name):
            raise UnsupportedParameter(f"{name}: the model's chat template does not read it", param=name)


class ChatWriter(CompletionsWriter[ChatCompletionRequest]):
    """Streams the role once, text, and a finish chunk for each choice."""

    def begin(self, index: int) -> bytes:
        prompt_ids = self.shown_ids(self.prompts[index])
        role = ChatDelta(role="assistant", content="", prompt_token_ids=prompt_ids)
        events = self._event(
            ChatChunkChoice(index, role, arrival_time=self.arrival_time()),
            prompt_token_ids=prompt_ids,
            # All choices have one prompt: its logprobs go out with the first.
            prompt_logprobs=UNSET if index else self.shown_prompt_logprobs(index),
        )
        if echoed := self.asked.echoed:
            choice = ChatChunkChoice(index, ChatDelta(content=echoed), arrival_time=self.arrival_time())
            events += self._event(choice, echoed)
        return events

    def tell(self, index: int, delta: OutputDelta) -> bytes:
        events = b""
        if self.says(delta):
            choice = ChatChunkChoice(
                index,
                ChatDelta(content=delta.text, completion_token_ids=self.shown_ids(delta.token_ids)),
                self._logprobs(delta.logprobs) if delta.logprobs else None,
                token_ids=self.shown_ids(delta.token_ids),
                arrival_time=self.arrival_time(),
            )
            events = self._event(choice, delta.text)
        if delta.finish_reason is not None:
            choice = ChatChunkChoice(
                index,
                ChatDelta(),
                finish_reason=finish_reason_of(delta),
                stop_reason=delta.stop_reason,
                arrival_time=self.arrival_time(),
            )
            events += self._event(choice)
        return events

    def usage_event(self, usage: UsageBody) -> bytes:
        return self._chunk([], usage=usage)

    def whole(self, results: SequenceOf[OutputDelta]) -> ChatCompletion:
        heading = self.heading
        return ChatCompletion(
            id=heading.id,
            created=heading.created,
            model=heading.model,
            choices=[self._choice(index, result) for index, result in enumerate(results)],
            usage=usage_body([result.usage for result in results], n=len(results)),
            system_fingerprint=heading.fingerprint,
            service_tier=heading.service_tier,
            prompt_token_ids=self.shown_ids(self.prompts[0]),
            prompt_logprobs=self.shown_prompt_logprobs(0),
        )

    def _choice(self, index: int, result: OutputDelta) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=AssistantMessage(
                content=self.asked.echoed + result.text,
                prompt_token_ids=self.shown_ids(self.prompts[index]),
                completion_token_ids=self.shown_ids(result.token_ids),
            ),
            finish_reason=finish_reason_of(result) or "stop",
            logprobs=None if self.asked.num_logprobs is None else self._logprobs(result.logprobs),
            stop_reason=result.stop_reason,
            token_ids=self.shown_ids(result.token_ids),
        )

    def _logprobs(self, logprobs: SequenceOf[TokenLogprob]) -> ChatLogprobs:
        return chat_logprobs(logprobs, as_ids=bool(self.asked.return_tokens_as_token_ids))

    def _event(
        self,
        choice: ChatChunkChoice,
        text: str = "",
        *,
        prompt_token_ids: list[int] | UnsetType = UNSET,
        prompt_logprobs: PromptLogprobs | UnsetType = UNSET,
    ) -> bytes:
        """``text``: what the choice adds to the answer."""
        return self._chunk(
            [choice],
            usage=self.usage_so_far(),
            prompt_token_ids=prompt_token_ids,
            prompt_logprobs=prompt_logprobs,
            obfuscation=self.padding(text),
        )

    def _chunk(self, choices: list[ChatChunkChoice], **fields: Any) -> bytes:
        heading = self.heading
        return sse.event(
            ChatCompletionChunk(
                id=heading.id,
                created=heading.created,
                model=heading.model,
                choices=choices,
                system_fingerprint=heading.fingerprint,
                service_tier=heading.service_tier,
                **fields,
            )
        )
