"""SIGTERM and SIGHUP end a command as ^C does: tidily."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

TIDYING_S = 60.0
"""A device that does not answer any more is waited for no longer."""


ENDING = (signal.SIGTERM, signal.SIGHUP)
"""As `kill` sends it and systems that shut down; as a terminal or a connection that is closed."""


class Terminate(KeyboardInterrupt):
    """All that tidies up after ^C does so after it."""

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """While it lasts SIGTERM and SIGHUP end the run as ^C does, with nothing left behind here or on
    a device; another one does not disturb that soon. Python would leave all of it where it is. One
    that is ignored already stays so: `nohup` has asked for that."""
    first_s: float | None = None

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal first_s
        if first_s is None or time.monotonic() - first_s > TIDYING_S:
            first_s = time.monotonic()
            raise Terminate(number)

    in_main_thread = threading.current_thread() is threading.main_thread()
    handled = [n for n in ENDING if in_main_thread and signal.getsignal(n) == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL if first_s is None else signal.SIG_IGN)
