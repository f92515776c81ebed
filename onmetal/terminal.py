"""What a stream can show: its width and whether colours mean something to it."""

import os
import shutil
import textwrap
import unicodedata
from dataclasses import dataclass
from typing import Literal, TextIO

COLUMNS = 80
"""Of a file or a pipe, which has no width of its own."""
NARROWEST = 40
WIDEST_PROSE = 100
"""Longer lines of sentences are hard to read."""

Style = Literal["bold", "green", "yellow", "red", "dim"]
_CODES: dict[Style, str] = {"bold": "1", "green": "32", "yellow": "33", "red": "31", "dim": "2"}


@dataclass(frozen=True)
class Screen:
    columns: int = COLUMNS
    colour: bool = False
    terminal: bool = False
    """Sentences are broken at words for a terminal; a file or a pipe gets each on one line."""

    def paint(self, text: str, style: Style) -> str:
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self.colour and text else text

    def prose(self, text: str, indent: str = "") -> list[str]:
        """A sentence as lines; those after the first are indented by two more."""
        if not self.terminal:
            return [indent + text]
        width = min(self.columns, WIDEST_PROSE)
        return textwrap.wrap(
            text,
            width,
            initial_indent=indent,
            subsequent_indent=indent + "  ",
            break_on_hyphens=False,
        )


PLAIN = Screen()


def of(stream: TextIO) -> Screen:
    """Colours are off where NO_COLOR is set, and on a terminal that knows none (TERM=dumb)."""
    if not is_terminal(stream):
        return Screen()
    columns = max(NARROWEST, shutil.get_terminal_size((COLUMNS, 24)).columns)
    return Screen(columns, not os.environ.get("NO_COLOR") and rewrites(stream), terminal=True)


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # it was closed
        return False


def rewrites(stream: TextIO) -> bool:
    """Whether the stream is a terminal that understands escape sequences."""
    return is_terminal(stream) and os.environ.get("TERM", "dumb") not in ("", "dumb")


def clean(text: str) -> str:
    """Without control characters: names in model files may hold some, which a terminal obeys.

    >>> clean("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    if text.isprintable():
        return text
    return "".join(
        letter
        if letter.isprintable() or letter in "\n "
        else letter.encode("unicode_escape", "backslashreplace").decode()
        for letter in text
    )


def width(text: str) -> int:
    """In columns: letters of East Asia take two, combining marks none."""
    return sum(0 if unicodedata.combining(letter) else 2 if wide(letter) else 1 for letter in text)


def wide(letter: str) -> bool:
    return unicodedata.east_asian_width(letter) in "WF"


def pad(text: str, columns: int, *, right: bool = False) -> str:
    space = " " * max(0, columns - width(text))
    return space + text if right else text + space


def pieces(text: str, columns: int) -> list[str]:
    """A text without spaces, cut where a line is full."""
    found = [""]
    for letter in text:
        if width(found[-1] + letter) > columns:
            found.append("")
        found[-1] += letter
    return found
