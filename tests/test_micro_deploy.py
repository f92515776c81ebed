"""The main job for microcontrollers and NPUs: what decides, what is told, what the bundle holds."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onmetal import cli
from onmetal.converters.tflite import io, quantize
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.writing import write
from tests import onnx_models
from tests.conftest import DIGITS, ROOT, Ran, once
from tests.conftest import deploy_here as deploy

MODEL, DATA = DIGITS / "digits_cnn.onnx", DIGITS / "digits.npz"
CALIBRATION = DIGITS / "calibration.npz"
JUDGED: list[str | Path] = []
"""Options that name data, written by `_some_data`."""
INT8 = ("--recipes", "int8")
"""And what is split of it."""
Document = dict[str, Any]


@pytest.fixture(scope="session", autouse=True)
def _some_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A part of the example's samples: TFLite Micro's reference kernels evaluate them slowly."""
    path = tmp_path_factory.mktemp("some") / "some.npz"
    with np.load(DATA) as data:
        np.savez(path, **{name: data[name][:150] for name in data.files})
    JUDGED[:] = ["--data", path, "--calibration-data", CALIBRATION]


def made_for(target: str | Path, out: Path, home: Path, *words: str | Path) -> Document:
    ran = deploy(
        *(MODEL, "--target", target, *JUDGED, "--json", "--out", out, *words),
        env={"ONMETAL_HOME": str(home)},
    )
    assert ran.code == 0, ran.err
    return ran.document


def made_once(target: str, home: Path, folder: Path, *words: str | Path) -> tuple[Path, Document]:
    """The same by one process of this run of the tests for all of them."""
    out, said = folder / target, folder / f"{target}.json"

    def make() -> None:
        said.write_text(json.dumps(made_for(target, out, home, *words)))

    once(folder / f"{target}.made", make)
    document: Document = json.loads(said.read_text())
    return out, document


@pytest.fixture(scope="session")
def made(shared_home: Path, shared_folder: Path) -> tuple[Path, Document]:
    return made_once("cortex-m4", shared_home, shared_folder, "--no-device")


@pytest.fixture(scope="session")
def with_npu(shared_home: Path, shared_folder: Path) -> tuple[Path, Document]:
    return made_once("ethos-u55-128", shared_home, shared_folder)


def by_recipe(document: Document) -> dict[str, Document]:
    return {entry["recipe"]: entry for entry in document["candidates"]}


def chip(folder: Path, **facts: int) -> Path:
    """A Cortex-M4 of the tests' own, as a user writes it."""
    known = {"clock_mhz": 64, "flash_kib": 1024, "ram_kib": 256, **facts}
    text = (ROOT / "examples/boards/nucleo-l4r5zi.toml").read_text()
    head = text[: text.index("chip = ")]
    said = ", ".join(f"{name} = {value}" for name, value in known.items())
    path = folder / "board.toml"
    path.write_text(f'{head}chip = {{ core = "cortex-m4", {said} }}\n')
    return path


