"""Data and metrics of one's own; batches, threads, outputs, files; careless and unlucky users."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onmetal import cli
from tests import onnx_models
from tests.conftest import FLOAT, deploy
from tests.deploy_runs import (
    BF16,
    DATA,
    FULL,
    MODEL,
    ONE,
    PLAIN,
    STILL,
    Run,
    candidates,
    statuses,
)

# --- the plan, the clock


def test_dry_run_prints_the_plan_and_writes_nothing(flags: set[str], tmp_path: Path) -> None:
    ran = deploy(*FULL, "--dry-run", "--out", "deep/er/out", cwd=tmp_path)
    assert ran.code == 0
    would, _, would_not = ran.out.partition("Would not be tried:")
    assert "fp32@onnxruntime" in would
    assert "fp32@openvino" in would
    assert ("bf16@openvino" in would) is bool(BF16 & flags)
    assert "int8-u8s8@openvino" in would
    assert "wi8@onnxruntime: pays for models of MatMuls" in would_not
    assert "fp16@onnxruntime: " in would_not
    assert list(tmp_path.iterdir()) == []


def test_the_plan_is_what_is_done(run_here: Run) -> None:
    _, plan = run_here(*STILL, "--dry-run")
    _, found = run_here(*STILL)
    assert plan["chosen"] is None
    assert plan["bundle"] is None
    assert list(candidates(plan)) == list(candidates(found))
    for name, status in statuses(plan).items():
        assert status in ("planned", "skipped")
        assert (status == "skipped") is (statuses(found)[name] == "skipped")
        if status == "skipped":
            assert candidates(plan)[name]["reason"] == candidates(found)[name]["reason"]


def test_a_time_limit_before_anything_was_measured_exits_4(run_here: Run) -> None:
    code, found = run_here(*PLAIN, "--quick", "--time-limit", "1ms")
    assert code == 4
    assert "--time-limit" in found["error"]["message"]
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("limit", ["1s", "4s"])
def test_a_short_time_limit_ships_the_best_so_far_and_says_so(limit: str, tmp_path: Path) -> None:
    ran = deploy(*PLAIN, "--time-limit", limit, "--json", cwd=tmp_path)
    if ran.code == 4:
        assert "--time-limit" in ran.err
        assert list(tmp_path.iterdir()) == []
    else:
        assert ran.code == 0
        assert any("--time-limit" in text for text in ran.document["data"]["warnings"])
        assert "--time-limit" in ran.err
        assert candidates(ran.document)[ran.document["chosen"]]["latency_ms"]


# --- data and metrics of one's own

MODULE = """
import numpy as np

DATA = np.load({data!r})

def samples():
    for x, y in zip(DATA["x"][:120], DATA["y"][:120]):
        yield x, y

def named():
    for x, y in zip(DATA["x"][:120], DATA["y"][:120]):
        yield {{"image": x}}, y

def mistakes(outputs, labels):
    return float((outputs["logits"].argmax(axis=1) != labels).mean())

