"""What may stand in a Keras file: layers of Keras alone, and nothing that code is made of.

A file's configuration names classes and functions by module, which Keras imports and calls, so each
of them is compared with a list before Keras reads the file.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import h5py

from onmetal.errors import UsageError

MODULES = (
    "keras.activations",
    "keras.constraints",
    "keras.dtype_policies",
    "keras.initializers",
    "keras.layers",
    "keras.models",
    "keras.ops",
    "keras.regularizers",
    "keras.src.activations",
    "keras.src.constraints",
    "keras.src.dtype_policies",
    "keras.src.initializers",
    "keras.src.layers",
    "keras.src.models",
    "keras.src.ops",
    "keras.src.regularizers",
)
"""Where the classes and functions of a model lie; `keras` itself has a few besides."""
OF_KERAS = {"DTypePolicy", "DTypePolicyMap", "Functional", "Model", "Sequential"}
EXECUTES = {
    "Lambda": "runs Python code that the file holds",
    "TFSMLayer": "opens another model by its path",
    "TorchModuleWrapper": "unpickles Python objects that the file holds",
    "JaxLayer": "runs Python code",
    "FlaxLayer": "runs Python code",
}
MOST_CONFIG_BYTES = 64 << 20
MOST_DEPTH = 200
SWELL = 100
SPARE_BYTES = 64 << 20
EXPORT = (
    "from the program that defines the model, pass it to onmetal.deploy(model, …), or export it: "
    "model.export('model_folder') writes a SavedModel"
)


def check_config(text: bytes | str, path: Path, trust: bool) -> dict[str, Any]:
    """The configuration of a model, without what belongs to training alone.

    Raises UsageError where it is damaged, or names anything but what Keras itself defines.
    """
    if len(text) > MOST_CONFIG_BYTES:
        raise UsageError(f"{path}: its configuration has {len(text)} bytes, which no model has")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{path}: its configuration cannot be read: a damaged file") from None
    if not isinstance(config, dict) or "class_name" not in config:
        raise UsageError(f"{path}: its configuration names no model: a file of weights alone?")
    for entry in _objects(config, path):
        _check_object(entry, path, trust)
    config.pop("compile_config", None)
    return config


def stranger(config: dict[str, Any], activations: Collection[str], path: Path) -> str | None:
    """The name of a class or function in a .keras file's configuration that Keras does not find by
    itself; None where there is none. Keras 3 writes where each of its own classes lies.

    `activations`: the names of Keras's own functions.
    """
    for entry in _objects(config, path):
        name, module = str(entry.get("class_name")), entry.get("module")
        if module is None and not name.startswith("__"):  # __tuple__, __keras_tensor__
            return name
        if (module, name) == ("builtins", "function") and entry["config"] not in activations:
            return str(entry["config"])
    return None


def _objects(config: Any, path: Path) -> Iterator[dict[str, Any]]:
    """All entries that stand for a class or a function."""
    waiting = [(config, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise UsageError(f"{path}: its configuration is nested too deeply")
        if isinstance(value, dict):
            if "class_name" in value or "function_type" in value:
                yield value
            waiting += [
                (entry, depth + 1) for key, entry in value.items() if key != "compile_config"
            ]
        elif isinstance(value, list):
            waiting += [(entry, depth + 1) for entry in value]


def _check_object(entry: dict[str, Any], path: Path, trust: bool) -> None:
    name, module = entry.get("class_name"), entry.get("module")
    config = entry.get("config")
    function = entry.get("function_type") == "lambda" or name == "__lambda__"
    if (why := EXECUTES.get(str(name))) or function:
        if trust and (name == "Lambda" or function):
            return
        what = f"the layer {name}, which {why}" if why else "a Python function"
        hint = "; --trust runs it, if you know who wrote the file" if name == "Lambda" else ""
        raise UsageError(f"{path}: it holds {what}: refused{hint}; else {EXPORT}")
    if module == "builtins" and name == "function" and isinstance(config, str):
        module, name = "keras.activations", config
    if module is not None and not _of_keras(str(module), str(name)):
        raise UsageError(
            f"{path}: it holds {str(module)[:100]}.{str(name)[:100]}, which is not Keras's own: "
            f"the file has its name only, and no code of others is run; {EXPORT}"
        )
    registered = entry.get("registered_name")
    if (module is None and registered not in (None, name)) or ">" in str(registered or ""):
        raise UsageError(
            f"{path}: it holds the custom class {str(registered)[:100]!r}, of which the file has "
            f"the name only; {EXPORT}"
        )
    if isinstance(config, dict) and isinstance(config.get("vocabulary"), str):
        raise UsageError(f"{path}: the layer {name} reads a vocabulary from a file: refused")


def _of_keras(module: str, name: str) -> bool:
    if module == "keras":
        return name in OF_KERAS
    return any(module == known or module.startswith(f"{known}.") for known in MODULES)


def check_weights(file: Path, path: Path) -> None:
    """Check an HDF5 file: no data from other files, and none that is declared but not there.

    Raises UsageError. `path`: the user's file, for messages.
    """
    most = SPARE_BYTES + SWELL * file.stat().st_size
    declared = 0
    try:
        with h5py.File(file, "r") as opened:
            waiting, seen = [opened], set()
            while waiting:
                group = waiting.pop()
                for name in group:
                    link = group.get(name, getlink=True)
                    if not isinstance(link, h5py.HardLink):
                        raise UsageError(
                            f"{path}: {name[:100]!r} in it is a link, which may lead "
                            "to another file: refused"
                        )
                    entry = group[name]
                    address = h5py.h5o.get_info(entry.id).addr
                    if address in seen:
                        raise UsageError(f"{path}: {name[:100]!r} in it stands there twice")
                    seen.add(address)
                    if isinstance(entry, h5py.Group):
                        waiting.append(entry)
                        continue
                    if not isinstance(entry, h5py.Dataset):
                        raise UsageError(f"{path}: {name[:100]!r} in it is neither group nor data")
                    if entry.external or entry.is_virtual:
                        raise UsageError(f"{path}: the data of {name[:100]!r} lies in another file")
                    declared += entry.nbytes
                    if declared > most:
                        raise UsageError(
                            f"{path}: its weights are declared to take {declared} bytes or more, "
                            "which a file of this size does not hold"
                        )
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise UsageError(
            f"{path}: its weights cannot be read ({str(error)[:200]}): the file is damaged or cut "
            "off; save or download it again"
        ) from None


def h5_config(file: Path, path: Path) -> str | None:
    """The configuration of a model in HDF5; None where it holds weights alone."""
    try:
        with h5py.File(file, "r") as opened:
            text = opened.attrs.get("model_config")
    except (OSError, RuntimeError, KeyError, ValueError):
        return None
    return text.decode() if isinstance(text, bytes) else text
