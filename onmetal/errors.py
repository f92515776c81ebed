"""Every way a command can stop, each with its own exit code.

==================  ====  ============================================================
class               code  what it means
==================  ====  ============================================================
UsageError             2  the command line, a file, the data or a budget is wrong
UnsupportedError       3  the model is readable, but this target cannot run it
DeviceError            4  the device is missing, unfit or failed
BudgetError            5  no candidate meets the budget
VerificationError      6  a bundle failed verification
HungUp               129  SIGHUP, as a terminal or a connection sends it that is closed
Interrupted          130  ^C
Terminated           143  SIGTERM, as `kill` and systems that shut down send it
==================  ====  ============================================================

Anything else is a defect of onmetal itself (1). A message says what happened, why, and what to do.
"""

from collections.abc import Sequence
from typing import Any


class OnmetalError(Exception):
    """The root. `document` is what `--json` prints beside the error, where there is more to say: a
    dictionary, or the report of a run. `details` are lines that follow the message: names in them
    may hold line breaks, which are not ours."""

    exit_code = 1

    def __init__(
        self,
        message: str,
        document: Any = None,
        details: Sequence[str] = (),
    ) -> None:
        self.lines = (message, *(f"  {line}" for line in details))
        super().__init__("\n".join(self.lines))
        self.document = document


class UsageError(OnmetalError):
    exit_code = 2


class ShapeError(UsageError):
    """An input has free axes. Where a target wants static shapes, that is UnsupportedError."""


class UnsupportedError(OnmetalError):
    exit_code = 3


class NeedlessError(UnsupportedError):
    """A candidate that could be made but would gain nothing: it is skipped."""


class DeviceError(OnmetalError):
    exit_code = 4


class BudgetError(OnmetalError):
    exit_code = 5


class VerificationError(OnmetalError):
    exit_code = 6


class HungUp(OnmetalError):
    exit_code = 129


class Interrupted(OnmetalError):
    exit_code = 130


class Terminated(OnmetalError):
    exit_code = 143


BY_NAME: dict[str, type[OnmetalError]] = {
    kind.__name__: kind
    for kind in (
        UsageError,
        ShapeError,
        UnsupportedError,
        NeedlessError,
        DeviceError,
        BudgetError,
        VerificationError,
    )
}
"""How an error that a child process reports by name becomes an exception again."""


def named(error: BaseException) -> str:
    """A foreign exception by its type and message; of one whose message cannot be read, the type.

    >>> named(ValueError("no"))
    'ValueError: no'
    """
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"
    except Exception:  # its own code fails, too
        return kind


def reason(error: Exception) -> str:
    """What a runtime's exception says went wrong, in at most 600 characters.

    Their messages bring call stacks and positions in sources; the operator is named among them.
    """
    noise = ("Exception from", "Check '", "FrontEnd API failed", "Model wasn't fully", "Summary:")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    informative = [line for line in lines if not line.startswith(noise)]
    return " ".join((informative or lines or [type(error).__name__])[:3])[:600]
