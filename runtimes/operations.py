"""The functions of a runtime that worker processes call; they import the engine when called."""

from pathlib import Path
from typing import Any

from onmetal.records import Model
from onmetal.runtimes import firmware, runtime
from onmetal.runtimes.protocol import Activation, Ends, Hardware, Lacking
from onmetal.samples import Samples
from onmetal.targets import Io


def convert(name: str, prepared: Path, compute: str, folder: Path, hardware: Hardware) -> list[str]:
    """As Converter.convert of this runtime."""
    return runtime(name).converter().convert(str(prepared), compute, str(folder), hardware)


def describe(name: str, path: Path) -> Ends:
    """As Converter.describe of this runtime."""
    return runtime(name).converter().describe(str(path))


def shares_of_text(name: str, text: str, runs: int, artifact: Path) -> dict[str, Any]:
    """As Runtime.shares of this runtime, of the text of its profile on a device."""
    return runtime(name).shares(text, runs, artifact)


def quantize(name: str, prepared: Path, samples: Samples, model: Model, folder: Path) -> list[str]:
    """As Quantizer.convert of this runtime."""
    quantizer = runtime(name).quantizer()
    assert quantizer
    return quantizer.convert(str(prepared), samples, model, str(folder))


# --- of runtimes in a microcontroller's firmware


def lacking(name: str, path: Path, activation: Activation | None) -> list[Lacking]:
    return firmware(name).lacking(path, activation)


def preview(
    name: str, path: Path, activation: Activation | None, target_io: Io, hardware: Hardware
) -> dict[str, Any]:
    return firmware(name).preview(path, activation, target_io, hardware)


def plan(name: str, path: Path, core: str | None, host_tail_bytes: int) -> dict[str, Any]:
    return firmware(name).plan(path, core, host_tail_bytes)


def flash(name: str, path: Path, core: str | None) -> dict[str, Any]:
    return firmware(name).flash(path, core)


def operators(name: str, path: Path) -> dict[str, Any]:
    """Shares of a file's operators, of which firmware has one kernel each."""
    return firmware(name).operators(path)


def tensors(name: str, path: Path) -> dict[str, Any]:
    """A file's inputs and outputs, as devices.answers.TensorsOnDevice, in its own order."""
    return firmware(name).tensors(path)
