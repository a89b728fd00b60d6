"""How a request says which tokens to choose, and what that comes to for one sequence."""

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Final, Self, TypeVar

import msgspec
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from trioserve.core.sampling import SamplingParams
from trioserve.errors import InvalidRequest
from trioserve.protocol.common import FAIL_FAST, Integer, TextOrTexts, TokenId, WireModel, shown
from trioserve.protocol.unsupported import STREAM_OPTIONS_NOT_OBEYED, refuse_unsupported
from trioserve.settings import LimitSettings

_GREEDY_BELOW: Final = 1e-5
"""Temperatures that divide logits out of float32."""
_MAX_TEMPERATURE: Final = 1e4
"""Above it every token is equally likely anyway."""
_MIN_REPETITION_PENALTY: Final = 0.01
_MAX_LOGIT_BIAS: Final = 100.0
_SEED_MASK: Final = (1 << 63) - 1

T = TypeVar("T")

Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[Integer, Field(ge=1, lt=1 << 31)]


def _int64(value: int) -> int:
    if not -(1 << 63) <= value < 1 << 63:
        raise PydanticCustomError("int64", "Input should be from -2^63 to 2^63 - 1")
    return value


class StreamOptions(WireModel):
    """``stream_options``."""

    include_usage: bool | None = None
    """Whether a last chunk carries the usage."""


class GenerationFields(WireModel):
    """Fields that chat and text completions share; null is the same as absent."""

    model: str | None = None
    """Any name is served by the one model here."""
    max_tokens: Count | None = None
    n: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Share | None = None
    """0 is greedy."""
    top_k: Annotated[Integer, Field(ge=-1, lt=1 << 31)] | None = None
    """0 and -1 are off."""
    min_p: Share | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    logit_bias: dict[str, Any] | None = None
    """Token ids, as strings, to what is added to their logits, -100 to 100."""
    seed: Annotated[Integer, AfterValidator(_int64)] | None = None
    stop: TextOrTexts | None = None
    stop_token_ids: Annotated[list[TokenId], FAIL_FAST] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    min_tokens: Annotated[Integer, Field(ge=0, lt=1 << 31)] | None = None
    skip_special_tokens: bool | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    priority: Annotated[Integer, Field(ge=-(1 << 31), lt=1 << 31)] | None = None
    """Lower goes first."""
    cache_salt: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Only requests of one salt share cached prompts."""

    @property
    def num_choices(self) -> int:
        """Choices to each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives wanted beside each chosen token; None for no logprobs at all."""
        raise NotImplementedError

    @property
    def asked_tokens(self) -> int | None:
        """Tokens of output asked for at most, where the request or the endpoint says."""
        return self.max_tokens

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Without empty and repeated ones."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(dict.fromkeys(text for text in stop if text))

    def check(self, limits: LimitSettings) -> None:
        """Refuse what no single field's type can.

        Raises:
            InvalidRequest: Fields exceed a limit or contradict each other.
            UnsupportedParameter: A known field that is not obeyed asks for something.
        """
        refuse_unsupported(self.model_extra)
        self._check_stream_options()
        if self.num_choices > limits.max_n:
            raise InvalidRequest(f"n: at most {limits.max_n} choices, not {self.num_choices}", param="n")
        stop = self.stop_strings
        if len(stop) > limits.max_stop:
            raise InvalidRequest(f"stop: at most {limits.max_stop} strings, not {len(stop)}", param="stop")
        longest = max((len(text) for text in stop), default=0)
        if longest > limits.max_stop_chars:
            raise InvalidRequest(
                f"stop: at most {limits.max_stop_chars} characters a string, not {longest}", param="stop"
            )

    def _check_stream_options(self) -> None:
        if self.stream_options is None:
            return
        if not self.stream:
            raise InvalidRequest("stream_options is only allowed with stream: true", param="stream_options")
        refuse_unsupported(
            self.stream_options.model_extra, table=STREAM_OPTIONS_NOT_OBEYED, prefix="stream_options."
        )


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What holds where a request says nothing: the model's own wishes, and its ids."""

    vocab_size: int
    """Ids of requests must be below it."""
    eos_token_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    """None: as many as the context has room for."""
    draw_seed: Callable[[], int] = field(default=partial(secrets.randbits, 63))
    """The seed of a request that brings none."""

    @classmethod
    def from_generation_config(
        cls, config: Mapping[str, Any], *, vocab_size: int, eos_token_ids: tuple[int, ...]
    ) -> Self:
        """The defaults that a model's generation_config.json asks for; values out of range are left out."""

        def number(name: str, low: float, high: float) -> dict[str, Any]:
            value = config.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                return {}
            return {name: value} if low <= value <= high else {}

        max_new_tokens = number("max_new_tokens", 1, math.inf).get("max_new_tokens")
        return cls(
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids,
            max_tokens=None if max_new_tokens is None else int(max_new_tokens),
            **number("temperature", 0, _MAX_TEMPERATURE),
            **number("top_p", 0, 1),
            top_k=int(number("top_k", 0, 1 << 30).get("top_k", 0)),
            **number("min_p", 0, 1),
            **number("repetition_penalty", _MIN_REPETITION_PENALTY, 100),
        )


