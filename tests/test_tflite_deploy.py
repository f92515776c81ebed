"""The main job and the commands beside it through LiteRT, on the example model."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onmetal import targets
from onmetal.bundles import golden
from onmetal.converters.tflite import supported
from onmetal.converters.tflite.net import Net
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.reference import interpreter
from onmetal.converters.tflite.writing import write
from onmetal.files import cache
from onmetal.profilers import memory
from onmetal.runtimes import fit
from onmetal.runtimes.litert import operators
from tests.conftest import DIGITS, ROOT, once
from tests.conftest import deploy_here as deploy

MODEL, DATA = DIGITS / "digits_cnn.onnx", DIGITS / "digits.npz"
CALIBRATION = DIGITS / "calibration.npz"
QUICK: tuple[str | Path, ...] = ("--quick", "--json")
Document = dict[str, Any]


@pytest.fixture(scope="session")
def made(shared_home: Path, shared_folder: Path) -> tuple[Path, Document]:
    """A deployment of the example on `tflite-x86`: the bundle and what was said."""
    out, said = shared_folder / "tflite-x86", shared_folder / "tflite-x86.json"

    def make() -> None:
        ran = deploy(
            *(MODEL, "--target", "tflite-x86", "--data", DATA, "--calibration-data", CALIBRATION),
            *(*QUICK, "--minimize", "size", "--out", out),  # else a slow INT8 is dropped unseen
            env={"ONMETAL_HOME": str(shared_home)},
        )
        assert ran.code == 0, ran.err
        said.write_text(ran.out)

    once(shared_folder / "tflite-x86.made", make)
    document: Document = json.loads(said.read_text())
    return out, document


def target_with(tmp_path: Path, layout: str, dtype: str) -> Path:
    """`tflite-x86` that takes and gives otherwise."""
    text = (ROOT / "targets/tflite-x86.toml").read_text()
    section = f'[io]\nlayout = "{layout}"\ndtype = "{dtype}"\n\n[[runtimes]]'
    path = tmp_path / "board.toml"
    path.write_text(text.replace("[[runtimes]]", section, 1))
    return path


def int8_alone(board: Path) -> Path:
    """The target file with `fp32` and `int8` only, which no other recipe can beat in size."""
    listed = re.compile(r"^recipes = \[[^\]]*\]", re.MULTILINE)
    board.write_text(listed.sub('recipes = ["fp32", "int8"]', board.read_text()))
    return board


def unmeasured(*words: str | Path, out: Path) -> Document:
    ran = deploy(*words, "--no-device", *QUICK, "--out", out)
    assert ran.code == 0, ran.err
    return ran.document


def by_recipe(document: Document) -> dict[str, Document]:
    return {entry["recipe"]: entry for entry in document["candidates"]}


Integers = Callable[[str, str], tuple[Path, Document]]


@pytest.fixture(scope="module")
def integers(shared_folder: Path) -> Integers:
    """The example in int8 alone, by the layout and the type of its ends: a bundle, and what was
    said; each made once. Copy it before changing anything in it."""
    top = shared_folder / "integers"
    top.mkdir(exist_ok=True)

    def integer(layout: str, dtype: str) -> tuple[Path, Document]:
        folder = top / f"{layout}-{dtype}"

        def make() -> None:
            folder.mkdir()
            found = in_integers(folder, layout, dtype)
            (folder / "said.json").write_text(json.dumps(found))

        once(top / f"{folder.name}.made", make)
        return folder / "out", json.loads((folder / "said.json").read_text())

    return integer


def in_integers(folder: Path, layout: str, dtype: str) -> Document:
    return unmeasured(
        *(MODEL, "--target", int8_alone(target_with(folder, layout, dtype)), "--data", DATA),
        *("--max-accuracy-drop", "none", "--calibration-data", CALIBRATION, "--recipes", "int8"),
        out=folder / "out",
    )


def integer_net(integers: Integers) -> Net:
    return read(integers("onnx", "float32")[0] / "model.tflite")


class TestTheMainJob:
    def test_every_recipe_is_made_and_full_int8_stands(self, made: tuple[Path, Document]) -> None:
        found = by_recipe(made[1])
        assert list(found) == ["fp32", "fp16", "int16x8", "int8-dynamic", "int8"]
        assert found["int8"]["status"] in ("ok", "chosen")
        assert found["int8"]["details"]["operators_in_float"] == []
        assert abs(found["int8"]["accuracy"]["drop"]) < 0.03
        assert found["fp32"]["fidelity"]["sqnr_db"]["logits"] > 100
        assert found["fp16"]["size_bytes"] < 0.6 * found["fp32"]["size_bytes"]
        assert found["int8"]["size_bytes"] < 0.4 * found["fp32"]["size_bytes"]

    def test_which_operators_xnnpack_took_is_told(self, made: tuple[Path, Document]) -> None:
        ran_on = by_recipe(made[1])["fp32"]["ran_on"]
        assert ran_on["provider"]["XNNPACK"] > 0.5 and ran_on["of"] == "operators"
        assert ran_on["precision"] == {"f32": 1.0}
        integer = by_recipe(made[1])["int8"]["ran_on"]
        assert integer["precision"]["i8"] > 0.7

    def test_the_bundle_verifies_and_runs(self, made: tuple[Path, Document]) -> None:
        out, document = made
        assert {"manifest.json", "model.tflite", "golden.npz", "run.py"} <= {
            path.name for path in out.iterdir()
        }
        ran = deploy("verify", out, "--run", "--json")
        assert ran.code == 0, ran.err
        assert ran.document["checks"]["specification"] == "ok"
        assert ran.document["chosen"] == document["chosen"]
        assert "pip install numpy ai-edge-litert==" in (out / "README.md").read_text()

    def test_run_py_gives_what_the_runner_gives(
        self, made: tuple[Path, Document], tmp_path: Path
    ) -> None:
        out, _ = made
        image = np.load(DATA)["x"][:1]
        np.savez(tmp_path / "in.npz", image=image)
        subprocess.run(
            [sys.executable, "-B", str(out / "run.py"), "in.npz", "out.npz"],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
        wanted = golden.opened(out, "litert").run({"image": image})[0]
        assert np.array_equal(np.load(tmp_path / "out.npz")["logits"], wanted)

    def test_the_same_recipe_gives_the_same_bytes(
        self, integers: Integers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever is in the cache."""
        first = integers("onnx", "float32")[0] / "model.tflite"
        monkeypatch.setenv("ONMETAL_HOME", str(tmp_path / "home"))
        in_integers(tmp_path, "onnx", "float32")
        assert (tmp_path / "out/model.tflite").read_bytes() == first.read_bytes()

    def test_it_competes_in_x86_64(self, tmp_path: Path) -> None:
        ran = deploy(MODEL, "--target", "x86-64", "--data", DATA, "--dry-run", "--json")
        planned = [entry["name"] for entry in ran.document["candidates"]]
        assert {"fp32@litert", "int8@litert", "int8-dynamic@litert"} <= set(planned)


