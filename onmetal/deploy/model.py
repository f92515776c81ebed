"""Reads a model file safely: its inputs and outputs, and a static copy to make candidates from.

The file is untrusted: `read` parses it in a child process, so that a file which crashes a parser
causes only an error. Nothing in the file is executed, no path in it leads out of its folder, and it
is never written to.
"""

import errno
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from onmetal.converters import ModelFormat, format_named, formats, operations
from onmetal.errors import DeviceError, UnsupportedError, UsageError
from onmetal.files.cache import Cache
from onmetal.files.reading import open_regular
from onmetal.profilers.devices.local import Local
from onmetal.profilers.operation import asked
from onmetal.records import Imported, Model, Tensor
from onmetal.texts.suggest import near

_PICKLED = (
    "whose pickled code is not run; in the program that defines the model: model.eval(); "
    "program = torch.export.export(model, (example,)); torch.export.save(program, 'model.pt2')"
)
_FOREIGN = {
    b"PK\x03\x04": f"a zip archive of no known model; if PyTorch saved it, it is one {_PICKLED}",
    b"\x80\x02": f"a Python pickle, {_PICKLED}",
    b"\x80\x03": f"a Python pickle, {_PICKLED}",
    b"\x80\x04\x95": f"a Python pickle, {_PICKLED}",
    b"\x80\x05\x95": f"a Python pickle, {_PICKLED}",
    b"GGUF": "a GGUF file",
}


MOST_AXIS = (1 << 31) - 1


def parse_shapes(words: list[str]) -> dict[str, tuple[int, ...]]:
    """NAME=1,3,224,224 -> {NAME: (1, 3, 224, 224)}"""
    input_shapes = {}
    for word in words:
        name, _, text = word.rpartition("=")
        try:
            shape = tuple(int(part) for part in text.split(","))
        except ValueError:
            shape = ()
        if not name or not shape or min(shape) < 1 or max(shape) > MOST_AXIS:
            raise UsageError(f"--input-shape {word}: write it like NAME=1,3,224,224")
        if name in input_shapes:
            raise UsageError(f"--input-shape {word}: the input {name!r} was given a shape already")
        input_shapes[name] = shape
    return input_shapes


def parse_cut(words: list[str]) -> tuple[str, ...]:
    """NAME,NAME of each --cut-at -> the names, each once."""
    names = [name.strip() for word in words for name in word.split(",")]
    if not all(names):
        raise UsageError("--cut-at: a name is empty; write it like --cut-at NAME,NAME")
    return tuple(dict.fromkeys(names))


def read(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    batch: int | None,
    cache: Cache,
    device: Local,
    trust: bool = False,
    cut: tuple[str, ...] = (),
) -> Model:
    """The model at `path`, every axis static; a free batch axis becomes `batch` (None: 1). `trust`:
    whether code in the file may be run; `cut`: names of tensors or operators that
    become its outputs.

    Raises UsageError where the file cannot be read or the shapes do not fit, UnsupportedError where
    it is sound but holds operators that no runtime knows.
    """
    form = _recognize(path)
    size_bytes = _size_bytes(path)
    with cache.scratch() as scratch:
        with device.worker() as worker:
            try:
                worker.restrict_reading(size_bytes)
                fixed = {name: list(shape) for name, shape in shapes.items()}
                facts = worker.do(
                    asked(operations.read, form.name, path, fixed, batch, scratch, trust, cut),
                    timeout_s=600,
                )
            except DeviceError as error:
                why = str(error).replace(*_OUT_OF_TIME)
                raise UsageError(f"{path}: reading it failed: {why}") from None
            except (UsageError, UnsupportedError) as error:
                message = str(error)
                with_path = message if message.startswith(str(path)) else f"{path}: {message}"
                raise type(error)(with_path) from None
        _check_memory(path, facts)

        def move(folder: Path) -> None:
            for file in scratch.iterdir():
                file.rename(folder / file.name)

        folder = cache.get("model", facts["prepared_sha256"], move)
    return Model(
        path=path,
        prepared=folder / f"model{format_named(form.graph).suffixes[0]}",
        prepared_sha256=facts["prepared_sha256"],
        format=form.name,
        sha256=facts["sha256"],
        size_bytes=facts["size_bytes"],
        inputs=msgspec.convert(facts["inputs"], tuple[Tensor, ...]),
        outputs=msgspec.convert(facts["outputs"], tuple[Tensor, ...]),
        parameters=facts["parameters"],
        macs=facts["macs"],
        operators=facts["operators"],
        batch=facts["batch"],
        notes=tuple(facts["notes"]),
        matmul_share=facts["matmul_share"],
        quantized=facts["quantized"],
        half=facts.get("half", False),
        wide=facts.get("wide", False),
        stateful=facts.get("stateful", False),
        largest_bytes=facts["largest_bytes"],
        imported=msgspec.convert(facts.get("imported"), Imported | None),
        cut=cut,
    )


_OUT_OF_TIME = ("was ended by SIGXCPU", "took more processor time than a file of its size may")


def _check_memory(path: Path, facts: dict[str, Any]) -> None:
    """Raises UnsupportedError where the declared shapes take too much memory: a file may declare
    any shape, and buffers are allocated from it."""
    most = psutil.virtual_memory().total
    for tensor in (*facts["inputs"], *facts["outputs"]):
        size = math.prod(tensor["shape"]) * np.dtype(tensor["dtype"]).itemsize
        if size > most // 8:
            raise UnsupportedError(
                f"{path}: {tensor['name']!r} of shape {tensor['shape']} takes {size} bytes, "
                f"too much for this machine's memory of {most}"
            )
    if facts["largest_bytes"] > most // 2:
        raise UnsupportedError(
            f"{path}: a tensor between its operators takes {facts['largest_bytes']} bytes, too "
            f"much for this machine's memory of {most}"
        )


WANTED = (
    "an ONNX, TFLite, Keras (.keras, .h5) or PyTorch (.pt2) file, or the folder of a SavedModel, "
    "is wanted"
)


def _recognize(path: Path) -> ModelFormat:
    """The format of the file or folder. Raises UsageError, saying what it is, where it is plainly
    none of the known formats."""
    if not path.exists():
        likely = near(path, tuple(s for form in formats() for s in form.suffixes))
        raise UsageError(f"{path}: there is no such file{likely}")
    head = b"" if path.is_dir() else _head(path)
    *others, any_bytes = formats()
    if form := next((form for form in others if form.recognize(path, head)), None):
        return form
    if path.is_dir():
        raise UsageError(f"{path}: this is a folder; {WANTED}")
    foreign = next((name for magic, name in _FOREIGN.items() if head.startswith(magic)), None)
    if foreign:
        raise UsageError(f"{path}: this is {foreign}; {WANTED}")
    return any_bytes


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            head = file.read(8)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise UsageError(f"{path}: {error.strerror}; {WANTED}") from None
        raise UsageError(f"{path}: cannot read it ({error.strerror})") from None
    if not head:
        raise UsageError(f"{path}: the file is empty; was its download or export cut off?")
    return head


def _size_bytes(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(entry.lstat().st_size for entry in path.rglob("*"))
