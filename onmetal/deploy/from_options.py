"""Makes requests of the options of the command line, by their names with underscores. The Python
API has the same options."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from onmetal import budget
from onmetal.deploy import model
from onmetal.deploy.request import ConversionRequest, Request
from onmetal.errors import UsageError
from onmetal.texts import units

MOST = 1 << 31


def deployment(models: Sequence[Path], options: Mapping[str, Any]) -> Request:
    """The request of a deployment. `options`: every option of `deploy` but --json, None where it
    was not given.

    Raises UsageError where a value cannot be read, or where two options contradict each other.
    """
    limits = {option: options[_name(option)] for option in budget.OPTIONS}
    if options["no_device"] and options["device"] not in (None, "none"):
        raise UsageError("--no-device and --device say opposite things; leave one out")
    recipes, time_limit = options["recipes"], options["time_limit"]
    return Request(
        models=tuple(models),
        target=options["target"],
        data=options["data"],
        calibration_data=options["calibration_data"],
        metric=options["metric"],
        output=options["output"],
        device="none" if options["no_device"] else options["device"],
        budget=budget.read(limits),
        budget_given=tuple(option for option, text in limits.items() if text is not None),
        minimize=options["minimize"],
        recipes=tuple(part.strip() for part in recipes.split(",")) if recipes else None,
        batch=positive(options["batch"], "--batch"),
        threads=positive(options["threads"], "--threads"),
        input_shapes=tuple(options["input_shape"]),
        out=Path(options["out"]) if options["out"] else None,
        force=options["force"],
        time_limit_s=units.parse_ms(time_limit, "--time-limit") / 1e3 if time_limit else None,
        mode=_mode(options),
        dry_run=options["dry_run"],
        cut_at=model.parse_cut(options["cut_at"]),
        follow_links=options["follow_links"],
        trust=options["trust"],
        golden=options["golden"],
        keep_paths=options["keep_paths"],
    )


def conversion(options: Mapping[str, Any]) -> ConversionRequest:
    """The request of a conversion. `options`: every option of `deploy convert` but --json.

    Raises UsageError where a value cannot be read.
    """
    if options["file"] is None:
        raise UsageError(
            "-o FILE is missing, which says what is written: FILE.onnx, FILE.tflite or FILE.xml "
            "(OpenVINO)"
        )
    return ConversionRequest(
        model=Path(options["model"]),
        file=Path(options["file"]),
        calibration_data=options["calibration_data"],
        recipe=options["recipe"],
        target=options["target"],
        batch=positive(options["batch"], "--batch"),
        input_shapes=tuple(options["input_shape"]),
        cut_at=model.parse_cut(options["cut_at"]),
        force=options["force"],
        follow_links=options["follow_links"],
        trust=options["trust"],
    )


def positive(value: int | None, option: str) -> int | None:
    if value is not None and value < 1:
        raise UsageError(f"{option} {value}: must be 1 or more")
    if value is not None and value >= MOST:
        raise UsageError(f"{option} {value}: no model has so many")
    return value


def _name(option: str) -> str:
    return option[2:].replace("-", "_")


def _mode(options: Mapping[str, Any]) -> Literal["quick", "default", "thorough"]:
    if options["quick"] and options["thorough"]:
        raise UsageError("--quick and --thorough say opposite things; leave one out")
    return "quick" if options["quick"] else "thorough" if options["thorough"] else "default"
