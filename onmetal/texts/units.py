"""Parses quantities with units from the command line, and formats quantities for people.

Nothing heavy is imported here: the command line imports this module before it answers `--help`.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from onmetal.errors import UsageError

_MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4, "h": 3.6e6}
_BYTES = {"b": 1}
_BYTES |= {f"{letter}{end}": 1000**n for n, letter in enumerate("kmg", 1) for end in ("b", "")}
_BYTES |= {f"{letter}{end}": 1024**n for n, letter in enumerate("kmg", 1) for end in ("ib", "i")}
_MILLIJOULES = {"uj": 1e-3, "μj": 1e-3, "mj": 1.0, "j": 1e3}
"""Units in small letters (of the two signs for micro, the Greek one), as `_number` reads them."""


class Share(NamedTuple):
    """`50%` of something that is known only later; `value` is the fraction, 0.5."""

    value: float

    def of(self, whole: int) -> int:
        """29 % of 100 is 29, though 0.29 * 100 is less: shares are meant as they are written."""
        return int(Fraction(repr(self.value)) * whole)


MOST = 10**18
"""The largest limit in any unit; a larger number is a typing error."""


# --- parsing


def _number(text: str, option: str, units: Mapping[str, float], *examples: str) -> Fraction:
    """The number times the factor of its unit, exactly. Units are read in any case. `examples`:
    units to suggest where the text has none. Raises UsageError."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Zµμ%]*)\s*", text)
    if match and not match[2] and len(match[1]) <= 100:
        likely = " or ".join(match[1] + unit for unit in examples)
        raise UsageError(f"{option} {text}: it has no unit; did you mean {likely}?")
    unit = match[2].casefold() if match else ""
    if match is None or unit not in units or len(match[1]) > 100:
        known = ", ".join(name for name in units if name not in ("μs", "μj"))
        raise UsageError(
            f"{option} {text}: write a number and its unit, like 20{examples[0]}; units are {known}"
        )
    number = Fraction(match[1]) * Fraction(repr(units[unit]))
    if not 0 < number <= MOST:
        raise UsageError(f"{option} {text}: must be more than zero and no more than {MOST:g}")
    return number


def parse_ms(text: str, option: str = "--max-latency") -> float:
    """
    >>> parse_ms("20ms"), parse_ms("1.5s"), parse_ms("30min")
    (20.0, 1500.0, 1800000.0)
    """
    likely = ("min", "s") if option == "--time-limit" else ("ms",)
    return float(_number(text, option, _MILLISECONDS, *likely))


def parse_bytes(text: str, option: str) -> int:
    """kB, MB, GB are powers of 1000; KiB, MiB, GiB of 1024; in any case, and without their B.

    >>> parse_bytes("4mb", "--max-size"), parse_bytes("4M", "--max-size")
    (4000000, 4000000)
    >>> parse_bytes("4MiB", "--max-size")
    4194304
    """
    count = int(_number(text, option, _BYTES, "MB", "kB"))
    if count < 1:
        raise UsageError(f"{option} {text}: must be a byte or more")
    return count


def parse_mj(text: str, option: str = "--max-energy") -> float:
    """
    >>> parse_mj("5mJ"), parse_mj("1J")
    (5.0, 1000.0)
    """
    if text.strip().endswith("MJ"):  # 10**9 times as much as mJ: read in any case, but not so far
        likely = text.strip()[:-2].strip() + "mJ"
        raise UsageError(f"{option} {text}: these are megajoules; did you mean {likely}?")
    return float(_number(text, option, _MILLIJOULES, "mJ"))


def parse_share(text: str, option: str) -> Share:
    """
    >>> parse_share("1%", "--max-accuracy-drop").value
    0.01
    """
    if re.fullmatch(r"\s*0*\.?0*\s*%\s*", text) and "0" in text:
        return Share(0.0)
    return Share(float(_number(text, option, {"%": 0.01}, "%")))


def parse_share_above_zero(text: str, option: str) -> Share:
    share = parse_share(text, option)
    if not share.value:
        raise UsageError(f"{option} {text}: nothing is that small; write a part, like 50%")
    return share


def parse_share_or_number(text: str, option: str) -> Share | float:
    if text.strip().endswith("%"):
        return parse_share(text, option)
    try:
        number = float(text)
    except ValueError:
        raise UsageError(
            f"{option} {text}: write a percentage like 1%, or a plain number in the metric's own "
            "units like 0.01"
        ) from None
    if not 0 <= number <= MOST:
        raise UsageError(f"{option} {text}: must be a finite number, zero or more")
    return number


def parse_share_or_bytes(text: str, option: str) -> Share | int:
    if text.strip().endswith("%"):
        return parse_share_above_zero(text, option)
    if re.fullmatch(r"\s*[0-9.]+\s*", text):
        number = text.strip()
        raise UsageError(f"{option} {text}: it has no unit; did you mean {number}% or {number}kB?")
    return parse_bytes(text, option)


# --- formatting


BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
TIMES = (("s", 1e3), ("ms", 1.0), ("µs", 1e-3))
"""(unit, its factor to the base unit: a byte or a millisecond), the largest unit first."""


def size(count: float) -> str:
    """
    >>> [size(count) for count in (500, 1000, 435_204)]
    ['500 B', '1 kB', '435 kB']
    """
    for unit, scale in BYTES:
        if count >= scale > 1:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def milliseconds(value: float) -> str:
    """
    >>> [milliseconds(value) for value in (0.1234, 12.3456)]
    ['0.123 ms', '12.35 ms']
    """
    return f"{value:.4g} ms" if value >= 1 else f"{value:.3f} ms"


def rate(per_second: float) -> str:
    """
    >>> [rate(value) for value in (12.345, 1234.5)]
    ['12.3', '1,234']
    """
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"
