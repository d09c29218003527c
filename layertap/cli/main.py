"""The console script: runs a command, prints what went wrong, and exits with its code."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import typer

from layertap.cli.app import app
from layertap.cli.format import error_data, json_wanted, printable
from layertap.cli.options import print_json
from layertap.cli.signals import Stopped, catch_signals, let_signals_end
from layertap.cli.streams import whole_streams
from layertap.errors import BUG, CONFIG, ConfigError, LayertapError

# A wrong command line raises click's ClickException. Newer versions of typer contain their own copy of click,
# and then the class is not that of the package click, which may not be installed at all.
_UsageFault: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


def main() -> NoReturn:
    """The console script: runs a command and exits with its code. The process, with its signals, is layertap's own."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding cannot represent must not fail a finished run.
        sys.stdout.reconfigure(errors="backslashreplace")
    with whole_streams() as ended:
        ended.code = _code(json_wanted(sys.argv[1:]))
    let_signals_end()
    sys.exit(ended.code)


def _code(as_json: bool) -> int | None:
    """The exit code of the command. Errors are printed on stderr, a line each, and with `--json` on stdout too."""
    faults: Sequence[LayertapError] = ()
    try:
        catch_signals()
        return cast("int | None", typer.main.get_command(app).main(standalone_mode=False))
    except _UsageFault as error:
        error.show()
        code, faults = CONFIG, [ConfigError(error.format_message())]
    except LayertapError as error:
        for fault in error.faults:
            typer.echo(printable(str(fault)), err=True)
        _print_notes(error)
        code, faults = error.code, error.faults
    except Stopped as stopped:
        said = "stopped; what is committed is kept: run the same command again to resume"
        typer.echo(said, err=True)
        _print_notes(stopped)
        code, faults = stopped.code, [LayertapError(said, code=stopped.code)]
        stopped.last_resort.cancel()
    except Exception as error:
        if as_json:
            print_json(error_data(BUG, [LayertapError(f"{type(error).__name__}: {error}")]))
        raise
    if as_json:
        print_json(error_data(code, faults))
    return code


def _print_notes(error: BaseException) -> None:
    """Print what went wrong after the error, such as in a sink's `abort`."""
    for note in getattr(error, "__notes__", []):
        typer.echo(printable(" ".join(note.splitlines())), err=True)
