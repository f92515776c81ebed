"""Writes everything that onmetal prints, line by line, as far as a stream can show it.

Names of files, tensors, operators and devices are untrusted. A terminal obeys control characters in
them, and text after a line break would look like a line of onmetal's own. So a text is printed as a
list of lines, and every character in a line that is not printable is replaced by its escape, line
breaks too. Colours are represented by marks until then: they become escape sequences last, so that
no escape sequence in a text has to be accepted.
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
"""The width of a file or a pipe, which has none of its own."""
NARROWEST = 40
WIDEST_PROSE = 100
"""The longest lines of sentences: longer ones are hard to read."""

Style = Literal["bold", "green", "yellow", "red", "dim"]
_CODES: dict[Style, str] = {"bold": "1", "green": "32", "yellow": "33", "red": "31", "dim": "2"}
_MARKS: dict[Style, str] = {style: chr(0xFDD0 + index) for index, style in enumerate(_CODES)}
"""Style -> its mark in a text: a noncharacter, which Unicode reserves from interchange."""
_END = chr(0xFDD0 + len(_CODES))
_SEQUENCES = {mark: f"\x1b[{_CODES[style]}m" for style, mark in _MARKS.items()} | {_END: "\x1b[0m"}


@dataclass(frozen=True)
class Screen:
    columns: int = COLUMNS
    colour: bool = False
    terminal: bool = False
    """Sentences are broken at words for a terminal; a file or a pipe gets each on one line."""

    def paint(self, text: str, style: Style) -> str:
        """The text with the marks of a style around it, which `write` turns into colours."""
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
    """Write a JSON document that `spelled` returned; in ASCII where the stream's encoding lacks
    characters of it."""
    text = encoded.decode()
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        text = _BEYOND.sub(lambda match: json.dumps(match[0])[1:-1], text)
    stream.write(text)


def rewrite(stream: TextIO, text: str) -> None:
    """Replace the line that the cursor is on; an empty text clears it."""
    line = pieces(clean(text), of(stream).columns - 1)[0]
    stream.write(f"\r\x1b[K{line}")


def rendered(line: str, colour: bool) -> str:
    """The line as it is written to the stream: cleaned, and with escape sequences for the marks
    where `colour` is set."""
    if not colour:
        return clean(line)
    parts = re.split(f"([{''.join(_SEQUENCES)}])", line)
    return "".join(_SEQUENCES.get(part) or clean(part) for part in parts)


def clean(text: str) -> str:
    """The text on one line, with escapes for characters that a terminal obeys or that change the
    direction of the text after them.

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
    """The replacement of a character that is not printable: a space for spaces of every width, a
    hyphen for a soft hyphen, else its escape."""
    if unicodedata.category(letter) == "Zs":
        return " "
    return "-" if letter == "\u00ad" else _escape(letter)


def _joins(text: str, index: int) -> bool:
    """Whether an invisible character is part of a word: a zero-width joiner or non-joiner between
    letters of a script that uses them (Persian, Indic) or between emoji."""
    if text[index] not in _JOINERS or not 0 < index < len(text) - 1:
        return False
    return all(_joined(text[neighbour]) for neighbour in (index - 1, index + 1))


_JOINERS = "\u200c\u200d"


def _joined(letter: str) -> bool:
    """Whether the character is a letter or an emoji that joiners may connect, or a combining sign
    of one."""
    return not letter.isascii() and unicodedata.category(letter) in ("Lo", "Mn", "Mc", "So", "Sk")


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode()


def spelled(encoded: bytes) -> bytes:
    """The same JSON document with escapes for all characters that are not printable, which include
    joiners and every space but the common one."""
    return _ODD.sub(lambda match: _as_json(match[0]), encoded.decode()).encode()


_ODD = re.compile(r"[^\n -~]")
_BEYOND = re.compile(r"[^\x00-\x7f]")


def _as_json(letter: str) -> str:
    return letter if letter.isprintable() else json.dumps(letter)[1:-1].replace("\x7f", "\\u007f")


def width(text: str) -> int:
    """The width in columns: wide East Asian characters take two, combining marks and joiners
    none."""
    return sum(0 if unseen(letter) else 2 if wide(letter) else 1 for letter in text)


def unseen(letter: str) -> bool:
    return unicodedata.category(letter) in ("Mn", "Me", "Cf")


def wide(letter: str) -> bool:
    return unicodedata.east_asian_width(letter) in "WF"


def pad(text: str, columns: int, *, right: bool = False) -> str:
    space = " " * max(0, columns - width(text))
    return space + text if right else text + space


def pieces(text: str, columns: int) -> list[str]:
    """The text cut into pieces of at most `columns` columns each."""
    cut_lines = [""]
    for letter in text:
        if width(cut_lines[-1] + letter) > columns:
            cut_lines.append("")
        cut_lines[-1] += letter
    return cut_lines
