"""Everything trioserve raises on purpose.

TrioserveError
|- SettingsError            the operator can fix it; stops the start with exit code 78
|  |- ModelError            the model folder cannot be served
|     |- UnsupportedTokenizer
|- RequestError             the client can fix it; 400 unless noted
|  |- InvalidRequest        a field has a wrong type or value
|  |- UnsupportedParameter  a field that exists elsewhere and not here
|  |- InvalidGrammar        a schema, regex or grammar that cannot be used
|  |- PromptTooLong         the prompt leaves no room in the model's context
|  |- NoChatTemplate        chat asked of a model that has no template
|  |- ModelNotFound         404
|  |- CompletionNotFound    404
|  |- SessionBusy           another request uses the session
|- TryAgain                 may succeed later; carries retry_after_s
|  |- Overloaded            429 with Retry-After
|  |  |- QueueFull
|  |  |- RateLimited
|  |  |- TooManySessions
|  |- Unavailable           503 with Retry-After
|  |  |- NotReady            starting, or the works are being restarted
|  |  |- Draining            this server is about to end
|  |  |- StoreUnavailable    the database of stored completions does not answer
|- RequestTimeout           the request's own deadline passed; 408
|- NoFreeBlocks             the scheduler's own: preempts, never leaves the room
|- KernelError              a CUDA kernel cannot be compiled, loaded or launched
|- EngineError              nobody outside can fix it
   |- WorkerDied
   |- WorkerStalled
   |- WorkerFailed          a step raised on a rank
   |- RankLost              another rank is gone; a rank's own, never leaves the works
   |- WireError             a frame that is too long, cut off or not what was expected

Only ``trioserve.http.errors`` knows status codes.
"""


class TrioserveError(Exception):
    """Base of everything trioserve raises on purpose."""


class SettingsError(TrioserveError):
    """A setting stops the start; the message is one sentence that says what to change."""


class ModelError(SettingsError):
    """The model folder is missing, damaged or of a kind that is not served."""


class UnsupportedTokenizer(ModelError):
    """The tokenizer decodes in a way that the streaming detokenizer cannot express."""


class RequestError(TrioserveError):
    """The client can fix it.

    Attributes:
        param: The field at fault as the client wrote it, such as ``messages.0.content``; None where no field is.
        code: A short machine-readable word, or None.
    """

    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequest(RequestError):
    """A field has a wrong type or value; the message names field, value and limit."""

    code = "invalid_value"


class UnsupportedParameter(RequestError):
    """A field that OpenAI or another server defines and this one does not obey."""

    code = "unsupported_parameter"


class InvalidGrammar(RequestError):
    """A schema, regular expression or grammar is broken, not supported, or takes more time, memory or depth than it
    may; the message says which."""

    code = "invalid_grammar"


class PromptTooLong(RequestError):
    """The prompt leaves no room for an answer; the message names its tokens and the limit."""

    code = "context_length_exceeded"


class NoChatTemplate(RequestError):
    """The model has no chat template; completions work all the same."""

    code = "no_chat_template"


class ModelNotFound(RequestError):
    """No model of that name is served here."""

    code = "model_not_found"


class CompletionNotFound(RequestError):
    """No chat completion, or message of one, is stored under that id for who asks."""

    code = "not_found"


class SessionBusy(RequestError):
    """A session serves one request at a time; the message names it."""

    code = "session_busy"


class TryAgain(TrioserveError):
    """Base of what may succeed later.

    Attributes:
        retry_after_s: Seconds after which another try makes sense.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(TryAgain):
    """Too much is waiting already."""


class QueueFull(Overloaded):
    """The bound on waiting requests or waiting tokens is reached; the message names both numbers."""


class RateLimited(Overloaded):
    """A key's requests of a minute are used up; the message names how many they are."""


class TooManySessions(Overloaded):
    """There is no room for another session; the message names the limits."""


class Unavailable(TryAgain):
    """The server cannot serve just now."""


class NotReady(Unavailable):
    """The model is loading, or the works are being restarted."""


class Draining(Unavailable):
    """The server is shutting down; another replica will answer."""


class StoreUnavailable(Unavailable):
    """The database of stored completions is locked, damaged or too slow."""


class RequestTimeout(TrioserveError):
    """The request did not finish within its deadline."""


class NoFreeBlocks(TrioserveError):
    """Fewer KV blocks are free than asked for; the pool is unchanged."""


class KernelError(TrioserveError):
    """A CUDA kernel cannot be had or launched; the message is one sentence that says why and what helps."""


class EngineError(TrioserveError):
    """The engine failed and no request caused it on purpose."""


class WorkerDied(EngineError):
    """A rank's process ended or closed its socket."""


class WorkerStalled(EngineError):
    """A step did not come back before ``step_timeout_s``."""


class WorkerFailed(EngineError):
    """A rank reported an exception; the message holds its first line only."""


class RankLost(EngineError):
    """A meeting with the other ranks cannot take place, because one of them is gone."""


class WireError(EngineError):
    """A frame between front and works is too long, cut off or undecodable."""