class TestTheDecision:
    def test_the_smallest_within_the_accuracy_budget_ships_unmeasured(
        self, made: tuple[Path, Document]
    ) -> None:
        document = made[1]
        assert (document["chosen"], document["decided_by"]) == ("int8@tflm", "size")
        assert document["baseline"] is None
        found = by_recipe(document)["int8"]
        assert found["versus_baseline"] is None and found["latency_ms"] is None
        assert "no device" in found["missing"]["latency_ms"]
        assert abs(found["accuracy"]["drop"]) < 0.02
        assert json.loads((made[0] / "manifest.json").read_text())["measured"] is False

    def test_memory_is_the_larger_of_what_was_counted_and_what_is_modelled(
        self, made: tuple[Path, Document]
    ) -> None:
        for recipe in ("int8", "int16x8"):
            found = by_recipe(made[1])[recipe]
            arena, memory = found["embedded"]["arena"], found["peak_memory_bytes"]
            host, modelled = arena["host"], arena["modelled"]
            assert host["total"] == host["head"] + host["tail"]
            assert modelled["total_bytes"] == modelled["head_bytes"] + modelled["tail_bytes"]
            assert memory["value"] == max(host["total"], modelled["total_bytes"])
            assert memory["basis"] == (
                "modelled" if modelled["total_bytes"] > host["total"] else "measured"
            )
            assert str(host["total"]) in memory["how"]
            assert str(modelled["total_bytes"]) in memory["how"]

    def test_flash_is_the_file_and_the_code(self, made: tuple[Path, Document]) -> None:
        found = by_recipe(made[1])["int8"]
        flash = found["embedded"]["flash"]
        assert flash["weights_bytes"] + flash["graph_bytes"] == found["size_bytes"]
        assert flash["total_bytes"] == found["size_bytes"] + flash["code_bytes"]
        assert flash["code_bytes"] > 40_000 and flash["whole_numbers"]
        assert "CONV_2D" in flash["operators"]

    def test_what_litert_makes_of_the_same_file_is_told(self, made: tuple[Path, Document]) -> None:
        found = by_recipe(made[1])["int8"]["embedded"]["agreement_with_litert"]
        assert found["same_argmax"] and found["largest_difference"] < 0.1 * found["peak"]

    def test_a_chip_of_too_little_memory_says_by_how_much(
        self, tmp_path: Path, shared_home: Path
    ) -> None:
        """What the application needs is left to it."""
        board = chip(tmp_path, ram_kib=5, application_ram_kib=1, flash_kib=64)
        ran = deploy(
            *(MODEL, "--target", board, *JUDGED, "--no-device", "--json"),
            *("--out", tmp_path / "out"),
            env={"ONMETAL_HOME": str(shared_home)},
        )
        assert ran.code == 5
        used = by_recipe(ran.document)["int8"]["peak_memory_bytes"]["value"]
        assert f"{int(used) - 4096} bytes more than the 4096 of RAM" in ran.err
        assert "int8, which halves it" in ran.err and "--input-shape" in ran.err
        assert "bytes of flash (weights" in ran.err and "more than the 65536" in ran.err
        assert (tmp_path / "out/report.json").is_file()
        assert not (tmp_path / "out/manifest.json").exists()

    def test_memory_is_a_budget_and_decides_without_a_device(
        self, tmp_path: Path, shared_home: Path
    ) -> None:
        words = (MODEL, "--target", "cortex-m4", *JUDGED, "--no-device", "--json")
        words = (*words, "--out", tmp_path / "out")
        env = {"ONMETAL_HOME": str(shared_home)}
        ran = deploy(*words, *INT8, "--max-memory", "2kB", env=env)
        assert ran.code == 5 and "2000" in ran.err
        ran = deploy(*words, "--max-memory", "200kB", "--minimize", "memory", "--force", env=env)
        assert ran.code == 0, ran.err
        used = {
            entry["name"]: entry["peak_memory_bytes"]["value"]
            for entry in ran.document["candidates"]
            if entry["peak_memory_bytes"]
        }
        assert ran.document["decided_by"] == "memory"
        assert used[ran.document["chosen"]] == min(used.values())


