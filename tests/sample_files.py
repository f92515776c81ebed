"""Models of given inputs, and files of samples for them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onmetal.calibration import samples
from onmetal.files.cache import Cache
from onmetal.records import Model, Tensor
from onmetal.samples import Samples

RANDOM = np.random.default_rng(0)


def taking(*inputs: Tensor, batch: int = 1) -> Model:
    """A model as far as data is concerned: what it takes."""
    return Model(
        path=Path("model.onnx"),
        prepared=Path("model.onnx"),
        prepared_sha256="",
        format="onnx",
        sha256="",
        size_bytes=1,
        inputs=inputs,
        outputs=(Tensor("y", "float32", (batch, 2)),),
        parameters=0,
        macs=0,
        operators={},
        batch=batch,
    )


def image_model(*shape: int, dtype: str = "float32") -> Model:
    return taking(Tensor("image", dtype, (1, *shape)))


VECTOR = taking(Tensor("vector", "float32", (1, 4)))
PAIR = taking(Tensor("left", "float32", (1, 2)), Tensor("right", "int64", (1, 3)))


def load(what: Path | str, model: Model, cache: Cache, *, labelled: bool = False) -> Samples:
    return samples.load(str(what), model, cache, option="--data", labelled=labelled)


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def floats(*shape: int) -> np.ndarray:
    return RANDOM.random(shape).astype(np.float32)


def everything(found: Samples, model: Model, name: str) -> np.ndarray:
    return np.concatenate([found.feed(model, [i])[name] for i in range(found.count)])


def picture(path: Path, width: int, height: int, mode: str = "RGB") -> np.ndarray:
    depth = () if mode == "L" else (len(mode),)
    pixels = RANDOM.integers(0, 256, (height, width, *depth), np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return pixels


def folder_of(tmp_path: Path, toml: str, count: int = 3, width: int = 9, height: int = 7) -> Path:
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    (folder / "data.toml").write_text(toml)
    for number in range(count):
        picture(folder / f"{number}.png", width, height)
    return folder
