"""The small face that every library behind structured output has here."""

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from trioserve.core.forms import AnswerForm

FORBIDDEN: Final = "the grammar does not allow a token that the model chose"
"""Why an answer cannot go on where nothing is wrong with the grammar."""

Masks = NDArray[np.int32]
"""[num_rows, ceil(vocab_size / 32)]: bit ``i % 32`` of word ``i // 32`` says whether token ``i`` is allowed."""


class Matcher(Protocol):
    """One answer's way through a grammar. Nothing here raises; a matcher that failed stays so."""

    def take(self, token_id: int) -> bool:
        """Take the next token of the answer; one that the grammar does not allow is refused, and nothing comes after.

        After its end an answer may have any number of tokens that end it.
        """

    def accept(self, token_ids: Sequence[int]) -> bool:
        """As ``take`` for each of them, up to one that the grammar does not allow, which is no failure."""

    def forced(self) -> list[int]:
        """The tokens that must come next, where there is no choice, tokenized as the model's tokenizer would."""

    @property
    def is_over(self) -> bool:
        """Whether only the end of the answer is left."""

    @property
    def failure(self) -> str:
        """Why the matcher is of no use any more; empty while it is."""


class Compiled(Protocol):
    """A grammar that is ready."""

    def matcher(self) -> Matcher:
        """Begin an answer."""


class Enforcer(Protocol):
    """What a rank needs of one library, for one tokenizer."""

    name: str

    def compile(self, text: str) -> Compiled:
        """Make a grammar ready; may take long, and without the interpreter's lock.

        Raises:
            InvalidGrammar: It is broken, or too complex.
        """

    def fill_masks(self, matchers: Sequence[tuple[Matcher, int]], masks: Masks) -> None:
        """Write what each matcher allows next into its row of ``masks``, given by number."""


class Backend(Enforcer, Protocol):
    """One library, for one tokenizer."""

    def write(self, form: AnswerForm) -> str:
        """The grammar of ``form``, as text for ``compile``.

        Raises:
            InvalidGrammar: It cannot be expressed, or is broken.
        """
