"""Trials as JSON (the contract of `--json`), plans and bundles' READMEs as text."""

from typing import Any

import msgspec

from onmetal.records import Candidate, DeviceFacts, Model, Trial, plain, shown
from onmetal.targets import packages
from onmetal.texts.quoting import block, code, prose, version


def candidate_document(trial: Trial) -> dict[str, Any]:
    candidate = trial.candidate
    return {
        "name": trial.name,
        "model": trial.model,
        "recipe": trial.recipe,
        "runtime": trial.runtime,
        "runtime_version": candidate.runtime_version if candidate else None,
        "details": candidate.details if candidate else {},
        "sha256": candidate.sha256 if candidate else None,
        "status": trial.status,
        "reason": trial.reason,
        "warnings": [*trial.warnings, *trial.unlike, *trial.collapsed],
        "size_bytes": candidate.size_bytes if candidate else None,
        "macs": candidate.model.macs if candidate else None,
        "accuracy": plain(trial.accuracy),
        "fidelity": _fidelity(trial),
        "latency_ms": plain(trial.latency_ms),
        "throughput_per_s": plain(trial.figures.get("throughput_per_s")),
        "load_ms": plain(trial.figures.get("load_ms")),
        "peak_memory_bytes": plain(trial.figures.get("peak_memory_bytes")),
        "energy_mj": plain(trial.figures.get("energy_mj")),
        "versus_baseline": plain(trial.versus_baseline),
        "ran_on": trial.ran_on,
        "device_outputs": trial.agreement,
        "embedded": _without_drawing(trial.embedded),
        "missing": trial.missing,
    }


def _fidelity(trial: Trial) -> dict[str, Any] | None:
    """None: its outputs were not compared with the original model's."""
    if not trial.sqnr_db and not trial.equal:
        return None
    return {
        "sqnr_db": dict(trial.sqnr_db),
        "equal": dict(trial.equal),
        "worst_slice": plain(trial.slices),
    }


def _without_drawing(embedded: dict[str, Any] | None) -> dict[str, Any] | None:
    """The drawing is a file of the bundle."""
    if embedded is None:
        return None
    plan = {name: value for name, value in embedded["plan"].items() if name != "svg"}
    return {**embedded, "plan": plan}


def model_document(model: Model) -> dict[str, Any]:
    return {
        "path": shown(model.path),
        "format": model.format,
        "sha256": model.sha256,
        "size_bytes": model.size_bytes,
        "inputs": plain(model.inputs),
        "outputs": plain(model.outputs),
        "parameters": model.parameters,
        "macs": model.macs,
        "batch": model.batch,
        "notes": list(model.notes),
    }


def device_document(facts: DeviceFacts | None) -> dict[str, Any]:
    """None: there was no device."""
    if facts is None:
        unknown = dict.fromkeys(("cpu", "arch", "os", "cores", "memory_bytes"))
        return {"address": "none", **unknown, "emulated": False}
    found: dict[str, Any] = plain(facts)
    more = found.pop("more")
    return {**found, **more}


def run_document(candidate: Candidate) -> dict[str, Any]:
    """The manifest's `run`: what run.py needs to know."""
    return {
        "runtime": candidate.runtime,
        "runtime_version": candidate.runtime_version,
        "command": "python run.py INPUTS.npz OUT.npz",
        "files": [file.name for file in candidate.files],
        "options": candidate.options,
        "inputs": plain(candidate.model.inputs),
        "outputs": plain(candidate.model.outputs),
    }


# --- for people


def size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def milliseconds(value: float) -> str:
    return f"{value:.4g} ms" if value >= 1 else f"{value:.3f} ms"


def embedded_lines(trial: Trial) -> list[str]:
    """What of a microcontroller the first candidate takes."""
    found, memory = trial.embedded, trial.figures.get("peak_memory_bytes")
    if found is None or memory is None:
        return []
    chip, flash, npu = found["chip"], found["flash"], found["npu"]
    room = f" of {chip['ram_kib'] * 1024:,}" if chip else ""
    lines = ["", f"{trial.name}: RAM {memory.value:,.0f}{room} bytes: {memory.how}."]
    room = f" of {chip['flash_kib'] * 1024:,}" if chip else ""
    lines += [
        f"Flash {flash['total_bytes']:,}{room} bytes: weights {flash['weights_bytes']:,}, graph "
        f"{flash['graph_bytes']:,}, code about {flash['code_bytes']:,}."
    ]
    if count := (trial.ran_on or {}).get("instructions_per_inference"):
        said = "instructions per inference, counted by the emulator; this is not a time."
        lines += [f"{count:,} {said}"]
    return lines + npu_lines(npu)


def npu_lines(npu: dict[str, Any] | None) -> list[str]:
    """What Vela models, and what it leaves to the core."""
    if npu is None:
        return []
    lines = [
        f"{npu['accelerator']} at {npu['clock_mhz']:.0f} MHz, modelled: "
        f"{npu['cycles']['total']:,} cycles; left to the core: {npu['cpu_operators']} operator(s)."
    ]
    return lines + [
        f"  {row['operator']} {row['output']}: {row['reason']}" for row in npu["on_cpu"]
    ]


def planned(document: dict[str, Any]) -> list[str]:
    """The plan of `--dry-run`."""
    lines = ["Would be tried:"]
    tried = [c for c in document["candidates"] if c["status"] == "planned"]
    lines += [f"  {c['name']}" + (f" ({c['reason']})" if c["reason"] else "") for c in tried] or [
        "  nothing"
    ]
    skipped = [c for c in document["candidates"] if c["status"] == "skipped"]
    if skipped:
        lines += ["Would not be tried:", *(f"  {c['name']}: {c['reason']}" for c in skipped)]
    return lines


