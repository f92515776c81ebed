"""Our .tflite files against the authors' own, and against what other quantizers make.

    pip install ai-edge-quantizer ethos-u-vela
    python bench/tflite.py --models DIR [--only resnet8,kws] [--work DIR] [--json FILE]

DIR holds the models, their data and the prepare.py that makes arrays of it. Of each network: our
float and int8 files (made of the ONNX model), the authors' float and int8 files where there are
any, and what ai-edge-quantizer and LiteRT's classic calibrator make of *our* float file, calibrated
on the same samples. All take channels last and whole numbers where they can. Counted: operators,
bytes, relative error of the float file to ONNX Runtime, top-1 over all evaluation samples, latency
by LiteRT with one thread, interleaved; and whether Vela leaves operators to the CPU.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onmetal.converters.onnx import floats
from onmetal.converters.tflite import convert, io
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.writing import write


class Case(NamedTuple):
    file: str
    data: str
    calibration: int
    authors: tuple[str, str] | None
    """Their float and their int8 file."""
    most_operators: int


IC, KWS = "mlperf_tiny_ic_cifar10", "mlperf_tiny_kws"
CASES = {
    "resnet8": Case(
        f"{IC}/mlperf_resnet8_cifar10.onnx",
        "cifar_raw",
        256,
        (f"{IC}/pretrainedResnet.tflite", f"{IC}/pretrainedResnet_quant.tflite"),
        15,
    ),
    "kws": Case(
        f"{KWS}/mlperf_dscnn_kws.onnx",
        "kws",
        100,
        (f"{KWS}/kws_ref_model_float32.tflite", f"{KWS}/kws_ref_model.tflite"),
        12,
    ),
    "resnet20": Case(f"{IC}/resnet20_cifar10.onnx", "cifar_norm", 256, None, 30),
    "resnet56": Case(f"{IC}/resnet56_cifar10.onnx", "cifar_norm", 256, None, 0),
    "effnet": Case(
        "efficientnet_lite0_imagenet/efficientnet_lite0.onnx", "imagenet", 250, None, 60
    ),
}
ROUNDS = 40
ROUND_S = 0.02


class Runner:
    """One file in LiteRT, one thread; feeds float arrays in the file's layout and type."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_path=str(path), num_threads=1)
        self.interpreter.allocate_tensors()
        self.taken = self.interpreter.get_input_details()[0]
        self.given = self.interpreter.get_output_details()[0]

    def fed(self, image: np.ndarray) -> np.ndarray:
        """One sample, as the ONNX model takes it -> as the file does."""
        array = image[None]
        if tuple(array.shape) != tuple(self.taken["shape"]):
            array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
        scale, zero = self.taken["quantization"]
        dtype = self.taken["dtype"]
        if dtype != np.float32:
            limits = np.iinfo(dtype)
            array = np.clip(np.rint(array / scale) + zero, limits.min, limits.max)
        return np.asarray(array, dtype)

    def run(self, array: np.ndarray) -> np.ndarray:
        self.interpreter.set_tensor(self.taken["index"], array)
        self.interpreter.invoke()
        return np.asarray(self.interpreter.get_tensor(self.given["index"]))

    def top1(self, images: np.ndarray) -> np.ndarray:
        return np.array([int(np.argmax(self.run(self.fed(image)))) for image in images])

    def round_ms(self) -> float:
        """The median of a short run of bare inferences."""
        taken, end = [], time.perf_counter() + ROUND_S
        while (began := time.perf_counter()) < end:
            self.interpreter.invoke()
            taken.append(time.perf_counter() - began)
        return float(np.median(taken)) * 1e3


# --- ours


def make_ours(source: Path, data: Path, calibration: Path, folder: Path) -> dict[str, Any]:
    """By one `deploy` in a process of its own: its int8 bundle. -> seconds and peak memory."""
    target = folder / "nhwc.toml"
    text = (Path(__file__).parent.parent / "targets/tflite-x86.toml").read_text("utf-8")
    text = re.sub(r"^recipes = .*$", 'recipes = ["fp32", "int8"]', text, flags=re.MULTILINE)
    text = text.replace("[[runtimes]]", '[io]\nlayout = "nhwc"\ndtype = "int8"\n\n[[runtimes]]')
    target.write_text(text, "utf-8")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "onmetal.cli", str(source), "--target", str(target)),
                *("--data", str(data), "--calibration-data", str(calibration)),
                *("--recipes", "int8", "--no-device", "--max-accuracy-drop", "none"),
                *("--out", str(folder / "bundle"), "--force", "--json"),
            ],
            env={**os.environ, "ONMETAL_HOME": home},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    took = time.perf_counter() - began
    (folder / "ours-int8.tflite").write_bytes((folder / "bundle/model.tflite").read_bytes())
    with tempfile.TemporaryDirectory() as place:
        static = Path(place) / "static.onnx"
        static.write_bytes(_static(source))
        floats.simplify(str(static), place)
        net = convert.lower(Path(place) / "model.onnx")
    (folder / "ours-float-onnx-layout.tflite").write_bytes(write(net))
    io.channels_last(net)
    (folder / "ours-float.tflite").write_bytes(write(net))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"deploy_s": took, "peak_bytes": peak}


