"""The detokenizer against Python's own decoders and a stop search that starts anew at every token."""

import codecs
import copy
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trioserve._speedups.detokenizer import Detokenizer, Vocabulary, feed_batch


def byte_level(*pieces: bytes, special: int = -1) -> Vocabulary:
    return Vocabulary(
        pieces, [i == special for i in range(len(pieces))], byte_tokens=None, strip_leading_space=False
    )


def fallback(*pieces: str | int, special: int = -1, strip: bool = False) -> Vocabulary:
    """A vocabulary of the byte-fallback kind; an int is a byte token."""
    return Vocabulary(
        [bytes([piece]) if isinstance(piece, int) else piece.encode() for piece in pieces],
        [i == special for i in range(len(pieces))],
        byte_tokens=[isinstance(piece, int) for piece in pieces],
        strip_leading_space=strip,
    )


def stream(detokenizer: Detokenizer, token_ids: list[int]) -> list[str]:
    """What each feed and the flush return."""
    return [*map(detokenizer.feed, token_ids), detokenizer.flush()]


def one_a_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("one_a_byte", one_a_byte)


@dataclass
class SlowStops:
    """Searches all of the text for stop strings whenever some is added."""

    stops: list[str]
    include: bool = False
    text: str = ""
    searched_from: int = 0
    shown: int = 0
    reason: str | None = None

    def feed(self, text: str, *, searched: bool = True, last: bool = False) -> str:
        if self.reason is not None:
            return ""
        self.text += text
        if not searched:
            self.searched_from = len(self.text)
        starts = [(self.text.find(stop, self.searched_from), stop) for stop in self.stops]
        hits = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
        if hits:
            end, start, self.reason = min(hits)
            return self._show(end if self.include else start)
        return self._show(len(self.text) if last else len(self.text) - self._held())

    def _held(self) -> int:
        tail = self.text[self.searched_from :]
        fits = [
            size
            for stop in self.stops
            for size in range(1, len(stop))
            if tail.endswith(stop[:size]) and size <= len(tail)
        ]
        return max(fits, default=0)

    def _show(self, end: int) -> str:
        shown, self.shown = self.text[self.shown : end], end
        return shown


# ---- whole characters ------------------------------------------------------------------------------------------------

text_bytes = st.text("aé日🙂\ud7ff\ue000\U0010ffff").map(str.encode)
pieces_of_text = st.builds(
    lambda data, sizes: [data[at : at + size] for at, size in enumerate(sizes)],
    text_bytes,
    st.lists(st.integers(1, 3), max_size=30),
)
raw_bytes = st.lists(
    st.sampled_from(
        [0x00, 0x61, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xDF, 0xE0, 0xE3, 0xED]
    )
    | st.sampled_from([0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF]),
    max_size=6,
).map(bytes)


@settings(deadline=None, max_examples=500)
@example([b"\xed\xa0"])
@example([b"\xed", b"\xa0", b"\x80"])
@given(st.lists(raw_bytes, max_size=12) | pieces_of_text | st.lists(st.binary(max_size=100), max_size=4))
def test_byte_level_text_is_that_of_an_incremental_decoder(pieces: list[bytes]) -> None:
    pieces = [piece for piece in pieces if piece] or [b"a"]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    expected = [*map(decoder.decode, pieces), decoder.decode(b"", final=True)]
    shown = stream(Detokenizer(byte_level(*pieces)), list(range(len(pieces))))
    assert shown == expected
    assert "".join(shown) == b"".join(pieces).decode("utf-8", "replace")


@settings(deadline=None)
@given(text_bytes, st.data())
def test_every_cut_of_a_text_gives_the_text(data: bytes, draw: st.DataObject) -> None:
    cuts = sorted(draw.draw(st.sets(st.integers(1, max(1, len(data) - 1)))))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    shown = stream(Detokenizer(byte_level(*pieces, b"-")), list(range(len(pieces))))
    assert "".join(shown) == data.decode()
    assert "\ufffd" not in "".join(shown)


@settings(deadline=None, max_examples=500)
@given(raw_bytes)
def test_a_run_of_byte_tokens_gives_one_replacement_for_each_byte_that_fits_nowhere(run: bytes) -> None:
    vocabulary = fallback(*range(256))
    assert "".join(stream(Detokenizer(vocabulary), list(run))) == run.decode("utf-8", "one_a_byte")


