"""What the answers of both completions endpoints have in common, whole or streamed."""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from collections.abc import Sequence as SequenceOf
from typing import Any, Final, Generic, cast

import msgspec
import trio
from msgspec import UNSET, Raw, UnsetType

from trioserve.core.delta import OutputDelta, Usage
from trioserve.http import sse
from trioserve.http.event_writer import PromptPart
from trioserve.http.exchange import Exchange, RequestT
from trioserve.http.generation import Heading
from trioserve.protocol.answer import PromptLogprobs, prompt_logprob
from trioserve.protocol.common import UsageBody, usage_body

_PADDED_BYTES: Final = 32
"""Text and padding of a chunk come to a multiple of this."""
_encode: Final = msgspec.json.Encoder().encode
_VALUES_AT_A_TIME: Final = 2000
"""Log probabilities that are written before others may run: some two milliseconds' work."""


class CompletionsWriter(ABC, Generic[RequestT]):
    """Writes the choices of one request; each begins with what is known of its prompt.

    Where logprobs of the prompt are asked for, that waits for a choice's first delta; otherwise it goes out at once.
    """

    def __init__(
        self, exchange: Exchange[RequestT], heading: Heading, prompts: SequenceOf[list[int]]
    ) -> None:
        asked = exchange.asked
        self.asked = asked
        self.heading = heading
        self.prompts = [prompt for prompt in prompts for _ in range(asked.num_choices)]
        """By choice."""
        self._usages = [Usage(len(prompt), 0, 0) for prompt in self.prompts]
        self._waits = asked.num_prompt_logprobs is not None
        """Whether a choice begins with its first delta."""
        self._begun: set[int] = set()
        self._prompt_logprobs: dict[int, PromptLogprobs] = {}  # by prompt, whose sequences all find the same
        tells_time = exchange.settings.stream_arrival_time
        if asked.return_arrival_time is not None:
            tells_time = asked.return_arrival_time
        self._started_at = exchange.started_at if asked.stream and tells_time else None
        self._is_uniform = self._started_at is None and not (
            asked.continuous_usage or asked.pads_chunks or asked.return_token_ids
        )
        self._stencils: dict[Hashable, sse.Stencil] = {}

    # --- a stream's events ---

    def opening(self) -> bytes:
        """Events that go out before any token is there."""
        if self._waits:
            return b""
        return b"".join(self.begin(index) for index in range(len(self.prompts)))

    async def read_prompt(self, index: int, logprobs: PromptPart) -> None:
        prompt, asked = index // self.asked.num_tries, self.asked
        if asked.prompt_logprobs is None or prompt in self._prompt_logprobs:
            return
        as_ids = bool(asked.return_tokens_as_token_ids)
        places: list[Raw | None] = []
        for piece in pieces(logprobs, asked.prompt_logprobs):
            for token in piece:
                place = None
                if token is not None:
                    place = Raw(_encode(prompt_logprob(token, asked.prompt_logprobs, as_ids=as_ids)))
                places.append(place)
            await trio.lowlevel.checkpoint()
        self._prompt_logprobs[prompt] = cast("PromptLogprobs", places)

    def feed(self, index: int, delta: OutputDelta) -> bytes:
        """The events that tell ``delta`` of choice ``index``; empty when there is nothing to tell."""
        self._usages[index] = delta.usage
        if self._waits and index not in self._begun:
            self._begun.add(index)
            return self.begin(index) + self.tell(index, delta)
        return self.tell(index, delta)

    def closing(self) -> bytes:
        """The usage where it is asked for, and the end."""
        return (self.usage_event(self._usage()) if self.asked.include_usage else b"") + sse.DONE

    @abstractmethod
    def begin(self, index: int) -> bytes:
        """The events of a choice that come before its first delta."""

    @abstractmethod
    def tell(self, index: int, delta: OutputDelta) -> bytes:
        """The events that tell ``delta``."""

    @abstractmethod
    def usage_event(self, usage: UsageBody) -> bytes:
        """The event without choices."""

    @abstractmethod
    def whole(self, results: SequenceOf[OutputDelta]) -> Any:
        """The answer as one object; ``results`` by sequence."""

    # --- parts of answers ---

    def only_text(self, delta: OutputDelta) -> bool:
        """Whether the event that adds ``delta`` to a choice differs from others of its kind in the text alone."""
        return self._is_uniform and not delta.logprobs

    def stencilled(self, kind: Hashable, make: Callable[[str], bytes], text: str) -> bytes:
        """The event that ``make`` makes of ``text``, where all of its ``kind`` differ in the text alone."""
        stencil = self._stencils.get(kind)
        if stencil is None:
            stencil = self._stencils[kind] = sse.Stencil(make)
        return stencil.event(text)

    def says_more(self, delta: OutputDelta) -> bool:
        """Whether there is more in it than text and an end."""
        return bool(delta.logprobs or (self.asked.return_token_ids and delta.token_ids))

    def shown_ids(self, token_ids: SequenceOf[int]) -> list[int] | UnsetType:
        """Token ids, where they are asked for."""
        return list(token_ids) if self.asked.return_token_ids else UNSET

    def shown_prompt_logprobs(self, index: int) -> PromptLogprobs | UnsetType:
        """Those of the prompt of choice ``index``, where they are asked for."""
        if self.asked.prompt_logprobs is None:
            return UNSET
        return self._prompt_logprobs[index // self.asked.num_choices]

    def usage_so_far(self) -> UsageBody | UnsetType | None:
        """``usage`` of a chunk with choices."""
        if self.asked.continuous_usage:
            return self._usage()
        return None if self.asked.include_usage else UNSET

    def arrival_time(self) -> float | UnsetType:
        """Seconds since the request came, where a stream is to tell them."""
        if self._started_at is None:
            return UNSET
        return round(trio.current_time() - self._started_at, 6)

    def padding(self, text: str) -> str | UnsetType:
        """What hides the length of ``text``, where it is to be hidden."""
        if not self.asked.pads_chunks:
            return UNSET
        num_bytes = len(msgspec.json.encode(text)) - len('""')
        return secrets.token_hex(_PADDED_BYTES // 2)[num_bytes % _PADDED_BYTES :]

    def _usage(self) -> UsageBody:
        return usage_body(self._usages, n=self.asked.num_choices)


def pieces(logprobs: PromptPart, num_top: int) -> Iterator[PromptPart]:
    """``logprobs`` in parts that are soon written, each token with ``num_top`` alternatives."""
    size = max(1, _VALUES_AT_A_TIME // (1 + num_top))
    for start in range(0, len(logprobs), size):
        yield logprobs[start : start + size]
