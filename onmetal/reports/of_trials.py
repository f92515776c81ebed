"""Converts trials, models and devices to parts of the record."""

from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from onmetal import costs, records
from onmetal.records import DeviceFacts, Trial, plain, shown
from onmetal.reports import record
from onmetal.reports.chip_record import Agreement, Embedded
from onmetal.reports.json import encode
from onmetal.reports.manifest_record import Run
from onmetal.reports.record import Candidate, Device, Model

Part = TypeVar("Part", bound=Struct)


def typed(values: Any, kind: type[Part]) -> Part:
    """Convert plain values to a part of the record. They must have all keys of that type in its
    order, and no others: a key that the type does not know would be lost."""
    part = msgspec.convert(values, kind)
    assert encode(plain(part)) == encode(plain(values)), f"{kind.__name__} lacks a key of {values}"
    return part


FIGURES = tuple(cost.key for cost in costs.MEASURED if cost is not costs.LATENCY)


def candidate(trial: Trial) -> Candidate:
    return Candidate(**fields(trial))


def fields(trial: Trial) -> dict[str, Any]:
    """Name -> value of the fields of a candidate's record."""
    artifact = trial.candidate
    return {
        "name": trial.name,
        "model": trial.model,
        "recipe": trial.recipe,
        "runtime": trial.runtime,
        "runtime_version": artifact.runtime_version if artifact else None,
        "details": artifact.details if artifact else {},
        "sha256": artifact.sha256 if artifact else None,
        "lineage": trial.lineage,
        "status": trial.status,
        "reason": trial.reason,
        "warnings": [*trial.warnings, *trial.unlike, *trial.collapsed],
        "size_bytes": artifact.size_bytes if artifact else None,
        "macs": artifact.model.macs if artifact else None,
        "accuracy": _copied(trial.accuracy, record.Accuracy),
        "fidelity": _fidelity(trial),
        "latency_ms": trial.latency_ms,
        **{key: trial.figures.get(key) for key in FIGURES},
        "versus_baseline": versus(trial.versus_baseline),
        "ran_on": trial.ran_on,
        "device_outputs": typed(trial.agreement, Agreement) if trial.agreement else None,
        "embedded": typed(_without_drawing(trial.embedded), Embedded) if trial.embedded else None,
        "missing": trial.missing,
    }


def _copied(part: Struct | None, kind: type[Part]) -> Part | None:
    """Convert a record of onmetal.records to the document's type, which has the same fields."""
    return None if part is None else kind(**msgspec.structs.asdict(part))


def versus(measured: records.Versus | None) -> record.Versus | None:
    return _copied(measured, record.Versus)


def _fidelity(trial: Trial) -> record.Fidelity | None:
    """None: its outputs were not compared with the original model's."""
    if not trial.sqnr_db and not trial.equal:
        return None
    slices = {
        name: record.Slice(**msgspec.structs.asdict(worst)) for name, worst in trial.slices.items()
    }
    return record.Fidelity(dict(trial.sqnr_db), dict(trial.equal), slices)


def _without_drawing(embedded: dict[str, Any]) -> dict[str, Any]:
    """The facts without the SVG drawing, which is a file of the bundle instead."""
    plan = {name: value for name, value in embedded["plan"].items() if name != "svg"}
    return {**embedded, "plan": plan}


def model(loaded_model: records.Model) -> Model:
    return Model(
        path=shown(loaded_model.path),
        format=loaded_model.format,
        sha256=loaded_model.sha256,
        size_bytes=loaded_model.size_bytes,
        inputs=list(loaded_model.inputs),
        outputs=list(loaded_model.outputs),
        parameters=loaded_model.parameters,
        macs=loaded_model.macs,
        batch=loaded_model.batch,
        notes=list(loaded_model.notes),
        imported=loaded_model.imported,
    )


def run(candidate: records.Candidate) -> Run:
    """The part of the manifest that run.py reads."""
    return Run(
        runtime=candidate.runtime,
        runtime_version=candidate.runtime_version,
        command="python run.py INPUTS.npz OUT.npz",
        files=[file.name for file in candidate.files],
        options=candidate.options,
        inputs=list(candidate.model.inputs),
        outputs=list(candidate.model.outputs),
    )


def device(facts: DeviceFacts | None) -> Device:
    """None: there was no device."""
    if facts is None:
        return Device(address="none")
    values: dict[str, Any] = plain(facts)
    further_facts = values.pop("more")
    if not facts.accelerators:
        del values["accelerators"]
    return typed({**values, **further_facts}, Device)