@settings(deadline=None)
@given(st.lists(raw_bytes | st.sampled_from(["a", " ", "é日"]), max_size=8), st.booleans())
def test_other_tokens_end_a_run_of_byte_tokens(parts: list[bytes | str], strip: bool) -> None:
    vocabulary = fallback(*range(256), "a", " ", "é日", strip=strip)
    words = {"a": 256, " ": 257, "é日": 258}
    token_ids, expected, run = [], "", b""
    for part in [*parts, "a"]:
        if isinstance(part, bytes):
            token_ids += list(part)
            run += part
        else:
            token_ids.append(words[part])
            expected += run.decode("utf-8", "one_a_byte") + part
            run = b""
    assert "".join(stream(Detokenizer(vocabulary), token_ids)) == expected.removeprefix(" " if strip else "")


def test_a_character_is_shown_with_its_last_byte() -> None:
    euro = "€".encode()
    vocabulary = byte_level(euro[:1], euro[1:2], euro[2:] + b"!")
    assert stream(Detokenizer(vocabulary), [0, 1, 2]) == ["", "", "€!", ""]
    assert stream(Detokenizer(fallback(*euro)), [0, 1, 2]) == ["", "", "€", ""]


def test_half_a_character_at_the_end_becomes_a_replacement() -> None:
    euro = "€".encode()
    assert stream(Detokenizer(byte_level(b"5" + euro[:2])), [0]) == ["5", "\ufffd"]
    assert stream(Detokenizer(fallback(*euro)), [0, 1]) == ["", "", "\ufffd\ufffd"]


def test_ids_without_a_token_give_nothing() -> None:
    vocabulary = byte_level(b"\xe2\x82", b"", b"\xac")
    assert stream(Detokenizer(vocabulary), [0, 1, -1, 3, 2**31, -(2**63), 2**80, 2]) == [*[""] * 7, "€", ""]
    assert [vocabulary.piece(token_id) for token_id in (-1, 1, 3, 2**80)] == [b""] * 4
    assert vocabulary.piece(2) == b"\xac"


@pytest.mark.parametrize(
    "make", [lambda: byte_level(b"ab", b"<|x|>", special=1), lambda: fallback("ab", "<|x|>", special=1)]
)
def test_special_tokens_are_skipped_or_shown(make: Any) -> None:
    assert stream(Detokenizer(make()), [0, 1, 0]) == ["ab", "", "ab", ""]
    assert stream(Detokenizer(make(), skip_special_tokens=False), [0, 1, 0]) == ["ab", "<|x|>", "ab", ""]


def test_a_skipped_token_does_not_end_a_character() -> None:
    assert stream(Detokenizer(byte_level(b"\xc3", b"<s>", b"\xa9", special=1)), [0, 1, 2]) == [
        "",
        "",
        "é",
        "",
    ]
    assert stream(Detokenizer(fallback(0xC3, "<s>", 0xA9, special=1)), [0, 1, 2]) == ["", "", "é", ""]


def test_the_leading_space_goes_once() -> None:
    vocabulary = fallback(" a", " ", "<s>", 0x20, special=2, strip=True)
    assert stream(Detokenizer(vocabulary), [2, 9, 0, 0]) == ["", "", "a", " a", ""]
    assert stream(Detokenizer(vocabulary), [1, 0]) == ["", " a", ""]
    assert stream(Detokenizer(vocabulary), [3, 3, 0]) == ["", " ", " a", ""]
    assert stream(Detokenizer(vocabulary, skip_special_tokens=False), [2, 0]) == ["<s>", " a", ""]


def test_a_first_piece_may_differ() -> None:
    vocabulary = Vocabulary(
        [b" a", b"  ", b"<s>", b"\x20"],
        [False, False, True, False],
        byte_tokens=[False, False, False, True],
        strip_leading_space=False,
        first_pieces=[b"a", b"", b"<s>", b"\x20"],
    )
    assert stream(Detokenizer(vocabulary), [2, 0, 0]) == ["", "a", " a", ""]
    assert stream(Detokenizer(vocabulary), [1, 0]) == ["", " a", ""]
    assert stream(Detokenizer(vocabulary), [3, 0]) == [" ", " a", ""]
    assert stream(Detokenizer(vocabulary, skip_special_tokens=False), [2, 0]) == ["<s>", " a", ""]


# ---- stop strings ----------------------------------------------------------------------------------------------------

letters = st.text("abé", min_size=1, max_size=5)


