"""The Android module of a bundle: compiled and run on a JVM against stand-ins for Android."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
import tree_sitter_kotlin
from msgspec.structs import replace
from tree_sitter import Language, Parser

from onmetal.bundles import artifact_io
from onmetal.bundles.artifact_io import programs
from onmetal.bundles.golden import opened
from onmetal.bundles.kinds import android
from onmetal.errors import UnsupportedError
from onmetal.records import Candidate, Tensor
from onmetal.texts.quoting import code, kotlin_string
from tests import deployed
from tests.arm64 import needs
from tests.conftest import ROOT, once
from tests.deployed import Deployments

STUBS = ROOT / "tests/android_stubs"
KOTLIN = Path("/usr/share/java")
LIBRARIES = [KOTLIN / "kotlin-stdlib.jar", KOTLIN / "kotlin-stdlib-jdk7.jar"]

ODD = (
    deployed.HOSTILE,
    ("class", "CLASS", "_"),
    ("arrayOf", "infer", "named"),
    ("a.b", "a:b", "a b"),
    ("1", "2", ""),
    ("found", "number", "model"),
    ("this", "java", "kotlin"),
)
"""Names of the two inputs and the output."""


@pytest.fixture(scope="module", params=deployed.KINDS)
def bundle(request: pytest.FixtureRequest, deployments: Deployments) -> Path:
    return deployments(request.param)


@pytest.fixture(scope="module")
def pictures(deployments: Deployments) -> Path:
    return deployments("litert-fp32-nhwc")


def written(bundle: Path) -> dict[str, bytes]:
    golden, tolerance = deployed.golden(bundle), deployed.tolerance(bundle)
    return android.files(deployed.candidate(bundle), golden, tolerance)


def unpack(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / "android"


def kotlin(classes: Path, sources: Iterable[Path], *more: Path) -> Path:
    """Sources as classes. The compiler is old: what it takes, newer ones do."""
    done = subprocess.run(
        [needs("kotlinc", "kotlin"), "-d", classes, "-cp", joined(LIBRARIES[1], *more), *sources],
        # For a job of seconds the second compiler of the JVM costs as much as it all.
        env={**os.environ, "JAVA_OPTS": "-Xmx256M -XX:TieredStopAtLevel=1 -XX:+UseSerialGC"},
        capture_output=True,
        text=True,
    )
    said = [line for line in done.stderr.splitlines() if "-Xverify" not in line]
    assert done.returncode == 0 and not said, done.stderr
    return classes


@pytest.fixture(scope="module")
def stubs(shared_folder: Path) -> Path:
    sources = [path for path in STUBS.glob("*.kt") if path.name != "ContractTest.kt"]
    classes = shared_folder / "android-stubs"
    once(shared_folder / "android-stubs.made", lambda: kotlin(classes, sources))
    return classes


class Modules(NamedTuple):
    """Modules, each in a package of its own, compiled together: the compiler starts slowly."""

    folder: Path
    classes: Path

    def of(self, name: str) -> Path:
        return self.folder / name / "android"


@pytest.fixture(scope="module")
def modules(deployments: Deployments, stubs: Path, shared_folder: Path) -> Modules:
    """By the kind of bundle; `beside`, with weights beside the model; `types`, of other types; and
    `odd0`, … with the names of ODD."""
    found = Modules(shared_folder / "android", shared_folder / "android/classes")

    def make() -> None:
        for kind in deployed.KINDS:
            made = deployments(kind)
            golden, tolerance = deployed.golden(made), deployed.tolerance(made)
            put(found.folder / kind, deployed.candidate(made), golden, tolerance)
        bundle = deployments("onnxruntime-fp32")
        base, golden = deployed.candidate(bundle), deployed.golden(bundle)
        (found.folder / "model.data").write_bytes(bytes(range(256)) * 999)
        more = (*base.files, found.folder / "model.data")
        put(found.folder / "beside", replace(base, files=more), golden)
        put(found.folder / "types", *of_other_types(base))
        for number, names in enumerate(ODD):
            put(found.folder / f"odd{number}", *deployed.renamed(bundle, names))
        kotlin(found.classes, found.folder.rglob("*.kt"), stubs)

    once(shared_folder / "android.made", make)
    return found


def put(
    folder: Path, candidate: Candidate, golden: dict[str, np.ndarray], tolerance: float = 1e-4
) -> None:
    """The module of a candidate, in a package that is named by the folder."""
    model = replace(candidate.model, path=Path(f"{folder.name}.onnx"))
    unpack(android.files(replace(candidate, model=model), golden, tolerance), folder)


def of_other_types(base: Candidate) -> tuple[Candidate, dict[str, np.ndarray]]:
    """A candidate of ONNX Runtime with an input and an output of every type."""
    values = np.array([[0, 1, 2], [1, 100, 3]])
    tensors = tuple(Tensor(dtype, dtype, (2, 3)) for dtype in artifact_io.DTYPES)
    model = replace(base.model, inputs=tensors, outputs=tensors)
    options = {"intra_op_num_threads": 1}
    golden = {
        f"{kind}/{dtype}/0": values.astype(dtype)
        for kind in ("input", "output")
        for dtype in artifact_io.DTYPES
    }
    return replace(base, model=model, runtime="onnxruntime", options=options), golden


def joined(*paths: Path) -> str:
    return ":".join(map(str, paths))


def run(
    module: Path, classes: list[Path], test: str, tape: Path
) -> subprocess.CompletedProcess[str]:
    properties = {"main": module / "src/main", "androidTest": module / "src/androidTest"}
    properties["tape"] = tape
    return subprocess.run(
        [needs("java", "default-jre-headless"), "-cp", joined(*classes, *LIBRARIES)]
        + [f"-D{name}={value}" for name, value in properties.items()]
        + ["tape.MainKt", test],
        capture_output=True,
        text=True,
    )


def record(bundle: Path, folder: Path) -> Path:
    """What the artifact itself is given and gives for the golden vectors, in its own order."""
    candidate, golden = deployed.candidate(bundle), deployed.golden(bundle)
    found = artifact_io.artifact_tensors(candidate)
    folder.mkdir()
    if candidate.runtime == "onnxruntime":
        for name, content in artifact_io.raw_vectors(found, golden).items():
            short = name.replace("input", "in").replace("output", "out")
            (folder / short).write_bytes(content)
        return folder
    session: Any = opened(bundle, "litert")
    details = session.interpreter.get_input_details(), session.interpreter.get_output_details()
    places = [{entry["index"]: i for i, entry in enumerate(side)} for side in details]
    for vector in range(artifact_io.count_vectors(found, golden)):
        taken: dict[int, np.ndarray] = {}
        session.set = lambda index, array, taken=taken: (
            taken.update({index: array}),
            session.interpreter.set_tensor(index, array),
        )
        session.run({name: golden[f"input/{name}/{vector}"] for name in session.inputs})
        for index, place in places[0].items():
            (folder / f"in-{place}-{vector}.bin").write_bytes(taken[index].tobytes())
        for index, place in places[1].items():
            array = session.interpreter.get_tensor(index)
            (folder / f"out-{place}-{vector}.bin").write_bytes(array.tobytes())
    return folder


def package(module: Path) -> str:
    test = next(module.rglob("GoldenTest.kt"))
    return ".".join(test.parent.relative_to(module / "src/androidTest/kotlin").parts)


def unparsed(source: bytes) -> list[str]:
    """The places that Kotlin's grammar has no rule for."""
    tree = Parser(Language(tree_sitter_kotlin.language())).parse(source)
    nodes, wrong = [tree.root_node], []
    while nodes:
        node = nodes.pop()
        if node.is_error or node.is_missing:
            wrong.append(f"{node.start_point}: {node.text!r}")
        nodes += node.children
    return wrong


