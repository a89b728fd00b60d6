"""Settings from all places, or one sentence that says what is wrong with them."""

from typing import Any

from pydantic import ValidationError

from trioserve.errors import SettingsError
from trioserve.flags import canonical, shown
from trioserve.settings.places import Source, as_flag, as_variable, read_file, read_variables, source_of
from trioserve.settings.tree import Settings

EXIT_SETTINGS = 78
"""The exit code of a process whose settings are wrong."""
_NO_DEFAULT = "default_factory_not_called"
"""What pydantic says of a default that depends on other settings, when any of those is wrong."""


def load_settings(**flags: Any) -> Settings:
    """The settings of this process; ``flags`` win over environment and file and may be named as other servers do.

    Raises:
        SettingsError: A value is wrong or a name unknown; one sentence, each fault in it with what to change.
    """
    sources = read_sources(**flags)
    faults = [fault for source in sources for fault in source.faults]
    if not faults:
        try:
            return Settings(**sources[0].values)
        except ValidationError as exc:
            faults = [_describe(error, sources) for error in exc.errors() if error["type"] != _NO_DEFAULT]
        except ValueError as exc:  # a variable that should be JSON
            faults = [str(exc)]
    sentence = f"Bad settings: {'; '.join(faults)}"
    raise SettingsError(sentence if sentence.endswith("?") else sentence + ".")


def read_sources(**flags: Any) -> tuple[Source, Source, Source]:
    """Flags, variables and file, the one that wins first.

    Raises:
        SettingsError: The file is not there or is no TOML.
    """
    fields = Settings.model_fields
    values, faults = canonical(flags, fields, spell=as_flag)
    return Source("flag", values, tuple(faults)), read_variables(fields), read_file(fields)


def _describe(error: Any, sources: tuple[Source, ...]) -> str:
    """``port = 'x' (TRIOSERVE_PORT): input should be a valid integer``"""
    if not error["loc"]:
        return str(error["ctx"]["error"])
    name = str(error["loc"][0])
    label = source_of(name, sources)
    origin = {"flag": "", "default": "", "variable": f" ({as_variable(name)})"}.get(label, f" ({label})")
    message = error["msg"].removeprefix("Value error, ")
    return f"{name} = {shown(name, error['input'])}{origin}: {message[0].lower()}{message[1:]}"
