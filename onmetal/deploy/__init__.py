"""The line of a deployment: request, proposals, conversion, screening, accuracy, measuring, choice.

`onmetal.deploy` is this package and, when it is called, the function `deploy` of it. So it is the
same whether the package or the attribute of `onmetal` was imported first.
"""

import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onmetal.reports.record import Document

PathText = str | PathLike[str]


def deploy(
    model: Any,
    *,
    target: PathText,
    example_inputs: Any = None,
    name: str | None = None,
    data: Any = None,
    calibration_data: Any = None,
    metric: str | None = None,
    output: str | None = None,
    device: str | None = None,
    no_device: bool = False,
    max_accuracy_drop: str | float | None = None,
    min_accuracy: str | float | None = None,
    max_latency: str | None = None,
    max_size: str | int | None = None,
    max_macs: str | None = None,
    max_memory: str | int | None = None,
    max_energy: str | None = None,
    minimize: str | None = None,
    recipes: str | Sequence[str] | None = None,
    batch: int | None = None,
    threads: int | None = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    cut_at: str | Sequence[str] | None = None,
    out: PathText | None = None,
    force: bool = False,
    golden: str | None = None,
    keep_paths: bool = False,
    time_limit: str | None = None,
    quick: bool = False,
    thorough: bool = False,
    dry_run: bool = False,
    follow_links: bool = False,
    trust: bool = False,
    progress: bool = False,
) -> "Document":
    """Deploy a model, as the command `deploy MODEL --target …` does, and return its report.

    `model`: the path of a model file, several paths that compete, a PyTorch module or exported
    program, or a Keras model. `example_inputs`: of a PyTorch module, a tensor or array, a tuple of
    them, or a dict by the name of the argument; the shapes of the exported program are theirs.
    `name`: of a model that is an object; default: its class in lower case.
    `data`, `calibration_data`: the path of an .npz file or a folder of images, `MODULE:FUNCTION`,
    or arrays in memory: a dict of arrays by the name of the input, [samples, …], with the labels
    under "y"; a pair (x, y); for calibration also x alone.
    `progress`: whether to show it on standard error. Every other option has the name of the command
    line's, and its values: "20ms", "1%"; sizes may be whole numbers of bytes, and accuracies plain
    numbers in the metric's own units. `recipes` and `cut_at` may be lists.

    -> the record that `--json` prints; the bundle lies in its `bundle`.

    Raises the errors of onmetal.errors: UsageError, UnsupportedError, DeviceError, BudgetError;
    the last two have the report in `document.document` where candidates were judged.
    """
    options = dict(locals())
    from onmetal.deploy import python_api

    return python_api.deploy(**options)


class _CallablePackage(ModuleType):
    """This package, which is a function too."""

    __call__ = staticmethod(deploy)

    @property
    def __signature__(self) -> Any:
        """What `help` and editors show: that of `deploy`, which is not bound to the package."""
        import inspect

        return inspect.signature(deploy)


sys.modules[__name__].__class__ = _CallablePackage
