"""Makes SIGTERM and SIGHUP end a command as ^C does, with all clean-up."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

TIDYING_S = 60.0
"""How long the clean-up may wait for a device that does not answer, before another signal ends
it."""


ENDING = (signal.SIGTERM, signal.SIGHUP)
"""SIGTERM is sent by `kill` and by systems that shut down, SIGHUP by a terminal or a connection
that is closed."""


class Terminate(KeyboardInterrupt):
    """Raised for SIGTERM and SIGHUP; code that cleans up after ^C cleans up after it, too."""

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Inside the block, SIGTERM and SIGHUP end the run as ^C does, so that temporary files here and
    on a device are removed; by default Python would leave them. A further signal within TIDYING_S
    does not interrupt the clean-up. A signal that is ignored already, as under `nohup`, stays
    ignored."""
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
