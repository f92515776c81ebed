"""What flows through a deployment. Every record is frozen; units are in the names.

A number that was not measured is None, and `missing` says why. Raw samples are kept: statistics are
computed from `Rounds` and `Energy`, never stored in their place.
"""

import os
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Struct, field

Record = TypeVar("Record")


def plain(record: Any) -> Any:
    """A record as JSON values, paths as text."""
    return msgspec.to_builtins(record, enc_hook=str)


def shown(path: Path) -> str:
    """A path for JSON and people: names that are no UTF-8 get replacement characters."""
    return os.fsencode(path).decode(errors="replace")


def restore(values: Any, kind: type[Record]) -> Record:
    """The record again. Raises msgspec.ValidationError where the values are not of its kind."""
    return msgspec.convert(values, kind, dec_hook=lambda expected_type, value: expected_type(value))


Shape = tuple[int, ...]
Status = Literal["chosen", "ok", "over-budget", "failed", "skipped", "planned"]
Verdict = Literal["faster", "slower", "inconclusive"]
Basis = Literal["measured", "emulated", "modelled"]


LEFT_OUT = "left out by --recipes"
NO_DATA = "no data to calibrate and judge it with: give --data or --calibration-data"
"""Two reasons of candidates that are not tried, which people are told in another way, or not."""


class Tensor(Struct, frozen=True, omit_defaults=True):
    """An input or output. `dtype` is numpy's name; `shape` is static, as it will run."""

    name: str
    dtype: str
    shape: Shape
    scale: float = 0.0
    """Of whole numbers that stand for real ones: real = scale * (number - zero_point); 0: they
    stand for themselves."""
    zero_point: int = 0


class Imported(Struct, frozen=True):
    """How a model of another framework became a graph, and how far the graph is from it."""

    by: str
    """The packages and versions that did it."""
    largest_difference: float
    """From the framework's own outputs, as a part of the largest of them."""
    tolerance: float | None
    """What is allowed of it, for rounding; None: it is quantized, and each kernel rounds in its own
    way, so that every candidate is compared on its own."""
    inputs: Literal["random"]
    """What both were compared on."""


class Model(Struct, frozen=True):
    """A model file that was read, with every axis made static."""

    path: Path
    """The user's file; it is never written to."""
    prepared: Path
    """The static graph in the cache, from which every candidate is made: a copy of the file, or
    what it was imported to."""
    prepared_sha256: str
    format: str
    """A name of converters.formats."""
    sha256: str
    """Over the file and its external data."""
    size_bytes: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: int
    macs: int | None
    """Multiply-accumulates of one inference at this batch; None where a shape is not static."""
    operators: dict[str, int]
    batch: int
    """What one inference takes along the batch axis; 1 where there is none."""
    notes: tuple[str, ...] = ()
    matmul_share: float = 0.0
    """Of its weights, how many are those of MatMul and Gemm."""
    quantized: int = 0
    """Of its operators, how many are quantized already."""
    half: bool = False
    """Whether it computes in float16."""
    wide: bool = False
    """Whether what is quantized has 16-bit activations."""
    stateful: bool = False
    """Whether it keeps state from one inference to the next, in variable tensors; every sample is
    run from the state that it begins with."""
    largest_bytes: int = 0
    """Of the largest tensor of a known shape between its operators."""
    imported: Imported | None = None
    """None: the file holds the graph itself."""
    way: str = ""
    """Where there are several ways from the file to a runtime, the name of this one: of what made
    the graph, or of the format that the runtime reads by itself; empty: the usual one."""
    cut: tuple[str, ...] = ()
    """The names that it was cut at by --cut-at; what followed them is in the file, not in the
    prepared graph."""

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def graph_format(self) -> str:
        """The format of what is prepared: "onnx" or "tflite"; else that of a model which a runtime
        reads by itself."""
        suffix = self.prepared.suffix[1:]
        return suffix if suffix in ("onnx", "tflite") else self.format

    @property
    def defining_format(self) -> str:
        """The format by which the reference computes: the file's own; of a model that was cut, that
        of its graph, since its framework can only compute the whole of it."""
        return self.graph_format if self.cut else self.format

    def sample_shape(self, tensor: Tensor) -> Shape:
        """One sample's part of an input or output: without the batch axis, where it has one."""
        return tensor.shape[1:] if tensor.shape[:1] == (self.batch,) else tensor.shape

    def output(self, name: str) -> Tensor:
        return next(tensor for tensor in self.outputs if tensor.name == name)