class TestWhatIsRefusedFirst:
    def refused(self, *words: str | Path) -> Ran:
        return deploy(*words)

    def test_a_device_is_required_unless_it_is_left_out(self) -> None:
        ran = self.refused(MODEL, "--target", "cortex-m4", *JUDGED)
        assert ran.code == 4 and "--no-device" in ran.err

    def test_a_latency_budget_needs_a_device_also_where_it_is_modelled(self) -> None:
        words = (MODEL, "--target", "ethos-u55-128", *JUDGED, "--max-latency", "5ms")
        assert self.refused(*words).code == 4

    def test_threads_are_not_for_microcontrollers(self) -> None:
        ran = self.refused(MODEL, "--target", "tflm", *JUDGED, "--threads", "4")
        assert ran.code == 2 and "one thread" in ran.err

    def test_operators_that_are_lacking_are_named_before_anything_is_calibrated(
        self, tmp_path: Path
    ) -> None:
        nodes = [
            onnx_models.node("Conv", "x w", "c", pads=[1] * 4, name="stem"),
            onnx_models.node("Sign", "c", "s", name="the_sign"),
            onnx_models.node("Conv", "s v", "y", pads=[1] * 4, name="head"),
        ]
        model = onnx_models.build(
            nodes,
            [onnx_models.value("x", [1, 3, 8, 8])],
            [onnx_models.value("y", [1, 2, 8, 8])],
            [onnx_models.weights("w", 4, 3, 3, 3), onnx_models.weights("v", 2, 4, 3, 3)],
        )
        path = onnx_models.save(model, tmp_path / "signed.onnx")
        np.savez(tmp_path / "x.npz", x=np.zeros((16, 3, 8, 8), np.float32))
        ran = self.refused(
            *(path, "--target", "cortex-m4", "--no-device", "--out", tmp_path / "out"),
            *("--calibration-data", tmp_path / "x.npz", "--max-accuracy-drop", "none"),
        )
        assert ran.code == 3, ran.err
        assert "SIGN, made for Sign 'the_sign'" in ran.err
        assert "calibrating" not in ran.err and not (tmp_path / "out").exists()

    def test_free_axes_are_not_supported(self, tmp_path: Path) -> None:
        path = onnx_models.save(onnx_models.relu(["N", "T", 4]), tmp_path / "free.onnx")
        ran = self.refused(path, "--target", "cortex-m4", "--no-device")
        assert ran.code == 3
        assert "free axes (T)" in ran.err and "--input-shape" in ran.err

    def test_a_damaged_file_is_refused_as_ever(self, tmp_path: Path) -> None:
        (tmp_path / "cut.onnx").write_bytes(MODEL.read_bytes()[:1000])
        assert self.refused(tmp_path / "cut.onnx", "--target", "tflm").code == 2

    def test_the_plan_is_told_without_running_it(self, tmp_path: Path) -> None:
        ran = deploy(MODEL, "--target", "cortex-m4", "--no-device", *JUDGED, "--dry-run", "--json")
        assert ran.code == 0
        names = [entry["name"] for entry in ran.document["candidates"]]
        assert names == ["int16x8@tflm", "int8@tflm", "int8-split@tflm"]


def in_8_bits(folder: Path) -> Path:
    """The example as an int8 .tflite file, as a user brings one."""
    from onmetal.converters.onnx import floats
    from onmetal.converters.tflite.convert import to_float

    model = onnx.load(MODEL)
    for entry in (*model.graph.input, *model.graph.output):
        entry.type.tensor_type.shape.dim[0].dim_value = 1
    onnx_models.save(model, folder / "fixed.onnx")
    floats.simplify(str(folder / "fixed.onnx"), str(folder))
    to_float(str(folder / "model.onnx"), str(folder))
    net = read(folder / "model.tflite")
    made = quantize.quantize(net, dict.fromkeys(quantize.observed(net), (-8.0, 8.0)), "s8")
    io.integers(made)
    path = folder / "theirs.tflite"
    path.write_bytes(write(made))
    return path


class TestAModelThatIsQuantizedAlready:
    def test_is_taken_as_it_is(self, tmp_path: Path) -> None:
        path = in_8_bits(tmp_path)
        ran = deploy(
            *(path, "--target", "cortex-m4", "--no-device", "--json", "--out", tmp_path / "out")
        )
        assert ran.code == 0, ran.err
        found = by_recipe(ran.document)
        assert found["int8"]["status"] == "chosen"
        assert "another format" in found["int16x8"]["reason"]
        kinds = [op.kind for op in read(tmp_path / "out/model.tflite").ops]
        assert sorted(kinds) == sorted(op.kind for op in read(path).ops)

    def test_in_float_it_needs_data(self, tmp_path: Path) -> None:
        ran = deploy(MODEL, "--target", "cortex-m4", "--no-device", "--out", tmp_path / "out")
        assert ran.code == 2 and "--calibration-data" in ran.err