class TestTheModule:
    def test_compiles_and_its_golden_test_passes(
        self, bundle: Path, modules: Modules, stubs: Path, tmp_path: Path
    ) -> None:
        module, classes = modules.of(bundle.name), modules.classes
        tape = record(bundle, tmp_path / "tape")
        done = run(module, [classes, stubs], f"{package(module)}.GoldenTest", tape)
        assert done.returncode == 0 and done.stdout == "1 tests passed\n", done.stderr
        # and fails where an output is another one
        wrong = next(tape.glob("out-0-0.bin"))
        wrong.write_bytes(bytes(255 - byte for byte in wrong.read_bytes()))
        done = run(module, [classes, stubs], f"{package(module)}.GoldenTest", tape)
        assert done.returncode != 0 and "vector 0" in done.stderr and "allowed" in done.stderr

    def test_has_what_a_build_needs(self, bundle: Path) -> None:
        files, candidate = written(bundle), deployed.candidate(bundle)
        for name, content in files.items():
            if name.endswith((".kt", ".kts")):
                assert not unparsed(content), name
            if name.endswith(".xml"):
                assert ElementTree.fromstring(content).tag == "manifest"
        build = files["android/build.gradle.kts"].decode()
        assert f'implementation("{programs(candidate).MAVEN}:' in build
        assert "minSdk = 24" in build and "noCompress" in build and "compileSdk = 36" in build
        for file in candidate.files:
            assert files[f"android/src/main/assets/{file.name}"] == file.read_bytes()
        assert not re.search(r"@@\w+@@", b"".join(files.values()).decode(errors="replace"))
        assert "not compiled on the machine" in files["android/README.md"].decode()

    def test_says_the_digests_of_its_assets(self, bundle: Path) -> None:
        files = written(bundle)
        constants = next(v for k, v in files.items() if k.endswith("ModelConstants.kt")).decode()
        for file in deployed.candidate(bundle).files:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            assert f'"{file.name}" to "{digest}"' in constants

    def test_weights_beside_the_model_are_assets_too(
        self, stubs: Path, deployments: Deployments, modules: Modules, tmp_path: Path
    ) -> None:
        """And are unpacked beside it, where ONNX Runtime looks for them."""
        bundle = deployments("onnxruntime-fp32")
        module = Path(shutil.copytree(modules.of("beside"), tmp_path / "android"))
        files = (*deployed.candidate(bundle).files, modules.folder / "model.data")
        assert 'listOf("data", "onnx")' in (module / "build.gradle.kts").read_text()
        tape = record(bundle, tmp_path / "tape")
        for _ in ("unpacks", "finds it unpacked"):
            done = run(module, [modules.classes, stubs], f"{package(module)}.GoldenTest", tape)
            assert done.returncode == 0, done.stderr
            found = {p.name: p.read_bytes() for p in (module / "src/main/files").rglob("model.*")}
            assert found == {file.name: file.read_bytes() for file in files}

    def test_is_the_same_again(self, bundle: Path) -> None:
        assert written(bundle) == written(bundle)

    @pytest.mark.parametrize("kind", ["litert-fp32", "onnxruntime-fp32"])
    def test_refuses_what_is_wrong_with_a_call_or_an_asset(
        self, kind: str, stubs: Path, deployments: Deployments, tmp_path: Path
    ) -> None:
        bundle = deployments(kind)
        module = unpack(written(bundle), tmp_path)
        sources = [*module.rglob("*.kt"), STUBS / "ContractTest.kt"]
        classes = kotlin(tmp_path / "classes", sources, stubs)
        tape = record(bundle, tmp_path / "tape")
        done = run(module, [classes, stubs], "onmetal.pictures.ContractTest", tape)
        assert done.returncode == 0, done.stderr


