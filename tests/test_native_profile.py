"""Profiles that devices bring: of LiteRT's native library, and the shares of operators."""

import contextlib
import json
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onmetal.converters.tflite import precision as tflite_ops
from onmetal.errors import UnsupportedError
from onmetal.profilers.devices.remote import native_runner as native
from onmetal.runtimes.litert import text_profile
from tests.attached import MODEL
from tests.conftest import DIGITS
from tests.device_bundles import make
from tests.text_profiles import shares_of_text


class Runner:
    """The native runner, compiled for this machine, by its protocol."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.answer()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while "progress" in (found := json.loads(self._process.stdout.readline())):
            continue
        assert "error" not in found, found
        answered: dict[str, Any] = found
        return answered

    def ask(self, *words: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write("\t".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return self.answer()["result"]

    def close(self) -> None:
        self._process.communicate(timeout=120)


@pytest.fixture(scope="session")
def native_runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("native") / "runner"
    code = [file for file in native.sources() if file.suffix == ".c"]
    done = subprocess.run(
        ["gcc", *native.FLAGS, "-Werror", *code, "-o", path, "-ldl", "-lpthread"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return path


def litert_library() -> Path:
    spec = find_spec("ai_edge_litert")
    assert spec and spec.origin
    return Path(spec.origin).with_name("libLiteRt.so")


def profiled(path: Path, artifact: Path, folder: Path) -> str:
    """LiteRT's own summary of some inferences."""
    runner = Runner(path)
    try:
        words = ("num_threads=1", f"profile={folder / 'profile'}")
        opened = runner.ask("open", "litert", litert_library(), artifact, *words)
        feed = folder / "feed"
        feed.write_bytes(bytes(sum(tensor["bytes"] for tensor in opened["inputs"])))
        runner.ask("feeds", feed, 1)
        runner.ask("profile", 0.1)
    finally:
        runner.close()
    return (folder / "profile").read_text()


