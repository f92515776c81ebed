"""`deploy inspect`: which operators bear 8 bits badly, and where an artifact leaves its float."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from onmetal import cli
from onmetal.converters.onnx import reader
from onmetal.converters.tflite import convert
from tests.conftest import DIGITS
from tests.conftest import deploy_here as deploy
from tests.onnx_models import build, constant, node, relu, save, value

MODEL = DIGITS / "digits_cnn.onnx"
DATA = DIGITS / "digits.npz"

Document = dict[str, Any]
Inspect = Callable[..., tuple[int, Document]]


class Seen(NamedTuple):
    code: int
    out: str
    err: str


def inside(*words: str | Path) -> Seen:
    """`deploy inspect WORDS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["inspect", *map(str, words)])
    assert "Traceback" not in err.getvalue()
    return Seen(code, out.getvalue(), err.getvalue())


@pytest.fixture
def inspect() -> Inspect:
    """The same with --json."""

    def called(*words: str | Path) -> tuple[int, Document]:
        seen = inside(*words, "--json")
        found: Document = json.loads(seen.out)
        assert found.get("error", {}).get("code", 0) == seen.code
        return seen.code, found

    return called


def made(home: Path, folder: Path, target: str) -> Path:
    """A bundle of the example in 8 bits."""
    words = ("--target", target, "--data", DATA, "--no-device", "--recipes", "int8-u8s8")
    ran = deploy(MODEL, *words, "--out", folder, env={"ONMETAL_HOME": str(home)})
    assert ran.code == 0, ran.err
    return folder


@pytest.fixture(scope="session")
def qdq(shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(shared_home, tmp_path_factory.mktemp("qdq") / "bundle", "x86-onnxruntime")


@pytest.fixture(scope="session")
def ir(shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(shared_home, tmp_path_factory.mktemp("ir") / "bundle", "x86-openvino")


@pytest.fixture(scope="session")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the example's samples, without labels."""
    path = tmp_path_factory.mktemp("some") / "some.npz"
    with np.load(DATA) as data:
        np.savez(path, x=data["x"][:40])
    return path


# --- sensitivity


def test_every_operator_is_told_with_the_worst_first(inspect: Inspect) -> None:
    code, found = inspect(MODEL, "--data", DATA)
    assert code == 0
    assert found["target"] is None
    sensitivity = found["sensitivity"]
    assert sensitivity["recipe"] == "int8-s8s8"
    assert sensitivity["samples"] == 150  # the part that would calibrate
    rows = sensitivity["operators"]
    assert sorted(row["operator"] for row in rows) == ["Conv"] * 9 + ["Gemm"]
    assert [row["sqnr_db"] for row in rows] == sorted(row["sqnr_db"] for row in rows)
    assert all(20 < row["sqnr_db"] < 100 for row in rows)
    graph = onnx.load(str(MODEL)).graph
    names = {output for known in graph.node for output in known.output}
    assert {row["tensor"] for row in rows} <= names
    assert len({row["tensor"] for row in rows}) == 10
    assert {row["node"] for row in rows} <= {known.name for known in graph.node}


def uneven() -> Any:
    """The first convolution takes two channels of which it needs the second one alone."""
    return build(
        [
            node("Conv", "x second", "one", name="picks"),
            node("Conv", "one w1", "more", name="spreads"),
            node("Conv", "more w2", "y", name="joins"),
        ],
        [value("x", ["n", 2, 8, 8])],
        [value("y", ["n", 2, 8, 8])],
        [
            constant("second", np.reshape([0.0, 1.0], (1, 2, 1, 1))),
            constant("w1", np.reshape([0.3, -0.7, 1.1], (3, 1, 1, 1))),
            constant("w2", np.reshape([0.5, 0.9, -0.4, 1.2, -0.8, 0.6], (2, 3, 1, 1))),
        ],
    )


def unevenly(path: Path) -> Path:
    """Its inputs: where the first channel has one scale with the second, little is left of that."""
    x = np.random.default_rng(0).uniform(-1, 1, (40, 2, 8, 8)).astype(np.float32)
    x[:, 0] *= 100
    np.savez(path, x=x)
    return path


@pytest.mark.parametrize("target", [None, "x86-openvino"])
def test_what_bears_8_bits_badly_is_named_first(
    target: str | None, inspect: Inspect, tmp_path: Path
) -> None:
    path, data = save(uneven(), tmp_path / "net.onnx"), unevenly(tmp_path / "x.npz")
    code, found = inspect(path, "--data", data, *(["--target", target] if target else []))
    assert code == 0
    sensitivity = found["sensitivity"]
    assert sensitivity["samples"] == 10
    worst, *others = sensitivity["operators"]
    assert (worst["node"], worst["tensor"]) == ("picks", "one")
    assert worst["sqnr_db"] < 15 < 30 < min(row["sqnr_db"] for row in others)
    assert found["target"] == target
    if target:
        said = {entry["candidate"]: entry["says"] for entry in found["support"]}
        assert "can be tried" in said["int8-u8s8@openvino"]
        assert "MatMul" in said["wi8@openvino"]


@pytest.mark.parametrize("target", ["tflite-x86", "cortex-m4"])
def test_targets_of_tflite_are_told_by_its_own_grids(
    target: str, inspect: Inspect, tmp_path: Path
) -> None:
    path, data = save(uneven(), tmp_path / "net.onnx"), unevenly(tmp_path / "x.npz")
    code, found = inspect(path, "--target", target, "--data", data)
    assert code == 0, found
    sensitivity = found["sensitivity"]
    assert (sensitivity["recipe"], sensitivity["samples"]) == ("int8", 10)
    worst, *others = sensitivity["operators"]
    assert (worst["node"], worst["operator"]) == ("picks", "CONV_2D")
    assert worst["sqnr_db"] < 15 < 30 < min(row["sqnr_db"] for row in others)
    assert [row["node"] for row in others] in (["spreads", "joins"], ["joins", "spreads"])


def test_a_tflite_file_is_told_the_same(inspect: Inspect, tmp_path: Path) -> None:
    path, data = save(uneven(), tmp_path / "net.onnx"), unevenly(tmp_path / "x.npz")
    _, of_onnx = inspect(path, "--target", "tflite-x86", "--data", data)
    folder = tmp_path / "read"
    folder.mkdir()
    reader.examine(str(path), {}, 1, str(folder))  # the free batch becomes 1
    convert.to_float(str(folder / "model.onnx"), str(tmp_path))
    for target in ((), ("--target", "tflite-x86")):
        code, found = inspect(tmp_path / "model.tflite", *target, "--data", data)
        assert code == 0, found
        rows = found["sensitivity"]["operators"]
        assert [row["sqnr_db"] for row in rows] == [
            row["sqnr_db"] for row in of_onnx["sensitivity"]["operators"]
        ]


def test_what_is_quantized_already_is_not_asked(inspect: Inspect, qdq: Path, some: Path) -> None:
    code, found = inspect(qdq / "model.onnx", "--data", some)
    assert code == 2
    assert "quantized already" in found["error"]["message"]


def test_people_see_the_worst_operator_and_how_to_read_it(tmp_path: Path) -> None:
    path, data = save(uneven(), tmp_path / "net.onnx"), unevenly(tmp_path / "x.npz")
    seen = inside(path, "--data", data)
    assert seen.code == 0
    lines = seen.out.splitlines()
    (place,) = (number for number, line in enumerate(lines) if "sensitivity to int8-s8s8" in line)
    rows = [line for line in lines[place:] if " dB  " in line]
    assert len(rows) == 3
    assert "one" in rows[0]
    with pytest.raises(json.JSONDecodeError):
        json.loads(seen.out)


def test_operators_are_named_as_the_users_file_names_them(inspect: Inspect, tmp_path: Path) -> None:
    """MatMul and Add become one operator on the way; what they give keeps its name."""
    random = np.random.default_rng(0)
    built = build(
        [
            node("MatMul", "x w1", "m1"),
            node("Add", "m1 b1", "hidden"),
            node("Relu", "hidden", "r1"),
            node("MatMul", "r1 w2", "m2"),
            node("Add", "m2 b2", "scores"),
        ],
        [value("x", ["n", 16])],
        [value("scores", ["n", 5])],
        [
            constant("w1", random.normal(size=(16, 32))),
            constant("b1", random.normal(size=32)),
            constant("w2", random.normal(size=(32, 5))),
            constant("b2", random.normal(size=5)),
        ],
    )
    path = save(built, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=random.normal(size=(40, 16)))
    code, found = inspect(path, "--data", tmp_path / "x.npz")
    assert code == 0
    assert {row["tensor"] for row in found["sensitivity"]["operators"]} == {"hidden", "scores"}


def test_without_data_there_is_no_sensitivity(inspect: Inspect) -> None:
    code, found = inspect(MODEL, "--target", "x86-64")
    assert code == 0
    assert found["sensitivity"] is None
    said = {entry["candidate"]: entry["says"] for entry in found["support"]}
    assert said["int8-u8s8@openvino"] == "can be tried, once calibrated with --data"


def test_two_inputs_are_fed_by_their_names(inspect: Inspect, tmp_path: Path) -> None:
    built = build(
        [
            node("Conv", "a w1", "c1"),
            node("Conv", "b w2", "c2"),
            node("Add", "c1 c2", "s"),
            node("Conv", "s w3", "y"),
            node("Relu", "s", "z"),
        ],
        [value("a", [1, 3, 4, 4]), value("b", [1, 2, 4, 4])],
        [value("y", [1, 2, 4, 4]), value("z", [1, 4, 4, 4])],
        [
            constant("w1", np.random.default_rng(1).normal(size=(4, 3, 1, 1))),
            constant("w2", np.random.default_rng(2).normal(size=(4, 2, 1, 1))),
            constant("w3", np.random.default_rng(3).normal(size=(2, 4, 1, 1))),
        ],
    )
    path = save(built, tmp_path / "net.onnx")
    random = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", a=random.normal(size=(20, 3, 4, 4)), b=np.ones((20, 2, 4, 4)))
    code, found = inspect(path, "--data", tmp_path / "d.npz")
    assert code == 0
    assert len(found["sensitivity"]["operators"]) == 3


def test_a_model_with_nothing_to_quantize_has_no_sensitivity(
    inspect: Inspect, tmp_path: Path
) -> None:
    path = save(relu(["n", 8]), tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((20, 8), np.float32))
    code, found = inspect(path, "--data", tmp_path / "x.npz")
    assert code == 3
    assert "nothing in it can be quantized" in found["error"]["message"]


def test_a_target_without_8_bits_has_none_to_try(inspect: Inspect, tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text(
        'description = "a board"\narch = "x86_64"\n[device]\ntransport = "local"\n'
        '[[runtimes]]\nname = "openvino"\n'
        '[[recipes]]\nname = "fp32"\nruntimes = ["openvino"]\ncompute = "f32"\n'
    )
    code, found = inspect(MODEL, "--data", DATA, "--target", tmp_path / "board.toml")
    assert code == 2
    assert "8-bit" in found["error"]["message"]


@pytest.mark.parametrize("data", ["missing.npz", "broken.npz"])
def test_data_that_cannot_be_read_exits_2(
    data: str, inspect: Inspect, qdq: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    path = tmp_path / data
    for words in ((MODEL,), (MODEL, "--target", "x86-64"), (qdq, "--against", MODEL)):
        code, found = inspect(*words, "--data", path)
        assert code == 2
        assert data in found["error"]["message"]


# --- an artifact against its float model


def names_of(found: Document) -> list[str]:
    return [row["tensor"] for row in found["tensors"]]


def spoilt(path: Path, convolution: str, folder: Path) -> tuple[Path, str]:
    """The QDQ graph with the scales of a convolution's weight 50 times too large.

    -> the file, and the first tensor that a float model has too and that this spoils.
    """
    model = onnx.load(str(path))
    makers = {output: known for known in model.graph.node for output in known.output}
    (damaged,) = (known for known in model.graph.node if known.name == convolution)
    scale = makers[damaged.input[1]].input[1]
    (tensor,) = (t for t in model.graph.initializer if t.name == scale)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(50), scale))
    name = damaged.output[0]
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        (taker,) = (n for n in model.graph.node if name in n.input and n.op_type == kind)
        name = taker.output[0]
    return save(model, folder / "spoilt.onnx"), name


def test_a_sound_artifact_has_no_bad_tensor(inspect: Inspect, qdq: Path, some: Path) -> None:
    code, found = inspect(qdq / "model.onnx", "--against", MODEL, "--data", some)
    assert code == 0
    assert found["first_bad"] is None
    assert found["samples"] == 40
    assert found["against"] == str(MODEL)
    assert found["bad_db"] == 10
    graph = onnx.load(str(MODEL)).graph
    order = [output for known in graph.node for output in known.output]
    assert len(found["tensors"]) >= 12
    assert names_of(found) == [name for name in order if name in names_of(found)]
    assert names_of(found)[-1] == "logits"
    for row in found["tensors"]:
        assert row.keys() == {"tensor", "operator", "sqnr_db", "peak_float", "peak"}
        assert row["sqnr_db"] > 25
        assert 0 < row["peak"] < 2 * row["peak_float"]


def outputs_of(path: Path, names: list[str], samples: np.ndarray) -> list[np.ndarray]:
    model = onnx.load(str(path))
    known = {output.name for output in model.graph.output}
    for name in names:
        if name not in known:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rows = [session.run(names, {"image": row[None]}) for row in samples]
    return [np.concatenate([row[i] for row in rows]).astype(np.float64) for i in range(len(names))]


def test_fidelity_is_what_numpy_finds(inspect: Inspect, qdq: Path, some: Path) -> None:
    _, found = inspect(qdq / "model.onnx", "--against", MODEL, "--data", some)
    with np.load(some) as data:
        samples = data["x"]
    names = names_of(found)
    floats = outputs_of(MODEL, names, samples)
    ours = outputs_of(qdq / "model.onnx", names, samples)
    for row, wanted, given in zip(found["tensors"], floats, ours, strict=True):
        noise = np.sum((wanted - given) ** 2)
        assert row["sqnr_db"] == pytest.approx(10 * np.log10(np.sum(wanted**2) / noise), abs=0.05)
        assert row["peak_float"] == pytest.approx(np.abs(wanted).max(), rel=1e-4)
        assert row["peak"] == pytest.approx(np.abs(given).max(), rel=1e-4)


@pytest.mark.parametrize(
    "convolution",
    [
        "/stem/conv/Conv",
        "/block1/second/conv/Conv",
        "/block3/first/conv/Conv",
        "/depthwise/conv/Conv",
    ],
)
def test_a_planted_defect_is_the_first_bad_tensor(
    convolution: str, inspect: Inspect, qdq: Path, some: Path, tmp_path: Path
) -> None:
    path, name = spoilt(qdq / "model.onnx", convolution, tmp_path)
    code, found = inspect(path, "--against", MODEL, "--data", some)
    assert code == 0
    assert found["first_bad"] == name
    place = names_of(found).index(name)
    assert all(row["sqnr_db"] > 25 for row in found["tensors"][:place])
    assert found["tensors"][place]["sqnr_db"] < 10


def test_people_are_told_the_first_bad_tensor(qdq: Path, some: Path, tmp_path: Path) -> None:
    path, name = spoilt(qdq / "model.onnx", "/block2/first/conv/Conv", tmp_path)
    seen = inside(path, "--against", MODEL, "--data", some)
    assert seen.code == 0
    last = seen.out.splitlines()[-1]
    assert last.startswith("first bad tensor")
    assert name in last
    seen = inside(qdq / "model.onnx", "--against", MODEL, "--data", some)
    assert "no tensor is under 10 dB" in seen.out.splitlines()[-1]
    assert "random inputs" not in seen.out


def test_without_data_random_inputs_are_taken_and_that_is_said(qdq: Path) -> None:
    seen = inside(qdq / "model.onnx", "--against", MODEL)
    assert seen.code == 0
    assert "random inputs" in seen.out
    assert "no tensor is under" in seen.out


def test_an_ir_is_compared_by_openvino(inspect: Inspect, ir: Path, some: Path) -> None:
    code, found = inspect(ir / "model.xml", "--against", MODEL, "--data", some)
    assert code == 0
    assert found["first_bad"] is None
    assert len(found["tensors"]) >= 10
    assert names_of(found)[-1] == "logits"
    assert all(20 < row["sqnr_db"] < 80 for row in found["tensors"])


def test_a_defect_is_found_in_an_ir_too(
    inspect: Inspect, qdq: Path, some: Path, tmp_path: Path
) -> None:
    import openvino

    path, name = spoilt(qdq / "model.onnx", "/block2/second/conv/Conv", tmp_path)
    openvino.save_model(
        openvino.Core().read_model(str(path)), str(tmp_path / "net.xml"), compress_to_fp16=False
    )
    code, found = inspect(tmp_path / "net.xml", "--against", MODEL, "--data", some)
    assert code == 0
    assert found["first_bad"] == name


@pytest.mark.parametrize(("which", "file"), [("qdq", "model.onnx"), ("ir", "model.xml")])
def test_a_bundle_is_compared_by_its_artifact(
    which: str, file: str, inspect: Inspect, some: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(which)
    before = sorted(path.name for path in folder.iterdir())
    code, found = inspect(folder, "--against", MODEL, "--data", some)
    assert code == 0
    assert found["artifact"] == str(folder)
    assert found["first_bad"] is None
    _, alone = inspect(folder / file, "--against", MODEL, "--data", some)
    assert found["tensors"] == alone["tensors"]
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_float_model_does_not_leave_itself(inspect: Inspect, some: Path) -> None:
    code, found = inspect(MODEL, "--against", MODEL, "--data", some)
    assert code == 0
    assert found["first_bad"] is None
    assert {row["sqnr_db"] for row in found["tensors"]} == {300.0}


def masked() -> Any:
    """As attention does it: where the mask says so, minus infinity goes into a Softmax."""
    return build(
        [
            node("Where", "keep x lowest", "masked"),
            node("Softmax", "masked", "shares", axis=-1),
            node("MatMul", "shares w", "y"),
        ],
        [value("keep", [1, 8], TensorProto.BOOL), value("x", [1, 8])],
        [value("y", [1, 4])],
        [
            constant("lowest", -np.inf),
            constant("w", np.random.default_rng(0).normal(size=(8, 4))),
        ],
    )


def rooted() -> Any:
    """NaN where `x` is negative."""
    return build(
        [node("Sqrt", "x", "root"), node("Neg", "root", "y")],
        [value("x", [1, 8])],
        [value("y", [1, 8])],
    )


@pytest.mark.parametrize("built", [masked, rooted])
def test_what_is_infinite_or_nan_in_both_is_alike(
    built: Callable[[], Any], inspect: Inspect, tmp_path: Path
) -> None:
    path = save(built(), tmp_path / "net.onnx")
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {"x": random.normal(size=(20, 8)).astype(np.float32)}
    if built is masked:
        arrays["keep"] = random.random((20, 8)) > 0.4
    np.savez(tmp_path / "d.npz", **arrays)
    code, found = inspect(path, "--against", path, "--data", tmp_path / "d.npz")
    assert code == 0
    assert found["first_bad"] is None


def test_nan_where_the_float_has_none_is_bad(inspect: Inspect, tmp_path: Path) -> None:
    good = build(
        [node("Add", "x one", "root"), node("Neg", "root", "y")],
        [value("x", [1, 8])],
        [value("y", [1, 8])],
        [constant("one", 1.0)],
    )
    paths = [save(m, tmp_path / f"{n}.onnx") for n, m in (("bad", rooted()), ("good", good))]
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(20, 8)))
    code, found = inspect(paths[0], "--against", paths[1], "--data", tmp_path / "d.npz")
    assert code == 0
    assert found["first_bad"] == "root"
    seen = inside(paths[0], "--against", paths[1], "--data", tmp_path / "d.npz")
    assert "first bad tensor" in seen.out


# --- what cannot be compared


def small(name: str, shape: list[int | str | None]) -> Any:
    return build([node("Relu", "x", name)], [value("x", shape)], [value(name, shape)])


def test_files_without_a_common_tensor_exit_3(
    inspect: Inspect, qdq: Path, ir: Path, tmp_path: Path
) -> None:
    other = save(small("elsewhere", [1, 4]), tmp_path / "other.onnx")
    for artifact in (qdq, ir / "model.xml"):
        code, found = inspect(artifact, "--against", other)
        assert code == 3
        assert "no tensor of the same name" in found["error"]["message"]
    seen = inside(qdq, "--against", other)
    assert seen.code == 3
    assert seen.out == ""
    assert "no tensor of the same name" in seen.err


def test_a_file_of_other_inputs_exits_3(inspect: Inspect, tmp_path: Path) -> None:
    one = save(small("y", [1, 4]), tmp_path / "one.onnx")
    built = build([node("Relu", "picture", "y")], [value("picture", [1, 4])], [value("y", [1, 4])])
    two = save(built, tmp_path / "two.onnx")
    code, found = inspect(two, "--against", one)
    assert code == 3
    assert "picture" in found["error"]["message"]


def test_a_tensor_of_another_shape_is_bad(inspect: Inspect, tmp_path: Path) -> None:
    def pooled(keep: int) -> Any:
        shape = [1, 1] if keep else [1]
        return build(
            [node("Neg", "x", "n"), node("ReduceMax", "n", "y", axes=[1], keepdims=keep)],
            [value("x", [1, 4])],
            [value("y", shape)],
            opset=13,
        )

    paths = [save(pooled(keep), tmp_path / f"{keep}.onnx") for keep in (0, 1)]
    code, found = inspect(paths[0], "--against", paths[1])
    assert code == 0
    assert found["first_bad"] == "y"


BROKEN = '<?xml version="1.0"?><net name="a" version="11"><layers>'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.onnx", b"garbage"),
        ("empty.onnx", b""),
        ("missing.onnx", None),
        ("broken.xml", b"garbage"),
        ("cut.xml", BROKEN.encode()),
        ("empty.xml", b""),
        ("missing.xml", None),
    ],
)
def test_an_artifact_that_cannot_be_read_exits_2(
    name: str, content: bytes | None, inspect: Inspect, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    code, found = inspect(path, "--against", MODEL)
    assert code == 2
    assert name in found["error"]["message"]
    seen = inside(path, "--against", MODEL)
    assert (seen.code, seen.out) == (2, "")
    assert name in seen.err


def test_an_ir_without_its_weights_exits_2(inspect: Inspect, ir: Path, tmp_path: Path) -> None:
    shutil.copyfile(ir / "model.xml", tmp_path / "model.xml")
    code, found = inspect(tmp_path / "model.xml", "--against", MODEL)
    assert code == 2
    assert "model.xml" in found["error"]["message"]


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"\x80\x04\x95pickled"])
def test_a_float_model_that_cannot_be_read_exits_2(
    content: bytes | None, inspect: Inspect, qdq: Path, tmp_path: Path
) -> None:
    path = tmp_path / "float.onnx"
    if content is not None:
        path.write_bytes(content)
    code, found = inspect(qdq / "model.onnx", "--against", path)
    assert code == 2
    assert "float.onnx" in found["error"]["message"]


def test_a_folder_that_is_no_sound_bundle_exits_2(
    inspect: Inspect, qdq: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    damaged = Path(shutil.copytree(qdq, tmp_path / "damaged"))
    (damaged / "manifest.json").write_text("{")
    other = Path(shutil.copytree(qdq, tmp_path / "other"))
    shutil.copyfile(MODEL, other / "model.onnx")
    for folder in (tmp_path / "empty", damaged, other):
        code, found = inspect(folder, "--against", MODEL)
        assert code == 2
        assert folder.name in found["error"]["message"]
    assert inspect(MODEL, "--against", qdq)[0] == 2


def test_what_goes_with_a_target_does_not_go_with_a_comparison(inspect: Inspect, qdq: Path) -> None:
    code, found = inspect(qdq, "--against", MODEL, "--target", "x86-64")
    assert code == 2
    assert "--target" in found["error"]["message"]


def test_a_fixed_batch_cannot_be_changed(inspect: Inspect, qdq: Path) -> None:
    code, found = inspect(qdq / "model.onnx", "--against", MODEL, "--batch", "4")
    assert code == 2
    assert "batch" in found["error"]["message"]


def test_the_command_says_it_in_a_process_of_its_own(qdq: Path, some: Path) -> None:
    ran = deploy("inspect", qdq, "--against", MODEL, "--data", some, "--json")
    assert ran.code == 0, ran.err
    assert ran.document["first_bad"] is None
    assert json.loads(ran.out) == ran.document
    ran = deploy("inspect", MODEL, "--data", some, "--json")
    assert ran.code == 0, ran.err
    assert ran.document["sensitivity"]["samples"] == 10