class TestNames:
    def test_do_not_break_out(
        self, stubs: Path, deployments: Deployments, modules: Modules, tmp_path: Path
    ) -> None:
        tape = record(deployments("onnxruntime-fp32"), tmp_path / "tape")
        for number in range(len(ODD)):
            module = modules.of(f"odd{number}")
            for path in module.rglob("*.kt"):
                assert path.read_bytes().isascii() and not unparsed(path.read_bytes())
            done = run(module, [modules.classes, stubs], f"{package(module)}.GoldenTest", tape)
            assert done.returncode == 0, done.stderr
        assert deployed.HOSTILE[0].encode() in decoded(modules.classes)

    @pytest.mark.parametrize(
        ("stem", "part"),
        [
            ("digits_cnn", "digits_cnn"),
            ("Class", "model_class"),
            ('x"; evil()', "x_evil"),
            ("7", "model_7"),
            ("`\n*\u2028", "model"),
            ("é", "model"),
        ],
    )
    def test_of_files_become_packages(self, stem: str, part: str, pictures: Path) -> None:
        candidate, golden = deployed.candidate(pictures), deployed.golden(pictures)
        model = replace(candidate.model, path=Path(f"{stem}.onnx"))
        files = android.files(replace(candidate, model=model), golden, 1e-4)
        assert f"android/src/main/kotlin/onmetal/{part}/Model.kt" in files
        readme = files["android/README.md"].decode()
        assert readme.splitlines()[0] == f"# {code(stem + '.onnx')} as an Android library"

    def test_of_artifacts_are_plain(self, pictures: Path, tmp_path: Path) -> None:
        candidate = deployed.candidate(pictures)
        path = tmp_path / 'a"b.tflite'
        path.write_bytes(candidate.files[0].read_bytes())
        with pytest.raises(UnsupportedError, match="letters, digits"):
            android.files(replace(candidate, files=(path,)), deployed.golden(pictures), 1e-4)

    def test_identifiers_are_distinct_and_no_keywords(self) -> None:
        found = android.identifiers(["x", "x", "x_2", "in", "tensor_in", "9", "\n"])
        assert found == ["x", "x_2", "x_2_2", "tensor_in", "tensor_in_2", "tensor_9", "tensor"]

    def test_literals(self) -> None:
        assert kotlin_string('a"\\$\n\0é\U0001f600') == (
            r'"a\u0022\u005c\u0024\u000a\u0000\u00e9\ud83d\ude00"'
        )


