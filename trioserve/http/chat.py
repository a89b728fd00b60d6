"""POST /v1/chat/completions."""

from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from quart import Response

from trioserve.core.delta import OutputDelta, TokenLogprob
from trioserve.core.sampling import Grammar
from trioserve.errors import UnsupportedParameter
from trioserve.http import sse
from trioserve.http.answer_form import answer_form
from trioserve.http.exchange import Exchange, open_exchange
from trioserve.http.generation import Heading, finish_reason_of
from trioserve.http.reading import Reading, check_offer, reading_of
from trioserve.http.services import Services
from trioserve.http.stored import Keeper
from trioserve.http.telling import CallIds, Piece, Teller, Told, gather
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
from trioserve.protocol.tools import ToolOffer

ChatExchange = Exchange[ChatCompletionRequest]


async def chat_completions(services: Services) -> Response:
    """Answer a conversation, as one JSON object or as a stream of chunks."""
    exchange = await open_exchange(services, ChatCompletionRequest)
    asked, served = exchange.asked, exchange.served
    keeper = Keeper(services, asked)
    asked.check_parser(has_parser=served.dialects.reasoning is not None)
    offer = check_offer(served, asked, has_own_template=bool(asked.chat_template))
    prompt = exchange.truncated(await _prompt(exchange, offer))
    reading = reading_of(asked, offer, served, prompt)
    if reading.needs_special_tokens:
        exchange = replace(exchange, asked=asked.model_copy(update={"skip_special_tokens": False}))
    generation = exchange.prepare(
        [prompt],
        param=_param_of_prompt(asked),
        grammar=await _grammar(exchange, reading),
        thinking=reading.budget,
    )
    writer = ChatWriter(exchange, exchange.heading("chatcmpl-"), [prompt], reading)
    return await exchange.answer(generation, keeper.beside(writer), before_end=keeper.keep)


async def _prompt(exchange: ChatExchange, offer: ToolOffer | None) -> list[int]:
    asked, renderer, limit = exchange.asked, exchange.served.renderer, exchange.max_prompt_tokens
    template = _request_template(exchange)
    variables = asked.template_variables
    if template is None:
        variables = _checked_variables(exchange, has_tools=offer is not None)
    if asked.prompt_ids is not None:
        return asked.prompt_ids
    if asked.disable_chat_template:
        adds = asked.add_special_tokens is not False
        return await renderer.text(asked.plain_text(), add_special_tokens=adds, max_tokens=limit)
    return await renderer.chat(
        asked.template_messages(),
        tools=None if offer is None else [tool.for_template for tool in offer.tools],
        documents=asked.documents,
        add_generation_prompt=asked.opens_answer,
        continue_final_message=bool(asked.continue_final_message),
        template_variables=variables,
        template=template,
        add_special_tokens=bool(asked.add_special_tokens),
        max_tokens=limit,
    )


async def _grammar(exchange: ChatExchange, reading: Reading) -> Grammar | None:
    wanted = answer_form(exchange.asked.asked_form(), reading.offer, reading.tools, reading.thinking)
    if wanted is None:
        exchange.asked.check_backend(exchange.served.grammars.backend)
        return None
    form, param = wanted
    return await exchange.grammar_of(form, param=param)


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


def _checked_variables(exchange: ChatExchange, *, has_tools: bool) -> dict[str, Any]:
    """The variables for the model's template; what it would never see is refused, rather than left out in silence."""
    asked = exchange.asked

    def reads(name: str) -> bool:
        return asked.uses_template and exchange.served.renderer.reads(name, has_tools=has_tools)

    asks = {"documents": bool(asked.documents), "verbosity": asked.verbosity in ("low", "high")}
    for name, is_asked in asks.items():
        if is_asked and asked.uses_template and not reads(name):
            raise UnsupportedParameter(f"{name}: the model's chat template does not read it", param=name)
    return asked.thinking_variables(asked.template_variables, reads=reads)


