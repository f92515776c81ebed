"""Quotes untrusted names in the files that onmetal writes: one function for each language.

The author of a model chose the names of its tensors, its file and its classes; texts of devices and
libraries are arbitrary, too. None of them may end a literal, a comment or a table cell, add a line,
or be read as Markdown, a link or an instruction.
"""

import json
import re
from collections.abc import Callable

from onmetal.texts.terminal import clean

LONGEST = 200
"""The most characters of a name in a text for people; the manifest has the full name."""
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|#~&]|:(?=//)|(?<=\bwww)\.|@(?=[\w-]+\.)")
"""Characters that have a meaning in Markdown, and those that turn addresses into links."""


def code(text: str, *, cell: bool = False) -> str:
    """A code span of Markdown. `cell`: in a table, whose cells end at `|` even there.

    >>> code("a`b"), code("x"), code("a|b", cell=True)
    ('`` a`b ``', '`x`', '`a\\\\|b`')
    """
    text = _short(clean(text)).strip() or " "
    fence = _fence(text, 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text.replace('|', chr(92) + '|') if cell else text}{pad}{fence}"


def prose(text: str) -> str:
    """A sentence with names in it, in Markdown: it shows what it says, and nothing more.

    >>> prose("no *kernel* for <b> of https://x.y")
    'no \\\\*kernel\\\\* for \\\\<b\\\\> of https\\\\://x.y'
    """
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", clean(text))


def block(lines: list[str]) -> list[str]:
    """A fenced code block of Markdown that holds the lines."""
    lines = [clean(line) for line in lines]
    fence = _fence("".join(lines), 3)
    return [fence, *lines, fence]


def _fence(text: str, least: int) -> str:
    """At least `least` backticks, and more than the text has in a row."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def plain(text: str) -> str:
    """The text in ASCII for comments of every language and for a device's protocol, without
    characters that could end these."""
    return re.sub(r"[^\w .()+-]", "?", text, flags=re.ASCII)


def version(text: str) -> str:
    """The version of a package for a command or requirements.txt, without any other characters."""
    return re.sub(r"[^\w.!+-]", "?", text, flags=re.ASCII)


def c_string(text: str) -> str:
    """A C literal in UTF-8; `?` too is escaped, since two of them may begin a trigraph."""

    def spelled(character: str) -> str:
        return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogatepass"))

    return _literal(text, spelled, "?")


def kotlin_string(text: str) -> str:
    """A Kotlin literal: `$` would start a template."""

    def spelled(character: str) -> str:
        units = character.encode("utf-16-be", "surrogatepass")
        pairs = zip(units[::2], units[1::2], strict=True)
        return "".join(f"\\u{high:02x}{low:02x}" for high, low in pairs)

    return _literal(text, spelled, "$")


def _literal(text: str, spelled: Callable[[str], str], also: str) -> str:
    """The text in double quotes. `spelled` escapes each quote, backslash, character of `also`, and
    character that is not printable ASCII."""
    special = {'"', "\\", *also}
    inside = "".join(c if " " <= c <= "~" and c not in special else spelled(c) for c in text)
    return f'"{inside}"'


def toml_string(text: str) -> str:
    """A basic string of TOML; characters that are not printable are written as TOML's escapes."""

    def spelled(letter: str) -> str:
        number = ord(letter)
        return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"

    return "".join(
        c if c.isprintable() else spelled(c) for c in json.dumps(text, ensure_ascii=False)
    )
