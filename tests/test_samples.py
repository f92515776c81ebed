"""Arrays as samples: which file fits which model, and what is refused."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from onmetal.calibration import samples
from onmetal.deploy.prepare import prepare
from onmetal.deploy.request import Request
from onmetal.errors import UsageError
from onmetal.files.cache import Cache
from onmetal.records import Tensor
from onmetal.samples import Samples
from tests.conftest import DIGITS, deploy
from tests.onnx_models import build, node, save, value, weights
from tests.sample_files import (
    PAIR,
    RANDOM,
    VECTOR,
    everything,
    floats,
    image_model,
    load,
    npz,
    taking,
)


@pytest.mark.parametrize("name", ["x", "vector"])
@pytest.mark.parametrize("save_with", [np.savez, np.savez_compressed])
def test_a_single_input_by_x_or_by_name(
    tmp_path: Path, cache: Cache, name: str, save_with: Any
) -> None:
    values, labels = floats(5, 4), np.arange(5)
    path = tmp_path / "data.npz"
    save_with(path, **{name: values, "y": labels})
    found = load(path, VECTOR, cache, labelled=True)
    assert found.count == 5
    np.testing.assert_array_equal(everything(found, VECTOR, "vector"), values)
    np.testing.assert_array_equal(found.label_array(), labels)


def test_several_inputs_go_by_name(tmp_path: Path, cache: Cache) -> None:
    left, right = floats(4, 2), RANDOM.integers(0, 9, (4, 3))
    found = load(npz(tmp_path, right=right, left=left), PAIR, cache)
    np.testing.assert_array_equal(everything(found, PAIR, "left"), left)
    np.testing.assert_array_equal(everything(found, PAIR, "right"), right)


def test_an_input_that_is_named_y_is_no_label(tmp_path: Path, cache: Cache) -> None:
    model = taking(Tensor("y", "float32", (1, 4)))
    found = load(npz(tmp_path, y=floats(3, 4)), model, cache)
    assert found.labels is None and list(found.arrays) == ["y"]


def test_unknown_members_are_refused(tmp_path: Path, cache: Cache) -> None:
    path = npz(tmp_path, x=floats(3, 4), weights=floats(3))
    with pytest.raises(UsageError, match="'weights' is no input of the model"):
        load(path, VECTOR, cache)


def test_x_is_not_guessed_among_several_inputs(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(UsageError, match=r"'x' is no input.*left, right"):
        load(npz(tmp_path, x=floats(3, 2)), PAIR, cache)


def test_a_missing_input_is_named(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(UsageError, match="no array for the model's input 'right'"):
        load(npz(tmp_path, left=floats(3, 2)), PAIR, cache)


def test_a_wrong_shape_says_both(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(UsageError, match=r"has shape \[5\], the model takes \[4\]$"):
        load(npz(tmp_path, x=floats(3, 5)), VECTOR, cache)


def test_permuted_axes_are_hinted_at(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(UsageError, match="permuted"):
        load(npz(tmp_path, x=floats(2, 8, 6, 3)), image_model(3, 8, 6), cache)


def test_whole_inputs_of_a_batch_of_one_fit_too(tmp_path: Path, cache: Cache) -> None:
    values = floats(3, 1, 4)
    found = load(npz(tmp_path, x=values), VECTOR, cache)
    assert found.feed(VECTOR, [2])["vector"].shape == (1, 4)
    np.testing.assert_array_equal(found.feed(VECTOR, [2])["vector"], values[2])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("float64", "float32"),
        ("float64", "float16"),
        ("float32", "float16"),
        ("uint8", "float32"),
        ("int16", "float32"),
        ("int32", "int64"),
        ("uint8", "int32"),
        ("bool", "bool"),
    ],
)
def test_dtypes_that_are_converted(tmp_path: Path, cache: Cache, given: str, wanted: str) -> None:
    values = np.array([[0, 1, 1, 0], [1, 1, 0, 1]], given)
    model = taking(Tensor("vector", wanted, (1, 4)))
    fed = load(npz(tmp_path, x=values), model, cache).feed(model, [1])["vector"]
    assert fed.dtype == np.dtype(wanted)
    np.testing.assert_array_equal(fed, values[1:].astype(wanted))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("int64", "int32"),
        ("int64", "float32"),
        ("int32", "float32"),
        ("float32", "int64"),
        ("float16", "float32"),
        ("float32", "float64"),
        ("int8", "uint8"),
        ("complex64", "float32"),
        ("U3", "float32"),
        ("datetime64[s]", "int64"),
    ],
)
def test_dtypes_that_are_refused(tmp_path: Path, cache: Cache, given: str, wanted: str) -> None:
    model = taking(Tensor("vector", wanted, (1, 4)))
    with pytest.raises(UsageError, match="has dtype"):
        load(npz(tmp_path, x=np.zeros((2, 4), given)), model, cache)


class Armed:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("member", ["x", "y"])
def test_object_arrays_are_refused_without_unpickling(
    tmp_path: Path, cache: Cache, member: str
) -> None:
    mark = tmp_path / "executed"
    arrays: dict[str, Any] = {"x": floats(1, 4), "y": np.zeros(1)}
    arrays[member] = np.array([Armed(mark)], dtype=object)
    with pytest.raises(UsageError, match="only numbers"):
        load(npz(tmp_path, **arrays), VECTOR, cache)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Armed(mark)))
    assert mark.exists()


def test_text_is_no_npz(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "data.npz"
    path.write_text("hello")
    with pytest.raises(UsageError, match=r"not a readable \.npz"):
        load(path, VECTOR, cache)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_npz(tmp_path: Path, cache: Cache, share: float, compressed: bool) -> None:
    path = tmp_path / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=floats(50, 4))
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(UsageError, match=r"not a readable \.npz"):
        load(path, VECTOR, cache)


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_with_damaged_contents(tmp_path: Path, cache: Cache, compressed: bool) -> None:
    path = tmp_path / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=floats(500, 4))
    data = bytearray(path.read_bytes())
    data[3000:3040] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"not a readable \.npz"):
        load(path, VECTOR, cache)


def test_a_member_that_is_cut_short(tmp_path: Path, cache: Cache) -> None:
    whole, path = tmp_path / "x.npy", tmp_path / "data.npz"
    np.save(whole, floats(10, 4))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", whole.read_bytes()[:-8])
    with pytest.raises(UsageError, match="'x' is cut short"):
        load(path, VECTOR, cache)


def test_a_member_that_is_no_array(tmp_path: Path, cache: Cache) -> None:
    for name, content, message in (
        ("x.npy", b"hello", "not a readable array"),
        ("x.npy", b"", "not a readable array"),
        ("notes.txt", b"hello", r"'notes\.txt' in it is no array"),
    ):
        path = tmp_path / "data.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)
        with pytest.raises(UsageError, match=message):
            load(path, VECTOR, cache)


def test_an_npz_without_arrays(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(UsageError, match="no array for the model's input 'vector'"):
        load(path, VECTOR, cache)


@pytest.mark.parametrize("member", ["../escaped.npy", "/tmp/escaped.npy"])
def test_members_with_paths_stay_in_the_cache(tmp_path: Path, cache: Cache, member: str) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"hello")
    with pytest.raises(UsageError):
        load(path, VECTOR, cache)
    assert not list(cache.root.rglob("escaped*"))
    assert not Path("/tmp/escaped.npy").exists()


def test_fortran_order(tmp_path: Path, cache: Cache) -> None:
    values = np.asfortranarray(floats(6, 3, 5, 2))
    model = image_model(3, 5, 2)
    found = load(npz(tmp_path, x=values), model, cache)
    assert found.arrays["image"].fortran
    np.testing.assert_array_equal(everything(found, model, "image"), values)


def test_nan_is_named_with_its_sample(tmp_path: Path, cache: Cache) -> None:
    values = floats(9, 4)
    values[7, 2] = np.nan
    with pytest.raises(UsageError, match="'vector' of sample 7 holds NaN"):
        load(npz(tmp_path, x=values), VECTOR, cache)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_labels_that_are_no_number_are_named(tmp_path: Path, cache: Cache, bad: float) -> None:
    labels = floats(9)
    labels[5] = bad
    with pytest.raises(UsageError, match="label of sample 5 is NaN or infinite"):
        load(npz(tmp_path, x=floats(9, 4), y=labels), VECTOR, cache, labelled=True)


@pytest.mark.parametrize("labels", [np.zeros(4), np.float32(1)])
def test_differing_counts_are_said(tmp_path: Path, cache: Cache, labels: Any) -> None:
    with pytest.raises(UsageError, match=r"number of samples \(vector 3, y [04]\)"):
        load(npz(tmp_path, x=floats(3, 4), y=labels), VECTOR, cache)


def test_no_sample(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(UsageError, match="holds no samples"):
        load(npz(tmp_path, x=floats(0, 4)), VECTOR, cache)


def test_an_array_without_a_first_axis(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(UsageError):
        load(npz(tmp_path, x=np.float32(1)), VECTOR, cache)


def test_one_sample_calibrates_but_does_not_judge(tmp_path: Path, cache: Cache) -> None:
    path = npz(tmp_path, x=floats(1, 4), y=np.zeros(1, np.int64))
    assert load(path, VECTOR, cache).count == 1
    with pytest.raises(UsageError, match="one sample is too few"):
        load(path, VECTOR, cache, labelled=True)


def test_no_labels_where_they_are_needed(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(UsageError, match=r"no labels.*--calibration-data"):
        load(npz(tmp_path, x=floats(3, 4)), VECTOR, cache, labelled=True)


def test_no_file(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(UsageError, match=r"--data .*no such file"):
        load(tmp_path / "none.npz", VECTOR, cache)


def test_large_arrays_stay_on_disk(tmp_path: Path) -> None:
    path = npz(tmp_path, x=np.ones((100, 1_000_000 // 2), np.float32))
    assert path.stat().st_size > 190_000_000
    script = f"""
