"""llguidance as a whole: what writes grammars for it, and what enforces them."""

from typing import final

import llguidance

from trioserve.core.forms import AnswerForm
from trioserve.grammars.guidance import GuidanceEngine
from trioserve.grammars.guidance_write import GuidanceWriter


@final
class GuidanceBackend(GuidanceEngine):
    """``Backend`` for one tokenizer."""

    def __init__(
        self, tokenizer: llguidance.LLTokenizer, *, disable_any_whitespace: bool, max_depth: int
    ) -> None:
        """Arguments: as those of ``GuidanceWriter``."""
        super().__init__(tokenizer)
        self._writer = GuidanceWriter(
            tokenizer, disable_any_whitespace=disable_any_whitespace, max_depth=max_depth
        )

    def write(self, form: AnswerForm) -> str:
        """The grammar of ``form``, as text for ``compile``.

        Raises:
            InvalidGrammar: It cannot be expressed, or is broken.
        """
        return self._writer.write(form)
