"""The user's data: read in one of three forms, checked whole, and fed to a model in batches.

Arrays stay on disk (memory-mapped) and images are decoded as they are needed, so that data may be
larger than memory. `Samples` is a plain record: a worker process is handed it as JSON.
"""

import contextlib
import difflib
import functools
import hashlib
import importlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from msgspec.structs import replace

from onmetal.calibration.labels import listing
from onmetal.errors import UsageError, named
from onmetal.files import arrays as arrays_of_files
from onmetal.files import cache as caches
from onmetal.files import images, preprocessing, reading
from onmetal.files.arrays import Archive, ArrayFile, TextArrayError
from onmetal.files.cache import Cache
from onmetal.files.reading import open_regular
from onmetal.progress import OnProgress
from onmetal.records import Model, Shape, Tensor, plain
from onmetal.samples import Part, Samples
from onmetal.texts.suggest import near

CALIBRATION_MOST = 512
CALIBRATION_PART = 4


def split(samples: Samples) -> tuple[Samples, Samples] | None:
    """-> (calibration part, evaluation part), disjoint and the same in every run: every n-th sample
    calibrates, at most 512 and at most a quarter. None where there are too few samples for that.
    """
    every = max(CALIBRATION_PART, -(-samples.count // CALIBRATION_MOST))
    calibrating = samples.count // every
    if not calibrating or samples.count - calibrating < 2:
        return None

    def part(kind: Part, count: int) -> Samples:
        digest = caches.key(samples=samples.digest, part=kind, every=every)
        return replace(samples, digest=digest, count=count, part=kind, every=every, warnings=())

    return part("calibration", calibrating), part("evaluation", samples.count - calibrating)


def load(
    text: str,
    model: Model,
    cache: Cache,
    *,
    option: str,
    labelled: bool,
    follow_links: bool = False,
    scores: int | None = None,
    progress: OnProgress = lambda done, total, what: None,
) -> Samples:
    """Read DATA in any of its forms and check all of it against the model.

    `follow_links`: whether images may be links to what lies outside of their folder. `scores`: how
    many the judged output gives for a sample, for which names of classes may stand.

    Raises UsageError, saying what is wrong where: names, shapes, dtypes, counts, NaN, broken
    images, missing labels.
    """
    path = Path(text)
    if path.is_dir():
        within = None if follow_links else path.resolve()
        found = _folder(path, model, cache, labelled, scores, within)
    elif path.exists():
        found = _npz(path, model, cache)
    elif ":" in text and not text.endswith(".npz"):
        found = _callable(text, model, cache, option)
    else:
        likely = near(path, (".npz", ""))
        raise UsageError(f"{option} {text}: there is no such file or folder{likely}")
    if labelled and found.labels is None:
        raise UsageError(
            f"{option} {text}: it has no labels (`y` in an .npz file, labels.csv or a "
            "sub-folder a class in a folder); data without labels can be given as "
            "--calibration-data"
        )
    if found.count == 0:
        raise UsageError(f"{option} {text}: it holds no samples")
    if labelled and found.count < 2:
        raise UsageError(f"{option} {text}: one sample is too few to judge a model by")
    return _checked(found, model, cache, progress)


def _npz(path: Path, model: Model, cache: Cache) -> Samples:
    """Members are unpacked once into the cache, so that they can be memory-mapped.

    What their headers say is checked before: unpacking may take long.
    """
    try:
        with arrays_of_files.opened(path) as archive:
            found = _with_labels(str(path), "", dict(archive.members), model)
            digest = archive.sha256()
            _check_room(archive, cache)

            def unpack(folder: Path) -> None:
                archive.unpack(folder)
                if archive.sha256() != digest:
                    raise UsageError(f"{path}: it was changed while it was read; run it again")

            folder = cache.get("data", digest, unpack)
    except TextArrayError as error:
        label = str(error).partition(" has dtype")[0].rpartition(" ")[2].strip("'").lower()
        hint = TEXT if label in LABELS | {"y"} else ""
        raise UsageError(f"{error}{hint}") from None

    def placed(array: ArrayFile) -> ArrayFile:
        return replace(array, path=folder / array.path)

    return replace(
        found,
        digest=digest,
        arrays={name: placed(array) for name, array in found.arrays.items()},
        labels=placed(found.labels) if found.labels else None,
    )


def _check_room(archive: Archive, cache: Cache) -> None:
    """Before it is unpacked: a small file may hold very much."""
    free = shutil.disk_usage(cache.root).free
    if archive.unpacked_bytes > free:
        raise UsageError(
            f"{archive.path}: unpacked it takes {archive.unpacked_bytes} bytes, and where the "
            f"cache is ({cache.root}) {free} are free; set ONMETAL_HOME to a folder with more room"
        )


def _with_labels(source: str, digest: str, arrays: dict[str, ArrayFile], model: Model) -> Samples:
    """`y` is the labels, unless the model has an input of that name."""
    labelled = "y" not in {tensor.name for tensor in model.inputs}
    labels = arrays.pop("y", None) if labelled else None
    return _named(source, digest, arrays, labels, model)


def _named(
    source: str,
    digest: str,
    arrays: dict[str, ArrayFile],
    labels: ArrayFile | None,
    model: Model,
) -> Samples:
    """Match arrays with the model's inputs by name, shape and dtype."""
    wanted = {tensor.name: tensor for tensor in model.inputs}
    if len(wanted) == 1 and "x" in arrays and "x" not in wanted:
        arrays = {next(iter(wanted)) if name == "x" else name: a for name, a in arrays.items()}
    if unknown := sorted(set(arrays) - set(wanted)):
        raise UsageError(
            f"{source}: {unknown[0]!r} is no input of the model (its inputs: {', '.join(wanted)}"
            f"{'; `x` for a single input' if len(wanted) == 1 else ''}; labels: y)"
            f"{_meant(unknown[0], list(wanted), labels is None)}"
        )
    if missing := sorted(set(wanted) - set(arrays)):
        raise UsageError(f"{source}: there is no array for the model's input {missing[0]!r}")
    counts = {name: (array.shape or (0,))[0] for name, array in arrays.items()}
    if labels is not None:
        counts["y"] = (labels.shape or (0,))[0]
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UsageError(f"{source}: its arrays differ in the number of samples ({said})")
    for name, array in arrays.items():
        _match(
            source, name, array.shape[1:], np.dtype(array.dtype), wanted[name], model, _array_advice
        )
    return Samples(source, digest, next(iter(counts.values())), arrays, labels=labels)


LABELS = {"label", "labels", "target", "targets", "class", "classes", "gt", "y_true", "y_test"}
LABELS |= {"y_train", "y_val", "ys", "label_ids"}
INPUTS = {"data", "images", "image", "input", "inputs", "features", "x_test", "x_train", "x_val"}
TEXT = (
    ", and which score a name means is not known: give class numbers, such as "
    "names.index(label), names being those of the model's scores in order"
)


def _meant(name: str, inputs: list[str], unlabelled: bool) -> str:
    """What an array's name, which no input has, may have been meant as."""
    if unlabelled and name.lower() in LABELS | {"y"}:
        return ": labels are read under `y`; did you mean that?"
    if len(inputs) == 1 and name.lower() in INPUTS | {"x"}:
        return ": the single input is read under `x`; did you mean that?"
    like = difflib.get_close_matches(name, inputs, 1)
    return f": did you mean {like[0]!r}?" if like else ""


Advice = Callable[[Shape, "np.dtype[Any]", Shape, "np.dtype[Any]"], str | None]
"""(shape and dtype of a sample, shape and dtype that the model takes) -> what to write."""


def _match(
    source: str,
    name: str,
    shape: Shape,
    dtype: "np.dtype[Any]",
    tensor: Tensor,
    model: Model,
    advice: Advice,
) -> None:
    expected, want = model.sample_shape(tensor), np.dtype(tensor.dtype)
    # A model without a batch axis, or with one of 1, may be fed whole inputs too.
    if shape != expected and not (model.batch == 1 and shape == tensor.shape):
        hint = ""
        if sorted(shape) == sorted(expected):
            hint = "; the axes look permuted (NCHW and NHWC?)"
        if line := advice(shape, dtype, expected, want):
            hint += f"; {line}"
        raise UsageError(
            f"{source}: a sample of {name!r} has shape {list(shape)}, "
            f"the model takes {list(expected)}{hint}"
        )
    floats = [np.dtype(kind) for kind in (np.float64, np.float32, np.float16)]
    narrowed = dtype in floats and want in floats[floats.index(dtype) + 1 :]
    widened = dtype.kind in "iu" and np.can_cast(dtype, want, "safe")
    real = tensor.scale > 0 and dtype.kind == "f"
    if not (dtype == want or narrowed or widened or real):
        line = advice(shape, dtype, expected, want)
        raise UsageError(
            f"{source}: {name!r} has dtype {dtype}, the model takes {want}; "
            "only narrowing of floats and lossless widening of integers are done automatically"
            f"{f'; {line}' if line else ''}"
        )


def _array_advice(
    shape: Shape, dtype: "np.dtype[Any]", expected: Shape, want: "np.dtype[Any]"
) -> str | None:
    """What to do about an array whose dtype is not the model's."""
    if shape != expected or dtype == want or dtype.kind not in "biuf" or want.kind not in "iuf":
        return None
    if want.kind in "iu":
        limits = np.iinfo(want)
        return (
            f"if it holds whole numbers from {limits.min} to {limits.max}, save it with "
            f".astype({want.name!r})"
        )
    unless = "" if dtype.kind == "f" else ", if the model was trained on such numbers"
    return f"save it with .astype({want.name!r}){unless}"


def _folder(
    path: Path,
    model: Model,
    cache: Cache,
    labelled: bool,
    scores: int | None,
    within: Path | None,
) -> Samples:
    """A folder of images with data.toml and, for evaluation, labels.csv or a sub-folder a class."""
    how = preprocessing.read_preprocessing(path, within)
    if len(model.inputs) != 1:
        raise UsageError(
            f"{path}: a folder of images gives one input; this model has {len(model.inputs)}"
        )
    listed = listing(path, how.classes, scores, labelled=labelled, within=within)
    how = replace(how, classes=listed.classes)
    digest = caches.key(
        preprocessing=plain(how),
        names=[str(file.relative_to(path)) for file in listed.files],
        labels=None if listed.labels is None else listed.labels.tolist(),
        files=[_sha256(file, within) for file in listed.files],
        code=2,
    )
    return Samples(
        str(path),
        digest,
        len(listed.files),
        images=tuple(file.absolute() for file in listed.files),
        within=within,
        preprocessing=how,
        labels=None if listed.labels is None else _kept_labels(listed.labels, digest, cache),
        warnings=listed.warnings,
    )


def _sha256(file: Path, within: Path | None) -> str:
    try:
        with open_regular(file, within) as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        why = f"{error.strerror}){reading.linked(error)}"
        raise UsageError(f"{file}: cannot read it ({why}") from None


def _kept_labels(labels: np.ndarray, digest: str, cache: Cache) -> ArrayFile:
    folder = cache.get("labels", digest, lambda folder: np.save(folder / "y.npy", labels))
    return arrays_of_files.stored(folder / "y.npy")


def relabelled(samples: Samples, labels: np.ndarray, cache: Cache) -> Samples:
    """With other labels for all of DATA in place of those that were read."""
    digest = caches.key(samples=samples.digest, labels=labels.tolist(), dtype=labels.dtype.str)
    return replace(samples, labels=_kept_labels(labels, digest, cache))


def import_callable(text: str, option: str) -> Any:
    """MODULE:FUNCTION, from the folder that the command was started in or from an installation."""
    module_name, _, name = text.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as error:  # the user's own code
        raise UsageError(f"{option} {text}: cannot import it ({named(error)})") from None
    finally:
        if added and here in sys.path:  # for what it imports later; nothing there is in our way
            sys.path.remove(here)
            sys.path.append(here)


def _callable(text: str, model: Model, cache: Cache, option: str) -> Samples:
    """What a user's generator yields, kept on disk: it runs once, however many models compete."""
    arrays, digest = _kept(text, cache, option)
    labels = arrays.get(_LABEL)
    given = {name: array for name, array in arrays.items() if name != _LABEL}
    return _named(text, digest, given, labels, model)


@functools.cache
def _kept(text: str, cache: Cache, option: str) -> tuple[dict[str, ArrayFile], str]:
    """-> the arrays by name, the label as _LABEL, `x` for inputs without a name; their digest."""
    function = import_callable(text, option)
    digest = hashlib.sha256()
    with cache.scratch() as scratch:
        files: dict[str, BinaryIO] = {}
        kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
        count = 0
        try:
            for row in _rows(function, text):
                found = {name: (array.dtype.str, array.shape) for name, array in row.items()}
                if not count:
                    kinds = found
                    files = {
                        name: (scratch / f"{number}.bin").open("wb")
                        for number, name in enumerate(found)
                    }
                if found != kinds:
                    raise UsageError(
                        f"{text}: sample {count} is {_words(found)}; sample 0 was {_words(kinds)}"
                    )
                for name, array in row.items():
                    files[name].write(array.tobytes())
                    digest.update(array.tobytes())
                count += 1
        finally:
            for file in files.values():
                file.close()
        if not count:
            raise UsageError(f"{text}: it yielded no samples")
        digest.update(repr(kinds).encode())

        def move(folder: Path) -> None:
            for file in scratch.iterdir():
                file.replace(folder / file.name)

        folder = cache.get("data", digest.hexdigest(), move)
    arrays = {
        name: ArrayFile(folder / f"{number}.bin", kinds[name][0], (count, *kinds[name][1]), 0)
        for number, name in enumerate(files)
    }
    for name, (dtype, _) in kinds.items():
        if np.dtype(dtype).kind not in "biuf":
            said = _words({name: kinds[name]})
            hint = TEXT if name == _LABEL and np.dtype(dtype).kind in "OUS" else ""
            raise UsageError(f"{text}: {said}; only numbers can be given to a model{hint}")
    return arrays, digest.hexdigest()


_END = object()
_LABEL = "\0label"
"""Among a generator's arrays; no input of a model is called that."""


def _words(kinds: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(
        f"{'the label' if name == _LABEL else repr(name)} {np.dtype(dtype)}{list(shape)}"
        for name, (dtype, shape) in kinds.items()
    )


def _rows(function: Any, text: str) -> Iterator[dict[str, np.ndarray]]:
    """One sample after another of a user's generator: its arrays by name, the label as _LABEL."""
    try:
        samples = iter(function())
        while True:
            with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
                item: Any = next(samples, _END)
            if item is _END:
                return
            try:
                inputs, label = item
            except (TypeError, ValueError):
                raise UsageError(f"{text}: it must yield (inputs, label) pairs") from None
            if not isinstance(inputs, dict):
                inputs = {"x": inputs}
            row = {str(name): np.asarray(array) for name, array in inputs.items()}
            if label is not None:
                row[_LABEL] = np.asarray(label)
            yield row
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{text}: it failed with {named(error)}") from None


def random(model: Model, cache: Cache, count: int) -> Samples:
    """Seeded inputs where the user gave none: floats in [0, 1), integers and booleans 0 or 1."""
    digest = caches.key(inputs=plain(model.inputs), batch=model.batch, count=count)

    def build(folder: Path) -> None:
        source = np.random.default_rng(0)
        for number, tensor in enumerate(model.inputs):
            values = source.random((count, *model.sample_shape(tensor)))
            if np.dtype(tensor.dtype).kind != "f":
                values = values.round()
            np.save(folder / f"{number}.npy", values.astype(tensor.dtype))

    folder = cache.get("random", digest, build)
    arrays = {
        tensor.name: arrays_of_files.stored(folder / f"{number}.npy")
        for number, tensor in enumerate(model.inputs)
    }
    return Samples("random inputs", digest, count, arrays)


def _checked(samples: Samples, model: Model, cache: Cache, progress: OnProgress) -> Samples:
    """Read every sample once: NaN, broken images, wrong image sizes, exact duplicates."""
    found, kinds = _scanned(samples, model, cache, progress)
    warnings = list(samples.warnings)
    if samples.preprocessing:
        said = images.describe(kinds, samples.count, samples.preprocessing)
        warnings += [f"{samples.source}: {text}" for text in said]
    repeated = len(found) - len(np.unique(found))
    if repeated:
        warnings.append(
            f"{samples.source}: {repeated} of {len(found)} samples are exact duplicates of others"
        )
    if samples.labels is not None:
        labels = samples.label_array()
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            where = int(np.argmin(np.isfinite(labels).reshape(len(labels), -1).all(axis=1)))
            raise UsageError(f"{samples.source}: the label of sample {where} is NaN or infinite")
    return replace(samples, warnings=tuple(warnings))


def hashes(samples: Samples, model: Model, cache: Cache) -> np.ndarray:
    """One 64-bit digest a sample, as computed when the data was checked; of whole DATA."""
    return _scanned(samples, model, cache, lambda done, total, what: None)[0]


def _scanned(
    samples: Samples, model: Model, cache: Cache, progress: OnProgress
) -> tuple[np.ndarray, dict[str, int]]:
    """-> a 64-bit digest of every sample, and of how many images is what of images.KINDS."""
    assert samples.part == "all"
    digest = caches.key(samples=samples.digest, inputs=plain(model.inputs), code=3)

    def scan(folder: Path) -> None:
        found, kinds = _scan(samples, model, progress)
        np.save(folder / "hashes.npy", found)
        (folder / "kinds.json").write_text(json.dumps(kinds))

    folder = cache.get("checked", digest, scan)
    return np.load(folder / "hashes.npy"), json.loads((folder / "kinds.json").read_text())


def _scan(
    samples: Samples, model: Model, progress: OnProgress
) -> tuple[np.ndarray, dict[str, int]]:
    found = np.zeros(samples.count, np.uint64)
    kinds: Counter[str] = Counter()
    only = model.inputs[0]
    for index in range(samples.count):
        progress(index, samples.count, f"checking sample {index} of {samples.count}")
        digest = hashlib.blake2b(digest_size=8)
        if samples.preprocessing:
            file = samples.images[index]
            row, kind = images.read_with_kinds(file, samples.preprocessing, samples.within)
            kinds.update(kind)
            _match(str(file), only.name, row.shape, row.dtype, only, model, preprocessing.advice)
            _refuse_nan(row, samples.source, only.name, index)
            digest.update(row.tobytes())
        for name, array in samples.arrays.items():
            row = array.row(index)
            _refuse_nan(row, samples.source, name, index)
            digest.update(row.tobytes())
        found[index] = int.from_bytes(digest.digest(), "little")
    return found, dict(kinds)


def _refuse_nan(row: np.ndarray, source: str, name: str, index: int) -> None:
    if row.dtype.kind == "f" and np.isnan(row).any():
        raise UsageError(
            f"{source}: {name!r} of sample {index} holds NaN; correct or remove the sample"
        )
