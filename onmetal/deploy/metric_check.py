"""Tries a user's own metric on a few outputs of the original model, before any conversion."""

from pathlib import Path

import numpy as np

from onmetal.calibration import custom_metric, segmentation
from onmetal.calibration.detection import metric as detection
from onmetal.calibration.metric_table import Metric
from onmetal.errors import OnmetalError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.records import Model
from onmetal.samples import Samples

FEWEST, MOST = 16, 128
"""The number of samples that a metric is tried on: FEWEST, up to MOST where there are more
classes."""
MOST_BYTES = 1 << 26
"""The most bytes of outputs that a metric is tried on."""


def try_metric(metric: Metric, model: Model, data: Samples, host: Local, cache: Cache) -> None:
    """Raises UsageError, with the function's error and its place, where the metric fails."""
    labels = data.label_array()
    picked = chosen(labels, model)
    outputs = _original(model, data, picked, host, cache)
    if outputs is None:
        return  # the reason is reported when the model is converted
    rows = len(next(iter(outputs.values())))
    try:
        custom_metric.try_custom(metric, outputs, labels[picked[:rows]])
    except UsageError as error:
        # A metric may need every class, or more samples than a few: then give it all labels.
        size = sum(output.nbytes for output in outputs.values()) / rows * len(labels)
        if rows == len(labels) or size > 4 * MOST_BYTES:
            raise
        repeated = np.arange(len(labels)) % rows
        try:
            custom_metric.try_custom(metric, {n: o[repeated] for n, o in outputs.items()}, labels)
        except UsageError:
            raise error from None


def settle_whole(
    metric: Metric, model: Model, data: Samples, host: Local, cache: Cache
) -> tuple[Metric, list[str]]:
    """The metric `map` or `miou` with what only values of the outputs tell, and notes for the user.
    Raises UsageError where they are not what they were taken for."""
    labels = np.zeros((data.count, 1, 1))  # boxes and masks do not tell which samples to take
    outputs = _original(model, data, chosen(labels, model), host, cache)
    if outputs is None:
        return metric, []  # the reason is reported when the model is converted
    if metric.name == "miou":
        segmentation.check_probability(metric, outputs)
        return metric, []
    return detection.settled(metric, outputs)


def chosen(labels: np.ndarray, model: Model) -> np.ndarray:
    """The indices of samples to try a metric on: one of each class, as far as MOST_BYTES allows,
    and some more."""
    size = sum(
        int(np.prod(model.sample_shape(tensor), dtype=np.int64)) * np.dtype(tensor.dtype).itemsize
        for tensor in model.outputs
    )
    room = int(np.clip(MOST_BYTES // max(1, size), 4, MOST))
    spread = np.linspace(0, len(labels) - 1, min(FEWEST, len(labels))).astype(np.int64)
    firsts = np.zeros(0, np.int64)
    if labels.ndim == 1 and labels.dtype.kind in "iub":
        firsts = np.unique(labels, return_index=True)[1]
    indices = np.concatenate([firsts, spread])
    ordered = indices[np.sort(np.unique(indices, return_index=True)[1])]
    chosen_indices: np.ndarray = ordered[:room]
    return chosen_indices


def _original(
    model: Model, data: Samples, picked: np.ndarray, host: Local, cache: Cache
) -> dict[str, np.ndarray] | None:
    """[samples, ...] of every output of the original model; None where it does not run here."""
    batches = [picked[start : start + model.batch] for start in range(0, len(picked), model.batch)]
    try:
        with cache.scratch() as scratch, host.worker() as worker:
            feeds = {
                f"{number}/{tensor}": array
                for number, batch in enumerate(batches)
                for tensor, array in data.feed(model, _filled(batch, model.batch)).items()
            }
            np.savez(scratch / "feeds.npz", **feeds)  # type: ignore[arg-type]
            worker.open_reference(model, timeout_s=600)
            worker.run(scratch / "feeds.npz", scratch, timeout_s=600)
            return _rows(model, scratch, len(batches), len(picked))
    except OnmetalError:
        return None


def _filled(batch: np.ndarray, size: int) -> list[int]:
    return [int(batch[min(index, len(batch) - 1)]) for index in range(size)]


def _rows(model: Model, folder: Path, batches: int, count: int) -> dict[str, np.ndarray] | None:
    rows_by_output = {}
    for index, tensor in enumerate(model.outputs):
        arrays = [np.load(folder / f"{number}-{index}.npy") for number in range(batches)]
        rows = [array if array.shape[:1] == (model.batch,) else array[None] for array in arrays]
        if len({row.shape for row in rows}) > 1 or len(rows[0]) != model.batch:
            return None  # reported when the model is judged
        rows_by_output[tensor.name] = np.concatenate(rows)[:count]
    return rows_by_output
