"""The one place where typer enters: how our commands meet their users."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer  # noqa: TID251 - this is the place
from rich.console import Console

from pipeline.errors import UserError

__all__ = ["Argument", "Exit", "Option", "UserError", "console", "run"]

Argument, Exit, Option = typer.Argument, typer.Exit, typer.Option
console = Console(width=None if sys.stdout.isatty() else 120)  # a log file has room for a table
# Typer exports no name for click's root of usage errors, and which click it uses depends on its version.
_USAGE_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def run(command: Callable[..., Any], *, name: str | None = None) -> NoReturn:
    """Run one function as a command line program.

    A user's mistake (a `UserError`, or a flag that does not exist) becomes one line on standard error and exit
    code 2; anything else keeps its traceback, because it is ours to mend.

    Args:
        command: A function with Typer's annotations; its docstring is the help text.
        name: What `--help` calls the program; its file's name by default.
    """
    if callable(signal.getsignal(signal.SIGINT)):  # a tool ended at once while it was imported; ignored stays ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(no_args_is_help=False)(command)
    try:
        code = app(prog_name=name, standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except _USAGE_ERROR as error:
        _fail(error.format_message().rstrip(".") + _given_value(error) + ". See --help.")
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _given_value(error: Any) -> str:
    """Quote what the user gave for the flag that an error is about; Typer's own message leaves it out."""
    flags = getattr(getattr(error, "param", None), "opts", ())
    values = [value for flag, value in zip(sys.argv, sys.argv[1:], strict=False) if flag in flags]
    return f" (given: {values[-1]})" if values else ""


def _fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