@pytest.fixture(scope="session")
def summary(
    native_runner: Path,
    shared_home: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """Of the example, in float."""
    folder = tmp_path_factory.mktemp("summary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONMETAL_HOME", str(shared_home))
        make(MODEL, "tflite-x86", folder / "bundle", "--data", DIGITS / "digits.npz")
    return profiled(native_runner, folder / "bundle/model.tflite", folder)


def check_shares(found: dict[str, Any]) -> None:
    for name in ("provider", "precision", "operators"):
        shares = found[name]
        assert all(0 <= share <= 1.0001 for share in shares.values()), found
        assert sum(shares.values()) == pytest.approx(1, abs=0.01), found


def test_a_summary_of_litert(summary: str) -> None:
    found = shares_of_text("litert", summary, 1, {})
    check_shares(found)
    assert found["of"] == "operator time"
    assert found["provider"]["XNNPACK"] > 0.5
    assert found["precision"]["f32"] > 0.5
    assert any("Convolution" in name for name in found["operators"])
    assert found["kernels"] == sum(
        line.rstrip().rpartition("[")[2][:1].isalnum() for line in run_order(summary)
    )


def run_order(text: str) -> list[str]:
    """The rows of the part in the order of execution."""
    part = text.partition("Run Order")[2].partition("=====\n")[2].partition("\n=====")[0]
    return [line for line in part.splitlines()[1:] if line.strip()]


def test_a_summary_of_kernels_that_are_litert_s_own() -> None:
    """Which compute in what the file says; a kind that it does not know is told as such."""
    text = (
        "===== Run Order =====\n"
        "[node type] [first] [avg ms] [min] [%] [cdf%] [mem KB] [times called] [Name]\n"
        "Delegate/Convolution (NHWC, QC8) IGEMM 0.10 0.20 0.10 50.000% 50.000% 0.0 3 [a_b]:0\n"
        "SOFTMAX 0.10 0.10 0.10 30.000% 80.000% 0.000 3 [soft]:1\n"
        "UNHEARD_OF 0.10 0.10 0.10 20.000% 100.000% 0.000 3 [odd]:2\n"
        "\n===== Top by Computation Time =====\n"
        "SOFTMAX 0.10 0.10 0.10 99.000% 99.000% 0.000 3 [soft]:1\n"
    )
    found = text_profile.summary(text, {"SOFTMAX": "f32"})
    check_shares(found)
    assert found["provider"] == {"XNNPACK": 0.5, "LiteRT": 0.5}
    assert found["precision"] == {"i8": 0.5, "f32": 0.3, "other": 0.2}
    assert found["not_delegated"] == {"SOFTMAX": 1, "UNHEARD_OF": 1}
    assert found["kernels"] == 3


def test_a_summary_that_is_cut(summary: str) -> None:
    """Wherever it ends: read, or refused as what it is."""
    for end in range(0, len(summary), max(1, len(summary) // 100)):
        try:
            check_shares(shares_of_text("litert", summary[:end], 1, {}))
        except UnsupportedError as error:
            assert "could not be read" in str(error)


HEAD = "== Run Order =====\n"
rows = st.lists(
    st.sampled_from(
        ["Delegate/X (F32)", " 0.1 0.1 0.1", " 10.0%", " 20.0%", " 1.2.3%", " .%", " 0.0 1 [n]:0",
         "\n", "=====\n", "\n=====", HEAD, "[", "%", "٣", "\0"]
    )
    | st.text(max_size=8),
    max_size=40,
).map("".join)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["types", "ops", "op_name", "inputs", "1", "args", "dur",
                                       "cat", "name", "index", "outputs"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def read_or_refused(runtime: str, text: str) -> None:
    """Never another exception than the one that says so."""
    with contextlib.suppress(UnsupportedError):
        assert isinstance(shares_of_text(runtime, text, 1, {}), dict)


@settings(deadline=None)
@given(rows)
def test_any_summary(text: str) -> None:
    read_or_refused("litert", text)
    read_or_refused("litert", HEAD + text)
    read_or_refused("onnxruntime", text)


@settings(deadline=None)
@given(values, st.sampled_from(["litert", "onnxruntime"]))
def test_any_document(value: Any, runtime: str) -> None:
    """Also of the right outer form, with anything in it."""
    for document in (value, {"types": value, "ops": [value]}, [{"cat": "Node", "name": value}]):
        read_or_refused(runtime, json.dumps(document))
    event = {"cat": "Node", "name": "a_kernel_time", "dur": value, "args": value}
    read_or_refused("onnxruntime", json.dumps([event]))


ODD = (
    ("litert", "{}"),
    ("litert", '{"types": {}, "ops": [{"index": 0, "op_name": "ADD", "inputs": [1e999], '
     '"outputs": [1]}]}'),
    ("litert", '{"types": {"x": "int8"}, "ops": []}'),
    ("litert", '{"types":' + "[" * 100_000),
    ("onnxruntime", "[" * 100_000),
    ("onnxruntime", '["text"]'),
    ("onnxruntime", '[{"cat": "Node", "name": "a_kernel_time"}]'),
    ("onnxruntime", '[{"cat": "Node", "name": "a_kernel_time", "dur": 1%s, "args": '
     '{"op_name": "Conv"}}]' % ("0" * 400)),
)  # fmt: skip


@pytest.mark.parametrize(("runtime", "text"), ODD, ids=map(str, range(len(ODD))))
def test_documents_of_another_form(runtime: str, text: str) -> None:
    with pytest.raises(UnsupportedError, match="could not be read"):
        shares_of_text(runtime, text, 1, {})


def op(index: int, name: str, inputs: list[int], outputs: list[int]) -> dict[str, Any]:
    return {"index": index, "op_name": name, "inputs": inputs, "outputs": outputs}


def test_shares_of_operators() -> None:
    """Two convolutions that a delegate took, and a softmax that it left."""
    ops = [
        op(0, "CONV_2D", [0, 1], [2]),
        op(1, "CONV_2D", [2, 3], [4]),
        op(2, "SOFTMAX", [4], [5]),
        op(3, "DELEGATE", [0], [4]),
    ]
    types = {0: "int8", 1: "int8", 2: "int8", 3: "int8", 4: "int8", 5: "float32"}
    found = tflite_ops.shares(ops, types)
    check_shares(found)
    assert found["provider"] == {"XNNPACK": 0.6667, "LiteRT": 0.3333}
    assert found["precision"] == {"i8": 0.6667, "f32": 0.3333}
    assert found["operators"] == {"CONV_2D": 0.6667, "SOFTMAX": 0.3333}
    assert found["not_delegated"] == {"SOFTMAX": 1}
    assert (found["of"], found["kernels"]) == ("operators", 2)


def test_shares_without_a_delegate_or_operators() -> None:
    found = tflite_ops.shares([op(0, "ADD", [0, 1], [2])], {0: "float32", 1: "float32"})
    assert found["provider"] == {"XNNPACK": 0.0, "LiteRT": 1.0}
    assert found["precision"] == {"f32": 1.0}
    assert found["not_delegated"] == {"ADD": 1}
    assert tflite_ops.shares([], {})["operators"] == {}


@pytest.mark.parametrize(
    ("kind", "types", "precision"),
    [
        ("CONV_2D", ["int8", "int8", "int32"], "i8"),
        ("CONV_2D", ["int16", "int16", "int8"], "i16"),
        # Weights of 8 bits beside floats: products are of integers.
        ("FULLY_CONNECTED", ["float32", "float32", "int8"], "i8"),
        ("FULLY_CONNECTED", ["float32", "float32"], "f32"),
        ("DEQUANTIZE", ["float32", "float16"], "f32"),
        ("ADD", ["int16", "int16"], "i16"),
        ("SHAPE", ["int32"], "other"),
        ("ADD", [], "other"),
    ],
)
def test_what_an_operator_computes_in(kind: str, types: list[str], precision: str) -> None:
    assert tflite_ops.precision(kind, types) == precision


def test_the_same_is_said_of_a_board_by_its_python() -> None:
    """What python_runner.py brings is a document of LiteRT's list."""
    text = json.dumps({"ops": [op(0, "ADD", [0], [1])], "types": {"0": "int8", "1": "int8"}})
    found = shares_of_text("litert", text, 1, {})
    assert (found["of"], found["precision"]) == ("operators", {"i8": 1.0})
