"""Joins tokenizer and chat templates: messages or text to token ids, long ones off the loop."""

import os
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import trio

from trioserve.prompt.template import ChatTemplates, Message, load_templates
from trioserve.prompt.tokenizer import Tokenizer, load_tokenizer

_MAX_CHARS_ON_LOOP: Final = 4096
"""About two milliseconds' work; more goes to a thread."""
_MAX_THREADS: Final = 4


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
    ) -> list[int]:
        """The token ids of a conversation, up to where the model's answer begins.

        Raises:
            NoChatTemplate: The model has no template.
            InvalidRequest: The template refuses the messages.
        """
        template = self._templates.choose(has_tools=bool(tools))
        variables = {**self.tokenizer.special_tokens, **(template_variables or {})}

        def render() -> list[int]:
            text = template.render(
                messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=variables
            )
            # The template writes the special tokens itself, the first one included.
            return self.tokenizer.encode(text, add_special_tokens=False)

        return await self._run(render, num_chars=sum(_num_chars(message) for message in messages))

    async def text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a plain prompt."""
        encode = partial(self.tokenizer.encode, text, add_special_tokens=add_special_tokens)
        return await self._run(encode, num_chars=len(text))

    async def _run(self, function: Callable[[], list[int]], *, num_chars: int) -> list[int]:
        if num_chars <= _MAX_CHARS_ON_LOOP:
            return function()
        return await trio.to_thread.run_sync(function, limiter=self._threads, abandon_on_cancel=True)


def _num_chars(message: Message) -> int:
    content = message.get("content") or ""
    if isinstance(content, str):
        return len(content)
    return sum(len(part["text"]) for part in content)