class ChatWriter(CompletionsWriter[ChatCompletionRequest]):
    """Streams the role once, then thinking, text and calls as they come, and a finish chunk for each choice."""

    def __init__(
        self,
        exchange: ChatExchange,
        heading: Heading,
        prompts: SequenceOf[list[int]],
        reading: Reading,
    ) -> None:
        super().__init__(exchange, heading, prompts)
        self._reading = reading
        self._call_ids = [CallIds() for _ in self.prompts]
        self._tellers = [Teller(reading, ids) for ids in self._call_ids]

    def begin(self, index: int) -> bytes:
        prompt_ids = self.shown_ids(self.prompts[index])
        content = "" if self._reading.offer is None else None
        role = ChatDelta(role="assistant", content=content, prompt_token_ids=prompt_ids)
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
        teller, events = self._tellers[index], b""
        if delta.text and delta.finish_reason is None and teller.is_verbatim and self.only_text(delta):
            return self.stencilled(index, partial(self._content, index), delta.text)
        pieces = teller.tell(delta.text, delta.finish_reason)
        if not pieces and self.says_more(delta):
            pieces = [Piece("content", "")]
        for number, piece in enumerate(pieces):
            if self.only_text(delta) and not piece.call_id:
                kind = (index, piece.kind, piece.index)
                events += self.stencilled(kind, partial(self._piece, index, piece), piece.text)
            else:
                # What is known of the tokens goes out once, with the first thing that they say.
                events += self._piece(index, piece, piece.text, None if number else delta)
        if delta.finish_reason is not None:
            choice = ChatChunkChoice(
                index,
                ChatDelta(),
                finish_reason=teller.finish_reason(finish_reason_of(delta)),
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
        teller = Teller(self._reading, self._call_ids[index])
        told = gather(teller.tell(result.text, result.finish_reason))
        return ChatChoice(
            index=index,
            message=self._message(index, told, result),
            finish_reason=teller.finish_reason(finish_reason_of(result)) or "stop",
            logprobs=None if self.asked.num_logprobs is None else self._logprobs(result.logprobs),
            stop_reason=result.stop_reason,
            token_ids=self.shown_ids(result.token_ids),
        )

    def _message(self, index: int, told: Told, result: OutputDelta) -> AssistantMessage:
        content = self.asked.echoed + told.content
        reading = self._reading
        is_told = reading.reasoning is not None and reading.tells_reasoning
        reasoning = (told.reasoning or None) if is_told else UNSET
        return AssistantMessage(
            content=content if content or reading.offer is None else None,
            reasoning_content=reasoning,
            reasoning=reasoning,
            tool_calls=told.calls or UNSET,
            prompt_token_ids=self.shown_ids(self.prompts[index]),
            completion_token_ids=self.shown_ids(result.token_ids),
        )

    def _logprobs(self, logprobs: SequenceOf[TokenLogprob]) -> ChatLogprobs:
        return chat_logprobs(logprobs, as_ids=bool(self.asked.return_tokens_as_token_ids))

    def _content(self, index: int, text: str) -> bytes:
        """The event that adds ``text`` to the content."""
        return self._piece(index, Piece("content", ""), text)

    def _piece(self, index: int, piece: Piece, text: str, delta: OutputDelta | None = None) -> bytes:
        """The event that adds ``piece`` with ``text`` in place of its own, and what is known of the tokens of
        ``delta``."""
        ids = UNSET if delta is None else self.shown_ids(delta.token_ids)
        told = msgspec.structs.replace(piece, text=text).delta
        choice = ChatChunkChoice(
            index,
            msgspec.structs.replace(told, completion_token_ids=ids),
            self._logprobs(delta.logprobs) if delta is not None and delta.logprobs else None,
            token_ids=ids,
            arrival_time=self.arrival_time(),
        )
        return self._event(choice, text)

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