mistakes.higher_is_better = False
"""


def test_data_and_metric_from_a_module_here(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(MODULE.format(data=str(DATA)))
    one = (MODEL, "--target", "x86-onnxruntime", "--recipes", "fp32", "--no-device")
    words: tuple[str | Path, ...] = (*one, "--metric", "own:mistakes", "--json")
    ran = deploy(*words, "--data", "own:samples", "--out", "one", cwd=tmp_path)
    assert ran.code == 0, ran.err
    with np.load(DATA) as data:
        assert ran.document["data"]["evaluation_samples"] == 120 < len(data["x"])
    entry = candidates(ran.document)["fp32@onnxruntime"]["accuracy"]
    assert entry["metric"] == "own:mistakes"
    assert entry["samples"] == 120
    assert 0 <= entry["value"] < 0.1
    again = deploy(*words, "--data", "own:named", "--out", "two", cwd=tmp_path)
    assert again.code == 0, again.err
    assert candidates(again.document)["fp32@onnxruntime"]["accuracy"] == entry


def test_a_metric_where_less_is_better_drops_upwards(tmp_path: Path, noisy: Path) -> None:
    (tmp_path / "own.py").write_text(MODULE.format(data=str(DATA)))
    words = (noisy, *ONE, "--metric", "own:mistakes", "--max-accuracy-drop", "none", "--json")
    ran = deploy(*words, cwd=tmp_path)
    assert ran.code == 0, ran.err
    best, worse = (
        candidates(ran.document)[f"{stem}/fp32@onnxruntime"]["accuracy"]
        for stem in ("digits_cnn", "noisy")
    )
    assert worse["value"] > best["value"]
    assert best["drop"] == 0
    assert worse["drop"] == pytest.approx(worse["value"] - best["value"])


def test_a_folder_of_images_gives_what_the_arrays_give(run_here: Run, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rows = ["file,label"]
    with np.load(DATA) as data:
        x, y = data["x"][:200], data["y"][:200]
    np.savez(tmp_path / "same.npz", x=x, y=y)
    for number, (image, label) in enumerate(zip(x, y, strict=True)):
        Image.fromarray((image[0] * 240).round().astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{label}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    scale = f'channels = "L"\nlayout = "NCHW"\nscale = {1 / 240!r}\n'
    (folder / "data.toml").write_text(scale)
    words = (MODEL, "--target", "x86-onnxruntime", "--recipes", "fp32", "--no-device", "--data")
    code, found = run_here(*words, folder, "--out", "images")
    assert code == 0
    assert found["data"]["evaluation_samples"] == 200
    _, same = run_here(*words, tmp_path / "same.npz", "--out", "arrays")
    assert (
        candidates(found)["fp32@onnxruntime"]["accuracy"]
        == (candidates(same)["fp32@onnxruntime"]["accuracy"])
    )


def test_another_output_is_judged_where_asked(run_here: Run, tmp_path: Path) -> None:
    model = onnx_models.build(
        [
            onnx_models.node("Identity", "x", "right"),
            onnx_models.node("Neg", "x", "wrong"),
        ],
        [onnx_models.value("x", ["n", 3])],
        [onnx_models.value("right", ["n", 3]), onnx_models.value("wrong", ["n", 3])],
    )
    path = onnx_models.save(model, tmp_path / "two.onnx")
    x = np.eye(3, dtype=np.float32)[np.arange(120) % 3]
    np.savez(tmp_path / "two.npz", x=x, y=np.arange(120) % 3)
    words = (path, "--target", "x86-64", "--data", tmp_path / "two.npz", "--no-device", "--dry-run")
    assert run_here(*words)[1]["data"]["output"] == "right"
    found = []
    for output in ("right", "wrong"):
        code, document = run_here(*words[:-1], "--output", output, "--out", output)
        assert code == 0
        assert document["data"]["output"] == output
        entry = candidates(document)["fp32@openvino"]
        assert set(entry["fidelity"]["sqnr_db"]) == {"right", "wrong"}
        found.append(entry["accuracy"]["value"])
    assert found == [1.0, 0.0]


@pytest.mark.parametrize("metric", ["own:nothing", "own:DATA", "own:samples"])
def test_a_metric_that_is_none_exits_2(metric: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(MODULE.format(data=str(DATA)))
    ran = deploy(*ONE, "--metric", metric, cwd=tmp_path)
    assert ran.code == 2
    assert metric in ran.err


@pytest.mark.parametrize("metric", ["top1", "top5", "accuracy", "precision", "recall", "f1", "auc"])
def test_every_metric_judges_the_example(metric: str, run_here: Run) -> None:
    code, found = run_here(*ONE, "--metric", metric)
    assert code == 0
    accuracy = candidates(found)["fp32@onnxruntime"]["accuracy"]
    assert accuracy["metric"] == metric
    assert 0.95 < accuracy["value"] <= 1


# --- batches, threads, outputs, files


def test_a_batch_gives_the_same_accuracy(run_here: Run, tmp_path: Path) -> None:
    with np.load(DATA) as data:
        np.savez(tmp_path / "odd.npz", x=data["x"][:398], y=data["y"][:398])
    odd = ("--data", tmp_path / "odd.npz", "--recipes", "fp32", "--no-device")
    words = (MODEL, "--target", "x86-64", *odd)
    _, one = run_here(*words, "--out", "one")
    code, four = run_here(*words, "--batch", "4", "--out", "four")
    assert code == 0
    assert four["batch"] == 4
    assert four["models"][0]["inputs"][0]["shape"] == [4, 1, 8, 8]
    assert four["models"][0]["macs"] == 4 * one["models"][0]["macs"]
    for name in ("fp32@onnxruntime", "fp32@openvino"):
        mine, other = candidates(four)[name]["accuracy"], candidates(one)[name]["accuracy"]
        assert mine["samples"] == 398
        assert mine["value"] == other["value"]
    with np.load("four/golden.npz") as golden:
        assert golden["input/image/0"].shape == (4, 1, 8, 8)
    assert cli.main(["verify", "four"]) == 0


def test_an_input_shape_sets_the_batch(run_here: Run) -> None:
    code, found = run_here(*STILL, "--input-shape", "image=2,1,8,8", "--dry-run")
    assert code == 0
    assert found["batch"] == 2


def test_threads_reach_the_runtimes(run_here: Run) -> None:
    code, found = run_here(*STILL, "--threads", "1")
    assert code == 0
    assert found["threads"] == 1
    options = {name: entry["details"] for name, entry in candidates(found).items()}
    assert options["fp32@onnxruntime"]["options"]["intra_op_num_threads"] == 1
    assert options["fp32@openvino"]["options"]["INFERENCE_NUM_THREADS"] == 1


def test_force_replaces_a_bundle(run_here: Run) -> None:
    assert run_here(*ONE, "--out", "out")[0] == 0
    assert run_here(*ONE, "--out", "out")[0] == 2
    before = Path("out/manifest.json").stat().st_ino
    assert run_here(*ONE, "--out", "out", "--force", "--threads", "1")[0] == 0
    assert Path("out/manifest.json").stat().st_ino != before
    assert json.loads(Path("out/manifest.json").read_text())["threads"] == 1
    assert [path.name for path in Path().iterdir()] == ["out"]


def test_force_keeps_the_bundle_where_the_run_fails(run_here: Run) -> None:
    assert run_here(*ONE, "--out", "out")[0] == 0
    assert run_here(*ONE, "--out", "out", "--force", "--recipes", "int9")[0] == 2
    assert cli.main(["verify", "out"]) == 0


def test_an_empty_folder_is_written_to(run_here: Run) -> None:
    Path("out").mkdir()
    assert run_here(*ONE, "--out", "out")[0] == 0
    assert Path("out/manifest.json").is_file()


def test_the_folder_that_one_stands_in_is_written_to_or_refused_at_once(tmp_path: Path) -> None:
    ran = deploy(*ONE, "--out", ".", cwd=tmp_path)
    if ran.code == 0:
        assert (tmp_path / "manifest.json").is_file()
    else:
        assert ran.code == 2
        assert "converting" not in ran.err


def test_a_deep_out_is_made(run_here: Run) -> None:
    assert run_here(*ONE, "--out", "deep/er/out")[0] == 0
    assert Path("deep/er/out/manifest.json").is_file()


def test_the_model_is_never_written_to(run_here: Run) -> None:
    shutil.copyfile(MODEL, "copy.onnx")
    Path("copy.onnx").chmod(0o444)
    before = Path("copy.onnx").stat()
    assert run_here("copy.onnx", "--target", "x86-onnxruntime", "--no-device")[0] == 0
    after = Path("copy.onnx").stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_nlink) == (
        before.st_ino,
        before.st_mtime_ns,
        1,
    )
    assert Path("copy.onnx").read_bytes() == MODEL.read_bytes()


# --- what a careless or unlucky user meets


def test_force_keeps_a_folder_of_something_else_beside(run_here: Run) -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("kept")
    assert run_here(*ONE, "--out", "out")[0] == 2
    assert run_here(*ONE, "--out", "out", "--force")[0] == 0
    assert Path("out/manifest.json").is_file()
    assert Path("out.replaced-1/notes.txt").read_text() == "kept"


def board(text: str) -> Path:
    path = Path("board.toml")
    path.write_text(
        'description = "a board"\narch = "x86_64"\n[device]\ntransport = "local"\n'
        f'[[runtimes]]\nname = "openvino"\n{text}'
    )
    return path


FP32 = '[[recipes]]\nname = "fp32"\nruntimes = ["openvino"]\ncompute = "f32"\n'


def test_recipes_that_cannot_run_here_exit_3_at_once(run_here: Run) -> None:
    half = '[[recipes]]\nname = "fp16"\nruntimes = ["openvino"]\ncompute = "f16"\n'
    target = board(f'{FP32}{half}requires_any_flag = ["no_such_flag"]\n')
    code, found = run_here(MODEL, "--target", target, "--data", DATA, "--recipes", "fp16")
    assert code == 3
    assert "no_such_flag" in found["error"]["message"]
    assert not Path("digits_cnn-board").exists()


@pytest.mark.parametrize("option", ['INFERENCE_PRECISION_HINT = "bf16"', "NUM_STREAMS = 2"])
def test_a_target_cannot_make_another_recipe_of_one(option: str, run_here: Run) -> None:
    code, found = run_here(MODEL, "--target", board(f"options = {{ {option} }}\n{FP32}"))
    assert code == 2
    assert option.split()[0] in found["error"]["message"]


def test_an_input_without_the_batch_axis_needs_batch_1(run_here: Run) -> None:
    onnx_models.save(onnx_models.add(["n", 3], [3], ["n", 3]), Path("add.onnx"))
    code, found = run_here("add.onnx", "--target", "x86-64", "--batch", "4", "--no-device")
    assert code == 2
    assert "'b'" in found["error"]["message"]
    assert run_here("add.onnx", "--target", "x86-64", "--no-device")[0] == 0


def test_a_talkative_generator_runs_once_for_all_models(run_here: Run, noisy: Path) -> None:
    Path("talk.py").write_text(
        "import pathlib, random, numpy\n"
        "def samples():\n"
        "    print('talking')\n"
        "    with pathlib.Path('calls').open('a') as file: file.write('x')\n"
        "    for i in range(12):\n"
        "        yield numpy.full((1, 8, 8), random.random(), 'float32'), i % 10\n"
    )
    words = ("--target", "x86-64", "--data", "talk:samples", *FLOAT, "--no-device")
    code, found = run_here(MODEL, noisy, *words, "--max-accuracy-drop", "none")
    assert code == 0
    assert found["data"]["evaluation_samples"] == 12
    assert Path("calls").read_text() == "x"


def test_nothing_measured_is_nothing_chosen_whatever_is_minimized(run_here: Run) -> None:
    words = ("--minimize", "size", "--time-limit", "1ms", "--quick")
    code, found = run_here(*PLAIN, *words)
    assert code == 4
    assert "--time-limit" in found["error"]["message"]
    assert not Path("digits_cnn-x86-64").exists()


def test_macs_that_cannot_be_counted_are_no_budget(run_here: Run) -> None:
    nodes = [onnx_models.node("Einsum", "x x x", "y", equation="ij,ij,ij->ij")]
    shapes = [onnx_models.value("x", [1, 3])], [onnx_models.value("y", [1, 3])]
    onnx_models.save(onnx_models.build(nodes, *shapes), Path("einsum.onnx"))
    code, found = run_here("einsum.onnx", "--target", "x86-64", "--max-macs", "50%")
    assert code == 2
    assert "--max-macs" in found["error"]["message"]
