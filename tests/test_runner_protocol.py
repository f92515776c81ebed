"""What is spoken over the line with the native and the Python runner."""

import base64
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onmetal.errors import DeviceError, OnmetalError, UnsupportedError
from onmetal.profilers.devices.line import Line
from onmetal.profilers.devices.remote import native_runner
from onmetal.records import Candidate
from tests import deployed
from tests.arm64 import needs
from tests.conftest import ROOT
from tests.far import LONG_S, Artifacts


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native runner for this machine: the same code, its libraries those of the wheels here."""
    gcc = needs("gcc", "gcc")
    target = tmp_path_factory.mktemp("native") / "runner"
    code = sorted((ROOT / "profilers/devices/remote/native").glob("*.c"))
    command = [gcc, *native_runner.FLAGS, "-Werror", "-g", *map(str, code)]
    subprocess.run([*command, "-o", str(target), "-ldl", "-lpthread"], check=True)
    return target


def library(runtime: str) -> str:
    """A runtime's C library of this machine."""
    package, pattern = {
        "litert": ("ai_edge_litert", "libLiteRt.so"),
        "onnxruntime": ("onnxruntime", "capi/libonnxruntime.so*"),
    }[runtime]
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    (found,) = Path(spec.origin).parent.glob(pattern)
    return str(found)


class Spoken:
    """One of the two programs, asked in its own words."""

    def __init__(self, kind: str, compiled: Path) -> None:
        worker = ROOT / "profilers/devices/remote/python_runner.py"
        argv = [str(compiled)] if kind == "native" else [sys.executable, "-P", str(worker)]
        self.line = Line(argv, None, f"the {kind} runner")
        first = self.line.answer(LONG_S, "its start", dict)
        assert first["runner"] == kind and first["pid"] == self.line.pid

    def __enter__(self) -> "Spoken":
        return self

    def __exit__(self, *_: object) -> None:
        self.line.close()

    def ask(self, *words: object) -> Any:
        request = "\t".join(map(str, words)).encode()
        return self.line.ask(request, str(words[0]), timeout_s=LONG_S)

    def open(self, candidate: Candidate, *options: str) -> Any:
        words = [f"{name}={value}" for name, value in candidate.options.items() if name != "nhwc"]
        runtime = candidate.runtime
        return self.ask("open", runtime, library(runtime), candidate.files[0], *words, *options)


SPEAKERS = ("native", "python")


@pytest.fixture(params=SPEAKERS)
def spoken(request: pytest.FixtureRequest, compiled: Path) -> Iterator[Spoken]:
    with Spoken(request.param, compiled) as speaker:
        yield speaker


