"""What `deploy` ships against what the peers' own tools make of the same model, on five models.

    pip install nncf==3.4.0
    python bench/peers.py --models DIR [--only resnet8,kws] [--threads 1] [--mode default]
                          [--work DIR] [--json FILE]

DIR holds the models, their data and the prepare.py that makes arrays of it. The peers, used as
their documents say: ONNX Runtime's quantize_static (QDQ, MinMax, three formats), NNCF, and the
float model; in ONNX Runtime, and in OpenVINO in f32 and in bf16 (its default, where the CPU can).
Ours: the bundle of one `deploy --target x86-64`, its cache empty before. All are calibrated on the
same samples, timed interleaved in one run, and judged on the whole evaluation part.

The best peer is the one of the lowest p50, whatever its accuracy, picked after timing: that favours
the peers. `deploy` sees the labels that it is judged by here: that favours ours.

Standard output holds the results alone. What the peers make stays in --work and is made once.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onmetal.calibration import samples
from onmetal.commands import artifacts
from onmetal.deploy import model
from onmetal.files.cache import Cache
from onmetal.profilers import intervals, measure
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.local_worker import quiet_environment
from onmetal.progress import Progress
from onmetal.records import Candidate, plain
from onmetal.runtimes import fit, for_runtime
from onmetal.samples import Samples

MARGIN = 0.005
"""By how much the accuracy may be worse."""
FLOAT = "ORT fp32"
FEEDS = 8
"""Real samples that the candidates are timed on, in turn."""
FORMATS = {
    "S8S8": ("QInt8", "QInt8", True),
    "U8S8": ("QUInt8", "QInt8", True),
    "U8U8": ("QUInt8", "QUInt8", False),
}
"""Of ONNX Runtime's quantizer: the types of activations and of weights; whether per channel."""


class Case(NamedTuple):
    file: str
    data: str
    """The folder that prepare.py makes; models of one beginning are judged on the same images."""
    calibration: int
    """How many samples."""


CIFAR = "mlperf_tiny_ic_cifar10"
CASES = {
    "resnet8": Case(f"{CIFAR}/mlperf_resnet8_cifar10.onnx", "cifar_raw", 256),
    "resnet20": Case(f"{CIFAR}/resnet20_cifar10.onnx", "cifar_norm", 256),
    "resnet56": Case(f"{CIFAR}/resnet56_cifar10.onnx", "cifar_norm", 256),
    "kws": Case("mlperf_tiny_kws/mlperf_dscnn_kws.onnx", "kws", 100),
    "effnet": Case("efficientnet_lite0_imagenet/efficientnet_lite0.onnx", "imagenet", 128),
}


# --- the peers' tools, in a process of their own


