import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from onmetal.calibration import samples
from onmetal.deploy.request import Request, prepare
from onmetal.errors import UsageError
from onmetal.files import images
from onmetal.files.cache import Cache
from onmetal.files.preprocessing import Preprocessing
from onmetal.records import Model, Tensor
from onmetal.samples import Samples
from tests.conftest import DIGITS, deploy
from tests.onnx_models import build, node, save, value, weights

RANDOM = np.random.default_rng(0)


def taking(*inputs: Tensor, batch: int = 1) -> Model:
    """A model as far as data is concerned: what it takes."""
    return Model(
        path=Path("model.onnx"),
        prepared=Path("model.onnx"),
        prepared_sha256="",
        format="onnx",
        sha256="",
        size_bytes=1,
        inputs=inputs,
        outputs=(Tensor("y", "float32", (batch, 2)),),
        parameters=0,
        macs=0,
        operators={},
        batch=batch,
    )


def image_model(*shape: int, dtype: str = "float32") -> Model:
    return taking(Tensor("image", dtype, (1, *shape)))


VECTOR = taking(Tensor("vector", "float32", (1, 4)))
PAIR = taking(Tensor("left", "float32", (1, 2)), Tensor("right", "int64", (1, 3)))


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache() as opened:
        yield opened


def load(what: Path | str, model: Model, cache: Cache, *, labelled: bool = False) -> Samples:
    return samples.load(str(what), model, cache, option="--data", labelled=labelled)


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def floats(*shape: int) -> np.ndarray:
    return RANDOM.random(shape).astype(np.float32)


def everything(found: Samples, model: Model, name: str) -> np.ndarray:
    return np.concatenate([found.feed(model, [i])[name] for i in range(found.count)])


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
from tests.test_samples import Tensor, taking, Samples
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


def picture(path: Path, width: int, height: int, mode: str = "RGB") -> np.ndarray:
    depth = () if mode == "L" else (len(mode),)
    pixels = RANDOM.integers(0, 256, (height, width, *depth), np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return pixels


def folder_of(tmp_path: Path, toml: str, count: int = 3, width: int = 9, height: int = 7) -> Path:
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    (folder / "data.toml").write_text(toml)
    for number in range(count):
        picture(folder / f"{number}.png", width, height)
    return folder


@pytest.mark.parametrize(
    ("width", "height", "crop", "left", "top"),
    [
        (9, 7, (4, 4), 2, 1),  # differences of 5 and 3: the odd pixel is cut at the end
        (8, 8, (4, 4), 2, 2),
        (5, 5, (5, 5), 0, 0),
        (6, 5, (4, 5), 0, 0),
    ],
)
def test_the_crop_is_centred_and_rounds_down(
    tmp_path: Path, width: int, height: int, crop: tuple[int, int], left: int, top: int
) -> None:
    pixels = picture(tmp_path / "a.png", width, height)
    found = images.read(tmp_path / "a.png", Preprocessing(crop=crop, layout="NHWC"))
    expected = pixels[top : top + crop[0], left : left + crop[1]]
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (33, 17)])
def test_size_scales_the_shorter_side(tmp_path: Path, width: int, height: int) -> None:
    picture(tmp_path / "a.png", width, height)
    found = images.read(tmp_path / "a.png", Preprocessing(size=10, layout="NHWC"))
    short = min(width, height)
    size = width * 10 // short, height * 10 // short
    expected = Image.open(tmp_path / "a.png").resize(size, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))
    assert min(found.shape[:2]) == 10


def test_size_comes_before_crop(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 40, 20)
    found = images.read(tmp_path / "a.png", Preprocessing(size=10, crop=(8, 8), layout="NHWC"))
    scaled = Image.open(tmp_path / "a.png").resize((20, 10), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(scaled, np.float32)[1:9, 6:14])


def test_channels_in_the_order_asked_for(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 5, 4)
    for channels, expected in (("RGB", pixels), ("BGR", pixels[:, :, ::-1])):
        how = Preprocessing(channels=channels, layout="NHWC")  # type: ignore[arg-type]
        np.testing.assert_array_equal(images.read(tmp_path / "a.png", how), expected)
    grey = images.read(tmp_path / "a.png", Preprocessing(channels="L", layout="NHWC"))
    assert grey.shape == (4, 5, 1)
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey[:, :, 0], luma, atol=1)


