"""Which samples calibrate and which evaluate."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onmetal.calibration import samples
from onmetal.calibration.samples import split
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local_worker import quiet_environment
from onmetal.records import plain, restore
from onmetal.samples import Samples
from tests.float_graphs import branch_data, branches, floats
from tests.int8_models import random
from tests.int8_runs import (
    CALIBRATION,
    DATA,
    JUDGED,
    MODEL,
    Document,
    Made,
    Run,
    Words,
    briefly,
    candidates,
    manifest,
    said_of,
    usable,
)
from tests.onnx_models import dense, read, save
from tests.statistics_reference import case, compare, streamed


def both(whole: Samples) -> tuple[Samples, Samples] | None:
    """The parts that there are where nothing is trained."""
    parts = split(whole)
    assert parts is None or parts.training is None
    return (parts.calibration, parts.evaluation) if parts else None


def counted(count: int) -> Samples:
    return Samples("made up", f"digest of {count}", count)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 6000))
@example(3)
@example(4)
@example(2048)
@example(2049)
@example(100_003)
def test_every_nth_sample_calibrates(count: int) -> None:
    whole = counted(count)
    parts = both(whole)
    if count < 4:
        assert parts is None
        return
    assert parts and parts == both(whole)
    calibration, evaluation = (part.places() for part in parts)
    assert [part.part for part in parts] == ["calibration", "evaluation"]
    assert [len(calibration), len(evaluation)] == [part.count for part in parts]
    assert 1 <= len(calibration) <= min(512, count / 4)
    assert len(set(np.diff(calibration))) <= 1
    assert (np.diff(evaluation) > 0).all()
    np.testing.assert_array_equal(
        np.sort(np.concatenate([calibration, evaluation])), np.arange(count)
    )
    assert len({whole.digest, *(part.digest for part in parts)}) == 3
    for part in parts:
        assert restore(json.loads(json.dumps(plain(part))), Samples) == part
    if count >= 4 * 512:
        assert len(calibration) > 256  # no more are left out than need be


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 6000), st.floats(0.001, 0.999))
@example(4, 0.5)
@example(2049, 0.9)
def test_a_part_for_training_is_taken_from_what_evaluates(count: int, share: float) -> None:
    whole = counted(count)
    parts = split(whole, training=share)
    if count < 4:
        assert parts is None
    if parts is None:
        assert count < 8
        return
    assert parts == split(whole, training=share)
    without = split(whole)
    assert parts.training and without
    three = (parts.training, parts.calibration, parts.evaluation)
    assert [part.part for part in three] == ["training", "calibration", "evaluation"]
    places = [part.places() for part in three]
    assert [len(found) for found in places] == [part.count for part in three]
    np.testing.assert_array_equal(np.sort(np.concatenate(places)), np.arange(count))
    np.testing.assert_array_equal(places[1], without.calibration.places())
    assert len({whole.digest, *(part.digest for part in three)}) == 4
    assert parts.evaluation.digest != without.evaluation.digest
    kept = whole.count - parts.calibration.count
    assert abs(parts.training.count / kept - share) <= 0.5  # of three, one or two
    for part in three:
        assert restore(json.loads(json.dumps(plain(part))), Samples) == part


def test_the_parts_of_other_data_are_told_apart() -> None:
    digests = {part.digest for count in range(4, 90) for part in both(counted(count)) or ()}
    assert len(digests) == 2 * 86


def test_inputs_and_labels_follow_their_samples(tmp_path: Path) -> None:
    values, labels = floats(23, 4), np.arange(23) * 10
    np.savez(tmp_path / "data.npz", x=values, y=labels)
    model = read(dense(), tmp_path)
    with Cache() as cache:
        path = str(tmp_path / "data.npz")
        whole = samples.load(path, model, cache, option="--data", labelled=True)
        parts = both(whole)
        assert parts
        for part in parts:
            fed = np.concatenate([part.feed(model, [i])["x"] for i in range(part.count)])
            np.testing.assert_array_equal(fed, values[part.places()])
            np.testing.assert_array_equal(part.label_array(), labels[part.places()])
        assert parts[0].places().tolist() == [3, 7, 11, 15, 19]
        np.testing.assert_array_equal(whole.label_array(), labels)


def test_a_part_is_calibrated_with_alone(tmp_path: Path) -> None:
    whole = case(branches(), tmp_path / "case", batch=4, **branch_data(60))
    parts = both(whole.samples)
    assert parts
    for part in parts:
        arrays = {name: array[part.places()] for name, array in whole.arrays.items()}
        given = whole._replace(samples=part, arrays=arrays)
        compare(given, streamed(given, tmp_path / part.part, 2))


def test_every_fourth_sample_calibrates_and_all_others_judge(twin: Made) -> None:
    data = twin.document["data"]
    assert (data["calibration_samples"], data["evaluation_samples"]) == (150, 450)
    assert manifest(twin.folder)["evaluation_indices"] == JUDGED
    for entry in usable(twin.document):
        assert entry["accuracy"]["samples"] == 450


def test_a_timed_run_is_split_the_same_way(bundle: Path, document: Document) -> None:
    assert manifest(bundle)["evaluation_indices"] == JUDGED
    assert document["data"]["calibration_samples"] == 150


@pytest.mark.parametrize(
    ("count", "calibrating"), [(600, 150), (603, 150), (2048, 512), (2049, 409), (5200, 472)]
)
def test_at_most_a_quarter_and_at_most_512_calibrate(
    count: int, calibrating: int, run: Run, tmp_path: Path
) -> None:
    path = save(dense(), tmp_path / "dense.onnx")
    np.savez(tmp_path / "many.npz", x=random(count, 4), y=np.arange(count) % 3)
    code, found, _ = run(path, "--target", "x86-64", "--data", tmp_path / "many.npz", "--dry-run")
    assert code == 0
    assert found["data"]["calibration_samples"] == calibrating
    assert found["data"]["evaluation_samples"] == count - calibrating


SCORE = """
import json, sys
import numpy as np
folder, data = sys.argv[1:]
manifest = json.load(open(folder + "/manifest.json"))
files = [folder + "/" + name for name in manifest["run"]["files"]]
if manifest["run"]["runtime"] == "onnxruntime":
    import onnxruntime
    session = onnxruntime.InferenceSession(files[0], providers=["CPUExecutionProvider"])
    run = lambda x: session.run(None, {"image": x})[0]
