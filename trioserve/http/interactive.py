"""POST /v1/chat/interactive: conversations whose history is kept here."""

from typing import Any, Final

import msgspec
import trio
from quart import Response, request

from trioserve.core.delta import OutputDelta, Usage
from trioserve.errors import PromptTooLong
from trioserve.http import sse
from trioserve.http.body import read_json_body
from trioserve.http.errors import ErrorBody, guarded
from trioserve.http.event_writer import PromptPart
from trioserve.http.generation import Generation, finish_reason_of, prepare
from trioserve.http.held import hold
from trioserve.http.owner import owner_of_request
from trioserve.http.request_id import request_id_of
from trioserve.http.services import ServedModel, Services
from trioserve.protocol.common import parse
from trioserve.protocol.interactive import GenerateRequest, GenerateResponse
from trioserve.store.sessions import SessionTable, Turn

SESSION_HEADER: Final = "x-session-id"
"""Says which session remembers the turn; the body has no field for it."""
_CANCEL_S: Final = 10.0
"""How long a cancellation waits for a stream whose client does not read."""
_KEEP_ALIVE: Final = b"\n"
"""An empty line: clients skip it."""


async def chat_interactive(services: Services) -> Response:
    """Answer a turn of a session, or cancel what runs in one, or end it."""
    started_at = trio.current_time()
    settings, sessions, owner = services.settings, services.sessions, owner_of_request()
    asked = parse(GenerateRequest, await read_json_body(request, settings))
    asked.check(settings)
    if asked.cancel or asked.ends_session:
        await _stop(sessions, owner, asked)
        done = GenerateResponse(finish_reason="stop")
        return sse.response(_line(done)) if asked.stream else _whole(done)
    served = services.model
    messages = asked.messages()
    session_id = sessions.new_id(owner) if asked.session is None else asked.session
    turn = sessions.begin(owner, session_id)
    hold(request, turn.leave)
    talk = _Talk(turn, messages, is_remembered=bool(asked.interactive_mode))
    try:
        generation = await _prepare(
            served, asked, talk, started_at=started_at, time_limit_s=settings.request_timeout_s
        )
    except PromptTooLong:
        if not turn.history:
            raise
        generation = None
    response = (
        await _streamed(talk, generation, keep_alive_s=settings.sse_keep_alive_s)
        if asked.stream
        else _whole(await talk.answer(generation))
    )
    if asked.interactive_mode:
        response.headers[SESSION_HEADER] = str(session_id)
    return response


async def _stop(sessions: SessionTable, owner: str, asked: GenerateRequest) -> None:
    """Stop what runs in a session, and forget the session unless only that was asked."""
    if asked.session is None:
        return
    turn = sessions.stop(owner, asked.session)
    if not asked.cancel:
        sessions.end(owner, asked.session)
    if turn is not None:
        with trio.move_on_after(_CANCEL_S):
            await turn.left.wait()


async def _prepare(
    served: ServedModel,
    asked: GenerateRequest,
    talk: "_Talk",
    *,
    started_at: float,
    time_limit_s: float,
) -> Generation:
    """The turn's sequence, its prompt the whole conversation: the KV of what was said before is in the cache."""
    try:
        prompt = await served.renderer.chat(talk.conversation(), max_tokens=served.engine.max_model_len)
    except PromptTooLong as exc:
        exc.param = "prompt"
        raise
    generation = prepare(
        served,
        asked.turn(served.engine.model.name),
        [prompt],
        param="prompt",
        started_at=started_at,
        time_limit_s=time_limit_s,
    )
    talk.turn.stops_by(lambda: generation.engine.stop(generation.sequences))
    return generation


