"""README.md of a bundle."""

from pathlib import PurePath
from typing import Any

import msgspec

from onmetal.reports import embedded
from onmetal.reports.manifest_record import Builds, Manifest
from onmetal.reports.record import Candidate
from onmetal.runtimes import spec
from onmetal.texts.quoting import block, code, prose, version
from onmetal.texts.units import milliseconds


def readme(manifest: Manifest) -> str:
    """The text of README.md: what the bundle is, how to run it, and what was measured."""
    chosen = manifest.candidate(manifest.chosen)
    assert chosen
    latency, accuracy, run = chosen.latency_ms, chosen.accuracy, manifest.run
    lines = [f"# {code(_model_name(manifest, chosen))} for {code(manifest.target)}", ""]
    lines += [f"Chosen: {code(chosen.name)}, decided by {manifest.decided_by}."]
    lines += [f"The model was read so: {prose(note)}." for note in _notes(manifest, chosen)]
    lines += ["", "## Run it", ""]
    lines += ["In this folder, in an environment that has the runtime. Without one, make it first,"]
    lines += [
        "outside of this folder: `python3 -m venv ~/runtime && . ~/runtime/bin/activate`.",
        "",
    ]
    lines += [
        "```",
        f"pip install numpy {spec(run.runtime).packages[0]}=={version(run.runtime_version)}",
    ]
    vectors = manifest.golden.vectors
    lines += ["python run.py                       # the golden vectors"] if vectors else []
    lines += ["python run.py INPUTS.npz OUT.npz    # your own inputs"]
    lines += ["python run.py --help                # and what they are", "```", ""]
    lines += ["| input | dtype | shape |", "|---|---|---|"]
    lines += [
        f"| {code(tensor.name, cell=True)} | {tensor.dtype} | {list(tensor.shape)} |"
        for tensor in run.inputs
    ]
    lines += _preprocessing(manifest.preprocessing, manifest.classes)
    lines += [*_builds(manifest.builds), "", "## What was measured", ""]
    if manifest.device.cpu:
        device_text = f"On {code(manifest.device.cpu)}, {manifest.threads} threads"
        lines += [f"{device_text}, batch {manifest.batch}."]
    if accuracy:
        value = "undefined" if accuracy.value is None else f"{accuracy.value:.4f}"
        lines += [f"{code(accuracy.metric)} {value} on {accuracy.samples} samples."]
    else:
        lines += ["No task metric was measured: there was no labelled data."]
    if latency and latency.basis == "emulated":
        lines += ["Latency is *unmeasured*: the device is emulated, and its timings mean nothing."]
    elif latency and latency.p50_ci95 is None:
        lines += [
            f"Latency {milliseconds(latency.p50)} is *modelled* by Vela, of the NPU alone, and was "
            "not measured."
        ]
    elif latency and latency.p50_ci95:
        low, high = latency.p50_ci95
        lines += [
            f"Latency p50 {milliseconds(latency.p50)} (95 % interval {low:.4g} to {high:.4g} ms), "
            f"p90 {milliseconds(latency.p90)}."
        ]
    else:
        why = chosen.missing.get("latency_ms", "there was no device").removeprefix("unmeasured: ")
        lines += [f"Latency is *unmeasured*: {prose(why)}."]
    if chip_lines := embedded.lines(chosen):
        lines += ["", *block(chip_lines[1:])]
    lines += [
        "",
        "Every candidate and every figure is in `manifest.json`; raw samples, where there",
    ]
    if vectors:
        lines += [
            "are any, are in `measurements.npz`. `deploy verify` checks this folder; its golden"
        ]
        tolerance = manifest.golden.tolerance
        lines += [f"outputs must agree within {tolerance:g} of their largest magnitude.", ""]
    else:
        lines += [
            "are any, are in `measurements.npz`. `deploy verify` checks this folder, but not what"
        ]
        lines += ["the model gives: there are no golden vectors.", ""]
    return "\n".join(lines)


def _model_name(manifest: Manifest, chosen: Candidate) -> str:
    """The file name of the model that was chosen."""
    paths = [PurePath(model.path) for model in manifest.models]
    return next((path.name for path in paths if path.stem == chosen.model), paths[0].name)


def _notes(manifest: Manifest, chosen: Candidate) -> list[str]:
    """What was done to the model when it was read, such as where it was cut."""
    stems = {PurePath(model.path).stem: model for model in manifest.models}
    return stems[chosen.model].notes if chosen.model in stems else []


PREPROCESSING = {
    "exif": "whether the picture is turned as its EXIF orientation says",
    "alpha": "what transparent pixels are laid over",
    "size": "pixels that the shorter side is scaled to (bilinear, antialiased); null: not scaled",
    "crop": "height and width that are cut out of the middle; null: not cropped",
    "resize": "height and width that it is scaled to, whatever its proportions; null: not",
    "letterbox": "height and width that it is scaled to fit within, in the middle; null: not",
    "fill": "the grey, 0 to 255, around a letterboxed picture",
    "channels": "of pixels from 0 to 255, in this order",
    "scale": "each value x becomes (x * scale - mean) / std",
    "mean": "one for all channels, or one for each",
    "std": "one for all channels, or one for each",
    "layout": "N images, C channels, H rows, W columns",
    "dtype": "of the array",
}
"""Key of data.toml -> what it does to a picture, in the order of the computation."""


def _preprocessing(settings: dict[str, Any] | None, classes: list[str] | None) -> list[str]:
    """Lines about the preprocessing of a picture, and about the classes of the scores."""
    if settings is None:
        return []
    lines = [
        "",
        "A picture becomes an input so, from the top to the bottom of the table, as it did",
    ]
    lines += ["where the figures below were taken (`preprocessing` in `manifest.json`):", ""]
    lines += ["| | value | what it does |", "|---|---|---|"]
    keys = [
        *(key for key in PREPROCESSING if key in settings),
        *(settings.keys() - PREPROCESSING.keys()),
    ]
    lines += [
        f"| {key} | {code(_json(settings[key]), cell=True)} | {PREPROCESSING.get(key, '')} |"
        for key in keys
    ]
    if classes:
        lines += ["", "Scores are of these classes, in this order (`classes` in `manifest.json`):"]
        lines += [", ".join(map(code, classes)) + "."]
    return lines


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _builds(builds: Builds | None) -> list[str]:
    """Lines about the additional files in a bundle for a phone or a board."""
    if builds is None:
        return []
    shipped, measured = builds.shipped, builds.measured
    lines = [""]
    if shipped.kind == "firmware" and shipped.path:
        lines += ["`firmware/` has the sources for the chip: see its README. `memory.txt` and"]
        lines += ["`memory.svg`, where they are, show what its RAM holds, and when."]
    elif shipped.kind == "Android module" and shipped.path:
        lines += ["`android/` is a Gradle module with the model, a typed wrapper in Kotlin and an"]
        lines += [f"instrumented test; it uses {code(shipped.artifact)}. See its README."]
    elif shipped.kind not in ("Android module", "firmware"):
        lines += [f"`requirements.txt` pins {code(shipped.artifact)}; `example.c`, where there is"]
        lines += ["one, runs the model without Python: how to compile it stands at its top."]
    if measured:
        runtime = code(f"{measured.runtime} {measured.runtime_version}")
        lines += [f"Figures are of {runtime}, from", f"{prose(measured.from_)}."]
    return [*lines, prose(f"{shipped.note[:1].upper()}{shipped.note[1:]}.")]