class TestWithoutADevice:
    @pytest.mark.parametrize("target", ["android-arm64", "linux-arm64"])
    def test_one_is_asked_for(self, target: str, tmp_path: Path) -> None:
        ran = deploy(MODEL, "--target", target, "--data", DATA, "--out", tmp_path / "out")
        assert ran.code == 4 and "--no-device" in ran.err and not (tmp_path / "out").exists()

    def test_the_smallest_ships_unmeasured(self, tmp_path: Path) -> None:
        found = unmeasured(
            *(MODEL, "--target", "android-arm64", "--data", DATA),
            *("--max-accuracy-drop", "5%"),
            out=tmp_path / "out",
        )
        assert found["decided_by"] == "size"
        sizes = [e["size_bytes"] for e in found["candidates"] if e["status"] in ("ok", "chosen")]
        (chosen,) = [e for e in found["candidates"] if e["name"] == found["chosen"]]
        assert chosen["size_bytes"] == min(sizes)
        manifest = json.loads((tmp_path / "out/manifest.json").read_text())
        assert manifest["measured"] is False and "unmeasured" in manifest


class TestInputsAndOutputs:
    @pytest.mark.parametrize("dtype", ["float32", "int8"])
    @pytest.mark.parametrize("layout", ["onnx", "nhwc"])
    def test_are_as_the_target_says(self, layout: str, dtype: str, integers: Integers) -> None:
        out, found = integers(layout, dtype)
        entry = by_recipe(found)["int8"]
        assert abs(entry["accuracy"]["drop"]) < 0.03
        net = read(out / "model.tflite")
        kinds = [op.kind for op in net.ops]
        assert found["chosen"] == "int8@litert"
        assert ("QUANTIZE" in kinds) == (dtype == "float32")
        assert net.inputs[0].dtype == np.dtype(dtype)
        assert entry["details"]["io"]["layout"] == layout
        # run.py takes and gives what the model itself does
        assert deploy("verify", out, "--run").code == 0
        image = np.load(DATA)["x"][:1]
        given = golden.opened(out, "litert").run({"image": image})[0]
        assert given.dtype == np.float32 and given.shape == (1, 10)

    def test_transposed_images_are_taken_as_the_model_has_them(self, tmp_path: Path) -> None:
        model = picture_model()
        onnx.save(model, tmp_path / "picture.onnx")
        images = np.random.default_rng(0).normal(size=(40, 3, 8, 6)).astype(np.float32)
        np.savez(tmp_path / "data.npz", image=images)
        found = {}
        for layout in ("onnx", "nhwc"):
            board = target_with(tmp_path, layout, "float32")
            unmeasured(
                *(tmp_path / "picture.onnx", "--target", board, "--recipes", "fp32"),
                *("--calibration-data", tmp_path / "data.npz"),
                out=tmp_path / layout,
            )
            net = read(tmp_path / layout / "model.tflite")
            moved = [op.kind for op in net.ops].count("TRANSPOSE")
            assert (net.inputs[0].shape, moved) == (
                ((1, 3, 8, 6), 2) if layout == "onnx" else ((1, 8, 6, 3), 0)
            )
            found[layout] = golden.opened(tmp_path / layout, "litert").run({"image": images[:1]})[0]
        manifest = json.loads((tmp_path / "nhwc/manifest.json").read_text())
        assert manifest["run"]["options"]["nhwc"] == ["image", "map"]
        assert np.array_equal(found["onnx"], found["nhwc"]) and found["nhwc"].shape == (1, 4, 8, 6)