def make(source: Path, calibration: Path, folder: Path) -> None:
    """All that the peers make of a model."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # as in its session.py
    import onnx
    from onnxruntime.quantization import shape_inference
    from onnxruntime.tools import onnx_model_utils

    nncf, openvino = import_module("nncf"), import_module("openvino")
    x = np.load(calibration)["x"]
    folder.mkdir()
    loaded = onnx.load(source)
    name = loaded.graph.input[0].name
    onnx_model_utils.make_input_shape_fixed(loaded.graph, name, [1, *x.shape[1:]])
    onnx_model_utils.fix_output_shapes(loaded)
    onnx.save(loaded, folder / "float.onnx")
    if loaded.opset_import[0].version < 13:  # per channel, ORT would write what it then refuses
        loaded = onnx.version_converter.convert_version(loaded, 13)
    onnx.save(loaded, folder / "raised.onnx")
    raised, prepared = folder / "raised.onnx", folder / "prepared.onnx"
    shape_inference.quant_pre_process(raised, prepared, skip_symbolic_shape=True)
    for form in FORMATS:
        _quantize_static(prepared, folder / f"{form}.onnx", form, name, x)
    read = openvino.Core().read_model(folder / "float.onnx")
    openvino.save_model(read, folder / "float.xml", compress_to_fp16=False)
    data = nncf.Dataset([{name: row[None]} for row in x])
    openvino.save_model(nncf.quantize(read, data), folder / "nncf.xml")


def _quantize_static(prepared: Path, path: Path, form: str, name: str, x: np.ndarray) -> None:
    from onnxruntime import quantization as ort

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
        rows = iter(x)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {name: row[None]}

    activations, weights, per_channel = FORMATS[form]
    ort.quantize_static(
        prepared,
        path,
        Reader(),
        quant_format=ort.QuantFormat.QDQ,
        calibrate_method=ort.CalibrationMethod.MinMax,
        per_channel=per_channel,
        activation_type=ort.QuantType[activations],
        weight_type=ort.QuantType[weights],
    )


def _python(words: Sequence[object], home: Path, **environment: str) -> tuple[int, str, str]:
    """Run Python without telemetry -> its exit code and what it said, which is not shown."""
    done = subprocess.run(
        [sys.executable, "-P", *map(str, words)],
        env=quiet_environment(home) | environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def _once(words: Sequence[object], made: Path) -> None:
    """Have a program make a folder (its last argument), unless it is there already."""
    if made.exists():
        return
    part = made.with_name(f"{made.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    code, said, why = _python([*words, part], made.parent)
    if code:
        sys.exit(f"{' '.join(map(str, words))} failed:\n{(said + why)[-3000:]}")
    part.rename(made)


# --- the candidates


def _peers(folder: Path, threads: int, device: Local, cache: Cache) -> list[Candidate]:
    """The peers' artifacts, each in every runtime that opens it."""
    read = model.read(folder / "float.onnx", {}, None, cache, device)
    tensors = {"inputs": plain(read.inputs), "outputs": plain(read.outputs)}
    bf16 = fit.load_target("x86-64").recipe("bf16")
    able = set(bf16.requires_any_flag) & set(device.facts().flags)
    quantized = {f"ORT {form}": f"{form}.onnx" for form in FORMATS}
    made = [
        (name, "onnxruntime", file, "f32")
        for name, file in {FLOAT: "float.onnx", **quantized}.items()
    ] + [
        (f"{name} in OpenVINO {how}", "openvino", file, how)
        for name, file in {"float": "float.xml", "NNCF int8": "nncf.xml", **quantized}.items()
        for how in (("f32", "bf16") if able else ("f32",))
    ]
    found = []
    for name, runtime, file, how in made:
        path = folder / file
        files = (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)
        options = for_runtime(runtime).options(how, threads)
        found.append(artifacts.candidate(name, runtime, files, options, tensors))
    return found


def _deploy(words: list[object], folder: Path) -> tuple[Candidate | None, dict[str, Any]]:
    """Ours: what one `deploy` ships, and what it said; its cache is empty before."""
    home, out = folder / "onmetal", folder / "bundle"
    for old in (home, out):
        shutil.rmtree(old, ignore_errors=True)
    words = ["-m", "onmetal.cli", *words, "--json", "--out", out, "--force"]
    began = time.monotonic()
    code, said, why = _python(words, folder, ONMETAL_HOME=str(home))
    about = {"seconds": time.monotonic() - began, "exit": code, "stderr": why[-3000:]}
    if code:
        return None, about
    with Cache(home) as cache:
        return artifacts.from_bundle(out, Local(cache), folder), {
            **about,
            "document": json.loads(said),
        }


# --- latency and accuracy


def _feeds(candidate: Candidate, data: Samples, path: Path) -> Path:
    fed = [data.feed(candidate.model, [sample]) for sample in range(FEEDS)]
    flat: Any = {f"{i}/{name}": array for i in range(FEEDS) for name, array in fed[i].items()}
    np.savez(path, **flat)
    return path


def _correct(candidate: Candidate, data: Samples, device: Local, out: Path) -> str:
    """Which samples the artifact gets right, by its own runtime and options: a 0 or 1 each."""
    out.mkdir()
    with device.worker() as worker:
        worker.open(candidate.artifact, timeout_s=600)
        worker.outputs(data, candidate.model, data.count, out, timeout_s=3600)
    scores = np.load(out / "0.npy").reshape(data.count, -1)
    right = (scores.argmax(axis=1) == data.label_array()) & ~np.isnan(scores).any(axis=1)
    return "".join("01"[one] for one in right.tolist())


