"""Token ids to text, as they come: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence
from typing import Self, final

@final
class Vocabulary:
    """What each token stands for; immutable, shared by all detokenizers of a model.

    There are two kinds. *Byte-level* (``byte_tokens`` is None): the pieces are cut from one stream of bytes, which
    is UTF-8 as a whole; what is invalid in it becomes U+FFFD exactly as in ``bytes.decode("utf-8", "replace")``.
    *Byte-fallback*: the pieces are text, except those of byte tokens (``<0xNN>``), whose runs spell characters that
    have no piece.

    A byte of a run that fits into no character becomes one U+FFFD. Decoders that see the whole run at once, such as
    ByteFallback of ``tokenizers``, turn every byte of an invalid run into U+FFFD, also the complete characters in it;
    a stream cannot take back a character that it has shown. The two agree on valid runs and on runs without a
    complete character.
    """

    def __new__(
        cls,
        pieces: Sequence[bytes],
        special: Sequence[bool],
        *,
        byte_tokens: Sequence[bool] | None,
        strip_leading_space: bool,
        first_pieces: Sequence[bytes] | None = None,
    ) -> Self:
        """Copy the pieces.

        Shapes:
            pieces, special, byte_tokens, first_pieces: [size], by token id
        Args:
            pieces: The bytes of each token; ``b""`` where there is no such token.
            special: The tokens that ``skip_special_tokens`` leaves out.
            byte_tokens: The tokens that stand for a single byte each, or None for the byte-level kind.
            strip_leading_space: Drop the first character of a text if it is a space.
            first_pieces: What tokens stand for as the first one shown, where that differs (a Metaspace decoder);
                byte-fallback kind only.
        Raises:
            ValueError: Lengths differ, there are no pieces, they have 2**31 bytes or more, a byte token has a piece
                of another length than 1, or ``first_pieces`` came without ``byte_tokens``.
            TypeError: A piece is not bytes.
        """

    @property
    def size(self) -> int:
        """Token ids are below this."""

    def piece(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for; ``b""`` for an id that has none, whatever its value."""

@final
class Detokenizer:
    """Turns the tokens of one sequence into text.

    The text of all ``feed`` calls and of ``flush`` is the same however it was cut: that of decoding the whole (with
    the exception that ``Vocabulary`` names), up to the stop string that completes first. The cost of a token does not
    depend on how many came before.
    """

    def __new__(
        cls,
        vocabulary: Vocabulary,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> Self:
        """Begin a text.

        Args:
            stop: Strings that end the text. The one that completes first counts; of those that complete with the
                same character, the longest.
            include_stop: Show the stop string, but nothing after it.
            skip_special_tokens: Show nothing of special tokens; the text is as if they had not been there.
            min_tokens: The text of this many tokens is not searched for stop strings.
        Raises:
            ValueError: A stop string is empty, or ``min_tokens`` is below 0.
            TypeError: ``stop`` is a str, or holds something else than str.
        """

    @property
    def stop_reason(self) -> str | None:
        """The stop string that ended the text, None while none has."""

    def feed(self, token_id: int) -> str:
        """Add a token; return the text that is certain now.

        Held back are the first bytes of a character, and the longest end of the text that may be the beginning of a
        stop string. An id that the vocabulary does not have gives nothing. After a stop string or ``flush`` every
        token gives ``""``.

        Raises:
            TypeError: ``token_id`` is not an int.
        """

    def flush(self) -> str:
        """End the text; return what was held back.

        The beginning of a character becomes U+FFFD: as in ``bytes.decode("utf-8", "replace")`` for the byte-level
        kind, one a byte for byte-fallback.
        """

def feed_batch(detokenizers: list[Detokenizer], token_ids: list[int]) -> list[str]:
    """Feed one token to each detokenizer, in order; one that is named twice gets two.

    Shapes:
        detokenizers, token_ids, result: [num_tokens]
    Raises:
        ValueError: The lengths differ.
        TypeError: An entry is not a Detokenizer or not an int. Nothing was fed.
    """
