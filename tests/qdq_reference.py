"""The rules of quantized graphs once more, written apart: placement, numbers, a sound bound."""

import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from onmetal.calibration.placement import MOVERS, PAIRED, WEIGHTED, Placement
from onmetal.converters.onnx.graph import Graph, attribute
from onmetal.runtimes import for_runtime
from onmetal.runtimes.onnxruntime import session as run_onnxruntime
from onmetal.runtimes.openvino import session as run_openvino
from onmetal.targets import OPERATORS, Format
from tests.onnx_models import build, value

Arrays = dict[str, np.ndarray]
Ranges = dict[str, tuple[float, float]]

EVERY = tuple(sorted(OPERATORS))


VNNI = " avx512_vnni " in (found := Path("/proc/cpuinfo").read_text()) or " avx_vnni " in found
"""Without it, runtimes' sums of two products by 8-bit weights saturate: only 7 bits are exact."""


# --- running


def opened(model: Any, level: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def traced(model: Any, feeds: Iterable[Arrays]) -> list[Arrays]:
    """Every tensor of a model for each feed, each operator executed as it is written."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    del whole.graph.output[:]
    names = [name for entry in model.graph.node for name in entry.output if name]
    whole.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = opened(whole, "ORT_DISABLE_ALL")
    return [{**feed, **dict(zip(names, session.run(names, feed), strict=True))} for feed in feeds]


def ranges_of(traces: Iterable[Arrays]) -> Ranges:
    """The least and the greatest value of every float tensor."""
    found: Ranges = {}
    for trace in traces:
        for name, array in trace.items():
            if array.dtype == np.float32:
                low, high = found.get(name, (np.inf, -np.inf))
                found[name] = min(low, float(array.min())), max(high, float(array.max()))
    return found


@lru_cache(maxsize=512)
def _alone(text: bytes, kinds: tuple[tuple[int, tuple[int, ...]] | None, ...], opset: int) -> Any:
    entry = onnx.NodeProto.FromString(text)
    for place, kind in enumerate(kinds):
        entry.input[place] = "" if kind is None else f"i{place}"
    inputs = [value(f"i{i}", kind[1], kind[0]) for i, kind in enumerate(kinds) if kind]
    outputs = [helper.make_empty_tensor_value_info(name) for name in entry.output if name]
    return opened(build([entry], inputs, outputs, opset=opset, ir=10), "ORT_DISABLE_ALL")


def run_node(entry: Any, arrays: list[np.ndarray | None], opset: int) -> list[np.ndarray]:
    """What one operator gives, by ONNX Runtime."""
    kinds = tuple(
        None if a is None else (helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for a in arrays
    )
    copy = onnx.NodeProto()
    copy.CopyFrom(entry)
    del copy.input[len(arrays) :]
    session = _alone(copy.SerializeToString(deterministic=True), kinds, opset)
    feed = {f"i{i}": np.asarray(a) for i, a in enumerate(arrays) if a is not None}
    return session.run(None, feed)  # type: ignore[no-any-return]


MODULES = {"onnxruntime": run_onnxruntime, "openvino": run_openvino}


def in_runtimes(
    model: Any, feeds: list[Arrays], runtimes: Iterable[str] = MODULES
) -> dict[str, list[Arrays]]:
    """The outputs by the sessions that bundles ship, opened as `deploy` opens them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString(deterministic=True))
        inputs = [entry.name for entry in model.graph.input]
        outputs = [entry.name for entry in model.graph.output]
        found = {}
        for name in runtimes:
            options = for_runtime(name).options("f32", 1)
            session = MODULES[name].Session([str(path)], options, inputs, outputs)
            found[name] = [dict(zip(outputs, session.run(feed), strict=True)) for feed in feeds]
    return found


class Case(NamedTuple):
    model: Any
    feeds: list[Arrays]


# --- the rules once more, written apart


class Lattice(NamedTuple):
    """real = scale * (integer - zero), the integers from `least` to `most`."""

    scale: np.ndarray
    zero: np.ndarray
    least: int
    most: int

    def rounded(self, array: np.ndarray) -> np.ndarray:
        """As QuantizeLinear and DequantizeLinear are defined, in float32."""
        integers = np.rint(array / self.scale) + self.zero.astype(np.float32)
        integers = np.clip(integers, self.least, self.most) - self.zero.astype(np.float32)
        return np.asarray(integers * self.scale, np.float32)


def activation_lattice(low: float, high: float, form: Format) -> Lattice:
    low, high = min(low, 0.0), max(high, 0.0)
    least = 0 if form.activation == "u8" else -128
    if form.activation_symmetric:
        scale, zero = np.float32(max(-low, high) / 127), least + 128
    else:
        scale, zero = np.float32((high - low) / 255), least
    if scale == 0:
        scale = np.float32(1)
    if not form.activation_symmetric:
        zero = least + round(-low / float(scale))
    kind = np.uint8 if form.activation == "u8" else np.int8
    return Lattice(np.asarray(scale), np.asarray(zero, kind), least, least + 255)


