"""What calibrating costs: ours against ONNX Runtime's calibrator, percentile 99.999, every value.

    python bench/calibration.py --models DIR [--images 250] [--repeats 3] [--work DIR] [--json FILE]

EfficientNet-Lite0 on the calibration images of DIR, which the prepare.py there makes arrays of.
Every run has a process of its own, and all take turns. Ours: an empty cache, then
CalibratedModel.statistics, whose worker processes start on the clock, and the ranges. ORT's, on
the same float graph and the same mapped file, one image an inference: collect_data, once over
all as quantize_static does it, and compute_data; its session is opened before the clock starts;
symmetric=False, since ours gives
both ends too (True takes as long). Besides: collect_data once every 8 images, which
quantize_static does not do, and ORT's calibrator by minimum and maximum.

Memory is that of the process and its children, libraries and waiting parents too, from the start of
the clock on. `anonymous` (RssAnon) is looked at every 20 ms; `Pss` for a twentieth of the time, and
with it the part that is the mapped input file, which `beyond` leaves out. `most` is the sum of the
VmHWM of processes alive at once: exact for one process, too much for several.

Where ORT's does not fit in memory it gets fewer images, and what a straight line makes of these is
marked as extrapolated. Standard output holds the results alone; --work may be that of peers.py.
"""

import argparse
import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from msgspec.structs import replace

from onmetal.calibration import samples
from onmetal.calibration.calibrated import CalibratedModel
from onmetal.calibration.statistics import Statistics
from onmetal.deploy import model
from onmetal.files.arrays import ArrayFile
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.local_worker import quiet_environment
from onmetal.progress import Progress
from onmetal.ranges import BINS, Grid, estimate
from onmetal.records import plain, restore
from onmetal.runtimes import fit

MODEL = "efficientnet_lite0_imagenet/efficientnet_lite0.onnx"
FEW = 32
"""Images of the run by which memory is seen to be flat."""
LINE = (16, 64)
"""Images by which it is foreseen what ORT's takes."""
FITS, SHRUNK, LEAST = 0.85, 0.6, 0.04
"""Of the memory available: what ORT's may take, and what it gets where it would take more. Of all
memory: the run ends where less is left."""
STRIDE = 8
"""Images a call of collect_data, in the row beside."""
BOTH = ("ours", "ort")
TICK_S, TREE_S, SHARE = 0.02, 0.1, 0.05
MEMORY = ("anonymous", "pss", "beyond", "most")
TIMES = ("seconds", "cpu", "kernel")
FIGURES = (*TIMES, *MEMORY)
_MAPPING = re.compile(rb"^[0-9a-f]+-\S+ \S+ \S+ \S+ \S+ *(.*)\n(?:\w+:.*\n)*?Pss: +(\d+)", re.M)

Found = dict[str, Any]


# --- in processes of their own


@contextlib.contextmanager
def _clock(data: Path, found: Found) -> Iterator[None]:
    """Tell the parent that all is ready, and wait until it looks. Into `found` go `seconds`, `cpu`
    and, of that, `kernel`: seconds of what follows, child processes too."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here on
    _answer(str(data))
    began, before = time.perf_counter(), os.times()
    yield
    found["seconds"] = time.perf_counter() - began
    used = [after - start for after, start in zip(os.times(), before, strict=True)]
    found |= {"cpu": sum(used[:4]), "kernel": used[1] + used[3]}


def _answer(said: Any) -> None:
    """To the parent; back once it has looked."""
    print(json.dumps(said), file=sys.__stdout__, flush=True)
    sys.stdin.readline()


def _hub(given: Found, cache: Cache) -> CalibratedModel:
    """The model and the first of its images, read and checked; the float graph is there."""
    device = Local(cache)
    read = model.read(Path(given["models"]) / MODEL, {}, None, cache, device)
    data = samples.load(given["data"], read, cache, option="--data", labelled=False)
    if given["images"] > data.count:
        sys.exit(f"there are {data.count} images")
    data = replace(data, count=given["images"])
    calibrated = CalibratedModel(read, fit.load_target("x86-64"), data, device, cache)
    calibrated.float_graph()
    return calibrated


def _array(calibrated: CalibratedModel) -> ArrayFile:
    assert calibrated.samples
    return calibrated.samples.arrays[calibrated.model.inputs[0].name]


def ours(given: Found) -> Found:
    """-> `seconds`; `ranges` and `widths` of bins by tensor; `values` counted."""
    found: Found = {}
    with Cache() as cache:
        calibrated = _hub(given, cache)
        with _clock(_array(calibrated).path, found):
            seen = Statistics(calibrated.statistics(lambda done, total, what: None)).seen
            ranges = {k: estimate("percentile-99.999", v, Grid()) for k, v in seen.items()}
    widths = {name: (entry.high - entry.low) / BINS for name, entry in seen.items()}
    values = sum(int(entry.counts.sum()) for entry in seen.values())
    return {**found, "ranges": ranges, "widths": widths, "values": values}


def theirs(given: Found) -> Found:
    """The same of ONNX Runtime's; `widths` and `values` of its histograms alone."""
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.calibrate import create_calibrator

    array, rows = restore(given["array"], ArrayFile), range(given["images"])
    opened = array.open()
    found: Found = {}

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, part: range) -> None:
            self.left = iter(part)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.left, None)
            return None if row is None else {given["input"]: opened[row : row + 1]}

    made = create_calibrator(
        Path(given["graph"]),
        augmented_model_path=str(Path(given["home"]) / "augmented.onnx"),
        calibrate_method=ort.CalibrationMethod[given["method"]],
        extra_options={"symmetric": False},
    )
    with contextlib.redirect_stdout(sys.stderr), _clock(array.path, found):
        for start in range(0, len(rows), given["stride"]):
            made.collect_data(Reader(rows[start : start + given["stride"]]))
        computed = made.compute_data()
    ends = {name: computed[name].range_value for name in computed.keys()}  # noqa: SIM118
    found["ranges"] = {
        name: [float(np.squeeze(end)) for end in both] for name, both in ends.items()
    }
    seen = getattr(made.collector, "histogram_dict", {}) if given["method"] != "MinMax" else {}
    found["widths"] = {name: float(entry[1][1] - entry[1][0]) for name, entry in seen.items()}
    return {**found, "values": sum(int(entry[0].sum()) for entry in seen.values())}


