"""Streamed text is what ``tokenizers`` makes of the whole, and a stop string ends it where a search would."""

from tests.fuzz.source import Source
from tests.output.test_vocabulary import NUM_TOKENIZERS, byte_fallback, byte_level
from trioserve._speedups.detokenizer import Detokenizer, Vocabulary

SEEDS = tuple(
    bytes([kind, seed, 0, *range(0, 250, 7)]) for kind in (0, 1) for seed in range(0, NUM_TOKENIZERS, 3)
)
_STOPS = ("\n", "a", " b", "ab", "日", "\ufffd", "</s>", "aa")


def check(data: bytes) -> None:
    """Any token ids of any tokenizer, with and without stop strings."""
    source = Source(data)
    make, seed = source.pick((byte_level, byte_fallback)), source.number(NUM_TOKENIZERS - 1)
    tokenizer, vocabulary = make(seed)
    skip = source.flag()
    stops = [source.pick(_STOPS) for _ in range(source.byte() % 3)]
    token_ids = [source.number(vocabulary.size + 1) for _ in range(min(40, source.byte()))]
    whole = streamed(vocabulary, token_ids, skip=skip, stops=[])
    expected = tokenizer.decode(token_ids, skip_special_tokens=skip)
    if (
        make is byte_level or "\ufffd" not in expected
    ):  # else tokenizers drops what was good beside what was not
        assert whole == expected
    shown = streamed(vocabulary, token_ids, skip=skip, stops=stops)
    ends = [at + len(stop) for stop in stops if (at := whole.find(stop)) >= 0]
    if not ends:
        assert shown == whole
    else:
        end = min(ends)
        longest = max((stop for stop in stops if whole[:end].endswith(stop)), key=len)
        assert shown == whole[: end - len(longest)]


def streamed(vocabulary: Vocabulary, token_ids: list[int], *, skip: bool, stops: list[str]) -> str:
    """The text of some tokens, one after the other, and of the end."""
    detokenizer = Detokenizer(vocabulary, skip_special_tokens=skip, stop=stops)
    shown = ""
    for token_id in token_ids:
        shown += detokenizer.feed(token_id)
        if detokenizer.stop_reason is not None:
            return shown
    return shown + detokenizer.flush()
