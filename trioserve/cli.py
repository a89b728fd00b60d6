"""``trioserve serve [MODEL] ...``: flags to Settings, nothing else; other commands read their own."""

import argparse
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from pydantic.fields import FieldInfo

from trioserve import __version__
from trioserve.errors import SettingsError
from trioserve.flags import ALIASES, SHORT_FLAGS, aliases_of, canonical, shown
from trioserve.not_obeyed import NOT_OBEYED
from trioserve.settings import (
    ENV_PREFIX,
    EXIT_SETTINGS,
    GROUPS,
    Settings,
    load_settings,
    read_sources,
    source_of,
)

_EPILOG: Final = f"""\
Every flag is also a variable ({ENV_PREFIX}MAX_NUM_SEQS) and a key of
trioserve.toml (max_num_seqs); flags win over variables, variables over the
file. --flag VALUE may be written --flag=VALUE, dashes as underscores; a BOOL
flag alone means true, and --no-flag false. Times are in seconds."""

_WORDS: Final = frozenset({"true", "false", "1", "0", "yes", "no", "on", "off"})
"""What may follow a switch as its value."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["chat"]:
        return _chat(words[1:])
    if words[:1] == ["check"]:
        return _check(words[1:])
    if words[:1] == ["join"]:
        return _join(words[1:])
    try:
        arguments = _parse(words)
        del arguments["command"]
        if arguments.pop("show_settings", False):
            print(_shown_settings(arguments))
            return 0
        return _serve(load_settings(**arguments))
    except SettingsError as exc:
        print(f"trioserve: {exc}", file=sys.stderr)
        return EXIT_SETTINGS


def _chat(words: Sequence[str]) -> int:
    from trioserve.client.terminal import main as chat  # servers need no client

    return chat(words)


def _join(words: Sequence[str]) -> int:
    from trioserve.joiner import main as join  # servers join nobody

    return join(words)


def _check(words: Sequence[str]) -> int:
    """In a process of its own: kernels are the works', which the front never loads."""
    return subprocess.run([sys.executable, "-m", "trioserve.kernels", *words], check=False).returncode


def _parse(argv: Sequence[str]) -> dict[str, Any]:
    """What the command line says, by name; a setting that it does not name is left out.

    Raises:
        SettingsError: A flag is unknown or lacks its value, or something is given twice.
    """
    words = _spelled(argv) if argv and argv[0] == "serve" else list(argv)
    namespace, rest = _parser().parse_known_args(words)
    arguments = {name: value for name, value in vars(namespace).items() if value is not None}
    for word in rest:
        raise SettingsError(_complaint(word))
    model = arguments.pop("MODEL", None)
    for name in ("model", *aliases_of("model")) if model is not None else ():
        if arguments.setdefault(name, model) != model:
            raise SettingsError(f"MODEL = {model!r} and {_flag(name)} = {arguments[name]!r}: leave one out.")
    return arguments


def _complaint(word: str) -> str:
    """What to say of a word that nobody wants."""
    if not word.startswith("-"):
        return f"{word!r} is one MODEL too many, or a value that its flag does not take: leave it out."
    flag = word.partition("=")[0]
    _, faults = canonical({flag.lstrip("-").replace("-", "_"): None}, Settings.model_fields, spell=_flag)
    return faults[0] if faults else f"{flag} is not a flag: did you mean -{flag}?"


def _serve(settings: Settings) -> int:
    _end_when_told()
    from trioserve.app import run_server  # the parser answers --help without loading the server

    return run_server(settings)


