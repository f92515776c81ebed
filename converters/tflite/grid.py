"""The scale and zero point of a group of tensors, from the range of their values."""

from typing import Literal

import numpy as np

from onmetal.ranges import Range

Activation = Literal["s8", "s16"]
TINY = float(np.finfo(np.float32).tiny)


class Grid:
    """The scale and zero point of a group of tensors that share them."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        self.low = self.high = 0.0
        self.scale, self.zero_point = 0.0, 0
        self.fixed = False
        self.empty = True

    def hold(self, low: float, high: float) -> None:
        self.low, self.high, self.empty = min(self.low, low), max(self.high, high), False

    def settle(self) -> None:
        """Set scale and zero point from the range. (Jacob et al., 2018, arXiv:1712.05877.)"""
        if self.fixed:
            return
        if self.activation == "s16":
            scale = max(-self.low, self.high) / 32767
        else:
            scale = (self.high - self.low) / 255
        self.scale = float(np.float32(scale))
        self.place()

    def raise_to(self, scale: float) -> bool:
        """Raise the scale to at least `scale`, below which kernels cannot compute. -> whether it
        changed."""
        if self.fixed or self.scale >= scale:
            return False
        self.scale = float(np.float32(scale))
        self.place()
        return True

    def place(self) -> None:
        if self.activation == "s16":
            self.zero_point = 0
        elif self.scale > TINY:
            self.zero_point = -128 + int(np.clip(np.round(-self.low / self.scale), 0, 255))
        else:
            self.zero_point = -128

    @property
    def holds(self) -> Range:
        least, most = (-128, 127) if self.activation == "s8" else (-32768, 32767)
        return (least - self.zero_point) * self.scale, (most - self.zero_point) * self.scale


def rounded(
    weight: np.ndarray, axis: int | None, least: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Weights as int8 in [-127, 127], symmetric. -> integers, float32 scales [channels] or [1].

    `least` [channels]: scales are at least this, so that a bias fits in the accumulator.
    """
    axes = tuple(place for place in range(weight.ndim) if place != axis)
    peak = np.abs(weight).max(axis=axes if axis is not None else None, initial=0.0)
    scale = np.atleast_1d(peak.astype(np.float64) / 127)
    if least is not None:
        scale = np.maximum(scale, least if axis is not None else least.max(initial=0.0))
    scale = np.where(scale > TINY, scale, 1 / 127).astype(np.float32)
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = -1
    steps = np.round(weight.astype(np.float64) / scale.reshape(shape).astype(np.float64))
    return np.clip(steps, -127, 127).astype(np.int8), scale
