"""The user's data: read in one of three forms, checked whole, and fed to a model in batches.

Arrays stay on disk (memory-mapped) and images are decoded as they are needed, so that data may be
larger than memory. `Samples` is a plain record: a worker process receives it as JSON.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal.calibration import task_labels
from onmetal.calibration.labels import listing
from onmetal.calibration.matching import LIKELY_LABELS, NAMES_ARE_NO_LABELS, match_members
from onmetal.calibration.sample_checks import check_samples
from onmetal.calibration.user_functions import from_function
from onmetal.errors import UsageError
from onmetal.files import arrays as arrays_of_files
from onmetal.files import cache as caches
from onmetal.files import preprocessing, reading
from onmetal.files.arrays import Archive, ArrayFile, TextArrayError
from onmetal.files.cache import Cache
from onmetal.files.preprocessing import Preprocessing
from onmetal.files.reading import open_regular
from onmetal.files.task_settings import TaskSettings
from onmetal.progress import OnProgress
from onmetal.records import Model, plain
from onmetal.samples import Part, Samples
from onmetal.texts.suggest import near

CALIBRATION_MOST = 512
CALIBRATION_PART = 4


class Split(Struct, frozen=True):
    """Disjoint parts of the same samples."""

    training: Samples | None
    """None where no training part was requested."""
    calibration: Samples
    evaluation: Samples


def split(samples: Samples, training: float = 0.0) -> Split | None:
    """Divide samples into parts that are the same in every run. Every n-th sample is for
    calibration: at most 512 samples, and at most a quarter. `training`, in [0, 1): this share of
    the other samples is for training, and the remaining ones are for evaluation. None where there
    are too few samples.
    """
    every = max(CALIBRATION_PART, -(-samples.count // CALIBRATION_MOST))
    calibrating, remainder = divmod(samples.count, every)
    trained = min(every - 2, max(1, round(training * (every - 1)))) if training else 0
    training_count = calibrating * trained + min(remainder, trained)
    evaluating = samples.count - calibrating - training_count
    if not calibrating or evaluating < 2:
        return None

    def part(kind: Part, count: int) -> Samples:
        training_key = {"training": trained} if trained else {}
        digest = caches.key(samples=samples.digest, part=kind, every=every, **training_key)
        return replace(
            samples,
            digest=digest,
            count=count,
            part=kind,
            every=every,
            training=trained,
            warnings=(),
        )

    return Split(
        part("training", training_count) if trained else None,
        part("calibration", calibrating),
        part("evaluation", evaluating),
    )


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

    `follow_links`: whether images may be links to files outside of their folder. `scores`: how many
    scores the judged output has for a sample; class names stand for these.

    Raises UsageError, with the place and the problem: names, shapes, dtypes, counts, NaN, broken
    images, missing labels.
    """
    path = Path(text)
    if path.is_dir():
        within = None if follow_links else path.resolve()
        samples = _from_folder(path, model, cache, labelled, scores, within)
    elif path.exists():
        samples = _from_npz(path, model, cache)
    elif ":" in text and not text.endswith(".npz"):
        samples = from_function(text, model, cache, option)
    else:
        likely = near(path, (".npz", ""))
        raise UsageError(f"{option} {text}: there is no such file or folder{likely}")
    if labelled and samples.labels is None:
        raise UsageError(
            f"{option} {text}: it has no labels (`y` in an .npz file; in a folder labels.csv, "
            "annotations.json, masks/ or a sub-folder a class); data without labels can be given "
            "as --calibration-data"
        )
    if samples.count == 0:
        raise UsageError(f"{option} {text}: it holds no samples")
    if labelled and samples.count < 2:
        raise UsageError(f"{option} {text}: one sample is too few to judge a model by")
    return check_samples(samples, model, cache, progress)