# --- looked at from outside


class Peaks:
    """The greatest sums over a process and its children, in bytes."""

    def __init__(self, pid: int, data: str) -> None:
        self.root, self.data = psutil.Process(pid), os.fsencode(data)
        self.pids: list[int] = []
        self.tree_at = self.maps_at = 0.0
        self.found = dict.fromkeys(MEMORY, 0)

    def look(self) -> None:
        if psutil.virtual_memory().available < LEAST * psutil.virtual_memory().total:
            sys.exit("memory is nearly full: it was given up")
        now = time.monotonic()
        if now >= self.tree_at:
            self.pids = [p.pid for p in (self.root, *self.root.children(recursive=True))]
            self.tree_at = now + TREE_S
        for name, field in (("anonymous", rb"RssAnon:\s+(\d+)"), ("most", rb"VmHWM:\s+(\d+)")):
            self._keep(name, sum(int(n) for pid in self.pids for n in _read(pid, "status", field)))
        if now >= self.maps_at:
            began = time.process_time()
            maps = [(path, int(n)) for pid in self.pids for path, n in _maps(pid)]
            self._keep("pss", sum(n for _, n in maps))
            self._keep("beyond", sum(n for path, n in maps if path != self.data))
            self.maps_at = now + (time.process_time() - began) / SHARE

    def _keep(self, name: str, kib: int) -> None:
        self.found[name] = max(self.found[name], kib * 1024)


def _read(pid: int, file: str, pattern: bytes) -> list[Any]:
    """What a pattern finds in a file of a process; nothing where the process is gone."""
    with contextlib.suppress(OSError):
        return re.findall(pattern, Path(f"/proc/{pid}/{file}").read_bytes())
    return []


def _maps(pid: int) -> list[tuple[bytes, bytes]]:
    """[(path, Pss in KiB)] of all that a process maps."""
    with contextlib.suppress(OSError):
        return _MAPPING.findall(Path(f"/proc/{pid}/smaps").read_bytes())
    return []


def run(kind: str, given: Found, folder: Path) -> Found:
    """One run in a process of its own. -> what it found, and its peaks."""
    with tempfile.TemporaryDirectory(dir=folder) as home, tempfile.TemporaryFile() as log:
        words = ["--child", kind, json.dumps({**given, "home": home})]
        with subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve()), *words],
            env=quiet_environment(Path(home)) | {"ONMETAL_HOME": home},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as child:
            assert child.stdin and child.stdout
            try:
                peaks = Peaks(child.pid, json.loads(child.stdout.readline()))
                busy = _busy_s()
                _let_go(child)
                while not select.select([child.stdout], [], [], TICK_S)[0]:
                    peaks.look()
                found: Found = json.loads(child.stdout.readline())
                found["others"] = (_busy_s() - busy - found["cpu"]) / found["seconds"]
                peaks.look()
                _let_go(child)
            except json.JSONDecodeError:
                log.seek(0)
                said = log.read().decode(errors="replace")[-3000:]
                sys.exit(f"{kind} ended with code {child.wait(10)}:\n{said}")
            finally:
                child.kill()
    return {**found, **peaks.found, "images": given["images"]}