class Stored(NamedTuple):
    """A constant in integers."""

    integers: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    axis: int | None

    def spread(self, array: np.ndarray) -> np.ndarray:
        """Scales or zero points, shaped so that each meets its channel."""
        if self.axis is None:
            return array
        return array.reshape([-1 if i == self.axis else 1 for i in range(self.integers.ndim)])

    def real(self) -> np.ndarray:
        """As DequantizeLinear is defined, in float32."""
        integers = self.integers.astype(np.int64) - self.spread(self.zero)
        return np.asarray(integers.astype(np.float32) * self.spread(self.scale))

    def off(self) -> np.ndarray:
        """At most so far from the original."""
        half = 0.5 * self.spread(self.scale).astype(np.float64)
        return np.broadcast_to(half, self.integers.shape)


def activation_stored(array: np.ndarray, form: Format) -> Stored:
    found = activation_lattice(float(array.min()), float(array.max()), form)
    integers = np.rint(array.astype(np.float64) / found.scale) + found.zero
    integers = np.clip(integers, found.least, found.most).astype(found.zero.dtype)
    return Stored(integers, found.scale, found.zero, None)


def weight_stored(weight: np.ndarray, form: Format, axis: int | None) -> Stored:
    """One channel after the other: the largest magnitude, or the range, on all steps."""
    turned = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0)
    rows = turned.reshape(len(turned), -1).astype(np.float64)
    kind: Any = np.int8 if form.weight == "s8" else np.uint8
    count = 2**form.weight_bits
    least = -count // 2 if form.weight == "s8" else 0
    integers = np.zeros(rows.shape, kind)
    scales, zeros = np.zeros(len(rows), np.float32), np.zeros(len(rows), kind)
    for number, row in enumerate(rows):
        low, high = min(0.0, row.min()), max(0.0, row.max())
        if form.weight_symmetric:
            most, zero = count // 2 - 1, least + count // 2
            scale, limits = max(-low, high) / most, (zero - most, zero + most)
        else:
            scale = (high - low) / (count - 1)
            zero, limits = least + round(-low / scale), (least, least + count - 1)
        scales[number], zeros[number] = scale, zero
        integers[number] = np.clip(np.rint(row / float(scales[number])) + zero, *limits)
    if axis is None:
        return Stored(integers.reshape(weight.shape), scales[0], zeros[0], None)
    return Stored(np.moveaxis(integers.reshape(turned.shape), 0, axis), scales, zeros, axis)


def weight_axis(entry: Any, place: int, twin: "Twin") -> int | None:
    """Where the channels of a product's results lie in its weight."""
    if not twin.form.per_channel or place != 1:
        return None
    if entry.op_type == "Conv":
        return 0
    if entry.op_type == "ConvTranspose":
        return 1 if attribute(entry, "group", 1) == 1 else None
    if entry.op_type == "Gemm":
        return 0 if attribute(entry, "transB", 0) else 1
    weight = twin.graph.constant(entry.input[1])
    return 1 if weight is not None and weight.ndim == 2 else None


def computed(entry: Any, graph: Graph) -> list[str]:
    """The inputs of a node that are tensors of activations, in order."""
    count = 2 if entry.op_type in ("MatMul", "Gemm") else 1
    names = list(entry.input) if entry.op_type in PAIRED else list(entry.input)[:count]
    return [name for name in names if graph.constant(name) is None]


def agree(name: str, found: np.ndarray, expected: np.ndarray, step: float) -> None:
    """The same kernels saw the same numbers. In another place of memory they may add up in another
    order, and what then lies on the edge between two integers falls to the other side."""
    peak = float(np.abs(expected).max(initial=0.0))
    apart = ~np.isclose(found, expected, rtol=1e-5, atol=1e-6 * peak + 1e-30)
    assert np.abs(found - expected)[apart].max(initial=0.0) <= 1.001 * step, name
    assert np.count_nonzero(apart) <= 1 + 0.02 * apart.size, name


