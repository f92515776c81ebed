"""Limits that a deployment must meet, from the words on the command line to objections."""

import math
import re
from collections.abc import Mapping
from fractions import Fraction

from msgspec import Struct

from onmetal.errors import UsageError
from onmetal.records import Trial

_MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4, "h": 3.6e6}
_BYTES = {"b": 1}
_BYTES |= {f"{letter}{end}": 1000**n for n, letter in enumerate("kmg", 1) for end in ("b", "")}
_BYTES |= {f"{letter}{end}": 1024**n for n, letter in enumerate("kmg", 1) for end in ("ib", "i")}
_MILLIJOULES = {"uj": 1e-3, "μj": 1e-3, "mj": 1.0, "j": 1e3}
"""Units in small letters (of the two signs for micro, the Greek one), as `_number` reads them."""


class Share(Struct, frozen=True):
    """`50%` of something that is known only later; `value` is the fraction, 0.5."""

    value: float


MOST = 10**18
"""No limit is larger, in any unit: a slip of the keyboard."""


def _number(text: str, option: str, units: Mapping[str, float], *examples: str) -> Fraction:
    """The number before the unit, exactly as written, and times what the unit stands for. Units are
    read in any case. `examples`: units that may be meant where there is none."""
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
    found = int(_number(text, option, _BYTES, "MB", "kB"))
    if found < 1:
        raise UsageError(f"{option} {text}: must be a byte or more")
    return found


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
        found = float(text)
    except ValueError:
        raise UsageError(
            f"{option} {text}: write a percentage like 1%, or a plain number in the metric's own "
            "units like 0.01"
        ) from None
    if not 0 <= found <= MOST:
        raise UsageError(f"{option} {text}: must be a finite number, zero or more")
    return found


def parse_share_or_bytes(text: str, option: str) -> Share | int:
    if text.strip().endswith("%"):
        return parse_share_above_zero(text, option)
    if re.fullmatch(r"\s*[0-9.]+\s*", text):
        number = text.strip()
        raise UsageError(f"{option} {text}: it has no unit; did you mean {number}% or {number}kB?")
    return parse_bytes(text, option)


class Asked(Struct, frozen=True):
    """The budget as it was asked for: percentages are not yet of anything."""

    max_accuracy_drop: Share | float | None = Share(0.01)
    min_accuracy: Share | float | None = None
    max_latency_ms: float | None = None
    max_size: Share | int | None = None
    max_macs: Share | None = None
    max_memory_bytes: int | None = None
    max_energy_mj: float | None = None

    def check_meant(self, metric: str) -> None:
        """Refuse limits of a metric in [0, 1] that can only be a percentage without its sign, or
        more than there is. Raises UsageError, with the likely one."""
        limits = (("--max-accuracy-drop", self.max_accuracy_drop, True),)
        for option, limit, drop in (*limits, ("--min-accuracy", self.min_accuracy, False)):
            if isinstance(limit, Share) and limit.value > 1:
                shown = f"{100 * limit.value:.6g}%"
                raise UsageError(f"{option} {shown}: {metric} lies between 0 and 100 %")
            if isinstance(limit, float) and (limit > 1 or (drop and limit == 1)):
                what = f"{100 * limit:.6g} points of {metric}, which has 100"
                likely = f"; did you mean {limit:g}%?" if limit <= 100 else ""
                raise UsageError(f"{option} {limit:g}: these are {what}{likely}")

    def check_sizes(self, size_bytes: int, macs: int | None) -> None:
        """Refuse a part of the model's file or multiply-accumulates that comes to nothing."""
        for option, limit, whole, unit in (
            ("--max-size", self.max_size, size_bytes, "bytes"),
            ("--max-macs", self.max_macs, macs, "multiply-accumulates"),
        ):
            if isinstance(limit, Share) and whole is not None and _part(limit, whole) < 1:
                raise UsageError(
                    f"{option} {100 * limit.value:.6g}%: of {whole} {unit} that is less than one"
                )

    def resolve(
        self,
        *,
        original_size_bytes: int,
        original_macs: int | None,
        proportion: bool,
        float_value: float | None,
    ) -> "Budget":
        """In base units. `proportion`: the metric lies in [0, 1], so that a % of it is points;
        otherwise a % is a part of the float model's value."""

        def points(asked: Share | float | None) -> float | None:
            if not isinstance(asked, Share):
                return asked
            if proportion:
                return asked.value
            # A part of what is not known: a limit that nothing meets, rather than none.
            return math.nan if float_value is None else asked.value * abs(float_value)

        size = self.max_size
        if isinstance(size, Share):
            size = _part(size, original_size_bytes)
        macs = None
        if self.max_macs is not None:
            if original_macs is None:
                raise UsageError(
                    "--max-macs: the multiply-accumulates of this model could not be counted "
                    "(a shape inside it is not static); leave the option out"
                )
            macs = _part(self.max_macs, original_macs)
        return Budget(
            max_accuracy_drop=points(self.max_accuracy_drop),
            min_accuracy=points(self.min_accuracy),
            max_latency_ms=self.max_latency_ms,
            max_size_bytes=size,
            max_macs=macs,
            max_memory_bytes=self.max_memory_bytes,
            max_energy_mj=self.max_energy_mj,
        )