def picture_model() -> onnx.ModelProto:
    """[1, 3, 8, 6] -> [1, 4, 8, 6]"""
    weight = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w"], ["c"], pads=[1] * 4, name="conv"),
            helper.make_node("Relu", ["c"], ["map"], name="relu"),
        ],
        "picture",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 6])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, [1, 4, 8, 6])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def model(shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's float .tflite file, as a user may have it."""
    folder = tmp_path_factory.mktemp("float")
    ran = deploy(
        *(MODEL, "--target", "tflite-x86", "--data", DATA, "--recipes", "fp32"),
        *("--no-device", "--quick", "--out", folder / "bundle"),
        env={"ONMETAL_HOME": str(shared_home)},
    )
    assert ran.code == 0, ran.err
    path = folder / "digits.tflite"
    shutil.copyfile(folder / "bundle/model.tflite", path)
    return path


class TestTfliteModels:
    def test_is_passed_through_and_quantized(self, model: Path, tmp_path: Path) -> None:
        before = model.read_bytes()
        ran = deploy(
            *(model, "--target", "tflite-x86", "--data", DATA),
            *("--calibration-data", CALIBRATION, *QUICK, "--out", tmp_path / "out"),
        )
        assert ran.code == 0, ran.err
        found = by_recipe(ran.document)
        assert ran.document["models"][0]["format"] == "tflite"
        assert found["int8"]["status"] in ("ok", "chosen")
        assert found["fp32"]["size_bytes"] == len(before) and model.read_bytes() == before

    def test_other_runtimes_are_tried_too(self, model: Path) -> None:
        ran = deploy(model, "--target", "x86-64", "--data", DATA, "--dry-run", "--json")
        entries = {e["name"]: e["status"] for e in ran.document["candidates"]}
        for name in ("fp32@openvino", "fp32-via-tflite@openvino", "fp32@litert"):
            assert entries[name] == "planned"

    def test_is_inspected(self, model: Path) -> None:
        ran = deploy("inspect", model, "--target", "tflite-x86", "--json")
        assert ran.code == 0 and ran.document["format"] == "tflite"
        onnx_ran = deploy("inspect", MODEL, "--json")
        assert ran.document["macs"] == onnx_ran.document["macs"]
        assert ran.document["operators"]["CONV_2D"] >= 1

    def test_fixed_shapes_are_said(self, model: Path) -> None:
        for words, part in (
            (("--batch", "4"), "fixed"),
            (("--input-shape", "image=1,1,9,9"), "fixed shapes"),
            (("--input-shape", "picture=1,1,8,8"), "no such input"),
        ):
            ran = deploy("inspect", model, *words)
            assert ran.code == 2 and part in ran.err

    def test_damage_is_refused(self, model: Path, tmp_path: Path) -> None:
        content = model.read_bytes()
        for number, damaged in enumerate((content[:200], content[:8] + b"\xff" * 64)):
            path = tmp_path / f"{number}.tflite"
            path.write_bytes(damaged)
            ran = deploy(path, "--target", "tflite-x86", "--data", DATA, "--out", tmp_path / "o")
            assert ran.code == 2 and "damaged" in ran.err and not (tmp_path / "o").exists()

    def test_a_file_against_the_specification_is_refused(
        self, integers: Integers, tmp_path: Path
    ) -> None:
        net = integer_net(integers)
        softened = next(op for op in net.ops if op.kind == "CONV_2D")
        assert softened.taken[2].scale is not None
        softened.taken[2].scale = softened.taken[2].scale * 2
        path = tmp_path / "wrong.tflite"
        path.write_bytes(write(net))
        ran = deploy(path, "--target", "tflite-x86", "--data", DATA, "--out", tmp_path / "out")
        assert ran.code == 3 and "bias" in ran.err and "CONV_2D" in ran.err

    def test_a_quantized_one_ships_as_it_is(self, integers: Integers, tmp_path: Path) -> None:
        path = tmp_path / "int8.tflite"
        path.write_bytes(write(integer_net(integers)))
        found = unmeasured(path, "--target", "tflite-x86", "--data", DATA, out=tmp_path / "shipped")
        assert found["chosen"] == "fp32@litert"
        assert "quantized already" in by_recipe(found)["int8"]["reason"]


class TestRefusals:
    def test_what_tflite_has_not_is_named(self, tmp_path: Path) -> None:
        graph = helper.make_graph(
            [
                helper.make_node("Det", ["x"], ["d"], name="volume"),
                helper.make_node("Identity", ["d"], ["y"], name="end"),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 3, 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = tmp_path / "det.onnx"
        onnx.save(model, path)
        before = path.read_bytes()
        ran = deploy(path, "--target", "tflite-x86", "--out", tmp_path / "out")
        assert ran.code == 3 and "Det 'volume'" in ran.err
        assert path.read_bytes() == before and not (tmp_path / "out/model.tflite").exists()

    def test_formats_that_litert_has_not(self, tmp_path: Path) -> None:
        path = tmp_path / "board.toml"
        path.write_text((ROOT / "targets/tflite-x86.toml").read_text())
        listed = re.compile(r"^recipes = .*$", re.MULTILINE)
        path.write_text(listed.sub('recipes = ["fp32", "./wrong.toml"]', path.read_text()))
        for recipe, old, new, part in (
            ("int8", 'activation = "s8"', 'activation = "u8"', "TFLite"),
            ("int8", 'activation = "s8"', 'activation = "s8"\nper_channel = false', "TFLite"),
            ("int16x8", 'activation = "s16"', 'activation = "s8"', "i8"),
            ("int8-dynamic", '["dynamic"]\ncompute = "i8"', '["half"]\ncompute = "bf16"', "half"),
        ):
            text = (ROOT / f"targets/recipes/{recipe}.toml").read_text()
            assert text.count(old) == 1
            (tmp_path / "wrong.toml").write_text(text.replace(old, new))
            ran = deploy("targets", path)
            assert ran.code == 2 and part in ran.err, (old, ran.err)

    def test_verify_finds_a_file_against_the_specification(
        self, integers: Integers, tmp_path: Path
    ) -> None:
        net = integer_net(integers)
        folder = Path(shutil.copytree(integers("onnx", "float32")[0], tmp_path / "integer"))
        conv = next(op for op in net.ops if op.kind == "CONV_2D")
        assert conv.taken[1].zero_point is not None
        conv.taken[1].zero_point = conv.taken[1].zero_point + 1
        (folder / "model.tflite").write_bytes(write(net))
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["digests"]["artifact"] = cache.sha256(folder / "model.tflite")
        (folder / "manifest.json").write_text(json.dumps(manifest))
        resum(folder)
        ran = deploy("verify", folder, "--json")
        assert ran.code == 6
        problems = ran.document["error"].get("message", "")
        assert "zero point" in problems and "specification" in problems


def resum(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.name != "SHA256SUMS")
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


class TestBeside:
    def test_an_artifact_is_compared_with_its_float(self, integers: Integers) -> None:
        ran = deploy(
            *("inspect", integers("onnx", "float32")[0], "--against", MODEL, "--data", CALIBRATION),
            "--json",
        )
        assert ran.code == 0, ran.err
        rows = ran.document["tensors"]
        assert len(rows) >= 4 and all(row["sqnr_db"] > 12 for row in rows)
        assert {"CONV_2D", "FULLY_CONNECTED"} <= {row["operator"] for row in rows}

    def test_files_are_benched(self, integers: Integers, tmp_path: Path) -> None:
        path = tmp_path / "int8.tflite"
        path.write_bytes(write(integer_net(integers)))
        ran = deploy("bench", MODEL, path, "--target", "tflite-x86", "--quick", "--json")
        assert ran.code == 0, ran.err
        names = [entry["name"] for entry in ran.document["candidates"]]
        assert names == ["digits_cnn.onnx fp32@litert", "int8.tflite fp32@litert"]
        ran = deploy("bench", path, "--target", "x86-openvino", "--quick", "--json")
        assert ran.code == 0, ran.err
        names = [entry["name"] for entry in ran.document["candidates"]]
        assert names == ["int8.tflite fp32@openvino", "int8.tflite fp32-via-tflite@openvino"]

    def test_the_documented_tables_are_those_of_the_code(self) -> None:
        text = (ROOT / "docs/tflite.md").read_text()
        assert supported.rendered(text) == text
        assert supported.operators().count("\n") >= 70

    def test_vela_leaves_nothing_to_the_cpu(self, integers: Integers, tmp_path: Path) -> None:
        """Arm's compiler for Ethos-U, which takes integers in and out alone."""
        out, _ = integers("nhwc", "int8")
        done = subprocess.run(
            [
                *(str(Path(sys.executable).parent / "vela"), out / "model.tflite"),
                *("--accelerator-config", "ethos-u55-128", "--output-dir", tmp_path / "vela"),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "CPU operators = 0" in done.stdout

    def test_the_trivial_file_of_the_memory_figure_is_the_writers(self) -> None:
        content = zlib.decompress(base64.b64decode(memory.TRIVIAL_TFLITE))
        net = read(content)
        assert [op.kind for op in net.ops] == ["ABS"] and write(net) == content
        interpreter(content)

    def test_delegated_operators_are_those_between_its_tensors(self) -> None:
        ops = [
            {"index": 0, "op_name": "CONV_2D", "inputs": [0, 1], "outputs": [2]},
            {"index": 1, "op_name": "RELU", "inputs": [2], "outputs": [3]},
            {"index": 2, "op_name": "SIN", "inputs": [3], "outputs": [4]},
            {"index": 3, "op_name": "DELEGATE", "inputs": [0, 1], "outputs": [3]},
        ]
        assert operators.delegated(ops) == {0, 1}

    @pytest.mark.parametrize("name", targets.names())
    def test_targets_of_litert_have_its_recipes(self, name: str) -> None:
        target = fit.load_target(name)
        runtimes = [runtime.name for runtime in target.runtimes]
        assert ("int8" in [r.name for r in target.recipes]) == bool(
            {"litert", "tflm"} & {*runtimes}
        )
