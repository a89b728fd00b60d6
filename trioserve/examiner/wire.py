"""What the examiner and its processes say to each other, one msgpack frame each."""

from msgspec import Struct

from trioserve.core.forms import AnswerForm


class Opening(Struct, frozen=True, kw_only=True, tag="opening"):
    """The first frame a process receives: for which model it works, and what it may take."""

    backend: str
    """One of ``trioserve.grammars``."""
    tokenizer_path: str
    """The tokenizer's folder."""
    vocab_size: int
    eos_token_ids: list[int]
    disable_any_whitespace: bool
    max_depth: int
    """Levels of a schema, groups in groups of a regular expression."""
    memory_bytes: int
    """That one form may take, beyond what the process takes by itself."""


class Opened(Struct, frozen=True, tag="opened"):
    """The process has loaded the tokenizer and waits for forms."""


class Unusable(Struct, frozen=True, tag="unusable"):
    """The backend is not to be had for this model; the process ends."""

    reason: str
    """One sentence."""


class Task(Struct, frozen=True, tag="task"):
    """A form to examine."""

    form: AnswerForm


class Finding(Struct, frozen=True, kw_only=True, tag="finding"):
    """What came of a task."""

    text: str = ""
    """The grammar, in the backend's notation."""
    refusal: str = ""
    """Why there is none, where there is none."""
    is_last: bool = False
    """Whether the process ends now: it has not given back all that the task took."""


ToProcess = Opening | Task
FromProcess = Opened | Unusable | Finding