@settings(deadline=None, max_examples=400)
@given(
    pieces=st.lists(letters | st.just("\ufffd") | st.just("🙂"), max_size=15),
    stops=st.lists(letters | st.just("\ufffda") | st.just("🙂a"), max_size=4),
    cut=st.booleans(),
    include=st.booleans(),
    min_tokens=st.integers(0, 4),
)
def test_stop_strings_agree_with_a_search_of_all_the_text(
    pieces: list[str], stops: list[str], cut: bool, include: bool, min_tokens: int
) -> None:
    data = [piece.encode() for piece in pieces]
    if cut:  # into single bytes
        data = [bytes([byte]) for piece in data for byte in piece]
    vocabulary = byte_level(*(data or [b"a"]))
    detokenizer = Detokenizer(vocabulary, stop=stops, include_stop=include, min_tokens=min_tokens)
    decoder = codecs.getincrementaldecoder("utf-8")()
    slow = SlowStops(stops, include)
    for token_id, piece in enumerate(data):
        assert detokenizer.feed(token_id) == slow.feed(decoder.decode(piece), searched=token_id >= min_tokens)
        assert detokenizer.stop_reason == slow.reason
    assert detokenizer.flush() == slow.feed("", last=True)
    assert detokenizer.stop_reason == slow.reason


@settings(deadline=None, max_examples=300)
@given(
    text=st.text("ab", max_size=40),
    stops=st.lists(st.text("ab", min_size=1, max_size=6), min_size=1),
    data=st.data(),
)
def test_nothing_of_a_stop_string_leaks_whatever_the_cut(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    whole = SlowStops(stops)
    expected = "".join(whole.feed(letter) for letter in text) + whole.feed("", last=True)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1)))))
    pieces = [text[a:b].encode() for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    detokenizer = Detokenizer(byte_level(*pieces, b"-"), stop=stops)
    assert "".join(stream(detokenizer, list(range(len(pieces))))) == expected
    assert detokenizer.stop_reason == whole.reason


def spell(text: str, *stop: str, **options: Any) -> tuple[list[str], str | None]:
    """Feed the text a character at a time."""
    vocabulary = byte_level(*(bytes([byte]) for byte in range(128)))
    detokenizer = Detokenizer(vocabulary, stop=stop, **options)
    return stream(detokenizer, list(text.encode())), detokenizer.stop_reason


def test_a_stop_string_may_span_tokens() -> None:
    assert spell("one END two", "END") == (["o", "n", "e", " ", *[""] * 8], "END")


def test_what_was_held_back_is_released_when_it_goes_on_otherwise() -> None:
    assert spell("a<ax", "<a>") == (["a", "", "", "<ax", ""], None)
    assert spell("a<a", "<a>") == (["a", "", "", "<a"], None)


def test_only_the_longest_possible_beginning_is_held_back() -> None:
    assert spell("aaab", "aab") == (["", "", "a", "", ""], "aab")
    assert spell("ababac", "abac", "bx") == (["", "", "", "ab", "", "", ""], "abac")


def test_the_stop_string_that_completes_first_wins() -> None:
    assert spell("xabcd", "abcd", "bc") == (["x", "", "", "a", "", ""], "bc")
    assert spell("xabcd", "abcde", "d")[1] == "d"


def test_of_two_that_complete_together_the_longest_wins() -> None:
    assert spell("xabc", "bc", "abc", "c") == (["x", "", "", "", ""], "abc")


def test_the_stop_string_can_be_shown() -> None:
    assert spell("xabyz", "ab", include_stop=True) == (["x", "", "ab", "", "", ""], "ab")
    vocabulary = byte_level(b"x", b"yab and more")
    detokenizer = Detokenizer(vocabulary, stop=["ab"], include_stop=True)
    assert stream(detokenizer, [0, 1, 0]) == ["x", "yab", "", ""]


def test_min_tokens_keeps_the_first_tokens_out_of_the_search() -> None:
    assert spell("abab", "ab", min_tokens=0) == (["", "", "", "", ""], "ab")
    assert spell("abab", "ab", min_tokens=1) == (["a", "b", "", "", ""], "ab")
    assert spell("abab", "ab", min_tokens=4) == (["a", "b", "a", "b", ""], None)


def test_special_tokens_that_are_shown_can_stop() -> None:
    vocabulary = byte_level(b"a", b"<|end|>", special=1)
    shown = Detokenizer(vocabulary, stop=["a<|"], skip_special_tokens=False)
    assert stream(shown, [0, 0, 1]) == ["", "a", "", ""]
    assert stream(Detokenizer(vocabulary, stop=["a<|"]), [0, 0, 1]) == ["", "a", "", "a"]


def test_a_flush_can_complete_a_stop_string() -> None:
    detokenizer = Detokenizer(byte_level(b"a\xe2"), stop=["a\ufffd"])
    assert stream(detokenizer, [0]) == ["", ""]
    assert detokenizer.stop_reason == "a\ufffd"


def test_after_the_end_nothing_comes() -> None:
    detokenizer = Detokenizer(byte_level(b"a"))
    assert stream(detokenizer, [0]) == ["a", ""]
    assert stream(detokenizer, [0]) == ["", ""]


# ---- a whole step ----------------------------------------------------------------------------------------------------


def test_a_batch_is_the_single_calls_in_order() -> None:
    vocabulary = byte_level(b"a", b"b", b"\xc3", b"\xa9")
    streams = [Detokenizer(vocabulary, stop=["ab"]), Detokenizer(vocabulary)]
    assert feed_batch([*streams, streams[1]], [0, 2, 3]) == ["", "", "é"]
    assert feed_batch(streams, [1, 1]) == ["", "b"]
    assert [detokenizer.stop_reason for detokenizer in streams] == ["ab", None]
    assert feed_batch([], []) == []


def test_a_wrong_batch_feeds_nothing() -> None:
    vocabulary = byte_level(b"a", b"b")
    detokenizer = Detokenizer(vocabulary, stop=["ab"])
    with pytest.raises(ValueError, match="1 detokenizers and 2 token ids"):
        feed_batch([detokenizer], [0, 1])
    with pytest.raises(TypeError, match="entry 1 is not a Detokenizer"):
        feed_batch([detokenizer, None], [1, 1])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"token id 1\.5 is not an int"):
        feed_batch([detokenizer, detokenizer], [1, 1.5])  # type: ignore[list-item]
    assert stream(detokenizer, [0, 1]) == ["", "", ""]


