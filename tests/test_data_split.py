"""Which samples calibrate and which evaluate."""

import json
from pathlib import Path

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onmetal.calibration import samples
from onmetal.calibration.samples import split
from onmetal.files.cache import Cache
from onmetal.records import plain, restore
from onmetal.samples import Samples
from tests.float_graphs import branch_data, branches, floats
from tests.onnx_models import dense, read
from tests.statistics_reference import case, compare, streamed


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
    parts = split(whole)
    if count < 4:
        assert parts is None
        return
    assert parts and parts == split(whole)
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


def test_the_parts_of_other_data_are_told_apart() -> None:
    digests = {part.digest for count in range(4, 90) for part in split(counted(count)) or ()}
    assert len(digests) == 2 * 86


def test_inputs_and_labels_follow_their_samples(tmp_path: Path) -> None:
    values, labels = floats(23, 4), np.arange(23) * 10
    np.savez(tmp_path / "data.npz", x=values, y=labels)
    model = read(dense(), tmp_path)
    with Cache() as cache:
        path = str(tmp_path / "data.npz")
        whole = samples.load(path, model, cache, option="--data", labelled=True)
        parts = split(whole)
        assert parts
        for part in parts:
            fed = np.concatenate([part.feed(model, [i])["x"] for i in range(part.count)])
            np.testing.assert_array_equal(fed, values[part.places()])
            np.testing.assert_array_equal(part.label_array(), labels[part.places()])
        assert parts[0].places().tolist() == [3, 7, 11, 15, 19]
        np.testing.assert_array_equal(whole.label_array(), labels)


def test_a_part_is_calibrated_with_alone(tmp_path: Path) -> None:
    whole = case(branches(), tmp_path / "case", batch=4, **branch_data(60))
    parts = split(whole.samples)
    assert parts
    for part in parts:
        arrays = {name: array[part.places()] for name, array in whole.arrays.items()}
        given = whole._replace(samples=part, arrays=arrays)
        compare(given, streamed(given, tmp_path / part.part, 2))
