"""The samples of a deployment: those for calibration, evaluation and training, and the metric."""

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal.calibration import (
    label_forms,
    metric_table,
    metrics,
    sample_checks,
    samples,
    segmentation,
)
from onmetal.calibration.detection import metric as detection
from onmetal.calibration.metric_table import Metric
from onmetal.deploy.request import Request
from onmetal.errors import UsageError
from onmetal.files.cache import Cache
from onmetal.progress import OnProgress
from onmetal.records import Model, Shape, Tensor
from onmetal.samples import Samples
from onmetal.texts.suggest import did_you_mean
from onmetal.texts.units import Share

RANDOM_SAMPLES = 8
FEW_SAMPLES = 100


class Parts(Struct, frozen=True):
    """The samples for each purpose: path of a model -> its samples."""

    evaluation: dict[str, Samples]
    calibration: dict[str, Samples]
    """Empty where nothing is calibrated."""
    training: dict[str, Samples]
    """Empty where nothing is trained."""


def load_data(
    request: Request,
    models: list[Model],
    calibrates: bool,
    cache: Cache,
    progress: OnProgress,
    training: float = 0.0,
) -> tuple[Parts, list[str]]:
    """Load the samples of all models.

    `training`: the share of DATA that is for training, besides the part for calibration. -> the
    samples by purpose, warnings.
    """
    parts = Parts({}, {}, {})
    warnings: list[str] = []
    for entry in models:
        labelled_samples, calibrating_samples = _loaded(request, entry, cache, progress)
        notes = [
            *(calibrating_samples.warnings if calibrating_samples else ()),
            *(labelled_samples.warnings if labelled_samples else ()),
        ]
        notes += _divide(
            parts, entry, labelled_samples, calibrating_samples, calibrates, training, cache
        )
        if entry is models[0]:
            warnings += notes
    if not request.data:
        compared_inputs = "the calibration data" if request.calibration_data else "random inputs"
        warnings.append(
            f"no labelled data: no task metric was measured; outputs on {compared_inputs} "
            "are compared with the original model's"
        )
    return parts, warnings


def _divide(
    parts: Parts,
    entry: Model,
    labelled_samples: Samples | None,
    calibrating_samples: Samples | None,
    calibrates: bool,
    training: float,
    cache: Cache,
) -> list[str]:
    """Divide one model's samples into the parts.

    `labelled_samples`: the samples of --data; `calibrating_samples`: those of --calibration-data.
    -> warnings about samples that are in two parts.
    """
    model_path = str(entry.path)
    if calibrating_samples:
        parts.evaluation[model_path] = labelled_samples or calibrating_samples
        if calibrates:
            parts.calibration[model_path] = calibrating_samples
        if labelled_samples and calibrates:
            return _shared(
                sample_checks.hashes(labelled_samples, entry, cache),
                sample_checks.hashes(calibrating_samples, entry, cache),
                "in --calibration-data too",
            )
        return []
    if not (
        labelled_samples
        and calibrates
        and (parts_of_samples := samples.split(labelled_samples, training))
    ):
        parts.evaluation[model_path] = labelled_samples or samples.random(
            entry, cache, RANDOM_SAMPLES
        )
        return []
    parts.calibration[model_path], parts.evaluation[model_path] = (
        parts_of_samples.calibration,
        parts_of_samples.evaluation,
    )
    if parts_of_samples.training:
        parts.training[model_path] = parts_of_samples.training
    sample_hashes = sample_checks.hashes(labelled_samples, entry, cache)
    return _shared(
        sample_hashes[parts_of_samples.evaluation.places()],
        sample_hashes[parts_of_samples.calibration.places()],
        "in the part of DATA that is used for calibration, too",
    )