def _part(share: Share, whole: int) -> int:
    """29 % of 100 is 29, though 0.29 * 100 is less: shares are meant as they are written."""
    return int(Fraction(repr(share.value)) * whole)


FIDELITY_DB = 20.0
"""Where no labels were given, an inexact candidate must reproduce every output this well."""


_SLACK = 1e-9
"""Rounding's: 0.91 - 0.90 is not 0.01 in binary."""


class Budget(Struct, frozen=True, omit_defaults=True):
    """In base units; what is None does not limit."""

    max_accuracy_drop: float | None = None
    min_accuracy: float | None = None
    max_latency_ms: float | None = None
    max_size_bytes: int | None = None
    max_macs: int | None = None
    max_memory_bytes: int | None = None
    max_energy_mj: float | None = None

    def objections(self, trial: Trial, *, higher_is_better: bool = True) -> list[str]:
        """Why the trial does not fit, in words; empty if it does. A missing number never passes.

        Without labels there is no accuracy to be judged by; whether the outputs are the model's is
        seen elsewhere.
        """
        return [
            *self.accuracy_objections(trial, higher_is_better),
            *self.static_objections(trial),
            *self._measured(trial),
        ]

    def accuracy_objections(self, trial: Trial, higher_is_better: bool) -> list[str]:
        """Of what labelled data say."""
        found = []
        if trial.accuracy is None:
            return [] if self.min_accuracy is None else ["accuracy is not known"]
        drop, value = trial.accuracy.drop, trial.accuracy.value
        if self.max_accuracy_drop is not None and not (
            drop is not None and drop <= self.max_accuracy_drop + _SLACK
        ):
            shown = "unknown" if drop is None else f"{drop:.4g}"
            found.append(f"accuracy drop {shown} is over {self.max_accuracy_drop:.4g}")
        if self.min_accuracy is not None:
            fits = value >= self.min_accuracy if higher_is_better else value <= self.min_accuracy
            if not fits:
                word = "under" if higher_is_better else "over"
                found.append(
                    f"{trial.accuracy.metric} {value:.4g} is {word} {self.min_accuracy:.4g}"
                )
        return found

    def static_objections(self, trial: Trial) -> list[str]:
        """Of what is known without running it: its size and its multiply-accumulates."""
        found = []
        candidate = trial.candidate
        if self.max_size_bytes is not None:
            size = candidate.size_bytes if candidate else None
            if size is None or size > self.max_size_bytes:
                found.append(f"size {size} bytes is over {self.max_size_bytes} bytes")
        if self.max_macs is not None:
            macs = candidate.model.macs if candidate else None
            if macs is None or macs > self.max_macs:
                found.append(f"{macs} MACs are over {self.max_macs}")
        return found

    def _measured(self, trial: Trial) -> list[str]:
        found = []
        if self.max_latency_ms is not None:
            latency = trial.latency_ms
            if latency is None:
                why = trial.missing.get("latency_ms", "no reason given")
                found.append(f"latency was not measured ({why})")
            elif not latency.p90 <= self.max_latency_ms:
                limit_ms = f"{self.max_latency_ms:.4g} ms"
                found.append(f"p90 latency {latency.p90:.4g} ms is over {limit_ms}")
        for key, figure, limit, unit in (
            ("peak_memory_bytes", trial.peak_memory_bytes, self.max_memory_bytes, "bytes"),
            ("energy_mj", trial.energy_mj, self.max_energy_mj, "mJ"),
        ):
            if limit is None:
                continue
            word = key.rpartition("_")[0].replace("_", " ")
            if figure is None:
                why = trial.missing.get(key, "no reason given")
                found.append(f"{word} was not measured ({why})")
            elif not figure.value <= limit:
                found.append(f"{word} {figure.value:.6g} {unit} is over {limit} {unit}")
        return found

    def crossed(self, trial: Trial) -> bool:
        """Whether the interval of the accuracy drop reaches over the budget that its point meets:
        more samples would be needed to be sure."""
        accuracy = trial.accuracy
        return (
            self.max_accuracy_drop is not None
            and accuracy is not None
            and accuracy.drop is not None
            and accuracy.drop_ci95 is not None
            and accuracy.drop <= self.max_accuracy_drop + _SLACK < accuracy.drop_ci95[1]
        )
