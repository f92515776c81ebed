"""Suggests known words that are similar to an unknown one: `did you mean …?`"""

from collections.abc import Iterable
from pathlib import Path

SIMILAR = 0.6
"""From this ratio of difflib on, two words are alike; a swapped or a missing letter is over 0.8."""
SHORTEST_PREFIX = 3
LISTED_FILES = 3


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no known word is like it. Case does not count.

    >>> did_you_mean("--max-acc", ["--max-macs", "--max-accuracy-drop"])
    '; did you mean --max-accuracy-drop?'
    """
    likely = alike(word, known)
    return f"; did you mean {' or '.join(likely)}?" if likely else ""


def alike(word: str, known: Iterable[str]) -> list[str]:
    """Known words that begin with this one, else the one that is most like it; at most two."""
    import difflib

    folded = {name.casefold(): name for name in known}
    folded_word = word.casefold()
    longer = [name for name in folded if name.startswith(folded_word)]
    if longer and len(folded_word.lstrip("-")) >= SHORTEST_PREFIX:
        return [folded[name] for name in sorted(longer, key=len)[:2]]
    return [folded[name] for name in difflib.get_close_matches(folded_word, folded, 1, SIMILAR)]


def near(path: Path, suffixes: tuple[str, ...]) -> str:
    """A suggestion for a file that does not exist: a similar name in its folder, else the files of
    that kind in the folder, else that the folder is missing too; an empty text where there is
    none."""
    folder = path.parent
    if not folder.is_dir():
        return f"; there is no folder {folder} either"
    try:
        names = sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.suffix.lower() in suffixes or (entry.is_dir() and "" in suffixes)
        )
    except OSError:
        return ""
    visible = [name for name in names if not name.startswith(".")]
    if likely := alike(path.name, visible):
        return f"; did you mean {' or '.join(str(folder / name) for name in likely)}?"
    files = [name for name in visible if (folder / name).is_file()]
    if not 0 < len(files) <= LISTED_FILES:
        return ""
    return f"; the folder {folder} has: {', '.join(files)}"
