"""SIGINT and SIGTERM: the first signal ends a command cleanly and soon, the second at once."""

from __future__ import annotations

import os
import signal
import threading
from typing import NoReturn

from layertap.errors import INTERRUPTED, TERMINATED

# Seconds from the first signal to the end, whatever is still running.
_PATIENCE = 4.0


class Stopped(BaseException):
    """SIGINT or SIGTERM, on its way out through every `finally`; unlike KeyboardInterrupt, typer lets it pass."""

    def __init__(self, code: int) -> None:
        self.code = code
        # Cleanup that hangs must not keep the process alive: nothing is lost by ending at any moment.
        self.last_resort = threading.Timer(_PATIENCE, os._exit, [code])
        self.last_resort.daemon = True
        self.last_resort.start()


def catch_signals() -> None:
    """From here on, the first signal raises `Stopped`, and a second one leaves at once."""
    _catch(signal.SIGTERM, TERMINATED)
    _catch(signal.SIGINT, INTERRUPTED)


def let_signals_end() -> None:
    """Restore the default signals once a command is done: the interpreter's shutdown cannot handle an exception."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _catch(number: signal.Signals, code: int) -> None:
    def stop(received: int, frame: object) -> NoReturn:
        signal.signal(number, leave)
        raise Stopped(code)

    def leave(received: int, frame: object) -> NoReturn:
        os._exit(code)

    # A process that was started with a signal ignored (nohup, a shell's background) keeps ignoring it.
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, stop)
