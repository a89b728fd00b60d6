"""Chat completions that are kept: GET /v1/chat/completions and what is below /v1/chat/completions/{id}."""

from collections.abc import Sequence as SequenceOf
from typing import Protocol

import msgspec
from msgspec import Raw
from quart import Response, request

from trioserve.core.delta import OutputDelta, merge
from trioserve.errors import CompletionNotFound, UnsupportedParameter
from trioserve.http.body import read_json_body
from trioserve.http.event_writer import EventWriter, PromptPart
from trioserve.http.owner import owner_of_request
from trioserve.http.services import Services
from trioserve.protocol.chat import ChatCompletion, ChatCompletionRequest
from trioserve.protocol.common import parse
from trioserve.protocol.metadata import checked_metadata
from trioserve.protocol.stored import (
    MetadataUpdate,
    PageQuery,
    StoredCompletionDeleted,
    StoredPage,
    StoredQuery,
    query_fields,
    stored_messages,
)
from trioserve.store.completions import CompletionStore
from trioserve.store.database import Page, Slice, StoredCompletion


class ChatAnswerWriter(EventWriter, Protocol):
    """Writes a conversation's answer either way."""

    def whole(self, results: SequenceOf[OutputDelta]) -> ChatCompletion:
        """The answer as one object; ``results`` by choice."""


async def list_stored(services: Services) -> Response:
    """Those of the client, oldest first unless it asks otherwise."""
    query = parse(StoredQuery, _query_as_json())
    page = await _store(services).find(
        owner_of_request(),
        _slice(query),
        model=query.model,
        metadata=checked_metadata(query.metadata),
    )
    return _page(page)


async def get_stored(services: Services, completion_id: str) -> Response:
    """One, as its client got it, with its metadata."""
    return _json(await _store(services).get(owner_of_request(), completion_id))


async def list_stored_messages(services: Services, completion_id: str) -> Response:
    """The conversation that it answers."""
    query = parse(PageQuery, _query_as_json())
    return _page(await _store(services).messages(owner_of_request(), completion_id, _slice(query)))


async def update_stored(services: Services, completion_id: str) -> Response:
    """Replace its metadata."""
    update = parse(MetadataUpdate, await read_json_body(request, services.settings))
    metadata = checked_metadata(update.metadata)
    return _json(await _store(services).set_metadata(owner_of_request(), completion_id, metadata))


async def delete_stored(services: Services, completion_id: str) -> Response:
    """Forget it."""
    await _store(services).delete(owner_of_request(), completion_id)
    return _json(msgspec.json.encode(StoredCompletionDeleted(id=completion_id)))


class Keeper:
    """Keeps the answer of one request, if the request asks for it; a request that fails never comes to that.

    Raises:
        UnsupportedParameter: The request asks for it, and this server stores nothing.
        InvalidRequest: Its metadata is not such as can be stored.
    """

    def __init__(self, services: Services, asked: ChatCompletionRequest) -> None:
        self._asked = asked
        self._services = services
        self._record: StoredCompletion | None = None
        if asked.store:
            if not services.settings.enable_store:
                raise UnsupportedParameter(
                    "store: this server stores no completions: enable_store is off", param="store"
                )
            self._owner = owner_of_request()
            self._metadata = checked_metadata(asked.metadata)

    def note(self, answer: ChatCompletion) -> None:
        """The whole answer is there."""
        self._record = StoredCompletion(
            id=answer.id,
            owner=self._owner,
            model=answer.model,
            metadata=self._metadata,
            answer=msgspec.json.encode(answer),
            messages=stored_messages(self._asked, answer.id),
        )

    async def keep(self) -> None:
        """Have what was noted stored: before the client knows that it is done, so that it finds what it got."""
        if self._record is not None:
            await self._services.keep(self._record)

    def beside(self, writer: ChatAnswerWriter) -> ChatAnswerWriter:
        """``writer``, but what it writes is noted once it is whole."""
        return _KeepingWriter(self, writer, self._asked.num_choices) if self._asked.store else writer


class _KeepingWriter:
    """Gathers what another writer is fed."""

    def __init__(self, keeper: Keeper, writer: ChatAnswerWriter, num_choices: int) -> None:
        self._keeper = keeper
        self._writer = writer
        self._deltas: list[list[OutputDelta]] = [[] for _ in range(num_choices)]

    async def read_prompt(self, index: int, logprobs: PromptPart) -> None:
        await self._writer.read_prompt(index, logprobs)

    def opening(self) -> bytes:
        return self._writer.opening()

    def feed(self, index: int, delta: OutputDelta) -> bytes:
        self._deltas[index].append(delta)
        return self._writer.feed(index, delta)

    def closing(self) -> bytes:
        self.whole([merge(deltas) for deltas in self._deltas])
        return self._writer.closing()

    def whole(self, results: SequenceOf[OutputDelta]) -> ChatCompletion:
        answer = self._writer.whole(results)
        self._keeper.note(answer)
        return answer


def _store(services: Services) -> CompletionStore:
    if not services.settings.enable_store:
        raise CompletionNotFound("this server stores no completions: enable_store is off")
    return services.completions


def _query_as_json() -> bytes:
    return msgspec.json.encode(query_fields(list(request.args.items(multi=True))))


def _slice(query: PageQuery) -> Slice:
    return Slice(query.after, query.limit, descending=query.order == "desc")


def _page(page: Page) -> Response:
    first_id, last_id = (page.ids[0], page.ids[-1]) if page.ids else (None, None)
    data = [Raw(item) for item in page.items]
    return _json(
        msgspec.json.encode(StoredPage(data=data, first_id=first_id, last_id=last_id, has_more=page.has_more))
    )


def _json(body: bytes) -> Response:
    return Response(body, content_type="application/json")
