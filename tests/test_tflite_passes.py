"""The passes that make a lowered graph smaller change no value."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest

from onmetal.converters.tflite import lowering
from onmetal.converters.tflite.net import Net, Tensor
from onmetal.converters.tflite.passes import activations, order, padding, reshapes, slices
from tests.onnx_models import node, save
from tests.tflite_graphs import (
    SWISHES,
    Arrays,
    Graph,
    agrees,
    compare,
    floats,
    graph,
    hard_swish,
    ints,
    kinds,
    run,
    scalar,
    weighted,
    written,
)
from tests.tflite_networks import IMAGE, NETWORKS, conv
from tests.tflite_operator_cases import INT64


def untidied(made: Graph, folder: Path) -> Net:
    """As the rules leave it."""
    path = save(made.model, folder / "given.onnx")
    net = lowering.Lowering(onnx_ir.load(path).graph).lower()
    net.sweep()
    return net


Pass = Callable[[Net], bool]
FIRST = node("MaxPool", "x", "s", kernel_shape=[1, 1])
"""After it, an image is stored channels last."""


def identical(old: Net, new: Net, made: Graph) -> None:
    """HARD_SWISH alone rounds otherwise in the last bit than what it stands for."""
    rough = "HARD_SWISH" in kinds(new) and "HARD_SWISH" not in kinds(old)
    for reference in (False,) if "ELU" in kinds(old) else (False, True):
        was, found = run(old, made.feed, reference), run(new, made.feed, reference)
        for name in made.wanted:
            if rough:
                np.testing.assert_allclose(found[name], was[name], rtol=0, atol=2e-6)
            else:
                np.testing.assert_array_equal(found[name], was[name])


def passed(made: Graph, folder: Path, step: Pass, *before: Pass) -> tuple[Net, Net]:
    """Before and after a pass, which changes no bit by either set of kernels."""
    old, new = untidied(made, folder), untidied(made, folder)
    for other in before:
        other(old)
        other(new)
    assert step(new)
    for _ in range(20):
        if not step(new):
            break
    else:
        raise AssertionError("it never ends")
    new.sweep()
    compare(new, made)
    identical(old, new, made)
    return old, new


def left(made: Graph, folder: Path, step: Pass, *before: Pass) -> None:
    """A pass has nothing to do there."""
    net = untidied(made, folder)
    for other in before:
        other(net)
    found = [(op.kind, list(op.inputs), list(op.outputs)) for op in net.ops]
    assert not step(net)
    assert [(op.kind, list(op.inputs), list(op.outputs)) for op in net.ops] == found
    compare(net, made)


BOUNDS = {"RELU": (0.0, None), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}


@pytest.mark.parametrize("kind", ["Conv", "Depthwise", "Gemm", "Add", "Sub", "Mul"])
@pytest.mark.parametrize("activation", BOUNDS)
def test_activations_are_fused(activation: str, kind: str, tmp_path: Path) -> None:
    w = weighted("a", 4, 3, 3, 3) | weighted("d", 3, 1, 3, 3) | {"m": floats(16, 5)}
    w |= {"c": floats(3, 1, 1) * 4}
    nodes = {
        "Conv": conv("a", "x", "a", w),
        "Depthwise": conv("d", "x", "a", w, group=3),
        "Gemm": node("MatMul", "x m", "a"),
        "Add": node("Add", "x c", "a"),
        "Sub": node("Sub", "c x", "a"),
        "Mul": node("Mul", "x x", "a"),
    }
    least, most = BOUNDS[activation]
    w |= {"least": scalar(least or 0)} | ({} if most is None else {"most": scalar(most)})
    clip = node("Clip", "a least" if most is None else "a least most", "y")
    made = graph([nodes[kind], clip], {"x": floats(1, 3, 16, 16) * 4}, w)
    old, new = passed(made, tmp_path, activations.fuse_activations)
    assert activation in kinds(old) and activation not in kinds(new)
    assert len(new.ops) == len(old.ops) - 1


def test_activations_of_what_others_take_are_not_fused(tmp_path: Path) -> None:
    w = weighted("a", 4, 3, 3, 3)
    nodes = [conv("a", "x", "a", w), node("Relu", "a", "r"), node("Add", "r a", "y")]
    left(graph(nodes, IMAGE, w), tmp_path, activations.fuse_activations)
    left(graph(nodes[:2], IMAGE, w, ["a", "r"]), tmp_path, activations.fuse_activations)
    twice = [conv("a", "x", "a", w), node("Relu", "a", "r"), node("Relu", "r", "y")]
    _, new = passed(graph(twice, IMAGE, w), tmp_path, activations.fuse_activations)
    assert kinds(new).count("RELU") == 1


def test_reshapes_are_merged(tmp_path: Path) -> None:
    w = {"a": ints(6, 8), "b": ints(2, 24), "c": ints(48), "d": ints(2, 3, 8)}
    lines = ["Reshape x a r", "Reshape r b s", "Reshape s c t", "Relu t u", "Reshape u c v"]
    made = graph(written([*lines, "Reshape v d y"]), {"x": floats(2, 3, 8)}, w)
    _, new = passed(made, tmp_path, reshapes.merge_reshapes)
    assert kinds(new) == ["RESHAPE", "RELU", "RESHAPE"]
    back = graph(written(["Reshape x a r", "Relu r s", "Reshape s d t", "Reshape t a y"]),
                 {"x": floats(2, 3, 8)}, w)  # fmt: skip
    _, new = passed(back, tmp_path, reshapes.merge_reshapes)
    assert kinds(new) == ["RESHAPE", "RELU"]


def test_reshapes_that_are_outputs_stay_outputs(tmp_path: Path) -> None:
    w = {"a": ints(6, 8), "b": ints(2, 3, 8)}
    lines = ["Reshape x a r", "Reshape r b y", "Relu r z"]
    made = graph(written(lines), {"x": floats(2, 3, 8)}, w, ["r", "y", "z"])
    net = untidied(made, tmp_path)
    order.tidy(net)
    compare(net, made)
    assert len(set(net.outputs)) == 3


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceMax", "ReduceMin"])
def test_kept_axes_are_dropped(kind: str, tmp_path: Path) -> None:
    w = weighted("a", 4, 3, 3, 3) | {"to": ints(1, 4)}
    nodes = [
        conv("a", "x", "a", w),
        node(kind, "a", "r", axes=[2, 3], keepdims=1),
        node("Reshape", "r to", "y"),
    ]
    old, new = passed(graph(nodes, IMAGE, w), tmp_path, reshapes.drop_kept_axes)
    assert "RESHAPE" in kinds(old) and "RESHAPE" not in kinds(new)
    nodes.append(node("Mul", "a r", "z"))
    left(graph(nodes, IMAGE, w, ["y", "z"]), tmp_path, reshapes.drop_kept_axes)


def test_flattens_before_products_are_dropped(tmp_path: Path) -> None:
    w = {"to": ints(-1, 8), "fc": floats(8, 5)}
    made = graph(written(["Reshape x to r", "Gemm r fc y"]), {"x": floats(2, 3, 8)}, w)
    old, new = passed(made, tmp_path, reshapes.drop_flattens)
    assert kinds(old) == ["RESHAPE", "FULLY_CONNECTED"] and kinds(new) == ["FULLY_CONNECTED"]
    other = graph(written(["Reshape x to r", "Gemm r fc y"]), {"x": floats(2, 4, 3, 4)}, w)
    left(other, tmp_path, reshapes.drop_flattens)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(
    ("pads", "attributes", "size"),
    [
        ([1, 1, 1, 1], {}, 9),
        ([0, 0, 1, 1], {"strides": [2, 2]}, 10),
        ([1, 1, 1, 1], {"strides": [2, 2]}, 9),
        ([2, 2, 2, 2], {"dilations": [2, 2]}, 9),
    ],
)
def test_pads_that_same_makes_are_folded(
    pads: list[int], attributes: dict[str, Any], size: int, group: int, tmp_path: Path
) -> None:
    w = weighted("a", 6, 3 // group, 3, 3)
    w["pads"] = np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)
    nodes = [FIRST, node("Pad", "s pads", "p")]
    nodes.append(conv("a", "p", "y", w, group=group, **attributes))
    feed = {"x": floats(1, 3, size, size)}
    old, new = passed(graph(nodes, feed, w), tmp_path, padding.fold_pads)
    assert "PAD" in kinds(old) and "PAD" not in kinds(new)


def padded(pads: list[int], size: int, kernel: int, **attributes: Any) -> Graph:
    w = weighted("a", 6, 3, kernel, kernel) | {"pads": np.array(pads, np.int64)}
    nodes = [FIRST, node("Pad", "s pads", "p"), conv("a", "p", "y", w, **attributes)]
    return graph(nodes, {"x": floats(1, 3, size, size)}, w)


def test_other_pads_are_left(tmp_path: Path) -> None:
    left(padded([0, 0, 1, 1, 0, 0, 1, 1], 10, 3, strides=[2, 2]), tmp_path, padding.fold_pads)
    left(padded([0, 0, 2, 2, 0, 0, 0, 0], 10, 3), tmp_path, padding.fold_pads)
    w = weighted("a", 6, 4, 3, 3) | {"pads": ints(0, 1, 1, 1, 0, 0, 1, 1)}
    nodes = [FIRST, node("Pad", "s pads", "p"), conv("a", "p", "y", w)]
    left(graph(nodes, IMAGE, w), tmp_path, padding.fold_pads)
    w = weighted("a", 6, 3, 3, 3) | {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1), "one": scalar(1)}
    nodes = [FIRST, node("Pad", "s pads one", "p"), conv("a", "p", "y", w)]
    left(graph(nodes, IMAGE, w), tmp_path, padding.fold_pads)


def test_pads_that_nobody_reads_are_trimmed(tmp_path: Path) -> None:
    made = padded([0, 0, 1, 1, 0, 0, 2, 3], 10, 3, strides=[2, 2])
    old, new = passed(made, tmp_path, padding.trim_pads)
    place = kinds(new).index("PAD")
    assert old.ops[place].outputs[0].shape == (1, 13, 14, 3)
    assert new.ops[place].outputs[0].shape == (1, 13, 13, 3)


def test_pads_of_nothing_are_dropped(tmp_path: Path) -> None:
    """All of what was padded is trimmed, and SAME would be another size."""
    net = agrees(padded([0, 0, 0, 0, 0, 0, 1, 1], 7, 3, strides=[3, 3]), tmp_path, False)
    assert "PAD" not in kinds(net)


def pooled(lines: list[Any], w: Arrays | None = None, outputs: tuple[str, ...] = ("y",)) -> Graph:
    return graph(lines, IMAGE, w, outputs)


@pytest.mark.parametrize("before", ["Relu", "Sigmoid", "Abs"])
def test_zeros_are_padded_before_pooling(before: str, tmp_path: Path) -> None:
    nodes = [
        FIRST,
        node(before, "s", "r"),
        node("MaxPool", "r", "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    ]
    old, new = passed(pooled(nodes), tmp_path, padding.zero_pads)
    assert "PADV2" in kinds(old) and "PADV2" not in kinds(new) and "PAD" in kinds(new)
    nodes[1].op_type = "Tanh"
    left(pooled(nodes), tmp_path, padding.zero_pads)


@pytest.mark.parametrize(
    ("fill", "pads", "outputs"),
    [(-5, [2, 2, 2, 2], ("y",)), (-5, [1, 1, 1, 1], ("t", "y")), (5, [1, 1, 1, 1], ("y",))],
    ids=["window of padding", "output", "positive"],
)
def test_zeros_are_not_padded_where_they_show(
    fill: float, pads: list[int], outputs: tuple[str, ...], tmp_path: Path
) -> None:
    w = {"pads": np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64), "fill": scalar(fill)}
    nodes = [
        FIRST,
        node("Relu", "s", "r"),
        node("Pad", "r pads fill", "p"),
        node("Transpose", "p", "t", perm=[0, 2, 3, 1]),
        node("MaxPool", "p", "y", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    agrees(pooled(nodes, w, outputs), tmp_path, simplified=False)


def test_slices_of_slices_are_merged(tmp_path: Path) -> None:
    w = {"two": ints(2, 2), "one": ints(1, 1), "far": ints(INT64.max, INT64.max), "n": ints(6, 5)}
    w |= {"axes": ints(2, 3), "steps": ints(2, 3)}
    lines = ["Slice x one far axes steps r", "Slice r one n axes two y"]
    old, new = passed(graph(written(lines), IMAGE, w), tmp_path, slices.merge_slices)
    assert kinds(old) == ["STRIDED_SLICE"] * 2 and kinds(new) == ["STRIDED_SLICE"]
    both = graph(written(lines), IMAGE, w, ["r", "y"])
    left(both, tmp_path, slices.merge_slices)
    w |= {"back": ints(-1, -1), "begin": ints(-1, -2), "low": ints(INT64.min, INT64.min)}
    for backwards in (
        ["Slice x begin low axes back r", "Slice r one n axes two y"],
        ["Slice x one far axes steps r", "Slice r begin low axes back y"],
    ):
        left(graph(written(backwards), IMAGE, w), tmp_path, slices.merge_slices)


@pytest.mark.parametrize("around", [True, False])
def test_shortcuts_are_convolutions(around: bool, tmp_path: Path) -> None:
    w = weighted("a", 4, 3, 3, 3) | {"zero": ints(0, 0), "far": ints(INT64.max, INT64.max)}
    w |= {"axes": ints(2, 3), "steps": ints(2, 2), "pads": ints(0, 2, 0, 0, 0, 2, 0, 0)}
    nodes = [conv("a", "x", "a", w), *written(["Slice a zero far axes steps s"])]
    nodes.append(node("Pad", "s pads", "y") if around else node("Identity", "s", "y"))
    old, new = passed(graph(nodes, IMAGE, w), tmp_path, slices.shortcut_convolutions)
    assert "STRIDED_SLICE" in kinds(old)
    assert not {"STRIDED_SLICE", "PAD"} & set(kinds(new)) and kinds(new).count("CONV_2D") == 2


def test_other_slices_stay(tmp_path: Path) -> None:
    w = weighted("a", 4, 3, 3, 3) | {"begin": ints(1, 1), "far": ints(INT64.max, INT64.max)}
    w |= {"axes": ints(2, 3), "steps": ints(2, 2), "zero": ints(0, 0), "short": ints(8, 8)}
    for line in ("Slice a begin far axes steps y", "Slice a zero short axes steps y"):
        made = graph([conv("a", "x", "a", w), *written([line])], IMAGE, w)
        left(made, tmp_path, slices.shortcut_convolutions)
    made = graph(written(["Slice x zero far axes steps y"]), IMAGE, w)
    left(made, tmp_path, slices.shortcut_convolutions)


@pytest.mark.parametrize("form", SWISHES)
def test_hard_swishes_are_found_by_their_pass(form: str, tmp_path: Path) -> None:
    made = hard_swish(SWISHES[form])
    _, new = passed(made, tmp_path, activations.hard_swishes, activations.fuse_activations)
    assert kinds(new) == ["HARD_SWISH"]


def test_tidying_sweeps_what_nobody_takes(tmp_path: Path) -> None:
    """And puts no operator before what it takes."""
    made = graph(written(["Relu x r", "Exp x e", "Tanh e t", "Abs r y"]), IMAGE)
    net = untidied(made, tmp_path)
    assert kinds(net) == ["RELU", "ABS"]
    net = untidied(made, tmp_path)
    net.ops.reverse()
    net.sort()
    assert kinds(net) == ["RELU", "ABS"]


@pytest.mark.parametrize("name", NETWORKS)
def test_tidying_changes_no_bit_of_a_network(name: str, tmp_path: Path) -> None:
    made = NETWORKS[name][0]()
    old, new = untidied(made, tmp_path), untidied(made, tmp_path)
    order.tidy(new)
    compare(new, made)
    identical(old, new, made)
    made_before: set[Tensor] = {*new.inputs}
    for op in new.ops:
        assert all(tensor.data is not None or tensor in made_before for tensor in op.taken)
        made_before |= {*op.outputs}
