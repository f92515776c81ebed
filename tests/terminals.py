"""A command in a terminal of 80 columns."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from tests.conftest import DIGITS, FLOAT

WORDS = (
    *(str(DIGITS / "digits_cnn.onnx"), "--target", "x86-64", *FLOAT),
    *("--data", str(DIGITS / "digits.npz"), "--no-device"),
)


class Shown:
    """What a command wrote to a terminal of 80 columns, on both streams, and how it ended."""

    def __init__(self, words: tuple[str, ...], cwd: Path, **env: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
        with subprocess.Popen(
            [sys.executable, "-m", "onmetal", *words],
            cwd=cwd,
            env={**kept, "TERM": "xterm-256color", **env},
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            self.text = self._read(ours)
            self.code = process.wait(600)
        os.close(ours)

    def _read(self, ours: int) -> str:
        parts = []
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # so Linux says that the other end is closed
                break
            if not part:
                break
            parts.append(part)
        return b"".join(parts).decode()

    @property
    def lines(self) -> list[str]:
        """Everything that ever stood on a line, also what was rewritten; without colours."""
        plain = re.sub(r"\x1b\[[0-9;]*m", "", self.text).replace("\x1b[K", "")
        return re.split(r"\r\n|\r|\n", plain)
