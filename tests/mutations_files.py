"""Honest files of every kind that strangers may give, and how each is read, for the mutations."""

import io
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onmetal import targets
from onmetal.calibration import labels, samples
from onmetal.converters.onnx import reader
from onmetal.converters.tflite import reader as tflite_reader
from onmetal.files import images, preprocessing
from onmetal.files.cache import Cache
from onmetal.files.preprocessing import Preprocessing
from onmetal.runtimes import fit
from tests.onnx_models import build, constant, node, value, weights
from tests.sample_files import image_model
from tests.tflite_nets import small

MODELS = ("onnx", "tflite")
NATIVE = (*MODELS, "png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm")
"""Kinds whose readers are written in C or C++, in which a mutation might end the process: the
models are read in a worker of their own by `deploy`, the pictures are not."""
MPO = {"format": "MPO", "save_all": True}
"""A camera's JPEG, with a preview."""
PICTURES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "png": [("RGBA", {}), ("P", {}), ("I;16", {})],
    "jpeg": [("RGB", {}), ("L", {"progressive": True}), ("CMYK", {}), ("RGB", MPO)],
    "bmp": [("RGB", {}), ("P", {})],
    "gif": [("P", {"save_all": True}), ("L", {})],
    "tiff": [("RGB", {"compression": c}) for c in ("raw", "tiff_lzw", "jpeg", "packbits")],
    "webp": [("RGBA", {"lossless": True}), ("RGB", {"save_all": True})],
    "ppm": [("RGB", {}), ("L", {})],
}
"""Kind -> modes of Pillow and how it saves them."""
KINDS = (*MODELS, *PICTURES, "npz", "data.toml", "labels.csv", "target.toml")
NAMES = {"jpeg": "picture.jpg", "labels.csv": "labels.csv", "data.toml": "data.toml"}
HOW = Preprocessing(size=32, crop=(32, 32))
SHAPE = (3, 4, 5)
COUNT = 6
LISTED = 'file,label\na.png,cat\nb.png,dog\nsub/c d.png,cat\n"sub/e.png",dog\n'
DATA_TOML = """
size = 256
crop = [224, 224]
channels = "RGB"  # or "BGR"
scale = 1.0
mean = [123.675, 116.28, 103.53]
std = [58.395, 57.12, 57.375]
layout = "NCHW"
dtype = "float32"
exif = true
alpha = "white"
classes = ["cat", "dog"]
"""


def seeds() -> list[tuple[str, bytes]]:
    """(kind, honest file), several of most kinds."""
    return [(kind, content) for kind in KINDS for content in honest(kind)]


def honest(kind: str) -> list[bytes]:
    if kind in PICTURES:
        return [_picture(kind, mode, options) for mode, options in PICTURES[kind]]
    match kind:
        case "onnx":
            return _onnx()
        case "tflite":
            return [_tflite()]
        case "npz":
            return [_npz(packed) for packed in (False, True)]
        case "data.toml":
            return [DATA_TOML.encode()]
        case "labels.csv":
            return [LISTED.encode(form) for form in ("utf-8", "utf-16")]
        case _:
            folder = Path(targets.__file__).parent
            return [(folder / f"{name}.toml").read_bytes() for name in ("x86-64", "cortex-m4")]


def _onnx() -> list[bytes]:
    conv = build(
        [
            node("Conv", "x w b", "c", pads=[1] * 4),
            node("Relu", "c", "r"),
            node("GlobalAveragePool", "r", "p"),
            node("Reshape", "p shape", "y"),
        ],
        [value("x", ["N", 3, 8, 8])],
        [value("y", ["N", 4])],
        [weights("w", 4, 3, 3, 3), weights("b", 4), constant("shape", [0, -1], "int64")],
    )
    branch = build([node("Neg", "x", "t")], [], [value("t", [2])]).graph
    other = build([node("Abs", "x", "e")], [], [value("e", [2])]).graph
    control = build(
        [
            node("ReduceSum", "x", "s", keepdims=0),
            node("Cast", "s", "flag", to=9),
            node("If", "flag", "y", then_branch=branch, else_branch=other),
        ],
        [value("x", [2])],
        [value("y", [2])],
    )
    return [model.SerializeToString(deterministic=True) for model in (conv, control)]


def _tflite() -> bytes:

    with tempfile.TemporaryDirectory() as folder:
        return small(Path(folder) / "net", "Relu", "Sigmoid").read_bytes()


def _picture(kind: str, mode: str, options: dict[str, Any]) -> bytes:
    values = np.random.default_rng(0).integers(0, 255, (40, 48, 4), np.uint8)
    values[10:30] = values[10, 10]  # packs well
    if mode == "I;16":
        picture = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(values).convert(mode)
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    options = {**options, **({"exif": exif} if kind in ("png", "jpeg", "webp", "tiff") else {})}
    if options.get("save_all"):
        options = {**options, "append_images": [picture.rotate(180)]}
    file = io.BytesIO()
    picture.save(file, **{"format": kind, **options})
    return file.getvalue()


def _npz(packed: bool) -> bytes:
    file = io.BytesIO()
    values = np.random.default_rng(0).random((COUNT, *SHAPE)).astype(np.float32)
    (np.savez_compressed if packed else np.savez)(file, x=values, y=np.arange(COUNT) % 3)
    return file.getvalue()


def read(kind: str, path: Path) -> None:
    """Reads one file as `deploy` would. Raises OnmetalError, and nothing else, where it is bad."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if kind == "onnx":
            reader.examine(str(path), {}, None, scratch)
        elif kind == "tflite":
            tflite_reader.examine(str(path), {}, None, scratch)
        elif kind == "npz":
            with Cache(folder) as cache:
                model = image_model(*SHAPE)
                samples.load(str(path), model, cache, option="--data", labelled=True, scores=3)
        elif kind == "data.toml":
            shutil.copyfile(path, folder / "data.toml")
            preprocessing.read_preprocessing(folder, folder.resolve())
        elif kind == "labels.csv":
            for name in ("a.png", "b.png", "sub/c d.png", "sub/e.png"):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).touch()
            shutil.copyfile(path, folder / "labels.csv")
            labels.listing(folder, None, 2, labelled=True, within=folder.resolve())
        elif kind == "target.toml":
            shutil.copyfile(path, folder / "target.toml")
            fit.load_target(str(folder / "target.toml"))
        else:
            images.read(path, HOW)


def repaired(kind: str, content: bytes) -> bytes:
    """With checksums that are right again, without which little of the rest is looked at."""
    data = bytearray(content)
    if kind == "png":
        place = 8
        while place + 12 <= len(data):
            end = place + 8 + int.from_bytes(data[place : place + 4], "big")
            data[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
            place = end + 4
    elif kind == "npz":
        place = data.find(b"PK\1\2")
        while 0 <= place < len(data) - 46:
            size, start = (int.from_bytes(data[place + at :][:4], "little") for at in (20, 42))
            names = (int.from_bytes(data[start + at :][:2], "little") for at in (26, 28))
            member = data[start + 30 + sum(names) :][:size]
            if int.from_bytes(data[place + 10 :][:2], "little") == 0:
                data[place + 16 : place + 20] = zlib.crc32(member).to_bytes(4, "little")
            place = data.find(b"PK\1\2", place + 46)
    return bytes(data)
