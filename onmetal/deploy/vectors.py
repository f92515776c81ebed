"""Arrays on disk: the inputs of timed inferences, a bundle's golden vectors, and raw samples."""

import hashlib
import io
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from onmetal import costs
from onmetal.deploy.context import Feeds, Run, Task
from onmetal.files.cache import Cache
from onmetal.records import Candidate, Tensor, Trial, Window

FEEDS = 8
"""How many samples inferences are timed with: one a round, so that no single sample decides."""
GOLDEN_BYTES = 8_000_000
"""Golden vectors are at most this large together, but at least one."""


def write_feeds(task: Task, scratch: Path) -> Feeds:
    """Write the inputs that each model is timed with: samples spread over the data."""
    feed_paths: dict[str, Path] = {}
    for entry in task.models:
        arrays = numbered(task.data[str(entry.path)].spread(entry, FEEDS))
        feed_paths[str(entry.path)] = scratch / f"feeds-{len(feed_paths)}.npz"
        write_npz(feed_paths[str(entry.path)], arrays)
    return lambda candidate: feed_paths[str(candidate.model.path)]


def numbered(feeds: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Inputs by `<number of the feed>/<name>`, as workers read them."""
    return {
        f"{number}/{name}": array
        for number, feed in enumerate(feeds)
        for name, array in feed.items()
    }


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """As np.savez_compressed, but with a fixed date, so that equal arrays are equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(array, order="C"), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content.getvalue())


def write_golden(run: Run, candidate: Candidate, path: Path) -> int:
    """Write golden vectors: inputs, and the outputs that the artifact gives for them by the runtime
    that ships. -> the number of vectors."""
    task, scratch = run.task, run.scratch
    if task.request.golden == "none":
        return 0
    data, entry = task.data[str(candidate.model.path)], candidate.model
    first_feed = data.feed(entry, [min(i, data.count - 1) for i in range(entry.batch)])
    size = sum(array.nbytes for array in first_feed.values())
    count = max(1, min(4, data.count // entry.batch, GOLDEN_BYTES // max(1, size)))
    feeds = list(data.spread(entry, count))
    if task.request.golden == "random":
        feeds = random_alike(entry.inputs, feeds)
    arrays, inputs = {}, numbered(feeds)
    for key, array in inputs.items():
        feed, _, name = key.partition("/")
        arrays[f"input/{name}/{feed}"] = array
    write_npz(scratch / "golden-inputs.npz", inputs)
    folder = scratch / "golden-outputs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with task.ships_on.worker() as worker:
        worker.open(candidate.artifact, timeout_s=3600)
        worker.run(scratch / "golden-inputs.npz", folder, timeout_s=3600)
    for number in range(count):
        for output, tensor in enumerate(entry.outputs):
            arrays[f"output/{tensor.name}/{number}"] = np.load(folder / f"{number}-{output}.npy")
    write_npz(path, arrays)
    return count


def random_alike(
    tensors: Iterable[Tensor], feeds: list[dict[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """Random inputs, seeded, of the same shapes and dtypes as `feeds`, which reveal little of the
    user's data.

    Real numbers, and whole numbers that stand for real ones by a scale, lie between plus and minus
    the next power of two of the largest magnitude in `feeds`, and are negative only where values in
    `feeds` are. Other whole numbers are 0 or 1, since they may be indices into a table.
    """
    source = np.random.default_rng(0)

    def alike(tensor: Tensor, array: np.ndarray) -> np.ndarray:
        real = array.dtype.kind == "f"
        if not (real or tensor.scale):
            return source.integers(0, 2, array.shape).astype(array.dtype)
        zero = 0 if real else tensor.zero_point
        observed = np.concatenate([feed[tensor.name].reshape(-1) for feed in feeds])
        observed = observed.astype(np.float64) - zero
        peak = np.abs(observed[np.isfinite(observed)]).max(initial=0.0)
        reach = 2.0 ** np.ceil(np.log2(peak)) if peak else 1.0
        values = source.uniform(-reach if (observed < 0).any() else 0.0, reach, array.shape) + zero
        limits = np.finfo(array.dtype) if real else np.iinfo(array.dtype)
        return np.clip(values if real else values.round(), limits.min, limits.max).astype(
            array.dtype
        )

    return [{t.name: alike(t, feed[t.name]) for t in tensors} for feed in feeds]


def keep_raw(trials: Iterable[Trial], cache: Cache) -> Path | None:
    """Keep all raw samples in the cache, whether or not a bundle is written. -> their .npz file;
    None where there are none.

    Latencies are int64 nanoseconds under `candidate/block/round`; those of the blocks that were
    measured again are under `again/…`, or under `rejected/PICK/…` where the candidate was rejected
    after that. A meter's windows are under `candidate/energy_mj/…`, an array for each field of
    records.Window, and `idle_mw`.
    """
    raw = {name: array for trial in trials for name, array in _raw(trial)}
    if not raw:
        return None
    content = hashlib.sha256()
    for name, array in raw.items():
        content.update(name.encode() + array.tobytes())
    digest = content.hexdigest()
    folder = cache.get("raw", digest, lambda folder: write_npz(folder / "measurements.npz", raw))
    return folder / "measurements.npz"


def _raw(trial: Trial) -> Iterator[tuple[str, np.ndarray]]:
    again = "again" if trial.status == "chosen" else f"rejected/{trial.name}"
    timed = [(trial.name, trial.rounds)] if trial.rounds else []
    timed += [(f"{again}/{name}", rounds) for name, rounds in trial.again.items()]
    for name, rounds in timed:
        for (block, number), samples_ns in rounds.samples_ns.items():
            yield f"{name}/{block}/{number}", samples_ns
    if metered := trial.energy_windows:
        name = f"{trial.name}/{costs.ENERGY.key}"
        for field in Window.__struct_fields__:
            yield (
                f"{name}/{field}",
                np.array([getattr(window, field) for window in metered.windows]),
            )
        yield f"{name}/idle_mw", np.array(metered.idle_mw)
