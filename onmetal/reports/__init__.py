"""Reports: the typed record of a run (record.py), and the forms that render it.

One more form is one more module here that has what Form says.
"""

from typing import Protocol

from onmetal.reports.record import AnyReport
from onmetal.texts.terminal import Screen


class Form(Protocol):
    """A way to show the record; a module with this function is one."""

    def render(self, report: AnyReport, screen: Screen) -> list[str] | bytes:
        """Lines for people, or the bytes of a file. It reads the record alone: no trial, no
        measurement and no device is asked again. `screen`: where lines are shown, which are to be
        no wider, and what it can show."""
