"""Where the pixels of an image go, by the keys `size`, `resize`, `letterbox` and `crop` of
data.toml."""

from typing import NamedTuple

from onmetal.files.preprocessing import Preprocessing


class Placed(NamedTuple):
    """An image scaled to `scaled`, whose left upper corner lies at (`left`, `top`) of a canvas of
    `canvas`. Sizes are (width, height) in pixels; a negative corner: so much is cut off."""

    scaled: tuple[int, int]
    left: int
    top: int
    canvas: tuple[int, int]


def placed(size: tuple[int, int], preprocessing: Preprocessing) -> Placed:
    """`size`: (width, height) of the turned image."""
    width, height = size
    if preprocessing.resize:
        high, wide = preprocessing.resize
        return Placed((wide, high), 0, 0, (wide, high))
    if preprocessing.letterbox:
        high, wide = preprocessing.letterbox
        scale = min(high / height, wide / width)
        scaled = max(1, round(width * scale)), max(1, round(height * scale))
        return Placed(scaled, (wide - scaled[0]) // 2, (high - scaled[1]) // 2, (wide, high))
    if preprocessing.size:
        short = min(size)
        width, height = (max(1, side * preprocessing.size // short) for side in size)
    if not preprocessing.crop:
        return Placed((width, height), 0, 0, (width, height))
    high, wide = preprocessing.crop
    return Placed((width, height), -((width - wide) // 2), -((height - high) // 2), (wide, high))