def test_scale_mean_and_std_for_each_channel(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 5, 4)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    for channels in ("RGB", "BGR"):
        how = Preprocessing(
            channels=channels,
            scale=1 / 255,
            mean=mean,
            std=std,
        )
        ordered = pixels if channels == "RGB" else pixels[:, :, ::-1]
        expected = ((ordered / 255 - np.array(mean)) / np.array(std)).transpose(2, 0, 1)
        found = images.read(tmp_path / "a.png", how)
        assert found.dtype == np.float32 and found.flags.c_contiguous
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_one_mean_for_all_channels(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 5, 4)
    found = images.read(tmp_path / "a.png", Preprocessing(mean=(128.0,), std=(2.0,)))
    np.testing.assert_array_equal(found, (pixels.transpose(2, 0, 1) - 128.0) / 2.0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "uint8"])
def test_dtypes_of_images(tmp_path: Path, dtype: Any) -> None:
    pixels = picture(tmp_path / "a.png", 5, 4)
    found = images.read(tmp_path / "a.png", Preprocessing(dtype=dtype, layout="NHWC"))
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, pixels)


def test_int8_images_from_a_shift(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 5, 4)
    how = Preprocessing(dtype="int8", mean=(128.0,), layout="NHWC")
    np.testing.assert_array_equal(images.read(tmp_path / "a.png", how), pixels.astype(int) - 128)


@pytest.mark.parametrize(("dtype", "mean"), [("int8", 0.0), ("uint8", 100.0)])
def test_values_outside_the_dtype_are_refused(tmp_path: Path, dtype: Any, mean: float) -> None:
    Image.fromarray(np.array([[0, 99, 255]], np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match=dtype):
        images.read(tmp_path / "a.png", Preprocessing(dtype=dtype, mean=(mean,)))


def test_a_labelled_folder(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "scale = 0.5\ncrop = [4, 6]")
    (folder / "labels.csv").write_text("file,label\n2.png,7\n0.png,1\n")
    model = image_model(3, 4, 6)
    found = load(folder, model, cache, labelled=True)
    assert found.count == 2
    assert found.label_array().dtype == np.int64
    np.testing.assert_array_equal(found.label_array(), [7, 1])
    first = np.asarray(Image.open(folder / "2.png"), np.float32)[1:5, 1:7].transpose(2, 0, 1) / 2
    np.testing.assert_array_equal(found.feed(model, [0])["image"], first[None])


def test_labels_with_a_byte_order_mark_and_fractions(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "")
    (folder / "labels.csv").write_text("\ufefffile,label\n1.png,0.5\n0.png,2\n", "utf-8")
    found = load(folder, image_model(3, 7, 9), cache, labelled=True)
    assert found.label_array().dtype == np.float32
    np.testing.assert_array_equal(found.label_array(), np.array([0.5, 2], np.float32))


def test_an_unlabelled_folder_calibrates(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "")
    (folder / "notes.txt").write_text("no image")
    found = load(folder, image_model(3, 7, 9), cache)
    assert [path.name for path in found.images] == ["0.png", "1.png", "2.png"]
    assert found.labels is None
    with pytest.raises(UsageError, match=r"no labels\.csv"):
        load(folder, image_model(3, 7, 9), cache, labelled=True)


def test_a_folder_of_images_may_be_named_relative(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path, "")
    monkeypatch.chdir(tmp_path)
    found = load("images", image_model(3, 7, 9), cache)
    monkeypatch.chdir("/")
    assert found.feed(image_model(3, 7, 9), [0])["image"].shape == (1, 3, 7, 9)


def test_a_folder_without_data_toml(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "")
    (folder / "data.toml").unlink()
    with pytest.raises(UsageError, match=r"needs a data\.toml"):
        load(folder, image_model(3, 7, 9), cache)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("resize = 5", "resize"),
        ("size = 0", "size"),
        ("size = '8'", "size"),
        ("crop = [4]", "crop"),
        ("crop = [4, 0]", "crop"),
        ("channels = 'CMYK'", "channels"),
        ("layout = 'HWC'", "layout"),
        ("dtype = 'int64'", "dtype"),
        ("mean = [1.0, 2.0]", "mean has 2 values for 3 channels"),
        ("channels = 'L'\nstd = [1.0, 1.0, 1.0]", "std has 3 values for 1 channels"),
        ("std = [1.0, 0.0, 1.0]", "std must not be zero"),
        ("std = [0]", "std must not be zero"),
        ("mean = [nan]", "mean"),
        ("scale = inf", "scale"),
        ("size = ", r"data\.toml"),
    ],
)
def test_a_data_toml_that_is_wrong(tmp_path: Path, cache: Cache, toml: str, message: str) -> None:
    folder = folder_of(tmp_path, toml)
    with pytest.raises(UsageError, match=message) as caught:
        load(folder, image_model(3, 7, 9), cache)
    assert "data.toml" in str(caught.value)