class _Talk:
    """One turn: what was said before, what is said now, and what to remember of it."""

    def __init__(self, turn: Turn, messages: list[dict[str, Any]], *, is_remembered: bool) -> None:
        self.turn = turn
        self._messages = messages
        self._is_remembered = is_remembered

    def conversation(self) -> list[dict[str, Any]]:
        """All messages up to the answer."""
        return [*map(msgspec.json.decode, self.turn.history), *self._messages]

    async def answer(self, generation: Generation | None) -> GenerateResponse:
        """The whole answer; None stands for a session that has no room for one."""
        if generation is None:
            return self.full()
        if self.turn.is_stopped:
            return GenerateResponse(finish_reason="stop")
        result = (await generation.results())[0]
        answer = self.said(result.text, result.usage, finish_reason_of(result))
        self.conclude(result.text, result.usage)
        return answer

    def full(self) -> GenerateResponse:
        """Nothing more fits: the client is told, and what was said stays as it is unless this was to be the end."""
        history_tokens = self.turn.num_history_tokens
        if not self._is_remembered:
            self.turn.forget()
        self.turn.leave()
        return GenerateResponse(history_tokens=history_tokens, finish_reason="length")

    def said(self, text: str, usage: Usage, finish_reason: str | None) -> GenerateResponse:
        """``text`` with the counts of the turn."""
        history_tokens = min(self.turn.num_history_tokens, usage.num_prompt_tokens)
        return GenerateResponse(
            text=text,
            tokens=usage.num_output_tokens,
            input_tokens=usage.num_prompt_tokens - history_tokens,
            history_tokens=history_tokens,
            finish_reason=finish_reason,
        )

    def conclude(self, text: str, usage: Usage) -> None:
        """The answer is over: remember the turn, if anything was said, or end the session; and let others use it."""
        if self._is_remembered and usage.num_output_tokens:
            said = [*self._messages, {"role": "assistant", "content": text}]
            num_tokens = usage.num_prompt_tokens + usage.num_output_tokens
            self.turn.keep(map(msgspec.json.encode, said), num_tokens=num_tokens)
        if not self._is_remembered:
            self.turn.forget()
        self.turn.leave()


class _LineWriter:
    """A line of JSON for each piece of text, and a last one that says how it ended."""

    def __init__(self, talk: _Talk) -> None:
        self._talk = talk
        self._texts: list[str] = []
        self._usage = Usage(0, 0, 0)
        self._finish_reason: str | None = None

    async def read_prompt(self, index: int, logprobs: PromptPart) -> None:
        """Turns ask for none."""

    def opening(self) -> bytes:
        return b""

    def feed(self, index: int, delta: OutputDelta) -> bytes:
        self._texts.append(delta.text)
        self._usage, self._finish_reason = delta.usage, finish_reason_of(delta)
        return _line(self._talk.said(delta.text, delta.usage, None)) if delta.text else b""

    def closing(self) -> bytes:
        """The session is free before the client knows that the answer is over: it may go on at once."""
        last = self._talk.said("", self._usage, self._finish_reason)
        self._talk.conclude("".join(self._texts), self._usage)
        return _line(last)

    def failed(self, body: ErrorBody) -> bytes:
        """The last line of a stream that cannot go on."""
        last = self._talk.said("", self._usage, "error")
        self._talk.turn.leave()
        return _line(msgspec.structs.replace(last, error=body.error))


async def _streamed(talk: _Talk, generation: Generation | None, *, keep_alive_s: float) -> Response:
    if generation is None:
        return sse.response(_line(talk.full()))
    if talk.turn.is_stopped:
        return sse.response(_line(GenerateResponse(finish_reason="stop")))
    writer = _LineWriter(talk)
    lines = await generation.events(writer, keep_alive_s=keep_alive_s, keep_alive=_KEEP_ALIVE)
    return sse.response(guarded(lines, request_id_of(request), tell=writer.failed))


def failed_line(body: ErrorBody) -> bytes:
    """The last line of a stream that breaks off on its way here."""
    return _line(GenerateResponse(finish_reason="error", error=body.error))


def _whole(answer: GenerateResponse) -> Response:
    return Response(msgspec.json.encode(answer), content_type="application/json")


def _line(answer: GenerateResponse) -> bytes:
    return msgspec.json.encode(answer) + b"\n"