def run(name: str, asked: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """One model: have the peers' files made, deploy, time, judge. -> all that is known of it."""
    case, folder = CASES[name], asked.work / name
    folder.mkdir(parents=True, exist_ok=True)
    source, data = asked.models / case.file, asked.work / "data" / case.data
    calibration = folder / "calib.npz"
    np.savez(calibration, x=np.load(data / "calib.npz")["x"][: case.calibration])
    progress.step(f"{name}: the peers' tools")
    _once([Path(__file__).resolve(), "--make", source, calibration], folder / "peers")
    progress.step(f"{name}: deploy")
    words = [source, "--target", "x86-64", "--threads", asked.threads, "--data", data / "eval.npz"]
    words += ["--calibration-data", calibration, *(["--quick"] if asked.mode == "quick" else [])]
    ours, deployed = _deploy(words, folder)
    with Cache(folder / "cache") as cache, cache.scratch() as scratch:
        device = Local(cache)
        candidates = _peers(folder / "peers", asked.threads, device, cache)
        candidates += [ours] if ours else []
        read, feeds = {}, {}
        for number, of in enumerate(candidates):
            read[of.name] = samples.load(
                str(data / "eval.npz"), of.model, cache, option="--data", labelled=True
            )
            feeds[of.name] = _feeds(of, read[of.name], scratch / f"{number}.npz")
        progress.step(f"{name}: timing {len(candidates)} candidates")
        outcome = measure.measure(
            device, candidates, lambda of: feeds[of.name], measure.MODES[asked.mode], progress
        )
        rounds, rows = outcome.rounds, {}
        progress.step(f"{name}: judging")
        for number, of in enumerate(candidates):
            progress(number, len(candidates), of.name)
            if of.name in rounds:
                correct = _correct(of, read[of.name], device, scratch / f"{number}")
                rows[of.name] = {
                    "runtime": f"{of.runtime} {of.runtime_version}",
                    "options": of.options,
                    "size_bytes": of.size_bytes,
                    "top1": correct.count("1") / len(correct),
                    "correct": correct,
                    "latency_ms": plain(intervals.latency(rounds[of.name])),
                    "versus_float": plain(intervals.compare(rounds[FLOAT], rounds[of.name])),
                    "round_ms": [np.median(ns) / 1e6 for ns in rounds[of.name].samples_ns.values()],
                }
    shipped = ours.name if ours and ours.name in rows else None
    best = min(rows.keys() - {shipped}, key=lambda peer: rows[peer]["latency_ms"]["p50"])
    found: dict[str, Any] = {"ours": shipped, "best_peer": best, "float": FLOAT, "deploy": deployed}
    found |= {"rows": rows, "failures": outcome.failures}
    if shipped:  # compare's speed-up: the first one's latency over the second one's
        ratio = intervals.compare(rounds[shipped], rounds[best])
        found |= {"latency_ratio": ratio.speedup, "ci95": ratio.ci95}
    return found


def difference(models: dict[str, Any], other: str) -> dict[str, Any]:
    """How much more often ours is right than the other, paired and pooled; its 95 % interval is
    from resampling images, each with what all models gave for it."""
    gaps: dict[str, Any] = {}
    count = 0
    for name, found in models.items():
        ours, theirs = (
            np.array([*found["rows"][found[which]]["correct"]], np.int64)
            for which in ("ours", other)
        )
        images = CASES[name].data.partition("_")[0]
        gaps[images] = gaps.get(images, 0) + ours - theirs
        count += len(ours)
    random = np.random.default_rng(0)
    drawn = [
        sum(gap[random.integers(0, len(gap), len(gap))].sum() for gap in gaps.values()) / count
        for _ in range(10_000)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    verdict = "holds" if low > -MARGIN else "fails" if high < -MARGIN else "not shown"
    value = float(sum(gap.sum() for gap in gaps.values()) / count)
    return {"value": value, "ci95": [low, high], "samples": count, "not_inferior": verdict}


# --- showing it


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(
        f"| {' | '.join(c.ljust(w) for c, w in zip(row, widths, strict=True))} |" for row in rows
    )


def _table(name: str, found: dict[str, Any]) -> str:
    rows = [["", "candidate", "top-1", "p50 ms", "x ORT fp32 [95 %]", "kB"]]
    marks = {found["ours"]: "**ours**", found["best_peer"]: "best peer"}
    for candidate, row in found["rows"].items():
        x, (low, high) = row["versus_float"]["speedup"], row["versus_float"]["ci95"]
        shown = [marks.get(candidate, ""), candidate, f"{row['top1']:.4f}"]
        shown += [f"{row['latency_ms']['p50']:.4f}", f"{x:.2f} [{low:.2f}, {high:.2f}]"]
        rows.append([*shown, f"{row['size_bytes'] / 1e3:.0f}"])
    took = f"deploy took {found['deploy']['seconds']:.0f} s, exit {found['deploy']['exit']}"
    failed = [f"failed: {candidate}: {why}" for candidate, why in found["failures"].items()]
    return "\n".join([f"## {name}", "", _markdown(rows), "", took, *failed, ""])


def summarize(models: dict[str, Any]) -> dict[str, Any]:
    """The aims, a model at a time and pooled over those for which something was shipped."""
    shipped = {name: found for name, found in models.items() if found["ours"]}
    summary: dict[str, Any] = {"of": len(models), "models": {}}
    for name, found in shipped.items():
        low, high = found["ci95"]
        summary["models"][name] = {
            "at_or_below": low <= 1,
            "beaten": found["latency_ratio"] <= 1 / 1.1,
            "surely_beaten": high <= 1 / 1.1,
            "to_best_peer": difference({name: found}, "best_peer"),
            "to_float": difference({name: found}, "float"),
        }
    for aim in ("at_or_below", "beaten", "surely_beaten"):
        summary[aim] = sum(entry[aim] for entry in summary["models"].values())
    if shipped:
        summary["to_best_peer"] = difference(shipped, "best_peer")
        summary["to_float"] = difference(shipped, "float")
    return summary


def _points(found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    return f"{100 * found['value']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def _text(summary: dict[str, Any], models: dict[str, Any]) -> str:
    rows = [["model", "ours", "best peer", "latency ratio [95 %]", "at or below"]]
    rows[0] += ["points to it", "points to float"]
    for name, entry in summary["models"].items():
        found = models[name]
        ratio = f"{found['latency_ratio']:.3f} [{found['ci95'][0]:.3f}, {found['ci95'][1]:.3f}]"
        shown = [
            name,
            found["ours"],
            found["best_peer"],
            ratio,
            "yes" if entry["at_or_below"] else "NO",
        ]
        rows.append([*shown, _points(entry["to_best_peer"]), _points(entry["to_float"])])
    lines = ["## Summary", "", _markdown(rows), ""]
    lines.append(
        f"Latency: at or below the best peer on {summary['at_or_below']} of {summary['of']}; "
        f"beaten by 1.1x on {summary['beaten']}, surely on {summary['surely_beaten']}."
    )
    for key, whom in (("to_best_peer", "the best peers"), ("to_float", "float")):
        if pooled := summary.get(key):
            lines.append(
                f"Top-1, pooled over {pooled['samples']} samples: {_points(pooled)} points to "
                f"{whom}; not inferior by more than {100 * MARGIN:g}: {pooled['not_inferior']}."
            )
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--models", type=Path, required=True)
    options.add_argument("--only", default=",".join(CASES), help="default: %(default)s")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--mode", choices=("default", "quick"), default="default")
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "onmetal-peers")
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    asked.models, asked.work = asked.models.resolve(), asked.work.resolve()
    names = asked.only.split(",")
    if unknown := sorted(set(names) - set(CASES)):
        options.error(f"--only {unknown[0]}: there are {', '.join(CASES)}")
    asked.work.mkdir(parents=True, exist_ok=True)
    _once([asked.models / "prepare.py"], asked.work / "data")
    progress = Progress(steps=4 * len(names))
    models: dict[str, Any] = {}
    for name in names:
        models[name] = run(name, asked, progress)
        progress.clear()
        print(_table(name, models[name]), flush=True)
    summary = summarize(models)
    print(_text(summary, models))
    if asked.json:
        document = {"threads": asked.threads, "mode": asked.mode, "summary": summary}
        document["versions"] = {name: version(name) for name in ("onnxruntime", "openvino", "nncf")}
        asked.json.write_text(json.dumps({**document, "models": models}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make(*map(Path, sys.argv[2:]))
    else:
        main()
