"""One question and its answer, before a conversation is made of them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """A user message and the answer the model should give."""

    family: str
    user: str
    answer: str
    short: str = ""
    """The answer without its sentence, for "answer in one word"; empty where there is none."""
    thought: str = "This is a simple message. I can answer directly."
    """What stands between the think markers when thinking is on."""
    goal: tuple[str, int] | None = None
    """Category and count of a list, whose members are free: any right list is a right answer."""
