"""SIGINT and SIGTERM: the first ends a command in good order and soon, the second at once."""

from __future__ import annotations

import os
import signal
import threading
from typing import NoReturn

from layertap.errors import INTERRUPTED, TERMINATED

# Seconds from the first signal to the end, whatever is still going on.
_PATIENCE = 4.0


class Stopped(BaseException):
    """SIGINT or SIGTERM, on its way out through every `finally`; unlike KeyboardInterrupt, typer lets it pass."""

    def __init__(self, code: int) -> None:
        self.code = code
        # What hangs on the way out must not keep the process: nothing is lost by leaving at any moment.
        self.last_resort = threading.Timer(_PATIENCE, os._exit, [code])
        self.last_resort.daemon = True
        self.last_resort.start()


def catch_signals() -> None:
    """From here on, the first signal raises `Stopped`, and a second one leaves at once."""
    _catch(signal.SIGTERM, TERMINATED)
    _catch(signal.SIGINT, INTERRUPTED)


def let_signals_end() -> None:
    """All is said and done: what is left is the interpreter's own end, which has no place for an exception."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _catch(number: signal.Signals, code: int) -> None:
    def stop(received: int, frame: object) -> NoReturn:
        signal.signal(number, leave)
        raise Stopped(code)

    def leave(received: int, frame: object) -> NoReturn:
        os._exit(code)

    # Who was started with a signal ignored (nohup, a shell's background) shall go on ignoring it.
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, stop)
