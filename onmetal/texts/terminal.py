"""What a stream can show, and the one way to it: all that onmetal prints is written here, line by
line.

Names come from strangers: of files, tensors, operators, devices. A terminal obeys control
characters in them, and a line break could pass for a line of ours. So what is printed is a list of
lines, and whatever in one of them is no printable character is spelled, line breaks too. Colours
are marks until then: they become escape sequences last, so that none has to be let through.
"""

import json
import os
import re
import shutil
import textwrap
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TextIO

COLUMNS = 80
"""Of a file or a pipe, which has no width of its own."""
NARROWEST = 40
WIDEST_PROSE = 100
"""Longer lines of sentences are hard to read."""

Style = Literal["bold", "green", "yellow", "red", "dim"]
_CODES: dict[Style, str] = {"bold": "1", "green": "32", "yellow": "33", "red": "31", "dim": "2"}
_MARKS: dict[Style, str] = {style: chr(0xFDD0 + index) for index, style in enumerate(_CODES)}
"""What stands for a style in a text: characters that Unicode keeps out of all interchange."""
_END = chr(0xFDD0 + len(_CODES))
_SEQUENCES = {mark: f"\x1b[{_CODES[style]}m" for style, mark in _MARKS.items()} | {_END: "\x1b[0m"}


@dataclass(frozen=True)
class Screen:
    columns: int = COLUMNS
    colour: bool = False
    terminal: bool = False
    """Sentences are broken at words for a terminal; a file or a pipe gets each on one line."""

    def paint(self, text: str, style: Style) -> str:
        """With marks around it, which `write` makes colours of."""
        return f"{_MARKS[style]}{text}{_END}" if self.colour and text else text

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


def write(stream: TextIO, lines: Iterable[str]) -> None:
    """Whole lines, each cleaned."""
    colour = of(stream).colour
    stream.write("".join(f"{rendered(line, colour)}\n" for line in lines))


def write_json(stream: TextIO, encoded: bytes) -> None:
    """A document that `spelled` has been over; in ASCII where the stream has no more."""
    text = encoded.decode()
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        text = _BEYOND.sub(lambda match: json.dumps(match[0])[1:-1], text)
    stream.write(text)


def rewrite(stream: TextIO, text: str) -> None:
    """One line in the place of the one that the cursor is on; nothing clears that one."""
    line = pieces(clean(text), of(stream).columns - 1)[0]
    stream.write(f"\r\x1b[K{line}")


def rendered(line: str, colour: bool) -> str:
    """As the terminal gets it."""
    if not colour:
        return clean(line)
    parts = re.split(f"([{''.join(_SEQUENCES)}])", line)
    return "".join(_SEQUENCES.get(part) or clean(part) for part in parts)


def clean(text: str) -> str:
    """On one line, and without characters that a terminal obeys or that turn the direction of what
    follows: they are spelled.

    >>> clean("a\\x1b[31mb\\nc")
    'a\\\\x1b[31mb\\\\nc'
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or _joins(text, index) else _visible(letter)
        for index, letter in enumerate(text)
    )


def _visible(letter: str) -> str:
    """Blanks of every width as one, and where a word may be parted a hyphen."""
    if unicodedata.category(letter) == "Zs":
        return " "
    return "-" if letter == "\u00ad" else _escape(letter)


def _joins(text: str, index: int) -> bool:
    """Whether a character that nobody sees is of the word that it stands in: a joiner, or the tie
    that is none, between letters of a script that has them (Persian, Indic) or between pictures."""
    if text[index] not in _JOINERS or not 0 < index < len(text) - 1:
        return False
    return all(_joined(text[neighbour]) for neighbour in (index - 1, index + 1))


_JOINERS = "\u200c\u200d"


def _joined(letter: str) -> bool:
    """Signs that change the letter or the picture before them are a part of it."""
    return not letter.isascii() and unicodedata.category(letter) in ("Lo", "Mn", "Mc", "So", "Sk")


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode()


def spelled(encoded: bytes) -> bytes:
    """A JSON document whose strings hold no character but printable ones: the rest as escapes, so
    that it means the same. Blanks of every kind and joiners are escaped, too."""
    return _ODD.sub(lambda match: _as_json(match[0]), encoded.decode()).encode()


_ODD = re.compile(r"[^\n -~]")
_BEYOND = re.compile(r"[^\x00-\x7f]")


def _as_json(letter: str) -> str:
    return letter if letter.isprintable() else json.dumps(letter)[1:-1].replace("\x7f", "\\u007f")


def width(text: str) -> int:
    """In columns: letters of East Asia take two, marks and joiners none."""
    return sum(0 if unseen(letter) else 2 if wide(letter) else 1 for letter in text)


def unseen(letter: str) -> bool:
    return unicodedata.category(letter) in ("Mn", "Me", "Cf")


def wide(letter: str) -> bool:
    return unicodedata.east_asian_width(letter) in "WF"


def pad(text: str, columns: int, *, right: bool = False) -> str:
    space = " " * max(0, columns - width(text))
    return space + text if right else text + space


def pieces(text: str, columns: int) -> list[str]:
    """A text without spaces, cut where a line is full."""
    cut_lines = [""]
    for letter in text:
        if width(cut_lines[-1] + letter) > columns:
            cut_lines.append("")
        cut_lines[-1] += letter
    return cut_lines
