"""Files that are no models, or that mean harm: each gives facts or an error, never a crash."""

import contextlib
import hashlib
import os
import pickle
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from onmetal.converters.onnx import reader as onnx_reader
from onmetal.errors import DeviceError, OnmetalError, UnsupportedError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.local_worker import LocalWorker
from tests.conftest import DIGITS, deploy
from tests.onnx_models import build, constant, node, read, relu, save, value, weights

EXAMPLE = (DIGITS / "digits_cnn.onnx").read_bytes()
PLACES = [1, 2, 3, 7, 16, 64, 200, 1000, 5000, 20_000, 80_000, 200_000, 300_000, 369_000]


class Reader:
    """Examines file after file in one worker, and starts another where it died."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.device = cache, Local(cache)
        self.worker: LocalWorker | None = None
        self.deaths = 0

    def __call__(self, path: Path) -> dict[str, Any] | OnmetalError:
        self.worker = self.worker or self.device.worker()
        try:
            with self.cache.scratch() as folder:
                facts: dict[str, Any] = self.worker.call(
                    "call",
                    timeout_s=60,
                    function="onmetal.converters.onnx.reader:examine",
                    arguments={
                        "path": str(path),
                        "shapes": {},
                        "batch": None,
                        "folder": str(folder),
                    },
                )
            return facts
        except (UsageError, UnsupportedError, DeviceError) as error:
            if "worker process" in str(error):
                self.deaths += 1
                self.close()
            return error

    def close(self) -> None:
        if self.worker:
            self.worker.close()
        self.worker = None


@pytest.fixture
def reader() -> Iterator[Reader]:
    with Cache() as cache:
        reader = Reader(cache)
        yield reader
        reader.close()


def outcome(found: dict[str, Any] | OnmetalError) -> str:
    """Facts that hold together, or an error that says something."""
    if isinstance(found, OnmetalError):
        assert len(str(found)) > 20
        return type(found).__name__
    assert found["outputs"]
    for tensor in (*found["inputs"], *found["outputs"]):
        assert min(tensor["shape"], default=1) >= 0
    return "facts"


def mutated(source: random.Random) -> bytes:
    data = bytearray(EXAMPLE)
    for _ in range(source.choice([1, 1, 4, 32])):
        # most bytes are weights, which nothing checks: favour the structure around them
        place = source.randrange(len(data)) if source.random() < 0.2 else source.choice(STRUCTURE)
        match source.randrange(3):
            case 0:
                data[place] = source.randrange(256)
            case 1:
                data[place] ^= 1 << source.randrange(8)
            case 2:
                del data[place : place + source.choice([1, 2, 40])]
        place = min(place, len(data) - 1)
    return bytes(data)


def structure() -> list[int]:
    """Places in the example that are no weights."""
    model = onnx.load_model_from_string(EXAMPLE)
    inside: set[int] = set()
    for tensor in model.graph.initializer:
        start = EXAMPLE.find(tensor.raw_data)
        inside.update(range(start, start + len(tensor.raw_data)))
    return [place for place in range(len(EXAMPLE) - 100) if place not in inside]


STRUCTURE = structure()


@pytest.mark.parametrize("seed", range(3))
def test_mutations_of_the_example(tmp_path: Path, reader: Reader, seed: int) -> None:
    source = random.Random(seed)
    seen = set()
    for number in range(50):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(mutated(source))
        seen.add(outcome(reader(path)))
        path.unlink()
    assert {"facts", "UsageError"} <= seen


def test_a_file_cut_anywhere_is_no_model(tmp_path: Path, reader: Reader) -> None:
    path = tmp_path / "cut.onnx"
    for place in [*PLACES, len(EXAMPLE) - 1]:
        path.write_bytes(EXAMPLE[:place])
        found = reader(path)
        assert isinstance(found, UsageError), f"cut at {place}: {found}"
        outcome(found)
    assert reader.deaths == 0


def test_random_bytes_are_no_model(tmp_path: Path, reader: Reader) -> None:
    path = tmp_path / "noise.onnx"
    for seed in range(20):
        path.write_bytes(random.Random(seed).randbytes(10 + seed * 100))
        assert isinstance(reader(path), UsageError)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    with pytest.raises(UsageError, match="is empty"):
        read(path, tmp_path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read(tmp_path / "none.onnx", tmp_path)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this is a folder"):
        read(tmp_path, tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(UsageError, match="0 graphs tagged 'serve'"):
        read(tmp_path, tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe.onnx"
    os.mkfifo(path)
    with pytest.raises(UsageError, match="not a regular file"):
        read(path, tmp_path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (pickle.dumps({"weight": [1.0]}, protocol=2), "pickle"),
        (pickle.dumps({"weight": [1.0]}, protocol=4), "pickle"),
        (b"GGUF\x03\x00\x00\x00" + bytes(100), "GGUF"),
    ],
)
def test_other_formats_are_recognized(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"{what}.*ONNX"):
        read(path, tmp_path)


def test_a_zip_archive_is_recognized(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02.")
    with pytest.raises(UsageError, match="zip archive"):
        read(path, tmp_path)


@pytest.mark.parametrize(
    "text", ["hello\n", "<!DOCTYPE html><html></html>", "version https://git-lfs\noid sha256:1"]
)
def test_text_is_no_model(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"model\.onnx"):
        read(path, tmp_path)


def no_nodes_no_outputs() -> Any:
    return build([], [value("x", [1, 2])], [])


def no_outputs() -> Any:
    return build([node("Relu", "x", "y")], [value("x", [1, 2])], [])


def no_opset() -> Any:
    model = relu([1, 2])
    del model.opset_import[:]
    return model


def no_ir_version() -> Any:
    model = relu([1, 2])
    model.ClearField("ir_version")
    return model


def an_input_without_a_type() -> Any:
    model = relu([1, 2])
    model.graph.input[0].ClearField("type")
    return model


def an_output_without_a_type_of_a_node_that_is_not_there() -> Any:
    return build([node("Relu", "x", "y")], [value("x", [1, 2])], [helper.ValueInfoProto(name="z")])


def a_cycle() -> Any:
    nodes = [node("Add", "x b", "a"), node("Relu", "a", "b")]
    return build(nodes, [value("x", [1, 2])], [value("b", [1, 2])])


def a_missing_weight() -> Any:
    return build([node("Add", "x nowhere", "y")], [value("x", [1, 2])], [value("y", [1, 2])])


def an_output_made_twice() -> Any:
    nodes = [node("Relu", "x", "y"), node("Sigmoid", "x", "y")]
    return build(nodes, [value("x", [1, 2])], [value("y", [1, 2])])


def an_output_made_by_nothing() -> Any:
    return build([node("Relu", "x", "y")], [value("x", [1, 2])], [value("z", [1, 2])])


def two_inputs_of_one_name() -> Any:
    inputs = [value("x", [1, 2]), value("x", [1, 2])]
    return build([node("Relu", "x", "y")], inputs, [value("y", [1, 2])])


def a_negative_axis() -> Any:
    model = relu([1, 2])
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -7
    return model


def an_unknown_element_type() -> Any:
    model = relu([1, 2])
    model.graph.input[0].type.tensor_type.elem_type = 99
    return model


def a_rank_that_does_not_fit() -> Any:
    inputs, outputs = [value("x", [1, 2])], [value("y", None)]
    return build([node("Conv", "x weight", "y")], inputs, outputs, [weights("weight", 2, 1, 3, 3)])


@pytest.mark.parametrize(
    "make",
    [
        no_nodes_no_outputs,
        no_outputs,
        no_opset,
        no_ir_version,
        an_input_without_a_type,
        an_output_without_a_type_of_a_node_that_is_not_there,
        a_cycle,
        a_missing_weight,
        an_output_made_twice,
        an_output_made_by_nothing,
        two_inputs_of_one_name,
        a_negative_axis,
        an_unknown_element_type,
        a_rank_that_does_not_fit,
    ],
)
def test_a_broken_graph_is_refused(tmp_path: Path, make: Any) -> None:
    path = save(make(), tmp_path / "broken.onnx")
    with pytest.raises((UsageError, UnsupportedError)) as caught:
        read(path, tmp_path)
    message = str(caught.value)
    assert "broken.onnx" in message or "'x'" in message or "'z'" in message
    assert "Error:" not in message, "the name of a Python exception says nothing to a user"


def test_huge_axes_are_not_allocated(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"'x'.*memory"):
        read(relu([1, 2**40]), tmp_path)


def test_huge_axes_of_a_computed_output_are_not_allocated(tmp_path: Path) -> None:
    nodes = [node("NonZero", "x", "y")]
    outputs = [value("y", ["a", "b"], TensorProto.INT64)]
    with pytest.raises((UsageError, UnsupportedError)):
        read(build(nodes, [value("x", [2**20, 2**30])], outputs), tmp_path)


def test_a_huge_weight_without_data(tmp_path: Path) -> None:
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[2**31, 2**31])
    model = build(
        [node("MatMul", "x weight", "y")],
        [value("x", [1, 2**31])],
        [value("y", [1, 2**31])],
        [weight],
    )
    with pytest.raises((UsageError, UnsupportedError)):
        read(model, tmp_path)


def test_a_file_of_many_nested_branches_is_survived(tmp_path: Path, reader: Reader) -> None:
    graph = helper.make_graph([node("Relu", "x", "r0")], "g", [], [value("r0", [1])])
    for depth in range(1, 25):
        inner = node("If", "flag", f"r{depth}", then_branch=graph, else_branch=relu([1]).graph)
        graph = helper.make_graph([inner], "g", [], [value(f"r{depth}", [1])])
    graph.input.extend([value("flag", [], TensorProto.BOOL), value("x", [1])])
    opset = helper.make_opsetid("", 17)
    path = tmp_path / "deep.onnx"
    save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    outcome(reader(path))


# --- external data: weights in files whose names are a stranger's word

SECRET = b"secret, secret! "  # as long as `weight` of 4 float32


def stolen(location: str | None, **entries: str) -> Any:
    """A tensor whose data lies elsewhere."""
    tensor = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in {**({} if location is None else {"location": location}), **entries}.items():
        tensor.external_data.add(key=key, value=text)
    return tensor


def in_initializer(tensor: Any) -> Any:
    return build(
        [node("Add", "x weight", "y")], [value("x", [4])], [value("y", [4])], [tensor], opset=13
    )


def in_constant(tensor: Any) -> Any:
    nodes = [node("Constant", "", "weight", value=tensor), node("Add", "x weight", "y")]
    return build(nodes, [value("x", [4])], [value("y", [4])], opset=13)


def in_branch(tensor: Any) -> Any:
    branches = {
        f"{name}_branch": helper.make_graph(
            [node("Add", "x weight", name)], name, [], [value(name, [4])], [tensor]
        )
        for name in ("then", "else")
    }
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Cast", "sum", "flag", to=TensorProto.BOOL),
        node("If", "flag", "y", **branches),
    ]
    return build(nodes, [value("x", [4])], [value("y", [4])], opset=13)


def in_branch_of_nothing(tensor: Any) -> Any:
    """A graph without nodes and outputs, which holds weights all the same."""
    model = in_initializer(constant("weight", [1.0] * 4))
    attribute = model.graph.node[0].attribute.add(name="more", type=onnx.AttributeProto.GRAPH)
    attribute.g.initializer.append(tensor)
    return model


def in_function(tensor: Any) -> Any:
    nodes = [node("Constant", "", "weight", value=tensor), node("Add", "a weight", "o")]
    opset = [helper.make_opsetid("", 13)]
    inner = helper.make_function("own", "inner", ["a"], ["o"], nodes, opset)
    call = helper.make_node("inner", ["x"], ["y"], domain="own")
    ends = [value("x", [4])], [value("y", [4])]
    return build([call], *ends, opset=13, domains=["own"], functions=[inner])


def in_sparse_initializer(tensor: Any) -> Any:
    model = in_initializer(constant("weight", [1.0] * 4))
    del model.graph.initializer[:]
    indices = constant("", [0, 1, 2, 3], "int64")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [4]))
    return model


def in_sparse_constant(tensor: Any) -> Any:
    sparse = helper.make_sparse_tensor(tensor, constant("", [0, 1, 2, 3], "int64"), [4])
    nodes = [node("Constant", "", "weight", sparse_value=sparse), node("Add", "x weight", "y")]
    return build(nodes, [value("x", [4])], [value("y", [4])], opset=13)


def in_training(tensor: Any) -> Any:
    model = in_initializer(constant("weight", [1.0] * 4))
    model.training_info.add().initialization.initializer.append(tensor)
    return model


HOLDERS = [in_initializer, in_constant, in_branch, in_branch_of_nothing, in_function]
HOLDERS += [in_sparse_initializer, in_sparse_constant, in_training]


def prepared(path: Path, folder: Path) -> bytes:
    """What is made of a model for all that follows."""
    folder.mkdir()
    onnx_reader.examine(str(path), {}, None, str(folder))
    return b"".join(file.read_bytes() for file in folder.iterdir())


@pytest.mark.parametrize("make", HOLDERS)
@pytest.mark.parametrize("location", ["../secret", "{home}/secret", "link", "linked/secret"])
def test_external_data_elsewhere_is_not_read_wherever_it_is_asked_for(
    tmp_path: Path, make: Any, location: str
) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    home = tmp_path / "model"
    home.mkdir()
    (home / "link").symlink_to("../secret")
    (home / "linked").symlink_to("..")
    path = save(make(stolen(location.format(home=tmp_path))), home / "model.onnx")
    try:
        content = prepared(path, tmp_path / "out")
    except (UsageError, UnsupportedError) as error:
        assert "model.onnx" in str(error)
        content = str(error).encode()
        refused = True
    else:
        refused = False
    assert b"secret, secret!" not in content and b"location" not in content
    assert refused or make is in_training, "which is left out"


@pytest.mark.parametrize("make", HOLDERS)
def test_external_data_beside_the_model_is_read_wherever_it_is_asked_for(
    tmp_path: Path, make: Any
) -> None:
    (tmp_path / "data").write_bytes(b"0123" + SECRET)
    tensor = stolen("data", offset="4", length="16")
    path = save(make(tensor), tmp_path / "model.onnx")
    try:
        content = prepared(path, tmp_path / "out")
    except UnsupportedError:
        assert make is in_branch_of_nothing
        return
    assert (SECRET in content) == (make is not in_training)


EXTERNAL: dict[str, tuple[Any, str]] = {
    "nothing": (stolen(None), "outside the model's folder"),
    "an empty name": (stolen(""), "outside the model's folder"),
    "the folder": (stolen("."), "outside the model's folder"),
    "a folder": (stolen("folder"), "it is a folder"),
    "NUL": (stolen("da\0ta"), "outside the model's folder"),
    "a way around": (stolen("folder/../data"), "outside the model's folder"),
    "nowhere": (stolen("nowhere"), "is missing"),
    "below a file": (stolen("data/data"), "cannot read"),
    "a pipe": (stolen("pipe"), "a pipe"),
    "a device": (stolen("device"), "a link out"),
    "a broken link": (stolen("broken"), "is missing"),
    "links in a circle": (stolen("circle"), "cannot read"),
    "a name without end": (stolen("a" * 5000), "cannot read"),
    "the model itself": (stolen("model.onnx"), "the model file itself"),
    "the model by a link": (stolen("itself"), "the model file itself"),
    "an offset beyond": (stolen("data", offset="1000"), "cut off"),
    "an offset far beyond": (stolen("data", offset="9" * 18), "cut off"),
    "a negative offset": (stolen("data", offset="-4"), "damaged data offset"),
    "an offset of many digits": (stolen("data", offset="9" * 5000), "damaged data offset"),
    "an offset in words": (stolen("data", offset="four"), "damaged data offset"),
    "an offset of other digits": (stolen("data", offset="\u0664"), "damaged data offset"),
    "an offset that is not whole": (stolen("data", offset="4.0"), "damaged data offset"),
    "a length beyond": (stolen("data", length="4000"), "instead of 16"),
    "a short length": (stolen("data", length="8"), "instead of 16"),
    "a negative length": (stolen("data", length="-1"), "damaged data offset"),
    "a length of many digits": (stolen("data", length="9" * 5000), "damaged data offset"),
    "another checksum": (stolen("data", checksum="0" * 40), "SHA-1 differs"),
}


@pytest.mark.parametrize("name", EXTERNAL)
def test_external_data_that_cannot_be_meant_has_a_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").write_bytes(SECRET)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for link, target in (("device", "/dev/zero"), ("broken", "gone"), ("circle", "circle")):
        (tmp_path / link).symlink_to(target)
    (tmp_path / "itself").symlink_to("model.onnx")
    tensor, why = EXTERNAL[name]
    path = save(in_initializer(tensor), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=why):
        prepared(path, tmp_path / "out")


@pytest.mark.parametrize("key", ["location", "offset", "length", "checksum"])
def test_external_data_that_is_said_twice(tmp_path: Path, key: str) -> None:
    (tmp_path / "data").write_bytes(SECRET)
    tensor = stolen("data", offset="0", length="16", checksum=hashlib.sha1(SECRET).hexdigest())
    assert SECRET in prepared(save(in_initializer(tensor), tmp_path / "a.onnx"), tmp_path / "out")
    tensor.external_data.add(key=key, value="../data")
    with pytest.raises(UsageError, match="twice"):
        prepared(save(in_initializer(tensor), tmp_path / "model.onnx"), tmp_path / "again")


@pytest.mark.parametrize("dims", [[2**40], [-4], [-2, -2], [2**40, 2**40]])
def test_external_data_for_a_shape_that_is_none(tmp_path: Path, dims: list[int]) -> None:
    (tmp_path / "data").write_bytes(SECRET)
    tensor = stolen("data")
    tensor.dims[:] = dims
    with pytest.raises(UsageError, match=r"cut off|damaged"):
        prepared(save(in_initializer(tensor), tmp_path / "model.onnx"), tmp_path / "out")


def test_external_data_of_which_little_is_asked_for(tmp_path: Path) -> None:
    """A terabyte of nothing takes no room on the disk, and hours to be hashed."""
    with (tmp_path / "data").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match=r"have 1099511627776 bytes, of which .* ask for 16"):
        prepared(save(in_initializer(stolen("data")), tmp_path / "model.onnx"), tmp_path / "out")


def test_external_data_is_not_multiplied(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(1 << 20))
    names = [f"w{number}" for number in range(200)]
    tensors = []
    for name in names:
        tensors.append(stolen("data"))
        tensors[-1].name, tensors[-1].dims[:] = name, [1 << 18]
    model = build(
        [node("Sum", f"x {' '.join(names)}", "y")],
        [value("x", [1 << 18])],
        [value("y", [1 << 18])],
        tensors,
    )
    with pytest.raises(UsageError, match="ask for 209715200 bytes"):
        prepared(save(model, tmp_path / "model.onnx"), tmp_path / "out")


def test_a_pickle_within_is_not_loaded(tmp_path: Path) -> None:
    """Beside the model, in its data and its metadata: it is bytes."""

    class Harm:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harm"),)

    content = pickle.dumps(Harm())
    (tmp_path / "data").write_bytes(content.ljust(16)[:16])
    model = in_initializer(stolen("data"))
    model.metadata_props.add(key="state", value=repr(content))
    model.graph.node[0].attribute.add(
        name="state", type=onnx.AttributeProto.STRING, s=content + bytes(100)
    )
    path = save(model, tmp_path / "model.onnx")
    with contextlib.suppress(UsageError, UnsupportedError):
        prepared(path, tmp_path / "out")
    assert not (tmp_path / "harm").exists()


BAD: dict[str, bytes] = {
    "empty": b"",
    "cut": EXAMPLE[:200_000],
    "noise": random.Random(1).randbytes(1000),
    "pickle": pickle.dumps([1, 2, 3], protocol=2),
    "cycle": a_cycle().SerializeToString(),
    "huge": relu([1, 2**44]).SerializeToString(),
    "foreign": build(
        [helper.make_node("Frobnicate", ["x"], ["y"], domain="acme")],
        [value("x", [1, 2])],
        [value("y", [1, 2])],
        domains=["acme"],
    ).SerializeToString(),
}


@pytest.mark.parametrize("name", BAD)
def test_the_command_refuses_it(tmp_path: Path, name: str) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out"
    path.write_bytes(BAD[name])
    ran = deploy(path, "--target", "x86-64", "--dry-run", "--json", "--out", out)
    assert ran.code in {"foreign": (3,), "huge": (2, 3)}.get(name, (2,))
    assert list(ran.document) == ["error"]
    assert ran.document["error"]["code"] == ran.code
    message = ran.document["error"]["message"]
    assert message and "\n" not in message
    said = [line for line in ran.err.splitlines() if not line.startswith("[")]
    assert said == [f"deploy: {message}"]
    assert not out.exists()
    assert path.read_bytes() == BAD[name]


def test_the_command_refuses_a_folder(tmp_path: Path) -> None:
    ran = deploy(tmp_path, "--target", "x86-64", "--dry-run", "--out", tmp_path / "out")
    assert (ran.code, ran.out) == (2, "")
    assert "this is a folder" in ran.err
    assert not (tmp_path / "out").exists()