# ---- making them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pieces": []}, "0 pieces"),
        ({"special": [False]}, "special has 1 entries for 2 pieces"),
        ({"byte_tokens": [True, True, True]}, "byte_tokens has 3 entries for 2 pieces"),
        ({"byte_tokens": [False, True]}, "byte token 1 has a piece of 2 bytes, not 1"),
        ({"byte_tokens": [False] * 2, "first_pieces": [b""]}, "first_pieces has 1 entries for 2 pieces"),
        ({"first_pieces": [b"", b""]}, "first_pieces is given without byte_tokens"),
    ],
)
def test_a_wrong_vocabulary_is_refused(arguments: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"special": [False, False], "byte_tokens": None, "strip_leading_space": False}
    if arguments.get("pieces") == []:
        good["special"] = []
    with pytest.raises(ValueError, match=message):
        Vocabulary(**{"pieces": [b"a", b"bc"]} | good | arguments)


@pytest.mark.parametrize("piece", ["a", None, 5, bytearray(b"a")])
def test_pieces_are_bytes(piece: Any) -> None:
    with pytest.raises(TypeError, match="is not bytes"):
        Vocabulary([piece], [False], byte_tokens=None, strip_leading_space=False)
    with pytest.raises(TypeError, match="is not bytes"):
        Vocabulary([b"a"], [False], byte_tokens=[False], strip_leading_space=False, first_pieces=[piece])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stop": ["a", ""]}, ValueError, "stop string '' is empty"),
        ({"stop": ["a", b"b"]}, TypeError, "stop string b'b' is not a str"),
        ({"stop": "ab"}, TypeError, "stop is a str"),
        ({"stop": 5}, TypeError, "int"),
        ({"min_tokens": -1}, ValueError, "min_tokens is -1, below 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Detokenizer(byte_level(b"a"), **options)


@pytest.mark.parametrize("token_id", [None, "1", 1.0])
def test_token_ids_are_ints(token_id: Any) -> None:
    vocabulary = byte_level(b"a")
    with pytest.raises(TypeError, match="is not an int"):
        vocabulary.piece(token_id)
    with pytest.raises(TypeError, match="is not an int"):
        Detokenizer(vocabulary).feed(token_id)


def test_fields_are_read_only_and_nothing_is_copied() -> None:
    vocabulary = byte_level(b"a")
    detokenizer = Detokenizer(vocabulary)
    for value, name in ((vocabulary, "size"), (detokenizer, "stop_reason")):
        with pytest.raises(AttributeError):
            setattr(value, name, 1)
        with pytest.raises(TypeError):
            copy.copy(value)
    with pytest.raises(TypeError):
        Detokenizer(None)  # type: ignore[arg-type]