def test_whole_numbers_in_data_toml(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "scale = 2\nmean = [1, 2, 3]\nstd = [1, 1, 2]")
    found = load(folder, image_model(3, 7, 9), cache)
    assert found.preprocessing == Preprocessing(scale=2, mean=(1, 2, 3), std=(1, 1, 2))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_a_broken_image_is_named(tmp_path: Path, cache: Cache, content: bytes) -> None:
    folder = folder_of(tmp_path, "")
    (folder / "1.png").write_bytes(content)
    with pytest.raises(UsageError, match=r"1\.png: a broken image"):
        load(folder, image_model(3, 7, 9), cache)


def test_a_truncated_image_is_named(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "")
    os.truncate(folder / "2.png", (folder / "2.png").stat().st_size // 2)
    with pytest.raises(UsageError, match=r"2\.png: a broken image"):
        load(folder, image_model(3, 7, 9), cache)


def test_an_image_smaller_than_the_crop_is_named(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "crop = [7, 9]")
    picture(folder / "1.png", 8, 7)
    with pytest.raises(UsageError, match=r"1\.png: 8x7 pixels are too few for the crop 9x7"):
        load(folder, image_model(3, 7, 9), cache)


def test_images_of_another_size_than_the_model_takes(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "")
    picture(folder / "1.png", 10, 7)
    with pytest.raises(UsageError, match=r"1\.png.*\[3, 7, 10\].*\[3, 7, 9\]"):
        load(folder, image_model(3, 7, 9), cache)


def test_images_in_the_other_layout_are_hinted_at(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "layout = 'NHWC'")
    with pytest.raises(UsageError, match="permuted"):
        load(folder, image_model(3, 7, 9), cache)


def test_images_of_another_dtype_than_the_model_takes(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "dtype = 'float16'")
    with pytest.raises(UsageError, match="has dtype float16"):
        load(folder, image_model(3, 7, 9), cache)


@pytest.mark.parametrize(("dtype", "wanted"), [("uint8", "float32"), ("float64", "float32")])
def test_images_are_fed_in_the_dtype_of_the_model(
    tmp_path: Path, cache: Cache, dtype: str, wanted: str
) -> None:
    folder = folder_of(tmp_path, f"dtype = '{dtype}'")
    model = image_model(3, 7, 9, dtype=wanted)
    assert load(folder, model, cache).feed(model, [0])["image"].dtype == np.dtype(wanted)


def test_images_for_a_model_of_two_inputs(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(UsageError, match="a folder of images gives one input; this model has 2"):
        load(folder_of(tmp_path, ""), PAIR, cache)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\n0.png\n", "line 2.*file,label"),
        ("file,label\n0.png,1\n9.png,2\n", r"line 3: there is no file 9\.png"),
        ("file,label\n0.png,1\n../outside.png,2\n", "line 3.*outside the folder"),
        ("file,label\n/etc/passwd,1\n", "line 2.*outside the folder"),
        ("file,label\n0.png,\n", "line 2"),
        ("file,label\n0.png,nan\n1.png,1\n", "NaN"),
        ("file,label\n0.png,inf\n1.png,1\n", "infinite"),
        ("file,label\n", "no sample"),
        ("", "no sample"),
    ],
)
def test_a_labels_csv_that_is_wrong(tmp_path: Path, cache: Cache, table: str, message: str) -> None:
    folder = folder_of(tmp_path, "")
    picture(tmp_path / "outside.png", 9, 7)
    (folder / "labels.csv").write_text(table)
    with pytest.raises(UsageError, match=message):
        load(folder, image_model(3, 7, 9), cache, labelled=True)


def test_a_labels_csv_that_is_no_text(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "")
    (folder / "labels.csv").write_bytes(b"file,label\n\xff\xfe.png,1\n")
    with pytest.raises(UsageError, match=r"labels\.csv"):
        load(folder, image_model(3, 7, 9), cache, labelled=True)


def test_an_image_that_changes_is_checked_again(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "")
    before = load(folder, image_model(3, 7, 9), cache)
    picture(folder / "1.png", 9, 7)
    after = load(folder, image_model(3, 7, 9), cache)
    assert before.digest != after.digest
    (folder / "1.png").write_bytes(b"broken")
    with pytest.raises(UsageError, match="broken image"):
        load(folder, image_model(3, 7, 9), cache)