import resource
from pathlib import Path
from onmetal.files.cache import Cache
from onmetal.calibration import samples
from tests.sample_files import taking
from onmetal.records import Tensor
from onmetal.samples import Samples
model = taking(Tensor("x", "float32", (1, 500_000)))
def own():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) << 10
with Cache() as cache:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    anonymous = own()
    found = samples.load({str(path)!r}, model, cache, option="--data", labelled=False)
    total = sum(float(found.feed(model, [i])["x"][0, -1]) for i in range(found.count))
    assert total == 100.0
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((after - before) << 10, own() - anonymous)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "ONMETAL_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    peak, kept = map(int, done.stdout.split())
    assert peak < 60_000_000
    assert kept < 40_000_000


def test_data_may_be_handed_to_another_process(tmp_path: Path, cache: Cache) -> None:
    from onmetal.records import plain, restore

    values = floats(3, 4)
    found = load(npz(tmp_path, x=values), VECTOR, cache)
    again = restore(plain(found), Samples)
    assert again == found
    np.testing.assert_array_equal(everything(again, VECTOR, "vector"), values)


@pytest.mark.parametrize("batch", [1, 4])
def test_feed_gives_the_shapes_of_the_model(tmp_path: Path, cache: Cache, batch: int) -> None:
    model = taking(
        Tensor("vector", "float32", (batch, 4)), Tensor("step", "int64", (batch,)), batch=batch
    )
    values, steps = floats(10, 4), np.arange(10, dtype=np.int32)
    found = load(npz(tmp_path, vector=values, step=steps), model, cache)
    chosen = [7, 2, 9, 0][:batch]
    fed = found.feed(model, chosen)
    np.testing.assert_array_equal(fed["vector"], values[chosen])
    np.testing.assert_array_equal(fed["step"], steps[chosen])
    assert fed["step"].dtype == np.int64


