"""Microcontrollers: our int8 files in TFLite Micro against the authors' own; memory; an NPU.

    pip install -e '.[dev]'
    python bench/embedded.py --models DIR [--only resnet8,kws] [--work DIR] [--json FILE]

DIR holds the models, their data and the prepare.py that makes arrays of it, as for bench/tflite.py,
which makes the int8 files. Three tables. In TFLite Micro, the one interpreter for both: top-1 of
ours and of the authors' file over all evaluation samples, the arena that its recording allocator
counts, and the bytes of the file. Memory: the arena of ours as it was written, in the best order,
and split into bands; whether outputs are the same to the bit, and what bands cost. Vela: operators
left to the CPU, and its modelled figures.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.converters.tflite.parsing import read
from onmetal.errors import UnsupportedError
from onmetal.records import plain
from onmetal.runtimes import fit
from onmetal.runtimes.tflm import flash, profile, split, vela
from onmetal.runtimes.tflm.session import Session

SAME = 20
"""Samples over which outputs must be the same to the bit."""
NPUS = ("ethos-u55-128", "ethos-u55-256", "ethos-u85-256")
CORE = "cortex-m4"
MOST_JUDGED = 1000


class Runner:
    """One file in TFLite Micro; feeds the samples in the file's layout and type."""

    def __init__(self, path: Path) -> None:
        self.path, net = path, read(path)
        self.names = (
            [str(n) for n in range(len(net.inputs))],
            [str(n) for n in range(len(net.outputs))],
        )
        self.session = Session([str(path)], {}, *self.names)
        self.turned = len(net.inputs[0].shape) == 4
        self.shape = net.inputs[0].shape

    def feed(self, image: np.ndarray) -> dict[str, np.ndarray]:
        array = image[None]
        if self.turned and tuple(array.shape) != tuple(self.shape):
            array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
        return {"0": array}

    def outputs(self, images: np.ndarray) -> np.ndarray:
        return np.stack([self.session.run(self.feed(image))[0] for image in images])

    def top1(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self.outputs(images).reshape(len(images), -1).argmax(axis=1))

    def arena(self, image: np.ndarray) -> dict[str, Any]:
        return profile.arena(self.feed(image), [str(self.path)], {}, *self.names)


