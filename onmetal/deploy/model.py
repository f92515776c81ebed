"""Reads a model file safely: its inputs and outputs, and a static copy to make candidates from.

The file is untrusted: `read` parses it in a child process, so that a file which crashes a parser
causes only an error. Nothing in the file is executed, no path in it leads out of its folder, and it
is never written to.
"""

import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from msgspec.structs import replace

from onmetal import limits
from onmetal.converters import ModelFormat, format_named, formats, operations
from onmetal.deploy.foreign import HEAD_BYTES, what_is
from onmetal.errors import DeviceError, UnsupportedError, UsageError
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from onmetal.files.reading import open_regular
from onmetal.profilers.devices.local import Local
from onmetal.profilers.operation import asked
from onmetal.records import Imported, Model, Tensor
from onmetal.texts.suggest import near

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
    fixed = {name: list(shape) for name, shape in shapes.items()}

    def written(folder: Path) -> dict[str, Any]:
        with device.worker() as worker:
            worker.restrict_reading(size_bytes)
            reading = asked(operations.read, form.name, path, fixed, batch, folder, trust, cut)
            facts = worker.do(reading, timeout_s=600)
        _check_memory(path, facts)
        return facts

    try:
        if form.name == form.graph:
            folder, facts = _in_cache(cache, written)
        else:
            folder, facts = _imported(form, path, [fixed, batch, trust, list(cut)], cache, written)
    except DeviceError as error:
        why = str(error).replace(*_OUT_OF_TIME)
        raise UsageError(f"{path}: reading it failed: {why}") from None
    except (UsageError, UnsupportedError) as error:
        message = str(error)
        with_path = message if message.startswith(str(path)) else f"{path}: {message}"
        raise type(error)(with_path) from None
    return Model(
        path=path,
        prepared=folder / f"model{format_named(form.graph).suffixes[0]}",
        format=form.name,
        sha256=facts["sha256"],
        size_bytes=facts["size_bytes"],
        inputs=msgspec.convert(facts["inputs"], tuple[Tensor, ...]),
        outputs=msgspec.convert(facts["outputs"], tuple[Tensor, ...]),
        batch=facts["batch"],
        notes=tuple(facts["notes"]),
        cut=cut,
        **_of_graph(facts),
    )


def exported(model: Model, graph: str, cache: Cache, device: Local) -> Model:
    """The model as a graph in another format, one of its format's `exports`. -> the model, with the
    facts of that graph.

    Raises UnsupportedError, with the reason, where it cannot be expressed in that format.
    """
    form = format_named(model.format)

    def build(folder: Path) -> None:
        with device.worker() as worker:
            exporting = asked(operations.export, form.name, model.prepared, graph, folder)
            facts = worker.do(
                exporting,
                timeout_s=3600,
                memory_bytes=limits.converting_bytes(model.size_bytes, model.largest_bytes),
            )
        (folder / FACTS).write_bytes(msgspec.json.encode(facts))

    digest = caches.key(
        model=model.prepared_sha256,
        graph=graph,
        versions=[form.reference_version(), *(kind.reference_version() for kind in formats())],
        code=VERSION,
    )
    try:
        folder = cache.get("export", digest, build)
    except DeviceError as error:
        raise UnsupportedError(str(error)) from None
    facts = msgspec.json.decode((folder / FACTS).read_bytes())
    for end, tensors in (("inputs", model.inputs), ("outputs", model.outputs)):
        given = {tensor["name"]: (tensor["dtype"], tuple(tensor["shape"])) for tensor in facts[end]}
        # Quantized outputs may come as the real numbers that they stand for.
        dtypes = {t.name: {t.dtype, "float32"} if t.scale else {t.dtype} for t in tensors}
        if {name: shape for name, (_, shape) in given.items()} != {
            tensor.name: tensor.shape for tensor in tensors
        } or any(dtype not in dtypes[name] for name, (dtype, _) in given.items()):
            raise UnsupportedError(f"its {end} became {given}")
    return replace(
        model,
        prepared=folder / f"model{format_named(graph).suffixes[0]}",
        **_of_graph(facts),
    )


VERSION = 1
"""Raised whenever a format would write something else of the same file."""
FACTS = "facts.json"


def _of_graph(facts: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Model that its graph decides."""
    return {
        "prepared_sha256": facts["prepared_sha256"],
        "parameters": facts["parameters"],
        "macs": facts["macs"],
        "operators": facts["operators"],
        "matmul_share": facts["matmul_share"],
        "quantized": facts["quantized"],
        "half": facts.get("half", False),
        "wide": facts.get("wide", False),
        "stateful": facts.get("stateful", False),
        "largest_bytes": facts["largest_bytes"],
        "imported": msgspec.convert(facts.get("imported"), Imported | None),
    }


def _in_cache(
    cache: Cache, written: Callable[[Path], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """The folder in the cache of what reading the file wrote, and its facts."""
    with cache.scratch() as scratch:
        facts = written(scratch)

        def move(folder: Path) -> None:
            for file in scratch.iterdir():
                file.rename(folder / file.name)

        return cache.get("model", facts["prepared_sha256"], move), facts


def _imported(
    form: ModelFormat,
    path: Path,
    options: list[Any],
    cache: Cache,
    written: Callable[[Path], dict[str, Any]],
) -> tuple[Path, dict[str, Any]]:
    """As _in_cache; the framework, which takes seconds to start, is not asked again for the same
    file. `options`: what it is read with."""

    def build(folder: Path) -> None:
        facts = written(folder)
        (folder / FACTS).write_bytes(msgspec.json.encode(facts))

    try:
        content = _digest(path)
    except OSError as error:
        raise UsageError(f"cannot read it ({error.strerror})") from None
    digest = caches.key(
        form=form.name,
        content=content,
        options=options,
        versions=[form.reference_version(), *(kind.reference_version() for kind in formats())],
        code=VERSION,
    )
    folder = cache.get("import", digest, build)
    return folder, msgspec.json.decode((folder / FACTS).read_bytes())


def _digest(path: Path) -> list[list[str]]:
    """Of a file, or of the names and contents of a folder's files."""
    if not path.is_dir():
        return [["", caches.sha256(path)]]
    files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    return [[file.relative_to(path).as_posix(), caches.sha256(file)] for file in files]


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
    "an ONNX, TFLite, Keras (.keras, .h5), PyTorch (.pt2) or OpenVINO (.xml) file, or the folder "
    "of a SavedModel, is wanted"
)


def _recognize(path: Path) -> ModelFormat:
    """The format of the file or folder. Raises UsageError, saying what it is, where it is plainly
    none of the known formats."""
    if not path.exists():
        likely = near(path, tuple(s for form in formats() for s in form.suffixes))
        raise UsageError(f"{path}: there is no such file{likely}")
    head = b"" if path.is_dir() else _head(path)
    *others, any_bytes = formats()
    if form := next((form for form in others if form.recognize(path, head[:8])), None):
        return form
    if path.is_dir():
        raise UsageError(f"{path}: this is a folder; {WANTED}")
    if foreign := what_is(path, head):
        raise UsageError(f"{path}: this is {foreign}; {WANTED}")
    return any_bytes


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            head = file.read(HEAD_BYTES)
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
