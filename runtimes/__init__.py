"""The engines that execute models, a folder each."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import msgspec
from msgspec import Struct

from onmetal.errors import UsageError
from onmetal.targets import Target

if TYPE_CHECKING:
    from onmetal.converters.onnx.rules import Rule

RUNTIMES = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/session.py")))
"""A runtime is a folder here."""


class Spec(Struct, frozen=True):
    """What is to be known of a runtime without importing it."""

    title: str
    """As people call it."""
    packages: tuple[str, ...]
    """On PyPI, the one to install first."""
    reads: Literal["onnx", "tflite"]
    """The format of the file that `convert` takes."""
    runs: dict[str, tuple[str, ...]]
    """Steps of recipes whose candidates it runs (targets.recipe.STEPS; "float": what is computed as
    it is) -> the types that it then computes in."""
    in_firmware: bool = False
    """Whether it is compiled into a microcontroller's firmware, together with one model."""
    other_floats: str = ""
    """Why it computes floats in no other {type} than `runs` says, in words that follow its name."""
    install: str = ""
    """The command that installs it; by default that of its first package."""
    own_suffix: str = ""
    """Of the files in a format of its own, which its module `inner` looks into."""


def install(name: str) -> str:
    """The command that installs a runtime."""
    known = spec(name)
    return known.install or f"pip install {known.packages[0]}"


def pinned(name: str, version: str) -> str:
    """A bundle's requirements.txt: the runtime of the version that it was made with."""
    return f"numpy>=1.26\n{spec(name).packages[0]}=={version}\n"


def runtime_module(kind: str, runtime: str) -> Any:
    """`session`, `profile` or `convert` of a runtime's folder."""
    return import_module(f"onmetal.runtimes.{runtime}.{kind}")


def wrong_in_8_bits() -> "dict[str, tuple[Rule, ...]]":
    """Runtime -> the rules of what it computes wrong in 8 bits; of those that have any."""
    folder = Path(__file__).parent
    having = [path.parent.name for path in sorted(folder.glob("*/wrong_in_8_bits.py"))]
    return {name: runtime_module("wrong_in_8_bits", name).RULES for name in having}


def inner(path: str) -> Any:
    """The module that looks into an artifact of this kind; None where no runtime has its own."""
    for name in RUNTIMES:
        if spec(name).own_suffix and path.endswith(spec(name).own_suffix):
            return runtime_module("inner", name)
    return None


def spec(name: str) -> Spec:
    """What is to be known of a runtime without importing it."""
    found: Spec = runtime_module("spec", name).SPEC
    return found


class Converter(Protocol):
    """What `convert` of a runtime's folder provides."""

    VERSION: int
    """Raised whenever the same input would give other bytes: part of the cache's key."""

    OPTIONS: dict[str, Any]
    """Options of the runtime that may be set by a target file or a bundle's manifest, each with the
    type of its value."""

    RESERVED: frozenset[str]
    """Of those, what follows from the recipe and --threads: not a target file's to set."""

    ALONE: bool
    """Whether every artifact is made in a process of its own, because what the process made before
    would show in its bytes."""

    def convert(self, prepared: str, compute: str, folder: str) -> list[str]:
        """Write the artifact of a static ONNX model to `folder`.

        -> the names of its files, the one to open first. The same input gives the same bytes.
        Raises UnsupportedError where the runtime cannot take the model.
        """

    def options(self, compute: str, threads: int) -> dict[str, Any]:
        """The runtime's own options for one inference at a time, as low a latency as it can."""

    def describe(self, path: str) -> dict[str, list[dict[str, Any]]]:
        """`inputs` and `outputs` of an artifact itself: name, dtype, shape (an axis of no fixed
        size is -1; None: not even their number is fixed), and scale where it is quantized."""


def for_runtime(name: str) -> Converter:
    return cast(Converter, import_module(f"onmetal.runtimes.{name}.convert"))


def misfits(runtime: str, options: dict[str, Any]) -> list[str]:
    """Options that a runtime does not have, or not with such a value, in words."""
    known, problems = for_runtime(runtime).OPTIONS, []
    for name, value in options.items():
        if name not in known:
            problems.append(f"an unknown option {name!r}")
            continue
        try:
            msgspec.convert(value, known[name])
        except msgspec.ValidationError as error:
            problems.append(f"the option {name!r} to what it cannot be: {error}")
    return problems


def check_options(target: Target) -> None:
    """Raises UsageError where a target file sets an option that its runtime has not, or to a value
    that it cannot have."""
    for runtime in target.runtimes:
        converter = for_runtime(runtime.name)
        known = converter.OPTIONS.keys() - converter.RESERVED
        if unknown := sorted(runtime.options.keys() - known):
            raise UsageError(
                f"target {target.name}: {runtime.name} has no option {unknown[0]!r} that may be "
                f"set; there are: {', '.join(sorted(known))}"
            )
        if wrong := misfits(runtime.name, runtime.options):
            raise UsageError(f"target {target.name}: {runtime.name} sets {wrong[0]}")


def shipped(runtime: str, files: Sequence[Path]) -> Sequence[Path]:
    """Of an artifact's files those that the device holds: what an NPU runs stands last, after what
    is run on this machine in its place."""
    return files[-1:] if runtime == "tflm" else files