def arranged(source: Path, folder: Path, bands: bool) -> tuple[Path, dict[str, Any]]:
    """The file in less memory, or itself; how."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        how = split.shrink_arena(str(source), str(folder), CORE, bands)
    except UnsupportedError as error:
        return arranged(source, folder, False)[0], {"why": str(error)}
    return (folder / "model.tflite" if how["found"] else source), how


def bench(name: str, case: Any, models: Path, arrays: Path, work: Path) -> dict[str, Any]:
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    evaluation, calibration = (arrays / case.data / f"{p}.npz" for p in ("eval", "calib"))
    loaded = np.load(evaluation)
    images, labels = loaded["x"][:MOST_JUDGED], loaded["y"][:MOST_JUDGED]
    source = folder / "ours-int8.tflite"
    if not source.exists():
        print(f"{name}: ours", file=sys.stderr)
        np.savez(folder / "calib.npz", x=np.load(calibration)["x"][: case.calibration])
        import_module("tflite").make_ours(
            models / case.file, evaluation, folder / "calib.npz", folder
        )
    print(f"{name}: memory", file=sys.stderr)
    found: dict[str, Any] = {"memory": memory(source, folder, images), "vela": {}}
    print(f"{name}: judging", file=sys.stderr)
    ours, _ = arranged(source, folder / "ordered", bands=False)
    found["files"] = {"ours": judged(ours, images, labels)}
    if case.authors:
        found["files"]["authors"] = judged(models / case.authors[1], images, labels)
    for target in NPUS:
        npu = fit.load_target(target).npu
        found["vela"][target] = vela.compile_(source, plain(npu), folder / f"{target}.tflite")
    return found


def memory(source: Path, folder: Path, images: np.ndarray) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    wanted = None
    for label, bands in (("as written", None), ("in order", False), ("in bands", True)):
        path, how = source, dict[str, Any]()
        if bands is not None:
            path, how = arranged(source, folder / label.replace(" ", "-"), bands)
        runner = Runner(path)
        outputs = runner.outputs(images[:SAME])
        wanted = outputs if wanted is None else wanted
        rows[label] = {
            "arena": runner.arena(images[0]),
            "same": bool(np.array_equal(outputs, wanted)),
            "how": how,
            "bytes": path.stat().st_size,
        }
    return rows


def judged(path: Path, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    runner = Runner(path)
    return {
        "right": (runner.top1(images) == labels).tolist(),
        "arena": runner.arena(images[0]),
        "bytes": path.stat().st_size,
        "flash": flash.needs(str(path), CORE),
    }


# --- the tables


def shown(name: str, found: dict[str, Any]) -> str:
    lines = [f"## {name}", "", "| file | top-1 | arena, bytes | file, bytes | flash with code |"]
    lines.append("|---|---|---|---|---|")
    for label, row in found["files"].items():
        lines.append(
            f"| {label} | {np.mean(row['right']):.4f} | {row['arena']['total']:,} | "
            f"{row['bytes']:,} | {row['flash']['total_bytes']:,} |"
        )
    if "authors" in found["files"]:
        lines += ["", paired(found["files"])]
    lines += ["", "| memory | arena | head | tail | less | MACs more | same to the bit |"]
    lines.append("|---|---|---|---|---|---|---|")
    first = found["memory"]["as written"]["arena"]["total"]
    for label, row in found["memory"].items():
        arena, cut = row["arena"], (row["how"].get("how") or {}).get("split") or {}
        more = f"{cut['recomputed'] * 100:.1f} %" if cut else "-"
        less = f"{(1 - arena['total'] / first) * 100:.1f} %"
        lines.append(
            f"| {label} | {arena['total']:,} | {arena['head']:,} | {arena['tail']:,} | {less} | "
            f"{more} | {'yes' if row['same'] else 'NO'} |"
        )
    lines += ["", "| NPU | CPU operators | cycles | ms, modelled | SRAM, bytes | MACs at work |"]
    lines.append("|---|---|---|---|---|---|")
    for target, row in found["vela"].items():
        lines.append(
            f"| {target} | {row['cpu_operators']} | {row['cycles']['total']:,} | "
            f"{row['inference_ms']:.3f} | {row['memory_bytes']['sram']:,} | "
            f"{(row['utilisation'] or 0) * 100:.0f} % |"
        )
    return "\n".join(lines)


def paired(files: dict[str, Any]) -> str:
    """Ours against the authors', sample by sample, with a bootstrap interval."""
    gaps = np.array(files["ours"]["right"], int) - np.array(files["authors"]["right"], int)
    generator = np.random.default_rng(0)
    means = [generator.choice(gaps, len(gaps)).mean() for _ in range(5000)]
    low, high = np.percentile(means, [2.5, 97.5]) * 100
    return (
        f"ours less the authors' over {len(gaps)} samples: {gaps.mean() * 100:+.2f} points "
        f"[{low:+.2f}, {high:+.2f}]"
    )


def main() -> None:
    cases = import_module("tflite").CASES
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--only", default=",".join(cases))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "bench-embedded")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    arrays = asked.work / "data"
    if not arrays.exists():
        script = asked.models / "prepare.py"
        subprocess.run([sys.executable, str(script), str(arrays)], check=True, stdout=sys.stderr)
    results = {}
    for name in asked.only.split(","):
        results[name] = bench(name, cases[name], asked.models, arrays, asked.work)
        print(shown(name, results[name]) + "\n", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(results), "utf-8")


if __name__ == "__main__":
    main()
