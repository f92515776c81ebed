"""Reads all samples once to find NaN, broken images, wrong sizes and duplicates."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from onmetal.calibration.matching import check_sample
from onmetal.errors import UsageError
from onmetal.files import cache as caches
from onmetal.files import images, preprocessing
from onmetal.files.cache import Cache
from onmetal.progress import OnProgress
from onmetal.records import Model, plain
from onmetal.samples import Samples


def check_samples(samples: Samples, model: Model, cache: Cache, progress: OnProgress) -> Samples:
    """The samples with warnings, after every sample was read once. Exact duplicates are a warning;
    NaN, broken images and wrong image sizes raise UsageError."""
    digests, kinds = _scan_once(samples, model, cache, progress)
    warnings = list(samples.warnings)
    if samples.preprocessing:
        descriptions = images.describe(kinds, samples.count, samples.preprocessing)
        warnings += [f"{samples.source}: {text}" for text in descriptions]
    repeated = len(digests) - len(np.unique(digests))
    if repeated:
        warnings.append(
            f"{samples.source}: {repeated} of {len(digests)} samples are exact duplicates of others"
        )
    if samples.labels is not None:
        labels = samples.label_array()
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            first = int(np.argmin(np.isfinite(labels).reshape(len(labels), -1).all(axis=1)))
            raise UsageError(f"{samples.source}: the label of sample {first} is NaN or infinite")
    return replace(samples, warnings=tuple(warnings))


def hashes(samples: Samples, model: Model, cache: Cache) -> np.ndarray:
    """A 64-bit digest of each sample of whole DATA, as computed when the data was checked."""
    return _scan_once(samples, model, cache, lambda done, total, what: None)[0]


def _scan_once(
    samples: Samples, model: Model, cache: Cache, progress: OnProgress
) -> tuple[np.ndarray, dict[str, int]]:
    """-> a 64-bit digest of every sample, and how many images are of each kind (images.KINDS)."""
    assert samples.part == "all"
    digest = caches.key(samples=samples.digest, inputs=plain(model.inputs), code=3)

    def scan(folder: Path) -> None:
        digests, kinds = _scan(samples, model, progress)
        np.save(folder / "hashes.npy", digests)
        (folder / "kinds.json").write_text(json.dumps(kinds))

    folder = cache.get("checked", digest, scan)
    return np.load(folder / "hashes.npy"), json.loads((folder / "kinds.json").read_text())


def _scan(
    samples: Samples, model: Model, progress: OnProgress
) -> tuple[np.ndarray, dict[str, int]]:
    digests = np.zeros(samples.count, np.uint64)
    kinds: Counter[str] = Counter()
    tensor = model.inputs[0]
    for index in range(samples.count):
        progress(index, samples.count, f"checking sample {index} of {samples.count}")
        digest = hashlib.blake2b(digest_size=8)
        if samples.preprocessing:
            file = samples.images[index]
            row, kind = images.read_with_kinds(file, samples.preprocessing, samples.within)
            kinds.update(kind)
            check_sample(
                str(file), tensor.name, row.shape, row.dtype, tensor, model, preprocessing.advice
            )
            _refuse_nan(row, samples.source, tensor.name, index)
            digest.update(row.tobytes())
        for name, array in samples.arrays.items():
            row = array.row(index)
            _refuse_nan(row, samples.source, name, index)
            digest.update(row.tobytes())
        digests[index] = int.from_bytes(digest.digest(), "little")
    return digests, dict(kinds)


def _refuse_nan(row: np.ndarray, source: str, name: str, index: int) -> None:
    if row.dtype.kind == "f" and np.isnan(row).any():
        raise UsageError(
            f"{source}: {name!r} of sample {index} holds NaN; correct or remove the sample"
        )
