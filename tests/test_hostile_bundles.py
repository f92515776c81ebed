"""What lies beside a bundle's files, and files that are none: nothing runs, and each is refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from onmetal import cli
from onmetal.bundles import manifest
from onmetal.bundles import verify as verifying
from onmetal.commands import artifacts
from onmetal.converters.tflite import check
from onmetal.errors import OnmetalError
from onmetal.files import copying
from onmetal.files.cache import Cache, sha256
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.local_worker import LocalWorker, quiet_environment
from onmetal.runtimes import operations
from tests.bundles import refused, verify
from tests.hostile_files import MIB, ODD, Capture, Spoil, change, fifo, link_to, put, sign

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


def test_the_manifest_names_every_file_with_its_kind(bundles: dict[str, Path]) -> None:
    document = json.loads((bundles["onnxruntime"] / "manifest.json").read_text())
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
    how: str, runtime: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundles[runtime], tmp_path / "bundle"))
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
    original, sentinel = verifying._check_files, tmp_path / "executed"

    def and_then_exchanged(there: int, copy: Path) -> list[str]:
        found = original(there, copy)
        (spoiled / name).unlink()
        (spoiled / name).write_text(f"open({str(sentinel)!r}, 'w')\n")
        return found

    monkeypatch.setattr(verifying, "_check_files", and_then_exchanged)
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
    modes, original = {}, verifying._check_runner

    def looked(copy: Path, document: dict[str, Any]) -> list[str]:
        modes[copy] = {path.stat().st_mode & 0o777 for path in (copy, *copy.iterdir())}
        return original(copy, document)

    monkeypatch.setattr(verifying, "_check_runner", looked)
    assert verify(spoiled, capsys)[0] == 0
    ((copy, found),) = modes.items()
    assert found == {0o700, 0o600}
    assert not copy.exists()


def test_a_tflite_file_that_breaks_its_specification_is_not_run(
    bundles: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    folder = Path(shutil.copytree(bundles["litert"], tmp_path / "bundle"))
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
    described = artifacts.ends

    def swapped(*words: Any) -> Any:
        found = described(*words)
        (spoiled / "model.onnx").write_bytes(b"another model")
        return found

    monkeypatch.setattr(artifacts, "ends", swapped)
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
        described = artifacts.ends("openvino", path, Local(cache))
    assert described["inputs"] == [{"name": "&l9;", "dtype": "float32", "shape": [1, 4]}]