def _busy_s() -> float:
    """What all cores together have worked since the machine started."""
    spent = psutil.cpu_times()
    return float(sum(spent[:3]) + spent.irq + spent.softirq + spent.steal)


def _let_go(child: subprocess.Popen[str]) -> None:
    assert child.stdin
    child.stdin.write("\n")
    child.stdin.flush()


# --- all of it


def _line(points: list[Found], figure: str, images: int) -> float:
    """A straight line through two runs."""
    first, second = points
    slope = (second[figure] - first[figure]) / (second["images"] - first["images"])
    return float(first[figure] + slope * (images - first["images"]))


def _reach(line: list[Found], images: int) -> int:
    """How many images ORT's calibrator can be given all at once."""
    available = psutil.virtual_memory().available
    if _line(line, "most", images) <= FITS * available:
        return images
    fitting = (
        n for n in range(images, LINE[1], -8) if _line(line, "most", n) <= SHRUNK * available
    )
    return next(fitting, min(images, LINE[1]))


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, list[Found]]:
    """All runs by row, one a repeat; `line` is the two runs by which ORT's was foreseen."""
    given: Found = {
        "models": str(asked.models),
        "data": str(asked.work / "data/imagenet/calib.npz"),
    }
    given |= {"images": asked.images, "method": "Percentile", "stride": 10**9}
    with Cache(folder / "cache") as cache:
        calibrated = _hub(given, cache)
        given |= {"graph": str(calibrated.float_graph()), "array": plain(_array(calibrated))}
        given["input"] = calibrated.model.inputs[0].name
        progress = Progress(steps=2 + 5 * asked.repeats)
        found: dict[str, list[Found]] = {"line": []}
        for images in LINE:
            progress.step(f"ORT's on {images} images")
            found["line"].append(run("theirs", {**given, "images": images}, folder))
        reach = _reach(found["line"], asked.images)
        rows: dict[str, tuple[str, Found]] = {
            "ours": ("ours", {}),
            "ort": ("theirs", {"images": reach}),
            "few": ("ours", {"images": FEW}),
            "strides": ("theirs", {"stride": STRIDE}),
            "minmax": ("theirs", {"method": "MinMax"}),
        }
        for repeat in range(asked.repeats):
            for name in list(rows)[:: -1 if repeat % 2 else 1]:
                kind, change = rows[name]
                progress.step(f"{name}, repeat {repeat + 1}")
                found.setdefault(name, []).append(run(kind, {**given, **change}, folder))
        if reach != asked.images:
            found["same"] = [run("ours", {**given, "images": reach}, folder)]
    progress.clear()
    return found


def _extrapolated(found: dict[str, list[Found]], images: int) -> list[Found]:
    """What ORT's takes for so many images: as measured, or on the line from its fewest."""
    few = found["line"][0]
    return [
        one if one["images"] == images else {k: _line([few, one], k, images) for k in FIGURES}
        for one in found["ort"]
    ]


def agreement(ours: Found, theirs: Found) -> Found:
    """How far the ends of ranges are apart, in our bins; zero is in both ranges."""
    apart = {}
    for name in ours["ranges"].keys() & theirs["ranges"].keys():
        low, high = theirs["ranges"][name]
        ends = np.array([min(low, 0.0), max(high, 0.0)]) - ours["ranges"][name]
        apart[name] = float(np.abs(ends).max() / (ours["widths"][name] or 1.0))
    worst = max(apart, key=lambda name: apart[name])
    wide = theirs["widths"][worst] / (ours["widths"][worst] or 1.0)
    return {
        "tensors": len(apart),
        "ours": len(ours["ranges"]),
        "theirs": len(theirs["ranges"]),
        "median_bins": median(apart.values()),
        "worst_bins": apart[worst],
        "worst": worst,
        "their_bin_in_ours": wide,
    }


def _spread(values: list[float]) -> list[float]:
    return [median(values), min(values), max(values)]


def summarize(found: dict[str, list[Found]], images: int) -> Found:
    """[median, least, greatest] over repeats of ratios of two runs of one repeat."""
    rows = found | {"ort": _extrapolated(found, images)}

    def ratio(one: str, other: str, figure: str) -> list[float]:
        pairs = zip(rows[one], rows[other], strict=True)
        return _spread([a[figure] / b[figure] for a, b in pairs])

    others = ("ort", "strides")
    return {
        "faster": {name: ratio(name, "ours", "seconds") for name in others},
        "less_cpu": {name: ratio(name, "ours", "cpu") for name in others},
        "memory": {n: {key: ratio("ours", n, key) for key in MEMORY} for n in others},
        "growth": {key: ratio("ours", "few", key) for key in MEMORY},
        "extrapolated": found["ort"][0]["images"] != images,
        "agreement": agreement(found.get("same", found["ours"])[0], found["ort"][0]),
    }


