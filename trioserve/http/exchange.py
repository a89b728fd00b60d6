"""What /v1/chat/completions and /v1/completions have in common, from the body to the answer."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import trio
from msgspec import UNSET
from quart import Response, request

from trioserve.core.delta import OutputDelta
from trioserve.core.forms import AnswerForm
from trioserve.core.sampling import Grammar, ThinkingBudget
from trioserve.errors import InvalidRequest
from trioserve.http.body import read_json_body
from trioserve.http.event_writer import EventWriter
from trioserve.http.generation import (
    BeforeEnd,
    Generation,
    Heading,
    at_once,
    prepare,
    read_prompts,
)
from trioserve.http.services import ServedModel, Services
from trioserve.protocol.answer import AnswerFields
from trioserve.protocol.common import parse
from trioserve.protocol.structured import check_lengths
from trioserve.settings import Settings

RequestT = TypeVar("RequestT", bound=AnswerFields)


class AnswerWriter(EventWriter, Protocol):
    """Writes an answer either way."""

    def whole(self, results: SequenceOf[OutputDelta]) -> Any:
        """The answer as one object; ``results`` by sequence."""


@dataclass(frozen=True, slots=True)
class Exchange(Generic[RequestT]):
    """A request that was read and checked, and what it takes to answer it."""

    asked: RequestT
    served: ServedModel
    settings: Settings
    started_at: float
    """On trio's clock."""

    @property
    def max_prompt_tokens(self) -> int | None:
        """Tokens above which a prompt need not be encoded to its end; None where it will be truncated."""
        return None if self.asked.truncate_prompt_tokens is not None else self.max_model_len

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together."""
        return self.served.engine.max_model_len

    def truncated(self, token_ids: list[int]) -> list[int]:
        """What the request keeps of a prompt."""
        return self.asked.truncated(token_ids, max_model_len=self.max_model_len)

    def heading(self, prefix: str) -> Heading:
        """A heading with a new id."""
        tier = self.asked.answered_tier
        return Heading.of(
            self.served, self.asked.model, prefix=prefix, service_tier=UNSET if tier is None else tier
        )

    async def asked_grammar(self) -> Grammar | None:
        """The grammar of the form that the request's own fields ask for; None for any text.

        Raises:
            RequestError, TryAgain: As ``Examiner.grammar``; or two forms are asked for.
        """
        body, param = self.asked.asked_form() or (None, "")
        return await self.grammar_of(None if body is None else AnswerForm(body=body), param)

    async def grammar_of(self, form: AnswerForm | None, param: str) -> Grammar | None:
        """The grammar of ``form``, which comes from the field ``param``; None for any text.

        Raises:
            RequestError, TryAgain: As ``Examiner.grammar``; or the request names another backend.
        """
        examiner = self.served.grammars
        self.asked.check_backend(examiner.backend)
        return None if form is None else await examiner.grammar(form, param=param)

    def prepare(
        self,
        prompts: SequenceOf[list[int]],
        *,
        param: str,
        grammar: Grammar | None = None,
        thinking: ThinkingBudget | None = None,
    ) -> Generation:
        """As ``generation.prepare``."""
        self._check_scores(prompts)
        return prepare(
            self.served,
            self.asked,
            prompts,
            param=param,
            started_at=self.started_at,
            time_limit_s=self.settings.request_timeout_s,
            num_tries=self.asked.num_tries,
            num_prompt_logprobs=self.asked.num_prompt_logprobs,
            grammar=grammar,
            thinking=thinking,
        )

    async def answer(
        self, generation: Generation, writer: AnswerWriter, *, before_end: BeforeEnd = at_once
    ) -> Response:
        """What ``writer`` makes of it, as a stream or as one object.

        Args:
            before_end: Done once all is written and before the client knows.
        """
        if self.asked.stream:
            return await generation.response(
                writer, keep_alive_s=self.settings.sse_keep_alive_s, before_end=before_end
            )
        results = await generation.results()
        await read_prompts(writer, enumerate(results))
        answer = writer.whole(results)
        await before_end()
        return Response(msgspec.json.encode(answer), content_type="application/json")

    def _check_scores(self, prompts: SequenceOf[list[int]]) -> None:
        """Every sequence scores its prompt, and all of the numbers are held until they are told."""
        num_top, limit = self.asked.num_prompt_logprobs, self.settings.max_prompt_logprob_values
        num_values = sum(map(len, prompts)) * self.asked.num_tries * (1 + (num_top or 0))
        if num_top is not None and num_values > limit:
            param = "logprobs" if self.asked.prompt_logprobs is None else "prompt_logprobs"
            raise InvalidRequest(
                f"{param}: at most max_prompt_logprob_values = {limit} log probabilities of prompts in one request, "
                f"not {num_values} (tokens x sequences x (alternatives + 1))",
                param=param,
            )


async def open_exchange(services: Services, model: type[RequestT]) -> Exchange[RequestT]:
    """Read and check the request at hand.

    Raises:
        RequestError: Its body is no ``model``, or its fields do not go together.
        TryAgain: Nothing is served now.
    """
    started_at = trio.current_time()
    settings = services.settings
    body = await read_json_body(request, settings)
    check_lengths(body, settings)
    asked = parse(model, body)
    asked.check(settings)
    return Exchange(asked.resolved(), services.model, settings, started_at)
