"""Joins tokenizer and chat templates: messages or text to token ids, long ones off the loop."""

import os
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import trio

from trioserve.errors import PromptTooLong, UnsupportedParameter
from trioserve.prompt.foreign import ForeignTemplates, RequestTemplate
from trioserve.prompt.infill import InfillTokens
from trioserve.prompt.template import ChatTemplates, Conversation, Message, load_templates
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
        self._infill = InfillTokens.of(tokenizer.backend)
        self._foreign = ForeignTemplates()
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

    def reads(self, variable: str, *, has_tools: bool = False) -> bool:
        """Whether the model's template for conversations names ``variable``.

        Raises:
            NoChatTemplate: The model has none.
        """
        return self._templates.choose(has_tools=has_tools).reads(variable)

    def template_source(self, *, has_tools: bool) -> str:
        """The model's template for conversations, with tools or without; empty where it has none."""
        return self._templates.source(has_tools=has_tools)

    def ends_with(self, token_ids: SequenceOf[int], *, num_tokens: int) -> str:
        """The text of the last tokens of a prompt, special ones included."""
        return self.tokenizer.decode(list(token_ids[-num_tokens:]), skip_special_tokens=False)

    async def chat(
        self,
        messages: SequenceOf[Message],
        *,
        tools: SequenceOf[Mapping[str, Any]] | None = None,
        documents: SequenceOf[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_variables: Mapping[str, Any] | None = None,
        template: RequestTemplate | None = None,
        add_special_tokens: bool = False,
        max_tokens: int | None = None,
    ) -> list[int]:
        """The token ids of a conversation, up to where the model's answer begins.

        Args:
            template: One that came with the request, in place of the model's.
            add_special_tokens: Usually the template writes the special tokens itself, the first one included.
            max_tokens: What the model takes. A text that is sure to be longer may be refused before all of it is
                encoded; one that is only a little longer is not.
        Raises:
            NoChatTemplate: The model has no template.
            InvalidRequest: The template refuses the messages, or takes more time or memory than it may.
            PromptTooLong: There are more tokens than ``max_tokens``.
        """
        conversation = self._conversation(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_variables=template_variables,
        )
        encode = partial(
            self._encode, add_special_tokens=add_special_tokens, max_tokens=max_tokens, param="messages"
        )
        if template is not None:
            text = await self._foreign.render(template, conversation)
            return await self._run(partial(encode, text), num_chars=len(text))
        own = self._templates.choose(has_tools=bool(tools))
        num_chars = sum(map(_num_chars, (messages, tools, documents, template_variables)))
        return await self._run(lambda: encode(conversation.rendered_by(own)), num_chars=num_chars)

    def render(
        self,
        messages: SequenceOf[Message],
        *,
        tools: SequenceOf[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text whose tokens ``chat`` gives; long conversations belong in a thread.

        Raises:
            NoChatTemplate: The model has no template.
            InvalidRequest: The template refuses the messages.
        """
        conversation = self._conversation(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_variables=template_variables,
        )
        return conversation.rendered_by(self._templates.choose(has_tools=bool(tools)))

    def _conversation(
        self,
        messages: SequenceOf[Message],
        *,
        template_variables: Mapping[str, Any] | None,
        **fields: Any,
    ) -> Conversation:
        variables = {**self.tokenizer.special_tokens, **(template_variables or {})}
        return Conversation(messages=messages, variables=variables, **fields)

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

    async def infill(
        self,
        before: str | list[int],
        after: str,
        *,
        add_special_tokens: bool = True,
        max_tokens: int | None = None,
    ) -> list[int]:
        """The token ids that ask for what stands between two texts; ``max_tokens`` as for ``chat``.

        Raises:
            UnsupportedParameter: The model has no tokens for that.
            PromptTooLong: There are more tokens than ``max_tokens``.
        """
        tokens = self._infill
        if tokens is None:
            raise UnsupportedParameter(
                "suffix: the model has no fill-in-the-middle tokens, so it cannot write towards a suffix",
                param="suffix",
            )
        first = self.tokenizer.leading_tokens if add_special_tokens and isinstance(before, str) else []
        if isinstance(before, str):
            before = await self.text(before, add_special_tokens=False, max_tokens=max_tokens)
        return first + tokens.prompt(
            before, await self.text(after, add_special_tokens=False, max_tokens=max_tokens)
        )

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
