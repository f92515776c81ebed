"""Which operators TFLite Micro lacks, and what memory a model will need, asked of TFLite Micro
itself before anything is calibrated: neither depends on the ranges.

It says why on standard error only, and some graphs end its process: each is opened in a process of
its own, forked for that.
"""

import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.converters.tflite import grid, io, quantize
from onmetal.converters.tflite.net import Net, Op
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.writing import write
from onmetal.runtimes.protocol import Lacking
from onmetal.runtimes.tflm import examine, flash, profile, split, vela
from onmetal.targets import Io

_SOURCES = re.compile(r"tensorflow/\S+?\.(?:cc|h):?\s*")
SAID_BYTES = 600
"""Most bytes of its message about one graph."""


def lacking(path: Path, activation: grid.Activation | None) -> list[Lacking]:
    """Each operator that TFLite Micro does not run, of the graph with activations of this type
    (None: as it is in the file): its `operator`, the `node` of the model that it was made for (the
    output's name, where that is not known) and the `reason`. Empty: all of it runs.

    Ranges do not matter here, so every tensor gets the same one and no calibration is needed.
    """
    net = _quantized_graph(path, activation)
    graph_refusal = _refusal(net)
    if graph_refusal is None:
        return []
    makers = _makers(path)
    found: list[Lacking] = []
    for op in net.ops:
        reason = (
            _refusal(_single_operator_graph(op)) if any(t.data is None for t in op.taken) else None
        )
        if reason is not None:
            name = op.outputs[0].name
            node = makers.get(name, f"{name!r}")
            found.append({"operator": op.custom or op.kind, "node": node, "reason": reason})
    return found or [{"operator": "", "node": "", "reason": graph_refusal}]


def preview(
    path: Path,
    activation: grid.Activation | None,
    target_io: Io,
    core: str | None,
    npu: dict[str, str] | None,
) -> dict[str, Any]:
    """What the graph will need with activations of this type, before it is calibrated: `arena` as
    profile.arena, `plan` as examine.examine, `flash` as flash.needs; `npu` as vela.figures_of."""
    net = _quantized_graph(path, activation)
    if target_io.layout == "nhwc":
        io.channels_last(net)
    feed = {f"{n}": np.zeros(t.shape, t.dtype) for n, t in enumerate(net.inputs)}
    names = list(feed), [str(n) for n in range(len(net.outputs))]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "given.tflite"
        file.write_bytes(write(net))
        compiled = Path(folder) / "model_vela.tflite"
        told = vela.compile_(file, npu, compiled) if npu else None
        if not npu and split.shrink_arena(str(file), folder, core, splitting=False)["found"]:
            file = Path(folder) / "model.tflite"
        arena = profile.arena(feed, [str(file)], {}, *names)
        return {
            "arena": arena,
            "plan": examine.examine(str(file), core, arena["tail"]),
            "flash": flash.needs(str(compiled if npu else file), core),
            "npu": told,
        }


def _quantized_graph(path: Path, activation: grid.Activation | None) -> Net:
    net = read(path)
    if activation is not None:
        net = quantize.quantize(net, dict.fromkeys(quantize.observed(net), (-1.0, 1.0)), activation)
        io.integers(net)
    return net


def _makers(path: Path) -> dict[str, str]:
    """Tensor -> the node of the ONNX model that it was made for, as convert.to_float writes it."""
    try:
        found: dict[str, str] = json.loads((path.parent / "makers.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return found


def _single_operator_graph(op: Op) -> Net:
    inputs = [t for t in dict.fromkeys(op.taken) if t.data is None and not t.variable]
    return Net(inputs, [t for t in op.outputs if t not in inputs], [op])


def _refusal(net: Net) -> str | None:
    """Why TFLite Micro does not run the graph on zeros; None: it does."""
    content = write(net)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(content, net, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read(SAID_BYTES).decode(errors="replace")
        while pipe.read(1 << 16):
            pass
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"it makes TFLite Micro crash by {signal.Signals(os.WTERMSIG(status)).name}"
    return _SOURCES.sub("", said) or None


def _answer(content: bytes, net: Net, writer: int) -> None:
    """In the child: write the reason, or nothing; never returns."""
    try:
        from onmetal.runtimes.tflm.session import opened, said

        interpreter = opened(content)
        with said() as by_vela:
            try:
                for place, tensor in enumerate(net.inputs):
                    interpreter.set_input(np.zeros(tensor.shape, tensor.dtype), place)
                interpreter.invoke()
            except Exception as error:
                os.write(writer, (" ".join(by_vela().split()) or str(error)).encode())
    except BaseException as error:
        os.write(writer, (str(error) or type(error).__name__).encode())
    finally:
        sys.stderr.flush()
        os._exit(0)