class Source(Struct, frozen=True):
    """The file that an artifact is converted from: the model itself or a quantized graph, in ONNX
    or, for LiteRT, in TFLite's format."""

    path: Path
    sha256: str
    details: dict[str, Any] = {}
    """How it was quantized: format, estimator, fidelity on the calibration data."""
    options: dict[str, Any] = {}
    """Options of the runtime that follow from how it was made."""


class Artifact(Struct, frozen=True):
    """What a worker opens."""

    runtime: str
    files: tuple[Path, ...]
    """The first is the one that the runtime opens."""
    options: dict[str, Any]
    """The runtime's own options, exactly as they are handed to it."""
    inputs: tuple[str, ...]
    """Names, in the model's order."""
    outputs: tuple[str, ...]


class Candidate(Struct, frozen=True):
    """One converted artifact together with the runtime and the options that it ships with."""

    name: str
    recipe: str
    runtime: str
    runtime_version: str
    model: Model
    files: tuple[Path, ...]
    """The artifact; the first is the one that the runtime opens."""
    sha256: str
    size_bytes: int
    options: dict[str, Any]
    """The runtime's own options, exactly as they are handed to it."""
    details: dict[str, Any] = {}

    @property
    def artifact(self) -> Artifact:
        inputs = tuple(tensor.name for tensor in self.model.inputs)
        outputs = tuple(tensor.name for tensor in self.model.outputs)
        return Artifact(self.runtime, self.files, self.options, inputs, outputs)


class Rounds(Struct, frozen=True):
    """Raw latencies of one candidate. Rounds of several candidates with one key are paired.

    A *block* is a set of fresh worker processes, one a candidate; a *round* is a short run of
    inferences by one of them, next in time to the same round of the others.
    """

    samples_ns: dict[tuple[int, int], np.ndarray]
    """(block, round) -> int64 nanoseconds, one an inference."""
    load_ms: tuple[float, ...]
    """One a block: opening the artifact in a fresh process, the runtime already imported."""

    @property
    def count(self) -> int:
        return sum(len(samples) for samples in self.samples_ns.values())


class Figure(Struct, frozen=True):
    """One measured number with what it rests on."""

    value: float
    ci95: tuple[float, float] | None
    samples: int
    basis: Basis
    how: str


class Window(Struct, frozen=True):
    """What was taken between the begin and the end of some inferences: never changed afterwards."""

    energy_mj: float
    seconds: float
    inferences: int
    samples: int
    """Readings of the meter that it consists of."""


class Energy(Struct, frozen=True):
    """What a meter told of one candidate; figures are computed from it."""

    windows: tuple[Window, ...]
    idle_mw: float
    """What is taken while nothing is computed."""
    meter: str
    """Its name."""
    covers: str

    @property
    def each_mj(self) -> np.ndarray:
        """[windows] float64: of an inference in each window, above what is taken while idle."""
        return np.array(
            [(w.energy_mj - self.idle_mw * w.seconds) / w.inferences for w in self.windows]
        )

    @property
    def total_mj(self) -> np.ndarray:
        """[windows] float64: of an inference in each window, all that was taken."""
        return np.array([w.energy_mj / w.inferences for w in self.windows])


class Latency(Struct, frozen=True):
    p50: float
    p90: float
    p50_ci95: tuple[float, float] | None
    """None: it was not measured but modelled."""
    p90_ci95: tuple[float, float] | None
    samples: int
    rounds: int
    basis: Basis = "measured"


class Versus(Struct, frozen=True):
    """The baseline's latency over this one's, from paired rounds."""

    speedup: float
    ci95: tuple[float, float]
    verdict: Verdict


class Accuracy(Struct, frozen=True):
    metric: str
    value: float
    drop: float | None
    """How much worse than the float model, in the metric's own units; negative is better."""
    drop_ci95: tuple[float, float] | None
    samples: int