def _from_npz(path: Path, model: Model, cache: Cache) -> Samples:
    """Read an .npz file, whose members are unpacked once into the cache to be memory-mapped.

    The headers of the members are checked first, because unpacking may take long.
    """
    try:
        with arrays_of_files.opened(path) as archive:
            matched = match_members(str(path), "", dict(archive.members), model)
            digest = archive.sha256()
            _check_room(archive, cache)

            def unpack(folder: Path) -> None:
                archive.unpack(folder)
                if archive.sha256() != digest:
                    raise UsageError(f"{path}: it was changed while it was read; run it again")

            folder = cache.get("data", digest, unpack)
    except TextArrayError as error:
        label = str(error).partition(" has dtype")[0].rpartition(" ")[2].strip("'").lower()
        hint = NAMES_ARE_NO_LABELS if label in LIKELY_LABELS | {"y"} else ""
        raise UsageError(f"{error}{hint}") from None

    def placed(array: ArrayFile) -> ArrayFile:
        return replace(array, path=folder / array.path)

    return replace(
        matched,
        digest=digest,
        arrays={name: placed(array) for name, array in matched.arrays.items()},
        labels=placed(matched.labels) if matched.labels else None,
    )


def _check_room(archive: Archive, cache: Cache) -> None:
    """Refuse an archive, however small, that unpacks to more bytes than are free on the disk."""
    free = shutil.disk_usage(cache.root).free
    if archive.unpacked_bytes > free:
        raise UsageError(
            f"{archive.path}: unpacked it takes {archive.unpacked_bytes} bytes, and where the "
            f"cache is ({cache.root}) {free} are free; set ONMETAL_HOME to a folder with more room"
        )


def _from_folder(
    path: Path,
    model: Model,
    cache: Cache,
    labelled: bool,
    scores: int | None,
    within: Path | None,
) -> Samples:
    """Read a folder of images with data.toml and, for evaluation, labels.csv or one sub-folder for
    each class."""
    settings, task = preprocessing.read_settings(path, within)
    if len(model.inputs) != 1:
        raise UsageError(
            f"{path}: a folder of images gives one input; this model has {len(model.inputs)}"
        )
    if task_labels.kind(path, task) != "values":
        return _annotated(path, settings, task, cache, labelled, within)
    listed = listing(path, settings.classes, scores, labelled=labelled, within=within)
    settings = replace(settings, classes=listed.classes)
    digest = caches.key(
        preprocessing=plain(settings),
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
        preprocessing=settings,
        labels=None if listed.labels is None else _store_labels(listed.labels, digest, cache),
        warnings=listed.warnings,
    )


def _annotated(
    path: Path,
    settings: Preprocessing,
    task: TaskSettings,
    cache: Cache,
    labelled: bool,
    within: Path | None,
) -> Samples:
    """Read a folder of images with a COCO file or masks."""
    listed = task_labels.listing(path, settings, task, labelled=labelled, within=within)
    settings = replace(settings, classes=listed.classes)
    digest = caches.key(
        preprocessing=plain(settings),
        names=[str(file.relative_to(path)) for file in listed.images],
        files=[_sha256(file, within) for file in (*listed.images, *listed.masks)],
        labels=None if listed.boxes is None else hashlib.sha256(listed.boxes.tobytes()).hexdigest(),
        ignore=task.ignore,
        code=1,
    )
    labels = None
    if labelled:
        folder = cache.get("labels", digest, lambda folder: listed.write(folder / "y.npy"))
        labels = arrays_of_files.stored(folder / "y.npy")
    return Samples(
        str(path),
        digest,
        len(listed.images),
        images=tuple(file.absolute() for file in listed.images),
        within=within,
        preprocessing=settings,
        labels=labels,
        labels_are=listed.kind if labelled else "values",
        task=task,
        warnings=listed.warnings,
    )


def _sha256(file: Path, within: Path | None) -> str:
    try:
        with open_regular(file, within) as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        reason = f"{error.strerror}){reading.linked(error)}"
        raise UsageError(f"{file}: cannot read it ({reason}") from None


def _store_labels(labels: np.ndarray, digest: str, cache: Cache) -> ArrayFile:
    folder = cache.get("labels", digest, lambda folder: np.save(folder / "y.npy", labels))
    return arrays_of_files.stored(folder / "y.npy")


def relabelled(samples: Samples, labels: np.ndarray, cache: Cache) -> Samples:
    """The samples with `labels` for all of DATA in place of DATA's own."""
    digest = caches.key(samples=samples.digest, labels=labels.tolist(), dtype=labels.dtype.str)
    return replace(samples, labels=_store_labels(labels, digest, cache))


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