def readme(document: dict[str, Any], chosen: Trial, tolerance: float) -> str:
    """README.md of a bundle: what this is, how to run it, what was measured. `document`: its
    manifest."""
    candidate = chosen.candidate
    assert candidate
    latency, accuracy = chosen.latency_ms, chosen.accuracy
    device = document["device"]
    lines = [f"# {code(candidate.model.path.name)} for {code(document['target'])}", ""]
    lines += [f"Chosen: {code(chosen.name)}, decided by {document['decided_by']}."]
    lines += ["", "## Run it", ""]
    lines += ["In this folder, in an environment that has the runtime. Without one, make it first,"]
    lines += [
        "outside of this folder: `python3 -m venv ~/runtime && . ~/runtime/bin/activate`.",
        "",
    ]
    lines += [
        "```",
        f"pip install numpy {packages(candidate.runtime)[0]}=={version(candidate.runtime_version)}",
    ]
    vectors = document["golden"]["vectors"]
    lines += ["python run.py                       # the golden vectors"] if vectors else []
    lines += ["python run.py INPUTS.npz OUT.npz    # your own inputs"]
    lines += ["python run.py --help                # and what they are", "```", ""]
    lines += ["| input | dtype | shape |", "|---|---|---|"]
    lines += [
        f"| {code(tensor.name, cell=True)} | {tensor.dtype} | {list(tensor.shape)} |"
        for tensor in candidate.model.inputs
    ]
    lines += _preprocessing(document["preprocessing"], document["classes"])
    lines += [*_builds(document["builds"]), "", "## What was measured", ""]
    if device["cpu"]:
        where = f"On {code(device['cpu'])}, {document['threads']} threads"
        lines += [f"{where}, batch {document['batch']}."]
    if accuracy:
        lines += [f"{code(accuracy.metric)} {accuracy.value:.4f} on {accuracy.samples} samples."]
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
    if found := embedded_lines(chosen):
        lines += ["", *block(found[1:])]
    lines += [
        "",
        "Every candidate and every figure is in `manifest.json`; raw samples, where there",
    ]
    if vectors:
        lines += [
            "are any, are in `measurements.npz`. `deploy verify` checks this folder; its golden"
        ]
        lines += [f"outputs must agree within {tolerance:g} of their largest magnitude.", ""]
    else:
        lines += [
            "are any, are in `measurements.npz`. `deploy verify` checks this folder, but not what"
        ]
        lines += ["the model gives: there are no golden vectors.", ""]
    return "\n".join(lines)


PREPROCESSING = {
    "exif": "whether the picture is turned as its EXIF orientation says",
    "alpha": "what transparent pixels are laid over",
    "size": "pixels that the shorter side is scaled to (bilinear, antialiased); null: not scaled",
    "crop": "height and width that are cut out of the middle; null: not cropped",
    "channels": "of pixels from 0 to 255, in this order",
    "scale": "each value x becomes (x * scale - mean) / std",
    "mean": "one for all channels, or one for each",
    "std": "one for all channels, or one for each",
    "layout": "N images, C channels, H rows, W columns",
    "dtype": "of the array",
}
"""What the keys of data.toml do to a picture, in the order in which they do."""


def _preprocessing(how: dict[str, Any] | None, classes: list[str] | None) -> list[str]:
    """What a caller must do to a picture, and what the scores that come back are of."""
    if how is None:
        return []
    lines = [
        "",
        "A picture becomes an input so, from the top to the bottom of the table, as it did",
    ]
    lines += ["where the figures below were taken (`preprocessing` in `manifest.json`):", ""]
    lines += ["| | value | what it does |", "|---|---|---|"]
    keys = [*(key for key in PREPROCESSING if key in how), *(how.keys() - PREPROCESSING.keys())]
    lines += [
        f"| {key} | {code(_json(how[key]), cell=True)} | {PREPROCESSING.get(key, '')} |"
        for key in keys
    ]
    if classes:
        lines += ["", "Scores are of these classes, in this order (`classes` in `manifest.json`):"]
        lines += [", ".join(map(code, classes)) + "."]
    return lines


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _builds(builds: dict[str, Any] | None) -> list[str]:
    """What else lies in a bundle for a phone or a board."""
    if builds is None:
        return []
    shipped, measured = builds["shipped"], builds["measured"]
    lines = [""]
    if shipped["kind"] == "firmware" and shipped["path"]:
        lines += ["`firmware/` has the sources for the chip: see its README. `memory.txt` and"]
        lines += ["`memory.svg`, where they are, show what its RAM holds, and when."]
    elif shipped["kind"] == "Android module" and shipped["path"]:
        lines += ["`android/` is a Gradle module with the model, a typed wrapper in Kotlin and an"]
        lines += [f"instrumented test; it uses {code(shipped['artifact'])}. See its README."]
    elif shipped["kind"] not in ("Android module", "firmware"):
        lines += [
            f"`requirements.txt` pins {code(shipped['artifact'])}; `example.c`, where there is"
        ]
        lines += ["one, runs the model without Python: how to compile it stands at its top."]
    if measured:
        runtime = code(f"{measured['runtime']} {measured['runtime_version']}")
        lines += [f"Figures are of {runtime}, from", f"{prose(measured['from'])}."]
    return [*lines, prose(f"{shipped['note'][:1].upper()}{shipped['note'][1:]}.")]
