"""Reports: the typed record of a run (record.py), and the forms that render it.

A module in this folder with the function of the protocol Form adds a form.
"""

from typing import Protocol

from onmetal.reports.record import AnyReport
from onmetal.texts.terminal import Screen


class Form(Protocol):
    """A module that renders the record."""

    def render(self, report: AnyReport, screen: Screen) -> list[str] | bytes:
        """Lines for people, or the bytes of a file, from the record alone. `screen`: the width that
        lines may have, and what the stream can show."""