class TestTheBundle:
    def test_holds_the_firmware_and_the_plan_of_its_memory(
        self, made: tuple[Path, Document]
    ) -> None:
        names = {path.name for path in (made[0] / "firmware").rglob("*")}
        assert {"model_data.c", "onmetal_model.cc", "selftest.cc", "CMakeLists.txt"} <= names
        assert "CONV_2D" in (made[0] / "memory.txt").read_text()
        assert (made[0] / "memory.svg").read_text().startswith("<svg")

    def test_its_runner_gives_the_golden_vectors_to_the_bit(
        self, made: tuple[Path, Document], tmp_path: Path
    ) -> None:
        folder = shutil.copytree(made[0], tmp_path / "copy")
        done = subprocess.run(
            [sys.executable, "-B", folder / "run.py"], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (0, "the golden vectors agree\n"), done.stderr
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["golden"]["tolerance"] == 0.0

    def test_is_verified_and_damage_is_found(
        self, made: tuple[Path, Document], tmp_path: Path
    ) -> None:
        folder = shutil.copytree(made[0], tmp_path / "copy")
        ran = deploy("verify", folder, "--run", "--json")
        assert ran.code == 0, ran.err
        assert ran.document["checks"]["specification"] == "ok"
        source = folder / "firmware" / "model_data.c"
        source.write_bytes(source.read_bytes().replace(b"0", b"1", 1))
        assert deploy("verify", folder).code == 6

    def test_the_same_model_gives_the_same_bytes(
        self, made: tuple[Path, Document], tmp_path: Path
    ) -> None:
        made_for("cortex-m4", tmp_path / "out", tmp_path / "home", "--no-device", *INT8)
        for name in ("model.tflite", "firmware/model_data.c", "golden.npz", "memory.svg"):
            assert (tmp_path / "out" / name).read_bytes() == (made[0] / name).read_bytes()


class TestTflm:
    def test_has_a_float_baseline_and_times_nothing_unless_it_is_asked_to(
        self, tmp_path: Path, shared_home: Path
    ) -> None:
        document = made_for("tflm", tmp_path / "out", shared_home)
        assert document["decided_by"] == "size" and document["device"]["address"] == "none"
        assert by_recipe(document)["fp32"]["accuracy"]["drop"] == pytest.approx(0, abs=0.01)
        assert by_recipe(document)["int8"]["embedded"]["arena"]["modelled"] is None

    def test_this_machine_can_be_timed(self, tmp_path: Path, shared_home: Path) -> None:
        document = made_for(
            "tflm",
            tmp_path / "out",
            shared_home,
            "--device",
            "local",
            "--quick",
            "--recipes",
            "fp32,int8",
        )
        found = by_recipe(document)["int8"]
        assert found["latency_ms"]["basis"] == "measured"
        assert document["decided_by"] == "latency"
        assert found["ran_on"]["precision"] == {"i8": 1.0}


class TestAnNpu:
    def test_what_vela_models_is_told_as_modelled(self, with_npu: tuple[Path, Document]) -> None:
        document = with_npu[1]
        found = by_recipe(document)["int8"]
        npu, latency = found["embedded"]["npu"], found["latency_ms"]
        assert npu["basis"] == latency["basis"] == "modelled"
        assert npu["on_cpu"] == [] and npu["layers"]
        assert latency["p50"] == pytest.approx(npu["cycles"]["total"] / 500e3)
        assert latency["p50_ci95"] is None and latency["samples"] == 0
        assert document["decided_by"] == "size"
        assert found["peak_memory_bytes"]["basis"] == "modelled"

    def test_the_firmware_holds_what_vela_made_and_the_host_runs_what_it_was_made_of(
        self, with_npu: tuple[Path, Document]
    ) -> None:
        folder = with_npu[0]
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["run"]["files"] == ["model.tflite", "model_vela.tflite"]
        chosen = next(c for c in manifest["candidates"] if c["status"] == "chosen")
        assert chosen["size_bytes"] == (folder / "model_vela.tflite").stat().st_size
        header = (folder / "firmware/model_data.h").read_text()
        assert str(chosen["size_bytes"]) in header
        assert "AddEthosU" in (folder / "firmware/onmetal_resolver.h").read_text()
        assert deploy("verify", folder, "--run").code == 0
        assert "modelled" in (folder / "README.md").read_text()


class TestInspect:
    def test_tells_memory_before_there_is_data(self, tmp_path: Path) -> None:
        plot = tmp_path / "memory.svg"
        ran = deploy("inspect", MODEL, "--target", "cortex-m4", "--plot", plot, "--json")
        assert ran.code == 0, ran.err
        memory = ran.document["memory"]
        assert memory["candidate"] == "int8@tflm"
        assert memory["plan"]["peak"]["live_bytes"] <= memory["plan"]["head_bytes"]
        assert plot.read_text().startswith("<svg") and "svg" not in memory["plan"]

    def test_tells_as_much_as_the_candidate_will_need(self, made: tuple[Path, Document]) -> None:
        ran = deploy("inspect", MODEL, "--target", "cortex-m4", "--json")
        arena = by_recipe(made[1])["int8"]["embedded"]["arena"]["host"]
        assert ran.document["memory"]["arena"]["head"] == arena["head"]

    def test_names_what_vela_leaves_to_the_core(self, tmp_path: Path) -> None:
        nodes = [
            onnx_models.node("Conv", "x w", "c", name="stem"),
            onnx_models.node("Floor", "c", "f", name="the_floor"),
            onnx_models.node("Conv", "f v", "y", name="head"),
        ]
        model = onnx_models.build(
            nodes,
            [onnx_models.value("x", [1, 3, 8, 8])],
            [onnx_models.value("y", [1, 2, 4, 4])],
            [onnx_models.weights("w", 4, 3, 3, 3), onnx_models.weights("v", 2, 4, 3, 3)],
        )
        path = onnx_models.save(model, tmp_path / "floor.onnx")
        ran = deploy("inspect", path, "--target", "ethos-u55-128")
        assert ran.code == 0, ran.err
        assert "left to the core: 3 operator(s)" in ran.out
        assert "FLOOR f: Unsupported opType" in ran.out
        found = deploy("inspect", path, "--target", "ethos-u55-128", "--json").document
        left = [row["operator"] for row in found["memory"]["npu"]["on_cpu"]]
        assert left == ["DEQUANTIZE", "FLOOR", "QUANTIZE"]

    def test_shows_people_who_lives_when(self) -> None:
        ran = deploy("inspect", MODEL, "--target", "cortex-m4")
        assert ran.code == 0
        assert "the chip has 262,144" in ran.out and "CONV_2D" in ran.out

    def test_names_what_is_lacking(self, tmp_path: Path) -> None:
        nodes = [
            onnx_models.node("Conv", "x w", "c", name="stem"),
            onnx_models.node("Sign", "c", "y", name="the_sign"),
        ]
        model = onnx_models.build(
            nodes,
            [onnx_models.value("x", [1, 3, 8, 8])],
            [onnx_models.value("y", [1, 4, 6, 6])],
            [onnx_models.weights("w", 4, 3, 3, 3)],
        )
        path = onnx_models.save(model, tmp_path / "signed.onnx")
        ran = deploy("inspect", path, "--target", "cortex-m4", "--json")
        assert ran.code == 0
        assert ran.document["memory"] is None
        assert all("'the_sign'" in entry["says"] for entry in ran.document["support"])


class TestWithoutTheExtra:
    """TFLite Micro and Vela are no part of the core."""

    def missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from onmetal import runtimes
        from onmetal.profilers.devices import local

        found = runtimes.installed()
        monkeypatch.setattr(
            local, "installed", lambda: {n: v for n, v in found.items() if n != "tflm"}
        )

    @pytest.mark.parametrize(
        "words",
        [
            (str(MODEL), "--target", "cortex-m4", "--no-device", "--dry-run"),
            ("inspect", str(MODEL), "--target", "tflm"),
        ],
    )
    def test_what_installs_it_is_said(
        self,
        words: tuple[str, ...],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.missing(monkeypatch)
        assert cli.main(words) == 4
        assert "pip install 'onmetal[embedded]'" in capsys.readouterr().err


class TestTheirInt8FileAndOurData:
    """Real numbers for integers that stand for them, and scores that are stored as integers."""

    def test_are_judged_as_the_float_model_is(self, tmp_path: Path) -> None:
        path = in_8_bits(tmp_path)
        ran = deploy(
            *(path, "--target", "cortex-m4", "--no-device", "--data", DATA, "--json"),
            *("--recipes", "int8", "--out", tmp_path / "out"),
        )
        assert ran.code == 0, ran.err
        found = by_recipe(ran.document)["int8"]
        assert found["accuracy"]["metric"] == "top1"
        assert found["accuracy"]["value"] > 0.9 and found["accuracy"]["samples"] == 600
        given = ran.document["models"][0]["inputs"][0]
        assert given["dtype"] == "int8" and given["scale"] == pytest.approx(16 / 255)
        assert deploy("verify", tmp_path / "out", "--run").code == 0