class Twin:
    """A float graph of which some operators run in 8 bits, executed by the rules of a format."""

    def __init__(self, model: Any, form: Format, placed: Placement, ranges: Ranges) -> None:
        self.model, self.form, self.placed = model, form, placed
        self.graph = Graph(model)
        self.opset = model.opset_import[0].version
        self.owner = {follower: name for name, follower in placed.after.items()}
        self.by_name = {entry.name: entry for entry in self.graph.nodes}
        self.integer = [entry for entry in self.graph.nodes if entry.name in placed.integer]
        self.stored: dict[str, dict[int, Stored]] = {}
        self.group: dict[str, str] = {}
        for entry in self.integer:
            names = computed(entry, self.graph)
            names += [name for name in self.results(entry) if name not in placed.raw]
            for name in names:
                self.group.setdefault(name, name)
            if entry.op_type in form.same_scale:
                old = {self.group[name] for name in names}
                first = self.group[names[0]]
                self.group = {n: first if of in old else of for n, of in self.group.items()}
        self.lattices = {}
        for name, of in self.group.items():
            members = [ranges[other] for other, its in self.group.items() if its == of]
            low, high = min(r[0] for r in members), max(r[1] for r in members)
            self.lattices[name] = activation_lattice(low, high, form)

    def results(self, entry: Any) -> list[str]:
        follower = self.placed.after.get(entry.name)
        return list(self.by_name[follower].output if follower else entry.output)

    def constants(self, entry: Any) -> dict[int, Stored]:
        """Place -> the constant that stands there, as it is stored."""
        if entry.name in self.stored:
            return self.stored[entry.name]
        found = self.stored[entry.name] = {}
        for place, name in enumerate(entry.input):
            array = self.graph.constant(name) if name else None
            if array is None or array.dtype != np.float32:
                continue
            if entry.op_type in WEIGHTED and place < 2:
                found[place] = weight_stored(array, self.form, weight_axis(entry, place, self))
            elif entry.op_type in WEIGHTED:
                weight = found[1]
                entry_scale = self.lattices[entry.input[0]].scale
                scale = (entry_scale.astype(np.float64) * weight.scale).astype(np.float32)
                integers = np.rint(array.astype(np.float64) / scale).astype(np.int32)
                axis = None if weight.axis is None else 0
                found[place] = Stored(integers, scale, np.zeros(scale.shape, np.int32), axis)
            elif entry.op_type in PAIRED:
                found[place] = activation_stored(array, self.form)
        return found

    def follow(self, trace: Arrays) -> None:
        """Compute every tensor of a QDQ graph's trace from those before it; they must agree."""
        known = {name: trace[name] for name in self.graph.inputs}
        taken = {
            name: self.lattices[name].rounded(a) for name, a in known.items() if name in self.group
        }
        for entry in self.graph.nodes:
            if entry.name in self.owner:
                continue
            inputs = [self._input(name, known) for name in entry.input]
            integer = entry.name in self.placed.integer
            if integer:
                names = computed(entry, self.graph)
                inputs = [
                    taken[name] if name in names else array
                    for name, array in zip(entry.input, inputs, strict=True)
                ]
                for place, stored in self.constants(entry).items():
                    inputs[place] = stored.real()
            given = self._run(entry, inputs)
            if integer and (follower := self.placed.after.get(entry.name)):
                known[entry.output[0]] = given[0]
                last = self.by_name[follower]
                given = self._run(last, [self._input(name, known) for name in last.input])
            for name, array in zip(self.results(entry), given, strict=True):
                lattice = self.lattices.get(name)
                if lattice and integer:
                    array = lattice.rounded(array)
                agree(name, trace[name], array, float(lattice.scale) if lattice and integer else 0)
                known[name] = taken[name] = trace[name]
                if lattice and not integer:
                    taken[name] = lattice.rounded(trace[name])

    def bounds(self, exact: Arrays, runtime: str = "") -> Arrays:
        """By how much each float tensor may be off in 8 bits, where nothing saturates.

        Half a step for whatever is rounded, carried through every operator by what it can grow to
        at most; a tensor on a lattice is never off by more than the lattice is wide.

        Of the runtimes, OpenVINO moves a Clip before the DequantizeLinear, with its bounds rounded
        to integers; ONNX Runtime's Softmax in 8 bits rounds once more.
        """
        coarsest = max((float(lattice.scale) for lattice in self.lattices.values()), default=0.0)
        known = {name: np.zeros(exact[name].shape) for name in self.graph.inputs}
        taken = {name: self._rounded(name, e) for name, e in known.items() if name in self.group}
        for entry in self.graph.nodes:
            if entry.name in self.owner:
                continue
            values = [self._input(name, exact) for name in entry.input]
            integer = entry.name in self.placed.integer
            follower = self.by_name.get(self.placed.after.get(entry.name, ""))
            source = taken if integer else known
            errors = [
                source[name]
                if name in source and self.graph.constant(name) is None
                else None
                if array is None
                else np.zeros(array.shape)
                for name, array in zip(entry.input, values, strict=True)
            ]
            if integer:
                for place, stored in self.constants(entry).items():
                    errors[place] = stored.off()
            if all(exact[name].dtype == np.float32 for name in entry.output) and entry.input:
                given = grown(entry, values, errors, self.opset)
            else:  # shapes, and what is constant
                given = [np.zeros(exact[name].shape) for name in entry.output]
            kinds = {entry.op_type, follower.op_type if follower else ""}
            if runtime == "openvino" and "Clip" in kinds:
                given = [given[0] + 0.5 * coarsest]
            if runtime == "onnxruntime" and integer and entry.op_type == "Softmax":
                given = [given[0] + float(self.lattices[self.results(entry)[0]].scale)]
            known |= dict(zip(entry.output, given, strict=True))
            for name, error in zip(self.results(entry), given, strict=True):
                known[name] = error
                if name in self.group:
                    taken[name] = self._rounded(name, error)
                    if integer:
                        known[name] = taken[name]
        return known

    def saturates(self, entry: Any) -> bool:
        """Whether what a Relu or Clip cuts off is off its lattice anyway."""
        if entry.output[0] not in self.group:
            return False
        lattice = self.lattices[entry.output[0]]
        scale, zero = float(lattice.scale), int(lattice.zero)
        bounds = [self.graph.constant(name) for name in entry.input[1:] if name]
        lower = 0.0 if entry.op_type == "Relu" else -np.inf
        upper = np.inf
        if len(entry.input) > 1 and entry.input[1]:
            lower = float(bounds.pop(0))  # type: ignore[arg-type]
        if bounds:
            upper = float(bounds[0])  # type: ignore[arg-type]
        low, high = (lattice.least - zero) * scale, (lattice.most - zero) * scale
        return low >= lower - 1e-3 * scale and high <= upper + 1e-3 * scale

    def _rounded(self, name: str, error: np.ndarray) -> np.ndarray:
        step = float(self.lattices[name].scale)
        return np.minimum(error + 0.505 * step, 255.5 * step)

    def _input(self, name: str, known: Arrays) -> np.ndarray | None:
        if not name:
            return None
        array = self.graph.constant(name)
        return known[name] if array is None else array

    def _run(self, entry: Any, inputs: list[np.ndarray | None]) -> list[np.ndarray]:
        return run_node(entry, inputs, self.opset)


