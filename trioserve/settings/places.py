"""Where settings come from, and by which names."""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from trioserve.errors import SettingsError
from trioserve.flags import canonical

ENV_PREFIX = "TRIOSERVE_"
CONFIG_VARIABLE = "TRIOSERVE_CONFIG"
"""Names another file than ``trioserve.toml`` in the working directory."""
URL_VARIABLE = "TRIOSERVE_URL"
"""Of clients, which may share our environment."""
WITHOUT_WGMMA_VARIABLE = "TRIOSERVE_WITHOUT_WGMMA"
"""Of the launch functions of kernels, which read it where they run."""

_FILE = "trioserve.toml"
_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP)")
"""What Kubernetes puts into the environment of a pod when a Service is called "trioserve"."""

Fields = Mapping[str, FieldInfo]


@dataclass(frozen=True, slots=True)
class Source:
    """What one place says of the settings."""

    label: str
    values: Mapping[str, Any]
    """By the settings' own names, unchecked."""
    faults: tuple[str, ...] = ()
    """What is wrong with its names, a clause each."""


def source_of(name: str, sources: tuple[Source, ...]) -> str:
    """Where the setting ``name`` comes from."""
    return next((source.label for source in sources if name in source.values), "default")


def read_variables(fields: Fields) -> Source:
    """A misspelt variable would otherwise be ignored without a word."""
    given = {
        name.removeprefix(ENV_PREFIX).lower(): value
        for name, value in sorted(os.environ.items())
        if name.startswith(ENV_PREFIX)
        and name not in {CONFIG_VARIABLE, URL_VARIABLE, WITHOUT_WGMMA_VARIABLE}
        and not _SERVICE_LINK.search(name)
    }
    values, faults = canonical(given, fields, spell=as_variable)
    return Source("variable", values, tuple(faults))


def read_file(fields: Fields) -> Source:
    """What ``trioserve.toml`` or the file that is named instead says; nothing where the former is not there."""
    named = os.environ.get(CONFIG_VARIABLE)
    path = Path(named or _FILE)
    if named is not None and not path.is_file():
        raise SettingsError(
            f"{CONFIG_VARIABLE} names {named!r}, which is not a file: correct the path or unset it."
        )
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as exc:
        raise SettingsError(f"{path.name} cannot be read: {exc}.") from exc
    values, faults = canonical(given, fields, spell=lambda name: f"{name} in {path.name}")
    faults += [
        f"{name} in {path.name} = {str(value).lower()}: should be {_kind(fields[name])}, not a boolean"
        for name, value in values.items()
        if isinstance(value, bool) and not _takes_booleans(fields[name].annotation)
    ]
    return Source(path.name, values, tuple(faults))


def _takes_booleans(annotation: Any) -> bool:
    return annotation is bool or bool in get_args(annotation)


def _kind(field: FieldInfo) -> str:
    number = str(field.annotation)
    return "a number" if "int" in number or "float" in number else "a text"


def as_flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def as_variable(name: str) -> str:
    return ENV_PREFIX + name.upper()
