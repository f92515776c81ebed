"""The interface of a runtime: what its folder must define.

`runtimes/NAME/spec.py` defines `RUNTIME`, a `Runtime`; it imports the folder's other modules when
they are asked for. By custom these are `convert` (a Converter), `session` (the Session of workers,
which is the run.py of bundles too) and `profile` (a Profiler).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

import numpy as np
from msgspec import Struct

from onmetal.errors import UnsupportedError
from onmetal.records import Model
from onmetal.samples import Samples
from onmetal.targets import Io, Recipe, Target

if TYPE_CHECKING:
    from onmetal.converters.onnx.rules import Rule

Ends = dict[str, list[dict[str, Any]]]
"""`inputs` and `outputs` of an artifact itself: name, dtype, shape (an axis of no fixed size is -1;
None: not even their number is fixed), and scale where it is quantized."""
Hardware = dict[str, Any]
"""What a converter must know of the chip, as JSON values: a part of the cache's key."""
Activation = Literal["s8", "s16"]
Feed = dict[str, np.ndarray]


class Spec(Struct, frozen=True):
    """What is known of a runtime without importing it."""

    title: str
    """As people call it."""
    packages: tuple[str, ...]
    """On PyPI, the one to install first."""
    reads: Literal["onnx", "tflite"]
    """The format of the file that `convert` takes."""
    runs: dict[str, tuple[str, ...]]
    """Steps of recipes whose candidates it runs (targets.recipe.STEPS; "float": models without such
    a step) -> the types that it then computes in."""
    other_floats: str = ""
    """Why it computes floats in no other {type} than `runs` says, in words that follow its name."""
    also_reads: tuple[str, ...] = ()
    """The formats of models that `convert` takes too, as they are: in float, or as they were
    quantized."""
    defines: str = ""
    """The model format of which it defines what a model computes."""
    install: str = ""
    """The command that installs it; by default that of its first package."""
    in_firmware: bool = False
    """Whether it is compiled into a microcontroller's firmware, together with one model."""
    own_suffixes: tuple[str, ...] = ()
    """Suffixes of the files in a format of its own, which `bench` and `inspect` accept too: first
    that of the file to open, then those of files that lie beside it under the same name."""
    benchmark_model: bool = False
    """Whether Google's benchmark_model runs its artifacts, for a second opinion."""
    library: str = ""
    """The shared library in its wheel for AArch64, which the native runner opens."""
    quantizer_package: str = ""
    """The package of its own quantizer, where it has one."""
    home_files: dict[str, str] = {}
    """Path in the home folder of its processes -> content: files that turn its telemetry off."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of its artifacts' files, that of the file to open first."""
        return self.own_suffixes or (f".{self.reads}",)


class Converter(Protocol):
    """`convert` of a runtime's folder: its options, and how a model becomes its artifact."""

    VERSION: int
    """Raised whenever the same input would give other bytes: part of the cache's key."""

    OPTIONS: dict[str, Any]
    """Options of the runtime that may be set by a target file or a bundle's manifest, each with the
    type of its value."""

    RESERVED: frozenset[str]
    """The options that the recipe and --threads decide, which a target file may not set."""

    ALONE: bool
    """Whether every artifact is made in a process of its own, because what the process made before
    would show in its bytes."""

    def convert(self, prepared: str, compute: str, folder: str, hardware: Hardware) -> list[str]:
        """Write the artifact of a prepared model to `folder`.

        -> the names of its files, the one to open first. The same input gives the same bytes.
        Raises UnsupportedError where the runtime cannot take the model.
        """

    def options(self, compute: str, threads: int) -> dict[str, Any]:
        """The runtime's own options for one inference at a time, as low a latency as it can."""

    def describe(self, path: str) -> Ends:
        """An artifact's inputs and outputs. Raises UnsupportedError where it cannot be read."""


class Opened(Protocol):
    """A session: one model, opened once and run many times, one inference at a time."""

    def run(self, feed: Feed) -> list[np.ndarray]:
        """Arrays by input name, as in the manifest -> arrays in the order of its outputs."""


class SessionModule(Protocol):
    """`session` of a runtime's folder: the middle of the run.py of bundles, as `running` says."""

    def Session(
        self, files: list[str], options: dict[str, Any], inputs: list[str], outputs: list[str], /
    ) -> Opened: ...

    def library(self) -> Path:
        """The runtime's shared library for C. Raises run_tail.Refused where there is none."""


