"""A small model as a bundle's firmware, built for this machine and for a Cortex-M55 under QEMU.

Where TFLite Micro would be linked there is `tflm_stub`, which computes this one model; what is
expected of it comes from TFLite Micro itself.
"""

import atexit
import functools
import hashlib
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from onmetal.bundles.kinds import firmware
from onmetal.converters.tflite import net as tflite
from onmetal.converters.tflite import writing
from onmetal.records import Candidate, Model, Tensor
from onmetal.runtimes.tflm.session import Session
from tests.arm64 import needs

STUB = Path(__file__).parent / "tflm_stub"
NAME = "little"
OPERATORS = ("CONV_2D", "FULLY_CONNECTED")
TURNED = ("image", "map")
"""What has its channels last in the file."""
VECTORS = 3
ARENA_BYTES = 1024
CORES = {
    "cortex-m4": ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
    "cortex-m7": ("-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-d16"),
    "cortex-m55": ("-mcpu=cortex-m55", "-mfloat-abi=hard"),
}
PACKAGES = {
    "arm-none-eabi-g++": "libstdc++-arm-none-eabi-newlib",
    "arm-none-eabi-gcc": "gcc-arm-none-eabi",
    "clang": "clang",
    "clang++": "clang",
    "cmake": "cmake",
    "g++": "g++",
    "gcc": "gcc",
}
"""The Debian package of each program."""
CPP = ("-std=c++17", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics")

IMAGE = Tensor("image", "float32", (1, 2, 6, 5))
MAP = Tensor("map", "float32", (1, 4, 4, 3))
SCORES = Tensor("scores", "float32", (1, 5))


@functools.cache
def net() -> tflite.Net:
    """image -> CONV_2D -> map -> FULLY_CONNECTED -> scores, all of int8."""
    rng = np.random.default_rng(5)

    def activation(name: str, shape: tuple[int, ...], scale: float, zero: int) -> tflite.Tensor:
        found = tflite.Tensor(name, shape, np.dtype(np.int8))
        found.scale, found.zero_point = np.array([scale], np.float32), np.array([zero])
        return found

    def weights(name: str, shape: tuple[int, ...], scale: np.ndarray) -> tflite.Tensor:
        found = tflite.constant(name, rng.integers(-127, 128, shape).astype(np.int8))
        found.scale, found.zero_point = scale.astype(np.float32), np.zeros(scale.shape, np.int64)
        return found

    def biases(name: str, of: tflite.Tensor, taken: tflite.Tensor) -> tflite.Tensor:
        assert of.scale is not None and taken.scale is not None
        found = tflite.constant(name, rng.integers(-900, 900, of.shape[0]).astype(np.int32))
        found.scale = (of.scale * taken.scale).astype(np.float32)
        found.zero_point = np.zeros(found.scale.shape, np.int64)
        return found

    image = activation("image", (1, 6, 5, 2), 0.03, 7)
    middle = activation("map", (1, 4, 3, 4), 0.05, -128)
    scores = activation("scores", (1, 5), 0.125, 3)
    kernel = weights("kernel", (4, 3, 3, 2), np.array([0.01, 0.012, 0.02, 0.009]))
    dense = weights("dense", (5, 48), np.array([0.011]))
    return tflite.Net(
        [image],
        [scores, middle],
        [
            tflite.Op(
                "CONV_2D",
                [image, kernel, biases("kernel_bias", kernel, image)],
                [middle],
                {
                    **{"padding": tflite.VALID, "strideH": 1, "strideW": 1},
                    **{"dilationHFactor": 1, "dilationWFactor": 1},
                    "fusedActivationFunction": 1,
                },
            ),
            tflite.Op(
                "FULLY_CONNECTED",
                [middle, dense, biases("dense_bias", dense, middle)],
                [scores],
                {"fusedActivationFunction": 0, "keepNumDims": False},
            ),
        ],
    )


@functools.cache
def content() -> bytes:
    """The .tflite file."""
    return writing.write(net())


def candidate(path: Path) -> Candidate:
    """As a deployment has it; `path`: where the file lies."""
    digest = hashlib.sha256(content()).hexdigest()
    model = Model(
        path=path,
        prepared=path,
        prepared_sha256=digest,
        format="tflite",
        sha256=digest,
        size_bytes=len(content()),
        inputs=(IMAGE,),
        outputs=(SCORES, MAP),
        parameters=0,
        macs=None,
        operators={},
        batch=1,
    )
    return Candidate(
        name="int8@tflm",
        recipe="int8",
        runtime="tflm",
        runtime_version="1",
        model=model,
        files=(path,),
        sha256=digest,
        size_bytes=len(content()),
        options={"nhwc": list(TURNED)},
    )


@functools.cache
def golden() -> dict[str, np.ndarray]:
    """What TFLite Micro gives, as a bundle's run.py does."""
    rng = np.random.default_rng(6)
    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(content())
        names = [SCORES.name, MAP.name]
        session = Session([str(path)], {"nhwc": list(TURNED)}, [IMAGE.name], names)
        for number in range(VECTORS):
            image = rng.normal(0, 1.5, IMAGE.shape).astype(np.float32)
            arrays[f"input/image/{number}"] = image
            for name, array in zip(names, session.run({"image": image}), strict=True):
                arrays[f"output/{name}/{number}"] = array
    return arrays


def written(
    folder: Path, vectors: dict[str, np.ndarray] | None = None, arena_bytes: int = ARENA_BYTES
) -> dict[str, bytes]:
    """The firmware's files by their path in the bundle; the model's file goes to `folder`."""
    path = folder / "model.tflite"
    path.write_bytes(content())
    return firmware.files(
        candidate(path),
        golden() if vectors is None else vectors,
        shipped=path,
        arena_bytes=arena_bytes,
        operators=OPERATORS,
        name=NAME,
        core="cortex-m55",
    )


@functools.cache
def bundle_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return written(Path(folder))


def unpack(files: dict[str, bytes], folder: Path) -> Path:
    """-> the firmware's own folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder / firmware.FOLDER


# --- the stub


def call(cwd: Path, *command: str | Path) -> None:
    if package := PACKAGES.get(Path(command[0]).name):
        needs(str(command[0]), package)
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"


def stub(folder: Path, prefix: str = "", flags: Iterable[str] = ()) -> Path:
    """The library that stands for TFLite Micro, by the compiler `<prefix>g++`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stub_model.h").write_text(_stub_model())
    include = (f"-I{STUB}", f"-I{folder}")
    source = STUB / "stub.cc"
    call(folder, f"{prefix}g++", *CPP, "-Os", *flags, *include, "-c", source, "-o", "stub.o")
    call(folder, f"{prefix}ar", "rcs", "libtflm.a", "stub.o")
    return folder / "libtflm.a"


@functools.cache
def library(core: str | None = None) -> Path:
    """The stub, once a session: for this machine, or one of `CORES`."""
    if core is None:
        return stub(_home() / "stub")
    return stub(_home() / f"stub-{core}", "arm-none-eabi-", ("-mthumb", *CORES[core]))


def _stub_model() -> str:
    """What the stub is told of the model."""
    kernel, dense = net().ops
    tensors = [net().inputs[0], *kernel.outputs, *dense.outputs]
    places = {tensor: number for number, tensor in enumerate(tensors)}
    layers = [
        _layer("Conv2D", kernel, places, (6, 5, 2), (3, 3, 4), least=-128),
        _layer("FullyConnected", dense, places, (1, 1, 48), (1, 1, 5), least=-128),
    ]
    arrays = [text for layer in layers for text in layer[0]]
    sizes = ", ".join(str(tensor.size) for tensor in tensors)
    return "\n".join(
        [
            *arrays,
            f"const Layer LAYERS[] = {{{', '.join(layer[1] for layer in layers)}}};",
            f"constexpr size_t TENSORS = {len(tensors)};",
            f"constexpr size_t BYTES[] = {{{sizes}}};",
            "constexpr size_t INPUT_TENSORS[] = {0};",
            f"constexpr size_t OUTPUT_TENSORS[] = {{{places[net().outputs[0]]}, "
            f"{places[net().outputs[1]]}}};",
            "",
        ]
    )


def _layer(
    method: str,
    op: tflite.Op,
    places: dict[tflite.Tensor, int],
    taken: tuple[int, int, int],
    kernel: tuple[int, int, int],
    least: int,
) -> tuple[list[str], str]:
    source, weights, bias = op.taken
    target = op.outputs[0]
    assert source.scale is not None and weights.scale is not None and target.scale is not None
    assert source.zero_point is not None and target.zero_point is not None
    scales = np.broadcast_to(weights.scale, kernel[2:]).astype(np.float64)
    pairs = [_multiplier(float(source.scale[0]) * s / float(target.scale[0])) for s in scales]
    name = method.upper()
    arrays = [
        f"const int32_t {name}_MULTIPLIERS[] = {{{', '.join(str(m) for m, _ in pairs)}}};",
        f"const int {name}_SHIFTS[] = {{{', '.join(str(s) for _, s in pairs)}}};",
    ]
    values = (
        *(f'"{method}"', places[source], places[target], *taken, *kernel),
        *(_found(weights), _found(bias), int(source.zero_point[0]), int(target.zero_point[0])),
        *(least, 127, f"{name}_MULTIPLIERS", f"{name}_SHIFTS"),
    )
    return arrays, f"{{{', '.join(map(str, values))}}}"


def _found(tensor: tflite.Tensor) -> int:
    """Where the constant lies in the file."""
    assert tensor.data is not None
    data = tensor.data.tobytes()
    assert content().count(data) == 1
    return content().index(data)


def _multiplier(real: float) -> tuple[int, int]:
    """real = multiplier * 2^(shift - 31): TFLite's QuantizeMultiplier
    (tensorflow/lite/kernels/internal/quantization_util.cc)."""
    fraction, shift = math.frexp(real)
    whole = round(fraction * (1 << 31))
    return (whole // 2, shift + 1) if whole == 1 << 31 else (whole, shift)


# --- building


def build(sources: Path, folder: Path, library: Path, *options: str) -> Path:
    """By the bundle's own CMakeLists.txt. -> the folder with what was built."""
    found = (f"-DTFLM_INCLUDE={STUB}", f"-DTFLM_LIB={library}")
    call(sources, "cmake", "-S", sources, "-B", folder, *found, *options)
    call(sources, "cmake", "--build", folder)
    return folder


@functools.cache
def _built(port: str) -> Path:
    """Once a session, in a folder that is removed at its end."""
    home = _home() / port
    sources = unpack(bundle_files(), home)
    if port == "posix":
        return build(sources, home / "build", library()) / "firmware"
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={sources}/ports/mps3_an547/toolchain.cmake"
    options = (toolchain, f"-DONMETAL_PORT={port}")
    return build(sources, home / "build", library("cortex-m55"), *options) / "firmware.elf"


@functools.cache
def _home() -> Path:
    folder = tempfile.mkdtemp(prefix="onmetal-firmware-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def program(folder: Path) -> Path:
    """The firmware as a program of this machine, copied to `folder`."""
    return Path(shutil.copy(_built("posix"), folder / "firmware"))


def image(folder: Path) -> Path:
    """The firmware as an image for a Cortex-M55 (`-M mps3-an547`), copied to `folder`."""
    return Path(shutil.copy(_built("mps3_an547"), folder / "firmware.elf"))