class Slice(Struct, frozen=True):
    """A slice of an output: what has one index along one axis, of all samples."""

    axis: int
    """Of one sample's part of the output, without the batch axis."""
    index: int
    sqnr_db: float
    range: tuple[float, float]
    """Of the original model's values in it."""

    def __str__(self) -> str:
        low, high = self.range
        return f"slice {self.index} of axis {self.axis} (values of {low:.4g} to {high:.4g})"


class Step(Struct, frozen=True):
    """One thing that is done to a model, as a recipe has it."""

    do: str
    options: dict[str, Any] = {}


class Lineage(Struct, frozen=True):
    """What a candidate was made of, and how."""

    parent: str | None = None
    """The candidate that it was made from; None: the model itself."""
    steps: tuple[Step, ...] = ()
    """What was done to it, in order; none: nothing was."""
    seeds: dict[str, int] = {}
    """Of those steps that draw random numbers."""


class Trial(Struct, frozen=True):
    """All that is known of one candidate, tried or not."""

    name: str
    recipe: str
    runtime: str
    model: str
    """The stem of the model file."""
    candidate: Candidate | None = None
    status: Status = "ok"
    reason: str | None = None
    accuracy: Accuracy | None = None
    sqnr_db: dict[str, float] = {}
    """Signal to quantization noise of each output of real numbers against the original model."""
    equal: dict[str, float] = {}
    """The share of equal elements of each output of whole numbers."""
    slices: dict[str, Slice] = {}
    """The worst slice of each output whose slices differ much in range."""
    unlike: tuple[str, ...] = ()
    """Why the outputs of an inexact candidate are not the model's; `--max-accuracy-drop none` lets
    it ship all the same."""
    rounds: Rounds | None = None
    again: dict[str, Rounds] = {}
    """Of the chosen one: its own and the baseline's rounds in the fresh blocks, from which its
    figures are taken."""
    latency_ms: Latency | None = None
    figures: dict[str, Figure] = {}
    """What else was measured, by the key that the table of costs has for it."""
    energy_windows: Energy | None = None
    """What the meter told, from which `energy_mj` is computed."""
    versus_baseline: Versus | None = None
    ran_on: dict[str, Any] | None = None
    agreement: dict[str, Any] | None = None
    """How a remote device's outputs differ from this machine's, as agree.Agreement."""
    embedded: dict[str, Any] | None = None
    """Of a microcontroller's: where its RAM and flash go, and what an NPU is modelled to do."""
    missing: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    collapsed: tuple[str, ...] = ()
    """What of the model is lost altogether, in words: dead outputs, one prediction for all."""
    failure: Literal["conversion", "device"] | None = None
    lineage: Lineage = Lineage()

    def with_figures(self, **figures: Figure) -> "Trial":
        """The trial with these figures, whatever it had under their keys."""
        return msgspec.structs.replace(self, figures={**self.figures, **figures})

    def without_figure(self, key: str, why: str) -> "Trial":
        """The trial without a figure, and with the reason."""
        figures = {name: figure for name, figure in self.figures.items() if name != key}
        return msgspec.structs.replace(self, figures=figures, missing={**self.missing, key: why})


class Accelerator(Struct, frozen=True):
    """A processor beside the CPU that a runtime can compute on."""

    kind: Literal["gpu", "npu"]
    name: str
    """As its driver calls it."""
    driver: str | None = None
    """The driver and its version; None: it does not say."""
    software: bool = False
    """Whether it is computed by the CPU, so that its times mean nothing."""


class DeviceFacts(Struct, frozen=True):
    """What a device says of itself. `flags` are the CPU's own names of its instruction sets."""

    address: str
    cpu: str
    arch: str
    os: str
    cores: int
    """Physical cores."""
    memory_bytes: int
    emulated: bool
    flags: tuple[str, ...]
    runtimes: dict[str, str]
    """Runtime -> installed version."""
    state: dict[str, Any] = field(default_factory=dict)
    """What may change while a run lasts: clock governor, load, temperatures."""
    more: dict[str, Any] = field(default_factory=dict)
    """What a device beyond a line says besides: its model and SoC, clusters of cores, meters."""
    accelerators: tuple[Accelerator, ...] = ()
    """Beside the CPU, those that were found; empty also where none was looked for."""