else:
    import openvino
    model = openvino.Core().compile_model(files[0], "CPU", manifest["run"]["options"])
    run = lambda x: model({"image": x})[0]
data = np.load(data)
x, y = data["x"], data["y"]
hits = [int(run(x[i][None])[0].argmax()) == y[i] for i in manifest["evaluation_indices"]]
assert not any(name.partition(".")[0] == "onmetal" for name in sys.modules)
print(json.dumps([int(sum(hits)), len(hits)]))
"""


@pytest.mark.parametrize("which", ["twin", "twin_ir"])
def test_accuracy_is_what_numpy_and_the_runtime_count_on_the_judged_samples(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    found: Made = request.getfixturevalue(which)
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(found.folder), str(DATA)],
        env=quiet_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    hits, count = json.loads(done.stdout)
    accuracy = candidates(found.document)[found.document["chosen"]]["accuracy"]
    assert count == accuracy["samples"] == 450
    assert accuracy["value"] == pytest.approx(hits / count, abs=1e-12)
    fp32 = next(e for e in found.document["candidates"] if e["recipe"] == "fp32")["accuracy"]
    assert accuracy["drop"] == pytest.approx(fp32["value"] - hits / count, abs=1e-12)


def test_with_calibration_data_all_of_data_judges(apart: Made) -> None:
    data = apart.document["data"]
    assert (data["calibration_samples"], data["evaluation_samples"]) == (256, 600)
    assert manifest(apart.folder)["evaluation_indices"] == list(range(600))
    assert candidates(apart.document)["int8-s8s8@onnxruntime"]["accuracy"]["samples"] == 600


def test_where_nothing_calibrates_all_of_data_judges(run: Run, tmp_path: Path) -> None:
    words: Words = (MODEL, "--target", "x86-openvino", "--data", DATA, "--recipes", "fp32,bf16")
    code, found, _ = run(*words, "--no-device", "--out", "out")
    assert code == 0
    data = found["data"]
    assert (data["calibration_samples"], data["evaluation_samples"]) == (0, 600)
    assert manifest(tmp_path / "out")["evaluation_indices"] == list(range(600))


def test_where_nothing_is_calibrated_no_statistics_are_taken(tmp_path: Path) -> None:
    words: Words = (MODEL, "--target", "x86-onnxruntime", "--data", DATA, "--recipes", "fp32")
    words = (*words, "--calibration-data", CALIBRATION, "--no-device")
    code, _, _ = briefly(*words, cwd=tmp_path, home=tmp_path / "home")
    assert code == 0
    assert not list((tmp_path / "home" / "entries").glob("statistics-*"))


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


def test_samples_in_both_parts_of_data_are_said(run: Run, tmp_path: Path) -> None:
    with np.load(DATA) as data:
        x, y = data["x"][:400].copy(), data["y"][:400]
    for number in range(10):
        x[4 * number] = x[4 * number + 3]
    x[200] = x[201]  # both are judged: no harm
    np.savez(tmp_path / "twice.npz", x=x, y=y)
    words: Words = (MODEL, "--target", "x86-64", "--data", tmp_path / "twice.npz", "--dry-run")
    _, found, err = run(*words)
    (text,) = said_of(found, "better than it is")
    assert numbers(text) == [10]
    assert text in err
    _, found, _ = run(*words, "--recipes", "fp32")  # there is one part only
    assert not said_of(found, "better than it is")


def test_one_sample_over_and_over_is_more_than_one(run: Run, tmp_path: Path) -> None:
    with np.load(DATA) as data:
        x, y = data["x"][:1].repeat(200, axis=0), data["y"][:1].repeat(200)
    np.savez(tmp_path / "same.npz", x=x, y=y)
    words: Words = (MODEL, "--target", "x86-64", "--data", tmp_path / "same.npz", "--dry-run")
    (text,) = said_of(run(*words)[1], "better than it is")
    assert numbers(text) == [150]


def test_too_few_samples_leave_float(run: Run, tmp_path: Path) -> None:
    with np.load(DATA) as data:
        np.savez(tmp_path / "few.npz", x=data["x"][:3], y=data["y"][:3])
    words: Words = (MODEL, "--target", "x86-64", "--data", tmp_path / "few.npz", "--no-device")
    code, found, _ = run(*words, "--out", "out")
    assert code == 0
    assert found["chosen"].startswith(("fp32@", "bf16@", "fp16@", "int8-dynamic@"))  # the smallest
    assert found["data"]["calibration_samples"] == 0
    assert manifest(tmp_path / "out")["evaluation_indices"] == [0, 1, 2]
    entry = candidates(found)["int8-u8s8@openvino"]
    assert entry["status"] == "skipped"
    for words_in in ("3 samples", "--calibration-data"):
        assert words_in in entry["reason"]