@pytest.mark.parametrize("kind", ["litert-int8", "litert-fp32-nhwc", "onnxruntime-fp32"])
def test_both_programs_answer_alike(
    compiled: Path, artifacts: Artifacts, kind: str, tmp_path: Path
) -> None:
    candidate = artifacts(kind)
    answers, outputs, rng = [], [], np.random.default_rng(1)
    content: bytes | None = None
    for name in SPEAKERS:
        with Spoken(name, compiled) as speaker:
            found = speaker.open(candidate)
            assert found.pop("load_ms") > 0
            size = sum(port["bytes"] for port in found["inputs"])
            if content is None:
                content = b"".join(
                    rng.normal(size=port["bytes"] // 4).astype(np.float32).tobytes()
                    if port["dtype"] == "float32"
                    else rng.integers(0, 255, port["bytes"], np.uint8).tobytes()
                    for _ in range(2)
                    for port in found["inputs"]
                )
            given, taken = tmp_path / "in", tmp_path / f"out-{name}"
            given.write_bytes(content)
            assert len(content) == 2 * size
            assert speaker.ask("feeds", given, 2) is None
            assert speaker.ask("warm", 0.01, 3) >= 6
            rounds = np.frombuffer(base64.b64decode(speaker.ask("round", 0.01, 3, 0, 1)), np.int64)
            assert len(rounds) >= 3 and (rounds > 0).all()
            # Feeds go round.
            assert speaker.ask("round", 0.0, 1, 0, 7)
            assert speaker.ask("run", given, 2, taken) is None
            assert taken.stat().st_size == 2 * sum(port["bytes"] for port in found["outputs"])
            answers.append(found)
            outputs.append(taken.read_bytes())
    for ports in ("inputs", "outputs"):
        for one, other in zip(answers[0][ports], answers[1][ports], strict=True):
            assert one.pop("scale") == pytest.approx(other.pop("scale"), rel=1e-6)
            assert one == other
    dtype = np.dtype(answers[0]["outputs"][0]["dtype"])
    arrays = [np.frombuffer(output, dtype).astype(np.float64) for output in outputs]
    gap = 1 if dtype == np.int8 else 1e-5 * np.abs(arrays[0]).max()
    assert np.abs(arrays[0] - arrays[1]).max() <= gap


@pytest.mark.parametrize("kind", ["litert-int8", "onnxruntime-fp32"])
def test_both_programs_measure_memory(spoken: Spoken, artifacts: Artifacts, kind: str) -> None:
    candidate = artifacts(kind)
    file = candidate.files[0]
    found = spoken.ask("memory", candidate.runtime, library(candidate.runtime), file, file)
    assert found["exact"] is True
    assert 0 < found["baseline"] <= found["peak"]


@pytest.mark.parametrize("kind", ["litert-int8", "onnxruntime-fp32"])
def test_both_programs_profile(
    spoken: Spoken, artifacts: Artifacts, kind: str, tmp_path: Path
) -> None:
    candidate = artifacts(kind)
    found = spoken.open(candidate, f"profile={tmp_path}/profile")
    size = sum(port["bytes"] for port in found["inputs"])
    (tmp_path / "in").write_bytes(bytes(size))
    spoken.ask("feeds", tmp_path / "in", 1)
    assert spoken.ask("profile", 0.01)["inferences"] >= 3
    assert (tmp_path / "profile").stat().st_size > 100


def test_bad_requests(spoken: Spoken, artifacts: Artifacts, tmp_path: Path) -> None:
    """Each is answered by an error, after which the program goes on."""
    candidate = artifacts("litert-int8")
    runtime, model = candidate.runtime, candidate.files[0]
    here = library(runtime)
    (tmp_path / "broken").write_bytes(b"\x1c\0\0\0TFL3" + bytes(64))
    before: list[tuple[object, ...]] = [
        ("",),
        ("nonsense",),
        ('"\\\x01\x7f',),
        ("open",),
        ("open", runtime),
        ("open", "other", here, model),
        ("open", runtime, here, tmp_path / "absent"),
        ("open", runtime, here, tmp_path / "broken"),
        ("open", runtime, here, tmp_path),
        ("feeds", tmp_path / "absent", 1),
        ("warm", 0.1, 1),
        ("round", 0.1, 1, 0, 0),
        ("run", model, 1, tmp_path / "out"),
        ("profile", 0.1),
        ("memory", runtime),
        ("memory", runtime, here, tmp_path / "absent", model),
    ]
    for words in before:
        with pytest.raises(OnmetalError) as error:
            spoken.ask(*words)
        kind = UnsupportedError if words[0] == "open" else DeviceError
        assert type(error.value) is kind, (words, error.value)
        assert str(error.value).strip(), words
    found = spoken.open(candidate)
    size = sum(port["bytes"] for port in found["inputs"])
    given = tmp_path / "in"
    given.write_bytes(bytes(2 * size))
    assert spoken.ask("feeds", given, 2) is None
    after: list[tuple[object, ...]] = [
        ("feeds", tmp_path / "absent", 1),
        ("feeds", given, 3),
        ("feeds",),
        ("warm",),
        ("round", 0.1),
        ("run", given, 3, tmp_path / "out"),
        ("run", given, 1, tmp_path / "no/such/folder"),
        ("run", tmp_path / "absent", 1, tmp_path / "out"),
        ("run", given, 1),
        ("nonsense",),
    ]
    for words in after:
        with pytest.raises(DeviceError) as error:
            spoken.ask(*words)
        assert str(error.value).strip(), words
    assert spoken.ask("run", given, 2, tmp_path / "out") is None


def test_feeds_that_could_not_be_read_are_not_run(
    spoken: Spoken, artifacts: Artifacts, tmp_path: Path
) -> None:
    """Those of before are still there, or there are none: nothing in between."""
    found = spoken.open(artifacts("litert-int8"))
    size = sum(port["bytes"] for port in found["inputs"])
    (tmp_path / "in").write_bytes(bytes(50 * size))
    (tmp_path / "short").write_bytes(b"x")
    assert spoken.ask("feeds", tmp_path / "in", 50) is None
    for words in (("short", 1), ("short", 1000000000)):
        with pytest.raises(DeviceError):
            spoken.ask("feeds", tmp_path / words[0], words[1])
        for feed in (0, 49):
            try:
                assert spoken.ask("round", 0.0, 1, 0, feed)
            except DeviceError as error:
                assert "feeds" in str(error)


def test_more_words_than_expected(spoken: Spoken, artifacts: Artifacts) -> None:
    """None is dropped unseen: the last of many options is wrong, and that is said."""
    candidate = artifacts("onnxruntime-fp32")
    many = [f"session.x{number}=1" for number in range(200)]
    with pytest.raises(OnmetalError):
        spoken.open(candidate, *many, "no_such_option=1")


def odd_model(path: Path, names: tuple[str, str]) -> Path:
    """One operator between tensors of these names."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in names]
    graph = helper.make_graph(
        [helper.make_node("Neg", names[:1], names[1:])], "g", ends[:1], ends[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(
    "names",
    [
        (deployed.HOSTILE[0], "\x01\x1f\x7f\t\r\n%s"),
        ("</script>\u2028", "\\u0041\\"),
        ("é" * 200, "😀" * 100),
        ("n" * 3000, "m" * 3001),
    ],
    ids=["controls", "escapes", "long", "longer"],
)
def test_hostile_tensor_names(spoken: Spoken, names: tuple[str, str], tmp_path: Path) -> None:
    """They come as they are, or shortened, but always as JSON."""
    path = odd_model(tmp_path / "odd.onnx", names)
    request = f"open\tonnxruntime\t{library('onnxruntime')}\t{path}".encode()
    found = spoken.line.ask(request, "open", timeout_s=LONG_S)
    assert [port["dtype"] for port in found["inputs"] + found["outputs"]] == ["float32"] * 2
    for port, name in zip(found["inputs"] + found["outputs"], names, strict=True):
        shortened = len(name.encode()) > 255 and name.startswith(port["name"].rstrip("\ufffd"))
        assert port["name"] == name or shortened
    given, taken = tmp_path / "in", tmp_path / "out"
    given.write_bytes(np.array([1, -2], np.float32).tobytes())
    assert spoken.ask("run", given, 1, taken) is None
    assert np.frombuffer(taken.read_bytes(), np.float32).tolist() == [-1, 2]


def test_it_ends_with_its_input_amid_an_inference(
    spoken: Spoken, artifacts: Artifacts, tmp_path: Path
) -> None:
    found = spoken.open(artifacts("litert-int8"))
    size = sum(port["bytes"] for port in found["inputs"])
    (tmp_path / "in").write_bytes(bytes(size))
    spoken.ask("feeds", tmp_path / "in", 1)

    def ask() -> None:
        with contextlib.suppress(DeviceError):
            spoken.ask("round", 600, 1, 0, 0)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.2)
    assert spoken.line.running
    spoken.line.hang_up(10)
    assert not spoken.line.running
    thread.join()


def test_it_ends_with_its_input_at_rest(spoken: Spoken) -> None:
    spoken.line.hang_up(10)
    assert not spoken.line.running


def test_progress_is_told(spoken: Spoken, artifacts: Artifacts, tmp_path: Path) -> None:
    found = spoken.open(artifacts("litert-fp32-nhwc"))
    size = sum(port["bytes"] for port in found["inputs"])
    count = 3_000_000  # many enough for a fast machine; the file is sparse
    with (tmp_path / "in").open("wb") as file:
        file.truncate(count * size)
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))
        raise InterruptedError

    request = f"run\t{tmp_path}/in\t{count}\t/dev/null".encode()
    with pytest.raises(InterruptedError):
        spoken.line.ask(request, "run", timeout_s=LONG_S, progress=tell)
    assert told and all(0 < done <= count == total for done, total in told)


def test_answers_are_never_mixed_with_what_a_runtime_prints(
    spoken: Spoken, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiteRT tells of its delegate whenever a model is opened."""
    heard: list[bytes] = []
    monkeypatch.setattr(spoken.line, "overheard", heard.append)
    spoken.open(artifacts("litert-int8"))
    assert heard == []
    assert "XNNPACK" in spoken.line.said()
