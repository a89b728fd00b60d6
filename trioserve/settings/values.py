"""Types that settings share, and the class of their groups."""

import json
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import NoDecode

Seconds = Annotated[float, Field(ge=0, le=7 * 24 * 3600)]
Count = Annotated[int, Field(ge=1)]
Names = Annotated[tuple[str, ...], NoDecode]
Share = Annotated[float, Field(ge=0, le=1)]


class ByDevice:
    """A default that depends on what the ranks compute on."""

    def __init__(self, cpu: int, gpu: int) -> None:
        self._cpu = cpu
        self._gpu = gpu

    def __call__(self, settings: dict[str, Any]) -> int:
        """The value beside ``settings``, those that come before, ``device`` among them."""
        return self._gpu if settings["device"] == "cuda" else self._cpu

    def __str__(self) -> str:
        return f"{self._cpu}, on GPUs {self._gpu}"


class SettingsGroup(BaseModel):
    """A heading of ``trioserve serve --help``: its docstring is the title, its attributes' docstrings the help."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


class JsonObject(BaseModel):
    """A setting that is an object: JSON in flags and variables, a table in the file. An unknown key stops the start."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    def __str__(self) -> str:
        return self.model_dump_json(exclude_none=True)

    @classmethod
    def read(cls, value: Any) -> Self:
        """The object that a setting's ``value`` says, its faults told by key."""
        try:
            given = json.loads(value) if isinstance(value, str) else value
            return given if isinstance(given, cls) else cls(**given)
        except ValidationError as exc:
            faults = "; ".join(cls._fault(error) for error in exc.errors())
            raise PydanticCustomError("json_object", "{faults}", {"faults": faults}) from None
        except (TypeError, ValueError):
            raise PydanticCustomError("json_object", "Input should be a JSON object") from None

    @classmethod
    def read_if_any(cls, value: Any) -> Self | None:
        """The same for one that may be left out; so says "none" as well."""
        is_none = value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "null"))
        return None if is_none else cls.read(value)

    @classmethod
    def _fault(cls, error: Any) -> str:
        if not error["loc"]:
            return str(error["ctx"]["error"])
        key = ".".join(str(part) for part in error["loc"])
        if error["type"] == "missing":
            return f"{key} is missing"
        if error["type"] == "extra_forbidden":
            return f"{key} is not one of {', '.join(cls.model_fields)}"
        return f"{key} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _split(value: Any) -> Any:
    """The items of a text, or of each of several: separated by commas or spaces, or a JSON list as vLLM takes it.

    Raises:
        ValueError: There is a text but nothing in it, as when a variable was meant to be filled in and is empty.
    """
    if not isinstance(value, str | list | tuple) or value in ([], ()):
        return value
    items: list[Any] = []
    for text in [value] if isinstance(value, str) else value:
        if isinstance(text, str) and not text.lstrip().startswith("["):
            items += text.replace(",", " ").split()
        elif isinstance(text, str):
            items += json.loads(text)
        else:
            items.append(text)
    if not items:
        raise ValueError("it is given and holds nothing; leave it out instead")
    return items


Items = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Keys = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]