def decoded(classes: Path) -> bytes:
    """The constants of the classes; the JVM writes what is not in 16 bits in its own way."""
    content = b"".join(path.read_bytes() for path in classes.rglob("ModelConstants.class"))
    return content.replace(b"\xed\xa0\xbd\xed\xb8\x80", "\U0001f600".encode())


class TestTheRuntime:
    @pytest.mark.parametrize(
        ("measured", "used", "said"),
        [
            ("2.3.0", "2.3.0", "is the version that onmetal ran"),
            ("2.9.1", "2.3.0", "nearest"),
            ("2.2.5", "2.2.0", "nearest"),
            ("2.1.6", "2.1.6", "that onmetal ran"),
            ("1.0", "2.1.5", "nearest"),
        ],
    )
    def test_is_pinned_to_what_is_published(
        self, measured: str, used: str, said: str, pictures: Path
    ) -> None:
        candidate = replace(deployed.candidate(pictures), runtime_version=measured)
        files = android.files(candidate, deployed.golden(pictures), 1e-4)
        build = files["android/build.gradle.kts"].decode()
        assert f"com.google.ai.edge.litert:litert:{used}" in build and said in build

    @pytest.mark.parametrize(
        ("measured", "used"),
        [("1.28.0", "1.28.0"), ("1.31.0", "1.31.0"), ("1.32.0", "1.31.0"), ("1.28.1", "1.28.0")],
    )
    def test_so_is_the_one_of_onnx_files(self, measured: str, used: str, pictures: Path) -> None:
        candidate = deployed.candidate(pictures)
        found, said = android.dependency(
            replace(candidate, runtime="onnxruntime", runtime_version=measured)
        )
        assert found == f"com.microsoft.onnxruntime:onnxruntime-android:{used}"
        assert ("nearest" in said) == (measured != used)

    def test_the_versions_of_gradles_plugins_belong_together(self, pictures: Path) -> None:
        """Kotlin 2.3 needs at least 8.13.2 of the Android plugin, by Google's own table."""
        files = android.files(deployed.candidate(pictures), deployed.golden(pictures), 1e-4)
        settings = files["android/settings.gradle.kts"].decode()
        versions = dict(re.findall(r'id\("([\w.]+)"\) version "([\d.]+)"', settings))
        assert versions["com.android.library"] == "8.13.2"
        assert versions["org.jetbrains.kotlin.android"].startswith("2.3.")
        assert "Gradle 8.13" in files["android/README.md"].decode()

    def test_another_one_is_refused(self, pictures: Path) -> None:
        candidate = replace(deployed.candidate(pictures), runtime="openvino")
        with pytest.raises(UnsupportedError, match="openvino"):
            android.files(candidate, {}, 1e-4)

    def test_types_without_buffers_are_refused(self, pictures: Path) -> None:
        candidate = deployed.candidate(pictures)
        first, *others = candidate.model.inputs
        odd = Tensor(first.name, "uint16", first.shape)
        model = replace(candidate.model, inputs=(odd, *others))
        for runtime in ("onnxruntime", "litert"):
            with pytest.raises(UnsupportedError, match="uint16"):
                android.files(replace(candidate, model=model, runtime=runtime), {}, 1e-4)


class TestOtherTypes:
    def test_are_handed_over_to_onnx_runtime(
        self, deployments: Deployments, modules: Modules, stubs: Path, tmp_path: Path
    ) -> None:
        base = deployed.candidate(deployments("onnxruntime-fp32"))
        candidate, golden = of_other_types(base)
        module, tape = modules.of("types"), tmp_path / "tape"
        tape.mkdir()
        for name, content in artifact_io.raw_vectors(
            artifact_io.artifact_tensors(candidate), golden
        ).items():
            short = name.replace("input", "in").replace("output", "out")
            (tape / short).write_bytes(content)
        done = run(module, [modules.classes, stubs], f"{package(module)}.GoldenTest", tape)
        assert done.returncode == 0, done.stderr

    def test_of_16_bits_are_refused_by_litert(self, deployments: Deployments) -> None:
        with pytest.raises(UnsupportedError, match="no buffers of int16"):
            written(deployments("litert-int16x8"))
