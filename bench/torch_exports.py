"""Networks of torchvision, by both of torch's exporters, as TFLite files: what becomes of them.

    pip install torch torchvision onnxscript
    python bench/torch_exports.py [--only resnet18,mobilenet_v2] [--folder DIR]

Weights are random (nothing is downloaded), with statistics of BatchNorm as a trained network might
have them. Told of each: operators, TRANSPOSE and RESHAPE among them, the relative error of the
float file to ONNX Runtime, the SQNR of the int8 file, and how many islands of float are left in it.
What is exported stays in --folder; where it is there already, torch is not needed.
"""

import argparse
import sys
import tempfile
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np

from onmetal.calibration.fidelity import sqnr_db
from onmetal.converters.onnx import floats
from onmetal.converters.tflite import check, convert, quantize
from onmetal.converters.tflite.net import Net, signature_names
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.reference import Exposed
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError
from onmetal.ranges import Range

NETWORKS = (
    *("convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5"),
    *("mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18"),
    *("shufflenet_v2_x1_0", "squeezenet1_1"),
)
SHAPE = (1, 3, 96, 96)
SAMPLES = 4


def export(name: str, dynamo: bool, place: Path) -> None:
    torch, torchvision = import_module("torch"), import_module("torchvision")
    torch.manual_seed(0)
    more = {"init_weights": False} if name == "googlenet" else {}
    network = getattr(torchvision.models, name)(weights=None, **more).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    how = {"dynamo": True} if dynamo else {"dynamo": False, "opset_version": 17}
    torch.onnx.export(network, (torch.randn(*SHAPE),), str(place), verbose=False, **how)


def tried(path: Path) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            floats.simplify(str(path), folder)
            net = convert.lower(Path(folder) / "model.onnx")
        except UnsupportedError as refused:
            return f"| {path.stem} | refused: {refused} | | | | | |"
    feeds = [
        np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32) for seed in range(SAMPLES)
    ]
    onnxruntime = import_module("onmetal.converters.onnx.reference").onnxruntime  # no telemetry
    session = onnxruntime.InferenceSession(str(path))
    entry, name = session.get_inputs()[0].name, session.get_outputs()[0].name
    wanted = np.stack([session.run([name], {entry: feed})[0] for feed in feeds])
    found, ranges = observed(net, feeds)
    error = np.abs(wanted - found).max() / np.abs(wanted).max()
    made = quantize.quantize(net, ranges)
    assert not check.problems(read(write(made)))
    integer, _ = observed(made, feeds)
    kinds, types = Counter(op.kind for op in net.ops), Counter(op.kind for op in made.ops)
    return (
        f"| {path.stem} | {len(net.ops)} | {kinds['TRANSPOSE']} | {kinds['RESHAPE']} | {error:.1e} "
        f"| {sqnr_db(wanted, integer):.1f} | {types['DEQUANTIZE'] - 1} |"
    )


def observed(net: Net, feeds: list[np.ndarray]) -> tuple[np.ndarray, dict[str, Range]]:
    """-> the first output for every feed, and the range of each tensor that may be quantized."""
    (entry, *_), (output, *_) = signature_names(net)
    names = quantize.observed(net)
    run = Exposed(net, [*names, output]).run
    ranges: dict[str, Range] = {}
    outputs = []
    for feed in feeds:
        found = run({entry: feed})
        outputs.append(found[output])
        for name in names:
            low, high = ranges.get(name, (0.0, 0.0))
            array = found[name]
            ranges[name] = (min(low, float(array.min())), max(high, float(array.max())))
    return np.stack(outputs), ranges


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(NETWORKS))
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "torch-exports"
    )
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    print(
        "| network | operators | TRANSPOSE | RESHAPE | float error | int8, dB | islands of float |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in asked.only.split(","):
        for exporter in ("script", "dynamo"):
            path = asked.folder / f"{name}-{exporter}.onnx"
            if not path.exists():
                print(f"exporting {path.stem}", file=sys.stderr)
                export(name, exporter == "dynamo", path)
            print(tried(path), flush=True)


if __name__ == "__main__":
    main()