def test_the_last_batch_may_repeat_a_sample(tmp_path: Path, cache: Cache) -> None:
    model = taking(Tensor("vector", "float32", (4, 4)), batch=4)
    values = floats(6, 4)
    found = load(npz(tmp_path, x=values), model, cache)
    np.testing.assert_array_equal(found.feed(model, [4, 5, 5, 5])["vector"], values[[4, 5, 5, 5]])


def test_an_input_without_a_batch_axis(tmp_path: Path, cache: Cache) -> None:
    model = taking(Tensor("vector", "float32", (2, 4)), Tensor("gain", "float32", ()))
    values, gains = floats(3, 2, 4), floats(3)
    found = load(npz(tmp_path, vector=values, gain=gains), model, cache)
    fed = found.feed(model, [1])
    np.testing.assert_array_equal(fed["vector"], values[1])
    assert fed["gain"].shape == () and fed["gain"] == gains[1]


def test_exact_duplicates_are_counted(tmp_path: Path, cache: Cache) -> None:
    values = floats(10, 4)
    values[[3, 8]] = values[1]
    found = load(npz(tmp_path, x=values), VECTOR, cache)
    assert len(found.warnings) == 1
    assert "2 of 10 samples are exact duplicates" in found.warnings[0]
    assert load(npz(tmp_path, x=floats(10, 4)), VECTOR, cache).warnings == ()