STEEPEST = {"Neg": 1.0, "Sigmoid": 0.25, "Tanh": 1.0, "HardSwish": 1.5, "Relu": 1.0, "Clip": 1.0}


def grown(
    entry: Any, values: list[np.ndarray | None], errors: list[np.ndarray | None], opset: int
) -> list[np.ndarray]:
    """At most so far off is what an operator gives, where what it takes is off by `errors`."""
    kind = entry.op_type

    def applied(*inputs: np.ndarray | None) -> np.ndarray:
        given = run_node(entry, [None if a is None else a.astype("f4") for a in inputs], opset)
        return np.asarray(given[0], np.float64)

    first, off = values[0], errors[0]
    assert first is not None and off is not None
    if kind in WEIGHTED or kind in ("Add", "Sub", "Mul", "Div"):
        other, other_off = values[1], errors[1]
        assert other is not None and other_off is not None
        if kind in ("Add", "Sub"):
            found = off + other_off
        elif kind == "Mul":
            found = np.abs(first) * other_off + np.abs(other) * off + off * other_off
        elif kind == "Div":
            least = np.abs(other) - other_off
            with np.errstate(divide="ignore", invalid="ignore"):
                found = (off + np.abs(first / other) * other_off) / least
            found = np.where(np.broadcast_to(least, found.shape) > 0, found, np.inf)
        else:
            found = applied(np.abs(first) + off, other_off)
            found = found + applied(off, np.abs(other), *errors[2:])
    elif kind in MOVERS:
        others = values[1:2] if kind == "Pad" else values[1:]  # what is padded is exact
        given = run_node(entry, [off.astype("f4"), *others], opset)
        return [np.asarray(array, np.float64) for array in given]
    elif kind == "Exp":
        found = np.exp(first.astype(np.float64)) * np.expm1(off)
    elif kind == "Concat":
        found = applied(*errors)
    elif kind in ("AveragePool", "GlobalAveragePool", "ReduceMean"):
        found = np.asarray(run_node(entry, [off.astype("f4"), *values[1:]], opset)[0], np.float64)
    elif kind == "Softmax":  # the gradient of a share p sums up to 2p(1 - p)
        found = np.full(first.shape, off.max(initial=0.0) / 2)
    elif kind in ("LeakyRelu", "Elu", "HardSigmoid"):
        usual = {"LeakyRelu": 0.01, "Elu": 1.0, "HardSigmoid": 0.2}[kind]
        slope = abs(attribute(entry, "alpha", usual))
        found = off * (slope if kind == "HardSigmoid" else max(1.0, slope))
    else:
        found = off * STEEPEST[kind]
    return [found * 1.00001 + 1e-6]
