"""The order in which the passes run."""

from collections.abc import Callable

from onmetal.converters.tflite.net import Net
from onmetal.converters.tflite.passes.activations import fuse_activations, hard_swishes
from onmetal.converters.tflite.passes.padding import fold_pads, trim_pads, zero_pads
from onmetal.converters.tflite.passes.reshapes import (
    drop_flattens,
    drop_kept_axes,
    lift_reshapes,
    lift_transposes,
    merge_reshapes,
)
from onmetal.converters.tflite.passes.slices import merge_slices, shortcut_convolutions


def tidy(net: Net) -> None:
    """Run all passes until none of them changes the graph."""
    net.sweep()
    for _ in range(2 * len(net.ops) + 8):
        changed = [step(net) for step in STEPS]
        net.sweep()
        if not any(changed):
            return


STEPS: tuple[Callable[[Net], bool], ...] = (
    fuse_activations,
    lift_reshapes,
    lift_transposes,
    merge_reshapes,
    drop_kept_axes,
    drop_flattens,
    fold_pads,
    trim_pads,
    zero_pads,
    merge_slices,
    shortcut_convolutions,
    hard_swishes,
)