def _static(source: Path) -> bytes:
    import onnx

    model = onnx.load(str(source))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return bytes(model.SerializeToString())


# --- the others, of our float file


def make_others(images: np.ndarray, folder: Path) -> None:
    source = folder / "ours-float.tflite"
    runner = Runner(source)
    fed = [runner.fed(image) for image in images]
    if not (folder / "aeq-int8.tflite").exists():
        _ai_edge_quantizer(source, fed, folder / "aeq-int8.tflite")
    place = folder / "classic-int8.tflite"
    if not place.exists():
        np.save(folder / "fed.npy", np.stack(fed))
        paths = [str(source), str(folder / "fed.npy"), str(place)]
        if subprocess.run([sys.executable, "-c", CLASSIC, *paths]).returncode:
            print("the classic calibrator failed: left out", file=sys.stderr)


def _ai_edge_quantizer(source: Path, fed: list[np.ndarray], place: Path) -> None:
    """Its static recipe, with its default calibration."""
    try:
        from ai_edge_quantizer import quantizer, recipe
    except ImportError:
        print("ai-edge-quantizer is not installed: left out", file=sys.stderr)
        return
    made = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
    name = read(source).inputs[0].name
    seen = made.calibrate({"serving_default": [{name: array} for array in fed]})
    place.write_bytes(bytes(made.quantize(seen).quantized_model))


CLASSIC = """
import sys
import numpy as np
from ai_edge_litert import _pywrap_tensorflow_lite_calibration_wrapper as wrapper

source, samples, place = sys.argv[1:]
model = open(source, "rb").read()  # it is not copied: must outlive what is made of it
made = wrapper.CalibrationWrapper(model, [], [])
made.Prepare()
for array in np.load(samples):
    made.FeedTensor([array])
integer, bias = np.dtype(np.int8).num, np.dtype(np.int32).num
content = made.QuantizeModel(integer, integer, False, integer, bias, False, False)
open(place, "wb").write(content)
"""
"""The calibrator of TFLite's converter, which ai-edge-litert holds as a private module, beside its
interpreter: so it runs in a process of its own."""


def vela(path: Path, folder: Path) -> str:
    """How many operators are left to the CPU, as Vela tells."""
    done = subprocess.run(
        [
            *("vela", str(path), "--accelerator-config", "ethos-u55-128"),
            *("--config", "Arm/vela.ini", "--system-config", "Ethos_U55_High_End_Embedded"),
            *("--memory-mode", "Shared_Sram", "--output-dir", str(folder / "vela")),
        ],
        capture_output=True,
        text=True,
    )
    found = re.search(r"CPU operators = (\d+)", done.stdout)
    return found.group(1) if found else "?"


# --- the table


