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
    """The base class. `document`: what `--json` prints beside the error, if anything: a dictionary,
    or the report of a run. `details`: lines after the message; they are kept apart from it because
    untrusted names in them may contain line breaks."""

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
    """An input has free axes. For a target that needs static shapes it becomes UnsupportedError."""


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
"""Name -> class of the errors that child processes report by name."""


def named(error: BaseException) -> str:
    """The type and message of a library's exception; only the type where the message cannot be
    read.

    >>> named(ValueError("no"))
    'ValueError: no'
    """
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"
    except Exception:  # its own code fails, too
        return kind


def reason(error: Exception) -> str:
    """The informative lines of a runtime's exception, in at most 600 characters.

    The messages of runtimes contain call stacks and positions in source files, which are removed;
    the operator is named between them.
    """
    noise = ("Exception from", "Check '", "FrontEnd API failed", "Model wasn't fully", "Summary:")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    informative = [line for line in lines if not line.startswith(noise)]
    return " ".join((informative or lines or [type(error).__name__])[:3])[:600]
