"""Reading damaged .tflite files: taken, or refused with a reason; nothing crashes or hangs."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from onmetal.converters.tflite.check import problems
from onmetal.converters.tflite.net import IDENTIFIER
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError, UsageError
from tests.tflite_nets import content, little, model_of, packed, small

REFUSED = (UsageError, UnsupportedError)


def taken_or_refused(damaged: bytes) -> None:
    try:
        read(damaged)
    except REFUSED as error:
        assert str(error)


@pytest.mark.parametrize("start", [b"", b"TFL3", b"\x00" * 8, b"PK\x03\x04" * 10])
def test_what_is_no_tflite_file(start: bytes) -> None:
    with pytest.raises(UsageError, match=r"not a \.tflite file"):
        read(start)


def test_truncated_files() -> None:
    """At every eighth byte, and at each of the first and last."""
    good = little()
    for size in (*range(64), *range(64, len(good), 8), *range(len(good) - 16, len(good))):
        taken_or_refused(good[:size])
    with pytest.raises(UsageError, match="damaged"):
        read(good[: len(good) // 2])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 400))
def test_random_bytes(noise: bytes, root: int) -> None:
    taken_or_refused(root.to_bytes(4, "little") + IDENTIFIER + noise)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(8, 2**20), st.integers(0, 255)), min_size=1, max_size=6))
def test_flipped_bytes(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(little())
    for place, byte in changes:
        damaged[8 + place % (len(damaged) - 8)] = byte
    taken_or_refused(bytes(damaged))


@pytest.mark.parametrize("number", [0x7FFFFFFF, 0xFFFFFFFF, 0x00010000])
def test_every_word_of_a_file_as_another_number(number: int) -> None:
    """Counts, offsets, shapes, numbers of tensors and of buffers: nothing crashes or hangs."""
    good = little()
    slowest = 0.0
    for place in range(8, len(good) - 3, 4):
        damaged = bytearray(good)
        damaged[place : place + 4] = number.to_bytes(4, "little")
        begun = time.process_time()
        taken_or_refused(bytes(damaged))
        slowest = max(slowest, time.process_time() - begun)
    assert slowest < 5


def _set(name: str, value: Any) -> Callable[[Any], object]:
    return lambda entry: setattr(entry, name, value)


def _tensor(name: str, value: Any, place: int = 1) -> Callable[[Any], object]:
    return lambda model: setattr(model.subgraphs[0].tensors[place], name, value)


def _operator(name: str, value: Any) -> Callable[[Any], object]:
    return lambda model: setattr(model.subgraphs[0].operators[1], name, value)


def _constant(model: Any) -> Any:
    """A tensor that has a value."""
    return next(t for t in model.subgraphs[0].tensors if t.buffer)


def _buffer(**fields: int) -> Callable[[Any], object]:
    def plant(model: Any) -> None:
        entry = model.buffers[_constant(model).buffer]
        for name, value in fields.items():
            setattr(entry, name, value)

    return plant


DAMAGED: dict[str, Callable[[Any], object]] = {
    "buffer number": _tensor("buffer", 4000),
    "buffer beyond the file": _buffer(offset=2**40, size=16),
    "buffer longer than the file": _buffer(offset=64, size=2**40),
    "buffer of negative reach": _buffer(offset=2**64 - 1, size=2**64 - 1),
    "shape larger than its buffer": lambda m: setattr(_constant(m), "shape", [2**30]),
    "shape smaller than its buffer": lambda m: setattr(_constant(m), "shape", [1]),
    "shape of a constant, negative": lambda m: setattr(_constant(m), "shape", [-3, 1]),
    "shape of a constant, any": lambda m: setattr(_constant(m), "shape", [-1]),
    "shape beyond 64 bits": lambda m: setattr(_constant(m), "shape", [2**31 - 1] * 4),
    "type of a tensor": _tensor("type", 99),
    "negative type of a tensor": _tensor("type", -1),
    "input of an operator": _operator("inputs", [9999, 1, 2]),
    "negative input of an operator": _operator("inputs", [-2, 1, 2]),
    "output of an operator": _operator("outputs", [9999]),
    "negative output of an operator": _operator("outputs", [-1]),
    "no inputs of an operator": _operator("inputs", None),
    "no outputs of an operator": _operator("outputs", None),
    "intermediate of an operator": _operator("intermediates", [9999]),
    "number of an operator's code": _operator("opcodeIndex", 77),
    "kind of an operator": lambda m: setattr(m.operatorCodes[0], "builtinCode", 30000),
    "negative kind of an operator": lambda m: vars(m.operatorCodes[0]).update(
        builtinCode=-5, deprecatedBuiltinCode=-5
    ),
    "input of the graph": lambda m: setattr(m.subgraphs[0], "inputs", [9999]),
    "negative input of the graph": lambda m: setattr(m.subgraphs[0], "inputs", [-1]),
    "output of the graph": lambda m: setattr(m.subgraphs[0], "outputs", [9999]),
    "negative output of the graph": lambda m: setattr(m.subgraphs[0], "outputs", [-3]),
    "no inputs of the graph": lambda m: setattr(m.subgraphs[0], "inputs", None),
    "no tensors": lambda m: setattr(m.subgraphs[0], "tensors", None),
    "no buffers": lambda m: setattr(m, "buffers", None),
    "no operator codes": lambda m: setattr(m, "operatorCodes", None),
    "zero points of another number": lambda m: setattr(
        next(t for t in m.subgraphs[0].tensors if t.quantization).quantization,
        "zeroPoint",
        [0, 1, 2],
    ),
}


@pytest.mark.parametrize("label", DAMAGED)
def test_a_damaged_field_is_refused(label: str) -> None:
    model = model_of()
    DAMAGED[label](model)
    with pytest.raises(REFUSED):
        read(packed(model))


def _sparse(model: Any) -> None:
    model.subgraphs[0].tensors[1].sparsity = schema.SparsityParametersT()


def _custom(model: Any) -> None:
    entry = next(t for t in model.subgraphs[0].tensors if t.quantization)
    entry.quantization.details = schema.CustomQuantizationT()
    entry.quantization.detailsType = schema.QuantizationDetails.CustomQuantization


UNSUPPORTED: dict[str, tuple[Callable[[Any], object], str]] = {
    "two graphs": (lambda m: m.subgraphs.append(m.subgraphs[0]), "2 subgraphs"),
    "no graph": (_set("subgraphs", []), "0 subgraphs"),
    "strings": (_tensor("type", schema.TensorType.STRING), "STRING"),
    "four bits": (_tensor("type", schema.TensorType.INT4), "INT4"),
    "sparse": (_sparse, "sparse"),
    "external": (_tensor("externalBuffer", 1), "outside of the file"),
    "custom quantization": (_custom, "custom quantization"),
}


@pytest.mark.parametrize("label", UNSUPPORTED)
def test_what_is_not_supported_is_named(label: str) -> None:
    plant, words = UNSUPPORTED[label]
    model = model_of()
    plant(model)
    with pytest.raises(UnsupportedError, match=words):
        read(packed(model))


def test_what_is_read_is_what_was_written() -> None:
    for activation in ("float", "s8", "s16"):
        assert write(read(content(activation))) == content(activation)


class TestOptions:
    """As a damaged file has them."""

    def changed(self, folder: Path, change: Any) -> bytes:
        from ai_edge_litert import schema_py_generated as schema
        from flatbuffers import Builder

        content = small(folder / "net", "Relu").read_bytes()
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
        kinds = {entry.builtinCode: n for n, entry in enumerate(model.operatorCodes)}
        code = kinds[schema.BuiltinOperator.CONV_2D]
        change(next(op for op in model.subgraphs[0].operators if op.opcodeIndex == code), schema)
        builder = Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def test_that_are_missing_are_the_schemas_own_and_found(self, tmp_path: Path) -> None:
        def leave_out(op: Any, schema: Any) -> None:
            op.builtinOptions, op.builtinOptionsType = None, 0

        found = problems(read(self.changed(tmp_path, leave_out)))
        assert any("a stride of 0" in what for what in found)

    def test_of_another_operator_are_damage(self, tmp_path: Path) -> None:
        def swap(op: Any, schema: Any) -> None:
            op.builtinOptions = schema.SoftmaxOptionsT()
            op.builtinOptionsType = schema.BuiltinOptions.SoftmaxOptions

        with pytest.raises(UsageError, match="options of another"):
            read(self.changed(tmp_path, swap))
