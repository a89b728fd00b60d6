"""Joins tokenizer and chat templates: messages or text to token ids, long ones off the loop."""

import os
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import trio

from trioserve.errors import PromptTooLong
from trioserve.prompt.template import ChatTemplates, Message, load_templates
from trioserve.prompt.tokenizer import Tokenizer, load_tokenizer

_MAX_CHARS_ON_LOOP: Final = 4096
"""About two milliseconds' work; more goes to a thread."""
_MAX_THREADS: Final = 4
_HEAD_CHARS_PER_TOKEN: Final = 8
"""Of texts that can hardly fit, so much is encoded first for each token that may be."""


class Renderer:
    """Makes prompts for one model."""

    def __init__(self, tokenizer: Tokenizer, templates: ChatTemplates) -> None:
        self.tokenizer = tokenizer
        self._templates = templates
        self._threads = trio.CapacityLimiter(min(_MAX_THREADS, os.cpu_count() or 1))

    @classmethod
    def load(cls, path: Path, *, chat_template: str | None = None) -> Self:
        """The renderer of the model folder ``path``; ``chat_template`` replaces the folder's. Blocks.

        Raises:
            ModelError: The folder has no tokenizer that can be used, or a damaged template.
            SettingsError: ``chat_template`` is neither a template nor a file.
        """
        return cls(load_tokenizer(path), load_templates(path, override=chat_template))

    @property
    def vocab_size(self) -> int:
        """Every id that the tokenizer makes is below it."""
        return self.tokenizer.vocab_size

    async def chat(
        self,
        messages: SequenceOf[Message],
        *,
        tools: SequenceOf[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_variables: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
    ) -> list[int]:
        """The token ids of a conversation, up to where the model's answer begins.

        Args:
            max_tokens: What the model takes. A text that is sure to be longer may be refused before all of it is
                encoded; one that is only a little longer is not.
        Raises:
            NoChatTemplate: The model has no template.
            InvalidRequest: The template refuses the messages.
            PromptTooLong: There are more tokens than ``max_tokens``.
        """

        def token_ids() -> list[int]:
            text = self.render(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                template_variables=template_variables,
            )
            # The template writes the special tokens itself, the first one included.
            return self._encode(text, add_special_tokens=False, max_tokens=max_tokens, param="messages")

        return await self._run(token_ids, num_chars=_num_chars(messages) + _num_chars(tools))

    def render(
        self,
        messages: SequenceOf[Message],
        *,
        tools: SequenceOf[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text whose tokens ``chat`` gives; long conversations belong in a thread.

        Raises:
            NoChatTemplate: The model has no template.
            InvalidRequest: The template refuses the messages.
        """
        return self._templates.choose(has_tools=bool(tools)).render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            variables={**self.tokenizer.special_tokens, **(template_variables or {})},
        )

    async def text(
        self, text: str, *, add_special_tokens: bool = True, max_tokens: int | None = None
    ) -> list[int]:
        """The token ids of a plain prompt; ``max_tokens`` as for ``chat``.

        Raises:
            PromptTooLong: There are more tokens than ``max_tokens``.
        """
        encode = partial(
            self._encode,
            text,
            add_special_tokens=add_special_tokens,
            max_tokens=max_tokens,
            param="prompt",
        )
        return await self._run(encode, num_chars=len(text))

    def _encode(
        self, text: str, *, add_special_tokens: bool, max_tokens: int | None, param: str
    ) -> list[int]:
        """Encode ``text``; a megabyte takes a second, so one that cannot fit is not encoded to its end."""
        if max_tokens is not None and len(text) > 2 * _HEAD_CHARS_PER_TOKEN * max_tokens:
            head = self.tokenizer.encode(text[: _HEAD_CHARS_PER_TOKEN * max_tokens], add_special_tokens=False)
            if len(head) > max_tokens:
                raise PromptTooLong(
                    f"the prompt has more than {max_tokens} tokens; the model takes {max_tokens} tokens, "
                    "prompt and answer together",
                    param=param,
                )
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    async def _run(self, function: Callable[[], list[int]], *, num_chars: int) -> list[int]:
        if num_chars <= _MAX_CHARS_ON_LOOP:
            return function()
        return await trio.to_thread.run_sync(function, limiter=self._threads, abandon_on_cancel=True)


def _num_chars(value: Any) -> int:
    """Characters of all texts in ``value``, at any depth."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_num_chars, value.values()))
    return sum(map(_num_chars, value)) if isinstance(value, list | tuple) else 0
