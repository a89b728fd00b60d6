"""``trioserve serve [MODEL] ...``: flags to Settings, nothing else; ``trioserve chat`` reads its own."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Final

from pydantic.fields import FieldInfo

from trioserve import __version__
from trioserve.errors import SettingsError
from trioserve.settings import ENV_PREFIX, EXIT_SETTINGS, GROUPS, Settings, load_settings

_EPILOG: Final = f"""\
Every flag is also a variable ({ENV_PREFIX}MAX_NUM_SEQS) and a key of trioserve.toml (max_num_seqs);
flags win over variables, variables over the file. Times are in seconds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["chat"]:
        return _chat(words[1:])
    arguments = vars(_parser().parse_args(words))
    del arguments["command"]
    try:
        settings = load_settings(**{name: value for name, value in arguments.items() if value is not None})
        return _serve(settings)
    except SettingsError as exc:
        print(f"trioserve: {exc}", file=sys.stderr)
        return EXIT_SETTINGS


def _chat(words: Sequence[str]) -> int:
    from trioserve.client.terminal import main as chat  # servers need no client

    return chat(words)


def _serve(settings: Settings) -> int:
    from trioserve.app import Application  # the parser answers --help without loading the server
    from trioserve.server.run import run

    return run(Application(settings), settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trioserve", description="An OpenAI-compatible server for language models."
    )
    parser.add_argument("--version", action="version", version=f"trioserve {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve a model over HTTP",
        usage="trioserve serve [MODEL] [--flag VALUE ...]",
        description="Serve a model over HTTP.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands.add_parser("chat", help="talk to a server in the terminal", add_help=False)
    serve.add_argument("model", nargs="?", metavar="MODEL", help=_help(Settings.model_fields["model"]))
    for settings_group in GROUPS:
        group = serve.add_argument_group(settings_group.__doc__)
        for name, field in settings_group.model_fields.items():
            if name != "model":
                _add_flag(group, name, field)
    return parser


def _add_flag(group: Any, name: str, field: FieldInfo) -> None:
    """A flag hands its text on; the settings parse and check it, so that flag, variable and file agree."""
    flag, options = "--" + name.replace("_", "-"), {"dest": name, "default": None, "help": _help(field)}
    if field.annotation is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
    elif isinstance(field.default, tuple):
        group.add_argument(flag, nargs="+", action="extend", metavar="NAME", **options)
    else:
        group.add_argument(flag, metavar=name.rsplit("_", 1)[-1].upper(), **options)


def _help(field: FieldInfo) -> str:
    text = (field.description or "").replace("``", "").replace("\n", " ")
    default = "" if field.default in (None, ()) else f" [{field.default}]"
    return (text + default).strip().replace("%", "%%")


if __name__ == "__main__":
    sys.exit(main())