def _end_when_told() -> None:
    """Until the server takes the signals over, once it is imported, there is nothing to drain."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: os._exit(0))


def _shown_settings(flags: dict[str, Any]) -> str:
    """Every setting with where it comes from, as a trioserve.toml would have it."""
    settings, sources = load_settings(**flags), read_sources(**flags)
    lines = []
    for group in GROUPS:
        lines.append(f"# {group.__doc__}")
        for name in group.model_fields:
            value = getattr(settings, name)
            text = json.dumps(value if shown(name, 0) == "0" or not value else "***", default=str)
            entry = f"# {name}" if value is None else f"{name} = {text}"
            lines.append(f"{entry:44} # {source_of(name, sources)}")
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """Complains as settings do."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}: see trioserve serve --help.")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Eighty columns, or what the terminal has up to a hundred."""

    def __init__(self, prog: str) -> None:
        columns = int(os.environ.get("COLUMNS", "0") or 0) or _terminal_columns()
        super().__init__(prog, max_help_position=28, width=min(max(columns, 60), 100) - 2)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def _terminal_columns() -> int:
    try:
        return os.get_terminal_size().columns
    except OSError:
        return 80


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trioserve", description="An OpenAI-compatible server for language models."
    )
    parser.add_argument("--version", action="version", version=f"trioserve {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    serve = commands.add_parser(
        "serve",
        help="serve a model over HTTP",
        usage="trioserve serve [MODEL] [--flag VALUE ...]",
        description="Serve a model over HTTP.",
        epilog=_EPILOG,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    serve.add_argument("MODEL", nargs="?", help="the same as --model")
    serve.add_argument(
        "--show-settings",
        action="store_true",
        help="print every setting and where it comes from, then end",
    )
    commands.add_parser("chat", help="talk to a server in the terminal", add_help=False)
    commands.add_parser("join", help="lend ranks of this machine to a server on another", add_help=False)
    commands.add_parser("check", help="compile the CUDA kernels beforehand", add_help=False)
    for settings_group in GROUPS:
        group = serve.add_argument_group(settings_group.__doc__)
        for name, field in settings_group.model_fields.items():
            _add_flag(group, name, field, help=_help(name, field))
    for alias, name in ALIASES.items():
        if name in Settings.model_fields:
            _add_flag(serve, alias, Settings.model_fields[name], help=argparse.SUPPRESS)
    for name in {*NOT_OBEYED, *ALIASES}:
        if ALIASES.get(name, name) not in Settings.model_fields:
            serve.add_argument(_flag(name), dest=name, nargs="*", action=_Joined, help=argparse.SUPPRESS)
    return parser


class _Joined(argparse.Action):
    """The values of a flag that is not obeyed, as one text."""

    def __call__(self, _parser: Any, namespace: Any, values: Any, _option: Any = None) -> None:
        setattr(namespace, self.dest, " ".join(values))


def _add_flag(group: Any, name: str, field: FieldInfo, **options: Any) -> None:
    """A flag hands its text on; the settings parse and check it, so that flag, variable and file agree."""
    if field.annotation in (bool, bool | None):
        group.add_argument(_flag(name), dest=name, metavar="BOOL", **options)
    elif isinstance(field.default, tuple):
        group.add_argument(_flag(name), dest=name, nargs="+", action="extend", metavar="NAME", **options)
    else:
        metavar = ALIASES.get(name, name).rsplit("_", 1)[-1].upper()
        group.add_argument(_flag(name), dest=name, metavar=metavar, **options)


def _spelled(argv: Sequence[str]) -> list[str]:
    """The words of a command line with its flags in one spelling: dashes, and switches with a value."""
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = SHORT_FLAGS.get(name, name)
        if not name.startswith("--") or name == "--":
            words.append(word)
            continue
        flag = name.replace("_", "-")
        positive = "--" + flag.removeprefix("--no-")
        if equals or (flag not in _SWITCHES and positive not in _SWITCHES):
            words.append(flag + equals + value)
        elif flag not in _SWITCHES:
            words.append(f"{positive}=false")
        else:
            words.append(f"{flag}={rest.pop(0) if rest and rest[0].lower() in _WORDS else 'true'}")
    return words


def _help(name: str, field: FieldInfo) -> str:
    text = (field.description or "").replace("``", "").replace("\n", " ").strip()
    also = ", ".join(map(_flag, aliases_of(name)))
    shown_default = field.default if field.default_factory is None else field.default_factory
    default = "" if shown_default in (None, ()) else f" [{_toml(shown_default)}]"
    return (text + default + (f" Also {also}." if also else "")).replace("%", "%%")


def _toml(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, bool | tuple) else str(value)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


_BOOLEANS: Final = [name for name, field in Settings.model_fields.items() if field.annotation is bool]
_SWITCHES: Final = frozenset(
    [_flag(alias) for name in _BOOLEANS for alias in (name, *aliases_of(name))]
    + [_flag(name) for name, entry in NOT_OBEYED.items() if entry.is_switch]
)


if __name__ == "__main__":
    sys.exit(main())