class Profiler(Protocol):
    """`profile` of a runtime's folder: what really ran."""

    def profile(
        self,
        feed: Feed,
        files: list[str],
        options: dict[str, Any],
        inputs: list[str],
        outputs: list[str],
    ) -> dict[str, Any]:
        """Shares of time or of operators: `provider`, `precision`, `operators`."""

    def layers(
        self,
        feed: Feed,
        files: list[str],
        options: dict[str, Any],
        inputs: list[str],
        outputs: list[str],
    ) -> list[dict[str, Any]]:
        """Every kernel in the order of execution: `names` and `us`. Raises UnsupportedError where
        the runtime reports no time of kernels."""


class Inner(Protocol):
    """Looks into files of a format of the runtime's own."""

    def known(self, path: str) -> set[str]:
        """The names of all tensors. Raises UsageError where the file cannot be read."""

    def opened(self, path: str, names: list[str]) -> Any:
        """A function from arrays by input name to the arrays of the named tensors."""


class Quantizer(Protocol):
    """8 bits by the runtime's own tool."""

    def convert(self, prepared: str, samples: Samples, model: Model, folder: str) -> list[str]:
        """As Converter.convert, calibrated on all samples."""


class Lacking(TypedDict):
    """An operator that a runtime does not run: the `node` of the model that it was made for, and
    the `reason`. An empty `operator`: the model as a whole."""

    operator: str
    node: str
    reason: str


class Firmware(Protocol):
    """What a runtime in firmware says of the models that are compiled in with it."""

    def hardware(self, recipe: Recipe, target: Target) -> Hardware:
        """The properties of the chip on which the artifact depends."""

    def shipped(self, files: Sequence[Path]) -> Sequence[Path]:
        """The artifact's files that the chip holds."""

    def lacking(self, path: Path, activation: Activation | None) -> list[Lacking]:
        """Which operators of a float file it does not run, with activations of this type (None: as
        they are in the file)."""

    def preview(
        self, path: Path, activation: Activation | None, target_io: Io, hardware: Hardware
    ) -> dict[str, Any]:
        """What the model will need, before it is calibrated: `arena`, `plan`, `flash`, `npu`."""

    def arena(
        self,
        feed: Feed,
        files: list[str],
        options: dict[str, Any],
        inputs: list[str],
        outputs: list[str],
    ) -> dict[str, Any]:
        """What an inference takes of the arena, in bytes, counted on this machine."""

    def plan(self, path: Path, core: str | None, host_tail_bytes: int) -> dict[str, Any]:
        """How the buffers share the arena over time, and what a core's kernels ask for besides."""

    def operators(self, path: Path) -> dict[str, Any]:
        """Shares of a file's operators, by kind and by the type computed in."""

    def tensors(self, path: Path) -> dict[str, Any]:
        """A file's inputs and outputs, as devices.answers.TensorsOnDevice, in its own order."""

    def flash(self, path: Path, core: str | None) -> dict[str, Any]:
        """Bytes of flash that the model and the code for it take."""


class Programs(Protocol):
    """What programs in a bundle that are not Python need to open an artifact and run it.

    The runtime's folder has `templates/`: example.c, and Model.kt and AndroidManifest.xml.
    """

    MAVEN: str
    """The runtime's artifact for Android."""
    PUBLISHED: tuple[str, ...]
    """Its versions that are known to be published, oldest first: they lag behind the packages of
    Python, and a version that is not there would break every build."""
    BUFFERS: tuple[str, ...]
    """The types, as NumPy names them, that its own classes for Android can hand over."""
    ANDROID_NOTE: str
    """For the README of an Android module; empty: nothing is to be said."""

    def threads(self, options: dict[str, Any]) -> int: ...

    def in_c(self, options: dict[str, Any]) -> dict[str, str]:
        """The values for the template example.c. Raises UnsupportedError for an option that the
        runtime's C interface does not have."""

    def in_kotlin(self, options: dict[str, Any]) -> dict[str, str]:
        """The values for the template Model.kt. Raises UnsupportedError for an option that the
        runtime does not have on Android."""


class Runtime(Protocol):
    """An engine that executes models. The methods with a body need not be defined."""

    spec: Spec

    def converter(self) -> Converter: ...

    def session(self) -> SessionModule:
        """Imports the engine: in worker processes only."""

    def profiler(self) -> Profiler:
        """Imports the engine: in worker processes only."""

    def shares(self, text: str, runs: int, artifact: Path) -> dict[str, Any]:
        """As Profiler.profile, of the text that the engine's profile on a device is, after so many
        runs. Raises UnsupportedError where it cannot be read."""
        raise UnsupportedError(f"{self.spec.title} writes no profile on a device")

    def wrong_in_8_bits(self) -> "tuple[Rule, ...]":
        """Operators of ONNX that it computes wrong in 8 bits, and that stay float."""
        return ()

    def inner(self) -> Inner | None:
        return None

    def quantizer(self) -> Quantizer | None:
        return None

    def firmware(self) -> Firmware | None:
        return None

    def programs(self) -> Programs | None:
        return None