def _shown(values: list[float], digits: int) -> str:
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} [{low}, {high}]"


def _table(found: dict[str, list[Found]], images: int) -> str:
    reach = found["ort"][0]["images"]
    rows = [
        (f"ours, {images} images", found["ours"]),
        (f"ours, {FEW} images", found["few"]),
        (f"ORT percentile, {reach} images", found["ort"]),
        (f"ORT percentile, {images} images, EXTRAPOLATED", _extrapolated(found, images)),
        (f"ORT percentile, {images} images, {STRIDE} a call", found["strides"]),
        (f"ORT MinMax, {images} images", found["minmax"]),
    ]
    heads = ["", "s", "CPU s", "in the kernel s", *(f"{key} MB" for key in MEMORY)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for title, runs in rows:
        if "EXTRAPOLATED" in title and reach == images:
            continue
        cells = [_shown(_spread([one[key] for one in runs]), 1) for key in TIMES]
        cells += [_shown(_spread([one[key] / 1e6 for one in runs]), 0) for key in MEMORY]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _text(found: dict[str, list[Found]], summary: Found, images: int) -> str:
    agreed, growth, lines = summary["agreement"], summary["growth"], []
    for name, peer in (("ort", "quantize_static's way"), ("strides", f"{STRIDE} images a call")):
        faster, cpu = summary["faster"][name], summary["less_cpu"][name]
        memory = summary["memory"][name]
        how = ", EXTRAPOLATED" if name == "ort" and summary["extrapolated"] else ""
        aims = " (4 times and 0.1 are aimed at)" if name == "ort" else ""
        lines.append(
            f"Against ORT's percentile, {peer}{how}: {_shown(faster, 2)} times faster, "
            f"{_shown(cpu, 2)} times less CPU; peak memory {_shown(memory['most'], 3)} of its by "
            f"`most`, {_shown(memory['pss'], 3)} by Pss{aims}."
        )
    line = _line(found["line"], "most", images) / 1e9
    lines.append(f"ORT's `most`, foreseen by {LINE[0]} and {LINE[1]} images: {line:.1f} GB.")
    grown = ", ".join(f"{_shown(growth[key], 3)} by `{key}`" for key in ("beyond", "anonymous"))
    lines.append(f"Ours, {images} images to {FEW}: {grown} (1 is aimed at).")
    lines.append(
        f"Ends of ranges, in our bins: at most {agreed['worst_bins']:.2f} apart (there, a bin of "
        f"ORT's is {agreed['their_bin_in_ours']:.2f}), {agreed['median_bins']:.2f} in the median; "
        f"{agreed['tensors']} common tensors of our {agreed['ours']} and ORT's {agreed['theirs']}."
    )
    others = _shown(_spread([run["others"] for runs in found.values() for run in runs]), 2)
    lines.append(f"Meanwhile, others kept {others} of {os.cpu_count()} cores busy.")
    each = [found[name][0]["values"] / found[name][0]["images"] / 1e6 for name in BOTH]
    lines.append(f"Values counted an image: {each[0]:.1f} million, ORT's {each[1]:.1f} million.")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--models", type=Path, required=True)
    options.add_argument("--images", type=int, default=250)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "onmetal-peers")
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    asked.models, asked.work = asked.models.resolve(), asked.work.resolve()
    _prepare(asked.models / "prepare.py", asked.work)
    with tempfile.TemporaryDirectory(dir=asked.work) as folder:
        found = measure(asked, Path(folder))
    summary = summarize(found, asked.images)
    print(_table(found, asked.images), _text(found, summary, asked.images), sep="\n\n")
    if asked.json:
        names = ("onnxruntime", "numpy")
        document = {"images": asked.images, "versions": {name: version(name) for name in names}}
        asked.json.write_text(json.dumps({**document, "summary": summary, "runs": found}))


def _prepare(program: Path, work: Path) -> None:
    """The images as arrays, made once."""
    if not (work / "data").exists():
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            made = Path(folder) / "data"
            subprocess.run([sys.executable, str(program), str(made)], check=True, stdout=2)
            made.rename(work / "data")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _answer({"ours": ours, "theirs": theirs}[sys.argv[2]](json.loads(sys.argv[3])))
    else:
        main()