def test_random_inputs_are_the_same_every_time(cache: Cache) -> None:
    first, second = (samples.random(PAIR, cache, 5) for _ in range(2))
    assert first.digest == second.digest
    fed = first.feed(PAIR, [3])
    np.testing.assert_array_equal(fed["left"], second.feed(PAIR, [3])["left"])
    assert 0 <= fed["left"].min() <= fed["left"].max() < 1
    assert set(np.unique(fed["right"])) <= {0, 1}


def test_an_overlap_of_the_two_parts_is_said(tmp_path: Path, cache: Cache) -> None:
    values = floats(12, 4)
    data, calibration = tmp_path / "data.npz", tmp_path / "calibration.npz"
    np.savez(data, a=values[:8], b=values[:8], y=values[:8])
    np.savez(calibration, a=values[5:], b=values[5:])
    nodes = [node("MatMul", "a weight", "product"), node("Add", "product b", "sum")]
    inputs = [value("a", ["N", 4]), value("b", ["N", 4])]
    graph = build(nodes, inputs, [value("sum", ["N", 4])], [weights("weight", 4, 4)])
    model = save(graph, tmp_path / "model.onnx")
    request = Request(
        models=(model,), target="x86-64", data=str(data), calibration_data=str(calibration)
    )
    task = prepare(request, cache)
    said = "3 of the evaluation samples are in --calibration-data too;"
    assert [w for w in task.warnings if w.startswith(said)]
    assert task.calibration_samples == 7
    np.savez(calibration, a=values[8:], b=values[8:])
    assert not [w for w in prepare(request, cache).warnings if "--calibration-data" in w]
    float_alone = prepare(replace(request, recipes=("fp32",)), cache)
    assert float_alone.calibration_samples == 0  # nothing is calibrated


def test_the_command_warns_of_an_overlap(tmp_path: Path) -> None:
    with np.load(DIGITS / "digits.npz") as stored:
        (name,) = set(stored.files) - {"y"}
        np.savez(tmp_path / "calibration.npz", **{name: stored[name][:3]})
    ran = deploy(
        DIGITS / "digits_cnn.onnx",
        "--target",
        "x86-64",
        "--dry-run",
        "--json",
        "--data",
        DIGITS / "digits.npz",
        "--calibration-data",
        tmp_path / "calibration.npz",
        "--out",
        tmp_path / "out",
    )
    assert ran.code == 0
    said = "3 of the evaluation samples are in --calibration-data too;"
    assert f"warning: {said}" in ran.err
    assert any(warning.startswith(said) for warning in ran.document["data"]["warnings"])


def test_a_damaged_archive_is_refused(cache: Cache, tmp_path: Path) -> None:
    content = (DIGITS / "digits.npz").read_bytes()
    (tmp_path / "whole.npz").write_bytes(content)
    for place in range(60, len(content) - 400, len(content) // 12):
        broken = bytearray(content)
        for offset in range(20):
            broken[place + offset] ^= 0xFF
        path = tmp_path / f"{place}.npz"
        path.write_bytes(broken)
        with pytest.raises(UsageError):
            load(path, image_model(1, 8, 8), cache, labelled=True)