def bench(name: str, case: Case, models: Path, arrays: Path, work: Path) -> dict[str, Any]:
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    evaluation, calibration = (arrays / case.data / f"{p}.npz" for p in ("eval", "calib"))
    loaded = np.load(evaluation)
    images, labels = loaded["x"], loaded["y"]
    few = np.load(calibration)["x"][: case.calibration]
    np.savez(folder / "calib.npz", x=few)
    print(f"{name}: ours", file=sys.stderr)
    cost = make_ours(models / case.file, evaluation, folder / "calib.npz", folder)
    print(f"{name}: the others", file=sys.stderr)
    make_others(few, folder)
    if case.authors:
        for kind, file in zip(("float", "int8"), case.authors, strict=True):
            (folder / f"authors-{kind}.tflite").write_bytes((models / file).read_bytes())
    names = ["ours-float", "authors-float", "ours-int8", "authors-int8", "aeq-int8", "classic-int8"]
    runners = {
        label: Runner(path) for label in names if (path := folder / f"{label}.tflite").exists()
    }
    times: dict[str, list[float]] = {label: [] for label in runners}
    for runner in runners.values():
        runner.run(runner.fed(images[0]))
        runner.round_ms()
    generator = np.random.default_rng(0)
    for _ in range(ROUNDS):
        for label in generator.permutation(list(runners)):
            times[label].append(runners[label].round_ms())
    print(f"{name}: judging", file=sys.stderr)
    right = {label: runner.top1(images) == labels for label, runner in runners.items()}
    rows = {}
    for label in runners:
        net = read(folder / f"{label}.tflite")
        kinds = Counter(op.kind for op in net.ops)
        rows[label] = {
            "top1": float(right[label].mean()),
            "ms": float(np.median(times[label])),
            "kb": round((folder / f"{label}.tflite").stat().st_size / 1000, 1),
            "operators": len(net.ops),
            "moved": kinds["TRANSPOSE"] + kinds["QUANTIZE"] + kinds["DEQUANTIZE"],
            "right": right[label].tolist(),
            "times": times[label],
        }
    return {
        "rows": rows,
        **cost,
        "float_error": _float_error(models / case.file, images[:32], folder),
        "vela_cpu_operators": vela(folder / "ours-int8.tflite", folder),
        "most_operators": case.most_operators,
    }


def _float_error(source: Path, images: np.ndarray, folder: Path) -> float:
    """The largest difference to ONNX Runtime, over the largest magnitude."""
    onnxruntime = import_module("onmetal.converters.onnx.reference").onnxruntime  # no telemetry
    session = onnxruntime.InferenceSession(_static(source))
    runner = Runner(folder / "ours-float.tflite")
    name, worst, peak = session.get_inputs()[0].name, 0.0, 0.0
    for image in images:
        wanted = session.run(None, {name: image[None]})[0]
        worst = max(worst, float(np.abs(runner.run(runner.fed(image)) - wanted).max()))
        peak = max(peak, float(np.abs(wanted).max()))
    return worst / peak


def shown(name: str, found: dict[str, Any]) -> str:
    lines = [f"## {name}", "", "| file | top-1 | ms | kB | operators | TRANSPOSE, Q, DQ |"]
    lines.append("|---|---|---|---|---|---|")
    for label, row in found["rows"].items():
        lines.append(
            f"| {label} | {row['top1']:.4f} | {row['ms']:.4f} | {row['kb']} | {row['operators']} | "
            f"{row['moved']} |"
        )
    rows = found["rows"]
    ours = np.array(rows["ours-int8"]["times"])
    for label in ("authors-int8", "aeq-int8", "classic-int8"):
        if label in rows:
            ratio = np.median(ours / np.array(rows[label]["times"]))
            lines += ["", f"ours-int8 over {label}: {ratio:.3f} of its latency"]
    lines += [
        "",
        f"float: relative error {found['float_error']:.1e} to ONNX Runtime; int8 by deploy took "
        f"{found['deploy_s']:.0f} s, its largest process {found['peak_bytes'] / 1e6:.0f} MB; Vela "
        f"leaves {found['vela_cpu_operators']} operators to the CPU",
    ]
    return "\n".join(lines)


def pooled(results: dict[str, dict[str, Any]]) -> str:
    """Top-1 of ours against the best of the others of each network, paired, pooled."""
    gaps: list[np.ndarray] = []
    for found in results.values():
        others = {k: v for k, v in found["rows"].items() if k.endswith("int8") and k[:4] != "ours"}
        if not others:
            continue
        best = max(others.values(), key=lambda row: row["top1"])
        mine = np.array(found["rows"]["ours-int8"]["right"], int)
        gaps.append(mine - np.array(best["right"], int))
    every = np.concatenate(gaps)
    generator = np.random.default_rng(0)
    means = [generator.choice(every, len(every)).mean() for _ in range(2000)]
    low, high = np.percentile(means, [2.5, 97.5]) * 100
    return (
        f"int8 top-1, pooled over {len(every)} samples, against the best of the others: "
        f"{every.mean() * 100:+.2f} points [{low:+.2f}, {high:+.2f}]"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "bench-tflite")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    arrays = asked.work / "data"
    if not arrays.exists():
        script = asked.models / "prepare.py"
        subprocess.run([sys.executable, str(script), str(arrays)], check=True, stdout=sys.stderr)
    results = {}
    for name in asked.only.split(","):
        results[name] = bench(name, CASES[name], asked.models, arrays, asked.work)
        print(shown(name, results[name]) + "\n", flush=True)
    print(pooled(results))
    if asked.json:
        asked.json.write_text(json.dumps(results), "utf-8")


if __name__ == "__main__":
    main()
