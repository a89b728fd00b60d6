"""The tokenizer: byte-level BPE that keeps letters apart where letters matter.

Only a lower-case word behind a space may become one token. A word at the start of a line, in quotes, in
brackets or in capitals is cut into letters, and numbers into digits. So the model spells, reverses and
upper-cases what it never saw, and copies the names of tools it never saw, letter by letter. Every byte is a
token: any text round-trips."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from trioserve.builtin.corpus import conversations
from trioserve.builtin.template import render

END_OF_TEXT: Final = "<|endoftext|>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
SPECIAL: Final = (END_OF_TEXT, TURN_START, TURN_END)
"""Never shown to the user; ids 0, 1, 2."""
MARKERS: Final = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""One token each, but text: the parsers look for them. Ids 3 to 8."""

_PIECES: Final = "|".join(
    (
        r"\A(?:system|user|assistant|tool)\n",  # the role, right behind the turn's first token
        r"'(?:[sdmt]|ll|ve|re)(?!\p{L})",
        r" \p{L}[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
        r"\p{L}",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

_WORLD: Final = """
    Ünïcödé: straße, façade, naïve, coöperate, señor, niño, été, où, ça va, garçon, Ærøskøbing, Łódź, žluťoučký kůň,
    İstanbul, ığüşöç, Ελληνικά καλημέρα κόσμε, Привет, мир! Как дела? Добрый день, спасибо, Київ, дякую, שלום עולם,
    مرحبا بالعالم، كيف حالك؟ नमस्ते दुनिया, สวัสดีชาวโลก, 你好，世界！今天天气怎么样？ こんにちは世界、ありがとう。 안녕하세요 세계,
    € £ ¥ © ® ™ § ° ± × ÷ ≤ ≥ ≠ ∞ π ∑ √ → ← ↑ ↓ • … – — “quotes” ‘single’ «guillemets» 😀 😂 👍 🎉 ❤️ 🚀 🌍 👩‍💻 🇫🇷
    def main(args): return {"key": [1, 2.5, null]}  # comment; if (x != y && z >= 0) { a[i++] += b; } // <html></html>
    https://example.org/path?query=1&lang=en#top user@example.com C:\\Users\\x /usr/local/bin $HOME | && || != == :: ->
    one two three four five six seven eight nine ten the of and to in is it you that he was for on are as with his they
    at be this have from or one had by word but not what all were we when your can said there use an each which she do
    how their if will up other about out many then them these so some her would make like him into time has look two
    more write go see number no way could people my than first water been call who oil its now find long down day did
"""  # noqa: E501


def train_tokenizer(vocab_size: int, *, num_conversations: int = 30_000) -> Tokenizer:
    """A tokenizer of exactly ``vocab_size`` tokens, from the corpus and a page of the world's scripts."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_PIECES), "isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[
            *(AddedToken(token, special=True, normalized=False) for token in SPECIAL),
            *(AddedToken(token, special=False, normalized=False) for token in MARKERS),
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(num_conversations), trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the corpus yields {tokenizer.get_vocab_size()} tokens, {vocab_size} are wanted")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, model_max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in SPECIAL  # the trainer makes all of its added tokens special
    (folder / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False, indent=1) + "\n")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _texts(num_conversations: int) -> Iterator[str]:
    """What lies between the added tokens, since the tokenizer never looks across one."""
    border = re.compile("|".join(map(re.escape, SPECIAL + MARKERS)))
    for conversation in itertools.islice(conversations("tokenizer"), num_conversations):
        yield from filter(None, border.split(render(conversation.messages, conversation.tools)))
    yield from [_WORLD] * 20