def _loaded(
    request: Request, entry: Model, cache: Cache, progress: OnProgress
) -> tuple[Samples | None, Samples | None]:
    """-> the samples of --data and those of --calibration-data for a model; None where the option
    was not given."""
    labelled_samples, calibrating_samples = None, None
    if request.calibration_data:
        calibrating_samples = samples.load(
            request.calibration_data,
            entry,
            cache,
            option="--calibration-data",
            labelled=False,
            follow_links=request.follow_links,
            progress=progress,
        )
    if request.data:
        tensor = entry.output(_output(request, entry))
        labelled_samples = samples.load(
            request.data,
            entry,
            cache,
            option="--data",
            labelled=True,
            follow_links=request.follow_links,
            scores=label_forms.scores(tensor, entry.sample_shape(tensor)),
            progress=progress,
        )
    return labelled_samples, calibrating_samples


def _shared(
    evaluation_hashes: np.ndarray, calibration_hashes: np.ndarray, overlap: str
) -> list[str]:
    shared_count = int(np.isin(evaluation_hashes, calibration_hashes).sum())
    if not shared_count:
        return []
    return [
        f"{shared_count} of the evaluation samples are {overlap}; the accuracy of calibrated "
        "candidates will look better than it is"
    ]


def _output(request: Request, entry: Model) -> str:
    """The name of the output that the metric reads. Raises UsageError where the model lacks it."""
    names = [tensor.name for tensor in entry.outputs]
    output = request.output or names[0]
    if entry.path != request.models[0] and len(names) == 1:
        output = names[0]  # competitors of one output may call it differently
    if output not in names:
        raise UsageError(
            f"--output {output}: no such output{did_you_mean(output, names)}; the model has: "
            f"{', '.join(names)}"
        )
    return output


def choose_metric(
    request: Request, entry: Model, data: Samples, cache: Cache
) -> tuple[str, Metric, Samples, list[str]]:
    """-> the output that is judged; the metric; the samples, with labels in the form that the
    metric takes; warnings about the labels."""
    output = _output(request, entry)
    tensor = entry.output(output)
    shape = entry.sample_shape(tensor)
    if (task := _task(request, tensor, shape, data)) == "map":
        return output, detection.metric(entry, request.output and output, data), data, []
    if task == "miou":
        return output, segmentation.metric(entry, tensor, data), data, []
    original_labels = replace(data, part="all").label_array()
    labels, label_notes = label_forms.class_labels(request.metric, tensor, shape, original_labels)
    if labels is not original_labels:
        data = samples.relabelled(data, labels, cache)
    metric = metrics.choose(request.metric, tensor, shape, data.label_array())
    return output, metric, data, [f"{data.source}: {text}" for text in label_notes]


def _task(request: Request, tensor: Tensor, shape: Shape, data: Samples) -> str | None:
    """`map` or `miou` where one of these is the metric; None where it is another.

    Raises UsageError where a built-in metric of another task was named for boxes or masks.
    """
    asked = request.metric and request.metric.casefold()
    labels = data.label_rows()
    usual = {"boxes": "map", "masks": "miou"}.get(data.labels_are)
    masks = len(labels.shape) == 3 and labels.dtype.kind in "iu" and len(shape) == 3
    if usual is None and masks and label_forms.scores(tensor, shape) is None:
        usual = "miou" if asked is None else None
    known = metric_table.known(asked)
    if usual and data.labels_are != "values" and known and known.name != usual:
        raise UsageError(
            f"--metric {asked}: {data.source} is labelled with {data.labels_are}; give "
            f"--metric {usual} or MODULE:FUNCTION, or labels of classes"
        )
    chosen = asked or usual
    return chosen if chosen in ("map", "miou") else None


def few_samples(request: Request, labelled: bool, count: int, metric: Metric | None) -> list[str]:
    drop = request.budget.max_accuracy_drop
    if not labelled or metric is None:
        return []
    single = metric.proportion and metric.whole is None  # a sample weighs as much as any other
    if single and isinstance(drop, Share) and 0 < drop.value < 1 / count:
        return [
            f"{count} samples cannot show a drop of {drop.value:.2%}: a single one is worth "
            f"{1 / count:.2%}; give more data"
        ]
    if count < FEW_SAMPLES:
        return [f"{count} samples are few: the interval of the accuracy will be wide"]
    return []