def sampling_params(request: GenerationFields, defaults: SamplingDefaults, *, room: int) -> SamplingParams:
    """What the first choice of ``request`` obeys; ``room``: the tokens that its prompt leaves of the context.

    Raises:
        InvalidRequest: An id is not in the vocabulary, or min_tokens is more than max_tokens.
    """
    asked = request.asked_tokens or defaults.max_tokens or room
    min_tokens = request.min_tokens or 0
    if request.asked_tokens is not None and min_tokens > request.asked_tokens:
        raise InvalidRequest(
            f"min_tokens: at most max_tokens = {request.asked_tokens}, not {min_tokens}", param="min_tokens"
        )
    max_tokens = min(asked, room)
    temperature, top_p = (
        _given(request.temperature, defaults.temperature),
        _given(request.top_p, defaults.top_p),
    )
    if temperature < _GREEDY_BELOW or top_p == 0:
        temperature, top_p = 0.0, 1.0
    top_k = _given(request.top_k, defaults.top_k)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min(min_tokens, max_tokens),
        temperature=min(temperature, _MAX_TEMPERATURE),
        top_p=top_p,
        top_k=top_k if 0 < top_k < defaults.vocab_size else 0,
        min_p=_given(request.min_p, defaults.min_p),
        repetition_penalty=max(
            _given(request.repetition_penalty, defaults.repetition_penalty), _MIN_REPETITION_PENALTY
        ),
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        logit_bias=_logit_bias(request.logit_bias or {}, defaults.vocab_size),
        seed=defaults.draw_seed() if request.seed is None else request.seed & _SEED_MASK,
        logprobs=request.num_logprobs,
        stop_token_ids=_stop_token_ids(request, defaults),
        stop=request.stop_strings,
        include_stop=bool(request.include_stop_str_in_output),
        skip_special_tokens=_given(request.skip_special_tokens, True),
    )


def params_of_choice(params: SamplingParams, choice: int) -> SamplingParams:
    """``params`` for the ``choice``-th answer to one prompt: its draws are its own, and repeatable."""
    if choice == 0:
        return params
    return msgspec.structs.replace(params, seed=(params.seed + choice) & _SEED_MASK)


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _stop_token_ids(request: GenerationFields, defaults: SamplingDefaults) -> tuple[int, ...]:
    own = request.stop_token_ids or []
    for token_id in own:
        _check_token_id(token_id, defaults.vocab_size, "stop_token_ids")
    return tuple(dict.fromkeys([*(() if request.ignore_eos else defaults.eos_token_ids), *own]))


def _logit_bias(biases: Mapping[str, Any], vocab_size: int) -> tuple[tuple[int, float], ...]:
    found: dict[int, float] = {}
    for key, bias in biases.items():
        param = f"logit_bias.{key[:32]}"
        if not (key.isascii() and key.isdigit() and len(key) < 20):
            raise InvalidRequest(f"logit_bias: keys are token ids, not {shown(key)}", param="logit_bias")
        _check_token_id(int(key), vocab_size, param)
        is_number = isinstance(bias, int | float) and not isinstance(bias, bool)
        if not is_number or not -_MAX_LOGIT_BIAS <= bias <= _MAX_LOGIT_BIAS:
            raise InvalidRequest(f"{param}: a number from -100 to 100, not {shown(bias)}", param=param)
        found[int(key)] = float(bias)
    return tuple(found.items())


def _check_token_id(token_id: int, vocab_size: int, param: str) -> None:
    if token_id >= vocab_size:
        raise InvalidRequest(
            f"{param}: the model's token ids end at {vocab_size - 1}, not {token_id}", param=param
        )