GENERATORS = """
import numpy as np

def single():
    for i in range(4):
        yield np.full(4, i, np.float32), i

def scores():
    for i in range(4):
        yield np.full(4, i, np.float32), i / 2

def pairs():
    for i in range(4):
        yield {"left": np.full(2, i, np.float32), "right": np.full(3, i)}, None

def lists():
    yield [1.0, 2.0, 3.0, 4.0], 1
    yield [1.0, 2.0, 3.0, 5.0], 0

def growing():
    yield np.zeros(4, np.float32), 0
    yield np.zeros(5, np.float32), 0

def half_labelled():
    yield np.zeros(4, np.float32), 0
    yield np.ones(4, np.float32), None

def mixed_labels():
    yield np.zeros(4, np.float32), 0
    yield np.ones(4, np.float32), 0.5

def no_first_label():
    yield np.zeros(4, np.float32), None
    yield np.ones(4, np.float32), 1

def half_missing():
    yield {"left": np.zeros(2, np.float32), "right": np.zeros(3, np.int64)}, 0
    yield {"left": np.ones(2, np.float32)}, 0

def failing():
    yield np.zeros(4, np.float32), 0
    raise KeyError("no such picture")

def nothing():
    return iter(())

def no_pairs():
    yield np.zeros(4, np.float32)

def objects():
    yield np.array([object()] * 4), 0

def ragged():
    yield [[1.0], [1.0, 2.0]], 0

def nan():
    yield np.zeros(4, np.float32), 0
    yield np.full(4, np.nan, np.float32), 0

def with_argument(path):
    yield np.zeros(4, np.float32), 0

def leaving():
    raise SystemExit(9)
    yield

number = 5
"""


@pytest.fixture
def generators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of generators in the folder that the command is started in. -> its name."""
    name = f"made_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(GENERATORS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_a_generator(cache: Cache, generators: str) -> None:
    found = load(f"{generators}:single", VECTOR, cache, labelled=True)
    assert found.count == 4
    expected = np.repeat(np.arange(4, dtype=np.float32)[:, None], 4, axis=1)
    np.testing.assert_array_equal(everything(found, VECTOR, "vector"), expected)
    assert found.label_array().dtype.kind == "i"
    np.testing.assert_array_equal(found.label_array(), range(4))
    assert load(f"{generators}:single", VECTOR, cache).digest == found.digest


def test_a_generator_of_float_labels(cache: Cache, generators: str) -> None:
    found = load(f"{generators}:scores", VECTOR, cache, labelled=True)
    np.testing.assert_array_equal(found.label_array(), [0, 0.5, 1, 1.5])


def test_a_generator_of_several_inputs(cache: Cache, generators: str) -> None:
    found = load(f"{generators}:pairs", PAIR, cache)
    assert found.labels is None
    assert found.feed(PAIR, [2])["right"].tolist() == [[2, 2, 2]]


def test_a_generator_of_lists(cache: Cache, generators: str) -> None:
    found = load(f"{generators}:lists", VECTOR, cache, labelled=True)
    assert found.feed(VECTOR, [1])["vector"].tolist() == [[1, 2, 3, 5]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("growing", r"sample 1 .*'x' float32\[5\].*sample 0 .*'x' float32\[4\]"),
        ("half_labelled", "label"),
        ("no_first_label", "label"),
        ("mixed_labels", "label"),
        ("failing", "failed with KeyError: 'no such picture'"),
        ("nothing", "yielded no samples"),
        ("no_pairs", r"must yield \(inputs, label\) pairs"),
        ("objects", r"'x' object\[4\]; only numbers"),
        ("ragged", "ragged"),
        ("nan", "sample 1 holds NaN"),
        ("with_argument", "failed with TypeError"),
        ("leaving", "leaving"),
        ("number", "number"),
        ("absent", "cannot import it"),
        ("", ":"),
    ],
)
def test_a_generator_that_is_wrong(cache: Cache, generators: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load(f"{generators}:{name}", VECTOR, cache)
    assert str(caught.value).isprintable()


def test_a_generator_that_leaves_an_input_out(cache: Cache, generators: str) -> None:
    with pytest.raises(UsageError, match="right"):
        load(f"{generators}:half_missing", PAIR, cache)


@pytest.mark.parametrize("text", ["no_such_module_here:f", "a b:f", ":f", "json:no_such", "..x:f"])
def test_a_callable_that_cannot_be_imported(cache: Cache, text: str) -> None:
    with pytest.raises(UsageError, match="cannot import it"):
        load(text, VECTOR, cache)


def test_a_module_that_does_not_compile(cache: Cache, generators: str) -> None:
    Path("broken_module_here.py").write_text("def f(:\n")
    with pytest.raises(UsageError, match="broken_module_here"):
        load("broken_module_here:f", VECTOR, cache)


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
