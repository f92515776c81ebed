"""The engines that execute models, a folder each.

`protocol` states what a folder must define; here are the names of the runtimes, and functions that
take such a name.
"""

import contextlib
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from onmetal.errors import UsageError
from onmetal.runtimes.protocol import Converter, Firmware, Hardware, Inner, Runtime, Spec
from onmetal.targets import Recipe, Target

if TYPE_CHECKING:
    from onmetal.converters.onnx.rules import Rule

RUNTIMES = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/spec.py")))
"""A runtime is a folder here."""


@cache
def runtime(name: str) -> Runtime:
    """The runtime of this name. Raises UsageError where there is none."""
    if name not in RUNTIMES:
        raise UsageError(f"there is no runtime {name!r}; there are: {', '.join(RUNTIMES)}")
    known: Runtime = import_module(f"onmetal.runtimes.{name}.spec").RUNTIME
    return known


def spec(name: str) -> Spec:
    """What is known of a runtime without importing it."""
    return runtime(name).spec


def for_runtime(name: str) -> Converter:
    return runtime(name).converter()


def install(name: str) -> str:
    """The command that installs a runtime."""
    return spec(name).install or f"pip install {spec(name).packages[0]}"


def pinned(name: str, number: str) -> str:
    """A bundle's requirements.txt: the runtime of the version that it was made with."""
    return f"numpy>=1.26\n{spec(name).packages[0]}=={number}\n"


def installed(names: Sequence[str] = RUNTIMES) -> dict[str, str]:
    """The runtimes among these that are installed here, with their versions."""
    versions = {}
    for name in names:
        for package in spec(name).packages[::-1]:
            with contextlib.suppress(PackageNotFoundError):
                versions[name] = version(package)
    return versions


def in_firmware() -> tuple[str, ...]:
    """The runtimes that a microcontroller's firmware consists of, together with one model."""
    return tuple(name for name in RUNTIMES if spec(name).in_firmware)


def defining(form: str) -> str | None:
    """The runtime that defines what a model of this format computes; None: its framework does."""
    return next((name for name in RUNTIMES if spec(name).defines == form), None)


def reading(form: str) -> tuple[str, ...]:
    """The runtimes whose artifacts are made from files of this format."""
    return tuple(name for name in RUNTIMES if spec(name).reads == form)


def own(path: Path) -> str | None:
    """The runtime in whose own format a file is, by its suffix."""
    return next((name for name in RUNTIMES if path.suffix in spec(name).own_suffixes[:1]), None)


def inner(path: str) -> Inner | None:
    """The reader of tensors in a file of a runtime's own format; None: it is in no such format."""
    name = own(Path(path))
    return runtime(name).inner() if name else None


def wrong_in_8_bits() -> "dict[str, tuple[Rule, ...]]":
    """Runtime -> the rules of what it computes wrong in 8 bits; of those that have any."""
    rules = {name: runtime(name).wrong_in_8_bits() for name in RUNTIMES}
    return {name: runtime_rules for name, runtime_rules in rules.items() if runtime_rules}


def shipped(name: str, files: Sequence[Path]) -> Sequence[Path]:
    """The artifact's files that the device holds."""
    firmware = runtime(name).firmware()
    return firmware.shipped(files) if firmware else files


def hardware(name: str, recipe: Recipe, target: Target) -> Hardware:
    """What a runtime's converter must know of the chip."""
    firmware = runtime(name).firmware()
    return firmware.hardware(recipe, target) if firmware else {}


def firmware(name: str) -> Firmware:
    """The `firmware` of a runtime that is for firmware."""
    known = runtime(name).firmware()
    assert known, f"{name} is not for firmware"
    return known


def folder(name: str) -> Path:
    return Path(__file__).parent / name


def native(name: str) -> Path:
    """The C source of a runtime that has a library, for the native runner."""
    return folder(name) / "native.c"


def on_device(name: str) -> Path:
    """The Python source that runs a runtime's models on a device, for the Python runner there."""
    return folder(name) / "on_device.py"


def misfits(name: str, options: dict[str, Any]) -> list[str]:
    """Options that a runtime does not have, or not with such a value, in words."""
    known, problems = for_runtime(name).OPTIONS, []
    for option, value in options.items():
        if option not in known:
            problems.append(f"an unknown option {option!r}")
            continue
        try:
            msgspec.convert(value, known[option])
        except msgspec.ValidationError as error:
            problems.append(f"the option {option!r} to what it cannot be: {error}")
    return problems


def check_options(target: Target) -> None:
    """Raises UsageError where a target file sets an option that its runtime has not, or to a value
    that it cannot have."""
    for entry in target.runtimes:
        converter = for_runtime(entry.name)
        known = converter.OPTIONS.keys() - converter.RESERVED
        if unknown := sorted(entry.options.keys() - known):
            raise UsageError(
                f"target {target.name}: {entry.name} has no option {unknown[0]!r} that may be "
                f"set; there are: {', '.join(sorted(known))}"
            )
        if wrong := misfits(entry.name, entry.options):
            raise UsageError(f"target {target.name}: {entry.name} sets {wrong[0]}")
