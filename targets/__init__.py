"""Target profiles: what hardware is, one TOML file each, named as on the command line.

A target says *what* (which runtimes, which formats under which rules, which limits), never *where*:
the device comes from `--device`. Facts carry their unit in the key; unknown keys are errors; there
is no inheritance. A path that ends in `.toml` works wherever a target's name does.
"""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

import onmetal
from onmetal.errors import UsageError
from onmetal.files.reading import TOML_BYTES, parse_toml, read_bytes
from onmetal.texts.suggest import did_you_mean, near

RUNTIMES = tuple(
    sorted(
        path.parent.name
        for path in (Path(onmetal.__file__).parent / "runtimes").glob("*/session.py")
    )
)
"""A runtime is a folder: what runtimes/*/session.py there is."""

PACKAGES = {"litert": ("ai-edge-litert", "tflite-runtime"), "tflm": ("tflite-micro",)}
"""Runtime -> the packages on PyPI that have it, the one to install first; else it has its name."""

TFLITE = ("litert", "tflm")
"""Runtimes of .tflite files: LiteRT, and TFLite Micro."""

Positive = Annotated[int, Meta(gt=0)]
Natural = Annotated[int, Meta(ge=0)]


class Runtime(Struct, frozen=True, forbid_unknown_fields=True):
    """An engine that executes models: a folder of runtimes/."""

    name: str
    options: dict[str, str | int | float | bool] = {}
    """The runtime's own options, over those that onmetal sets."""


Kind = Literal["u8", "s8"]


def packages(runtime: str) -> tuple[str, ...]:
    """What a runtime is called on PyPI, the package to install first."""
    return PACKAGES.get(runtime, (runtime,))


def install(runtime: str) -> str:
    """The command that installs a runtime: TFLite Micro comes with an extra, which pins it."""
    return "pip install " + ("'onmetal[embedded]'" if runtime == "tflm" else packages(runtime)[0])


def pinned(runtime: str, version: str) -> str:
    """A bundle's requirements.txt: the runtime of the version that it was made with."""
    return f"numpy>=1.26\n{packages(runtime)[0]}=={version}\n"


OPERATORS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Concat", "Reshape"}
    | {"Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Pad", "Gather", "Resize"}
    | {"MaxPool", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "AveragePool", "ReduceMean"}
    | {"GlobalAveragePool", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "HardSwish", "Elu"}
    | {"Softmax"}
)
"""What the quantizer knows how to place: ONNX's names. A Relu or Clip goes with what it follows."""


class Format(Struct, frozen=True, forbid_unknown_fields=True):
    """The rules of one 8-bit format: what the quantizer does, it reads here."""

    operators: tuple[str, ...] = ()
    """Which operators run in 8 bits; all others stay float. For LiteRT none are listed: it runs all
    those that TFLite's quantization specification does."""
    activation: Literal["u8", "s8", "s16"] = "u8"
    weight: Kind = "s8"
    activation_symmetric: bool = False
    """Zero point 0 (s8) or 128 (u8); else the range that was seen decides."""
    weight_symmetric: bool = True
    per_channel: bool = True
    """A scale for every output channel of a weight; else one for all of it."""
    weight_bits: Literal[7, 8] = 8
    """7: a reduced range, where 16-bit accumulators of 8-bit products would saturate."""
    same_scale: tuple[str, ...] = ()
    """Operators whose outputs must have the scale of their inputs."""


Method = Literal["float", "half", "static", "weights", "dynamic", "nncf", "fast"]
"""How a recipe's candidates are made:

float    the model as it is, computed in `compute`
half     weights stored as f16, computed with in float
static   8 bits by calibrated ranges, under the rules of [recipes.format]
weights  8-bit weights, computed with in float; [recipes.format] says of which operators
dynamic  8-bit matrix products, the ranges of activations taken anew in every inference
nncf     8 bits by Intel's NNCF, after its own rules
fast     the runtime's fastest `static` one, with those operators in float that its profile says
"""


class Recipe(Struct, frozen=True, forbid_unknown_fields=True):
    """One numeric format and its rules. The order in the file is from most exact to least."""

    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")]
    runtimes: tuple[str, ...]
    compute: Literal["f32", "f16", "bf16", "i8", "i16"]
    """The type that the runtime computes in; its profile must confirm it."""
    method: Method = "float"
    requires_any_flag: tuple[str, ...] = ()
    """CPU flags (as /proc/cpuinfo spells them) of which one must be present to run this at all."""
    format: Format | None = None
    split: bool = False
    """For tflm: compute the largest early operators in bands of rows, which needs less memory at
    once and gives the same outputs."""

    @property
    def calibrated(self) -> bool:
        """Whether samples decide how it is made."""
        return self.method in ("static", "nncf", "fast")


class Io(Struct, frozen=True, forbid_unknown_fields=True):
    """What a TFLite artifact takes and gives; the bundle's run.py converts where that differs from
    the model's own."""

    layout: Literal["onnx", "nhwc"] = "onnx"
    """nhwc: images come in and go out with channels last, as the operators in between have them."""
    dtype: Literal["float32", "int8"] = "float32"
    """int8: a fully quantized artifact takes and gives integers."""


class Device(Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach a device of this kind; which one is the user's to say (--device)."""

    transport: Literal["local", "adb", "ssh", "serial"]
    required: bool = False
    """Whether deploying without a device needs the user's word (--no-device)."""


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What the hardware has: a candidate that exceeds it is rejected."""

    storage_kib: Positive | None = None
    memory_kib: Positive | None = None


Core = Literal[
    "cortex-m0",
    "cortex-m0plus",
    "cortex-m3",
    "cortex-m4",
    "cortex-m7",
    "cortex-m33",
    "cortex-m55",
    "cortex-m85",
]


class Chip(Struct, frozen=True, forbid_unknown_fields=True):
    """A microcontroller: what must hold the model is said exactly."""

    core: Core
    """Decides which of CMSIS-NN's kernels run, and so the scratch memory that they ask for."""
    clock_mhz: Positive
    flash_kib: Positive
    ram_kib: Positive
    application_flash_kib: Natural = 0
    """Of the flash, what is not the model's and its runtime's to use."""
    application_ram_kib: Natural = 0
    """Of the RAM, what is not the arena's to use: stack, buffers, the rest of the program."""


class Npu(Struct, frozen=True, forbid_unknown_fields=True):
    """An Ethos-U beside the core, as Vela's options have it."""

    accelerator: Literal[
        "ethos-u55-32",
        "ethos-u55-64",
        "ethos-u55-128",
        "ethos-u55-256",
        "ethos-u65-256",
        "ethos-u65-512",
        "ethos-u85-128",
        "ethos-u85-256",
        "ethos-u85-512",
        "ethos-u85-1024",
        "ethos-u85-2048",
    ]
    system_config: Annotated[str, Meta(pattern=r"^\w+$")]
    """A section of Vela's Arm/vela.ini: clock and bandwidths."""
    memory_mode: Annotated[str, Meta(pattern=r"^\w+$")]
    """A section of the same file: which memory holds weights and feature maps."""


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    description: str
    arch: Literal["x86_64", "aarch64", "cortex-m", "any"]
    """any: no device is of a wrong kind."""
    device: Device
    runtimes: tuple[Runtime, ...]
    recipes: tuple[Recipe, ...]
    threads: Positive | None = None
    """None: as many as the device has physical cores."""
    io: Io = Io()
    limits: Limits = Limits()
    chip: Chip | None = None
    npu: Npu | None = None

    @property
    def micro(self) -> bool:
        """Whether TFLite Micro runs it: on this machine too, where memory is then counted."""
        return all(runtime.name == "tflm" for runtime in self.runtimes)

    def recipe(self, name: str) -> Recipe:
        return next(recipe for recipe in self.recipes if recipe.name == name)

    def exactness(self, recipe: str) -> int:
        """Lower is more exact: the recipe's place in the file."""
        return [known.name for known in self.recipes].index(recipe)


EXACT = "fp32"
"""The recipe that computes what the original does; always run, as the reference, where a target has
it: one of TFLite Micro need not."""


def names() -> list[str]:
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in files(__name__).iterdir()
        if entry.name.endswith(".toml")
    )


def load(name: str) -> Target:
    """Load a built-in target by its name, or any profile by the path of its TOML file.

    Raises UsageError, naming the file and the field, where it is missing or wrong.
    """
    if name.endswith(".toml"):
        source = name
        try:
            text = read_bytes(Path(name), TOML_BYTES).decode("utf-8-sig")
        except FileNotFoundError:
            likely = near(Path(name), (".toml",))
            raise UsageError(f"--target {name}: there is no such file{likely}") from None
        except OSError as error:
            why = error.strerror
            raise UsageError(f"--target {name}: cannot read this file ({why})") from None
        except UnicodeDecodeError as error:
            raise UsageError(f"--target {name}: cannot read this file: {error}") from None
    elif name in names():
        source = f"{name}.toml"
        text = files(__name__).joinpath(source).read_text("utf-8")
    else:
        raise UsageError(
            f"there is no target {name!r}{did_you_mean(name, names())}; there are: "
            f"{', '.join(names())}, or give the path of a .toml file of your own"
        )
    return parse(text, source)


def parse(text: str, source: str) -> Target:
    try:
        fields = parse_toml(text)
        target = msgspec.convert({"name": Path(source).stem, **fields}, Target)
    except (ValueError, msgspec.ValidationError) as error:
        raise UsageError(f"target file {source}: {error}; see docs/targets.md") from None
    _check(target, source)
    return target


def _check(target: Target, source: str) -> None:
    """What the types cannot say: combinations that could never run."""

    def refuse(why: str) -> None:
        raise UsageError(f"target file {source}: {why}; see docs/targets.md")

    runtimes = [runtime.name for runtime in target.runtimes]
    recipes = [recipe.name for recipe in target.recipes]
    if unknown := sorted(set(runtimes) - set(RUNTIMES)):
        refuse(
            f"[[runtimes]] names {unknown[0]!r}, which is unknown; there are: {', '.join(RUNTIMES)}"
        )
    if not runtimes:
        refuse("it has no [[runtimes]], so nothing could run the model")
    for kind, found in (("runtime", runtimes), ("recipe", recipes)):
        if double := sorted({name for name in found if found.count(name) > 1}):
            refuse(f"the {kind} {double[0]!r} stands there twice")
    if EXACT not in recipes and not target.micro:
        refuse(f"it has no {EXACT!r} recipe, which is run as the reference")
    if not recipes:
        refuse("it has no [[recipes]], so there is nothing to try")
    if EXACT in recipes and recipes[0] != EXACT:
        refuse(f"{EXACT!r} must come first: the order is from the most exact to the least")
    for recipe in target.recipes:
        if unknown := sorted(set(recipe.runtimes) - set(runtimes)):
            refuse(
                f"recipe {recipe.name!r} names the runtime {unknown[0]!r}, "
                f"which is not among its [[runtimes]] ({', '.join(runtimes)})"
            )
        if not recipe.runtimes:
            refuse(f"recipe {recipe.name!r} has no runtime")
        if why := _misfit(recipe):
            refuse(f"recipe {recipe.name!r} {why}")
    if why := _misfit_chip(target):
        refuse(why)
    if any(recipe.method == "fast" for recipe in target.recipes) and not any(
        recipe.method == "static" for recipe in target.recipes
    ):
        refuse("a recipe of method 'fast' needs one of method 'static', from which it is made")


def _misfit_chip(target: Target) -> str | None:
    """What a target of TFLite Micro may say, and no other."""
    runtimes = {runtime.name for runtime in target.runtimes}
    if "tflm" in runtimes and len(runtimes) > 1:
        return "the runtime 'tflm' stands beside others, which no device has together"
    if not target.micro and (target.chip or target.npu):
        return "[chip] and [npu] are of microcontrollers, which only the runtime 'tflm' runs on"
    if target.npu and not target.chip:
        return "[npu] needs a [chip]: the core beside it, its flash and RAM"
    serial = target.device.transport == "serial"
    if serial != target.micro:
        return "transport 'serial' and the runtime 'tflm' go together"
    chip = target.chip
    if chip and chip.application_ram_kib >= chip.ram_kib:
        return "application_ram_kib leaves nothing of ram_kib"
    if chip and chip.application_flash_kib >= chip.flash_kib:
        return "application_flash_kib leaves nothing of flash_kib"
    return None


_COMPUTES = {
    "float": ("f32", "f16", "bf16"),
    "half": ("f32",),
    "static": ("i8", "i16"),
    "weights": ("f32",),
    "dynamic": ("i8",),
    "nncf": ("i8",),
    "fast": ("i8",),
}
_ONLY_ON = {
    "dynamic": {"onnxruntime", "litert"},
    "half": {"litert"},
    "nncf": {"openvino"},
    "weights": {"onnxruntime", "openvino"},
    "fast": {"onnxruntime", "openvino"},
}


def _misfit(recipe: Recipe) -> str | None:
    """What of a recipe contradicts itself."""
    if recipe.compute not in _COMPUTES[recipe.method]:
        can = " or ".join(_COMPUTES[recipe.method])
        return f"of method {recipe.method!r} computes in {can}, not in {recipe.compute}"
    if (recipe.name == EXACT) != (recipe.method == "float" and recipe.compute == "f32"):
        return (
            f"with compute {recipe.compute!r}: {EXACT!r}, and only it, computes the float model "
            "in f32"
        )
    if recipe.method == "float" and recipe.compute != "f32" and "onnxruntime" in recipe.runtimes:
        return (
            f"names onnxruntime, whose CPU kernels on x86 compute {recipe.compute} by casting "
            f"to f32, which is no {recipe.compute}"
        )
    only = _ONLY_ON.get(recipe.method)
    if only and not set(recipe.runtimes) <= only:
        return f"of method {recipe.method!r} runs on {' and '.join(sorted(only))} alone"
    tflite = next((name for name in TFLITE if name in recipe.runtimes), None)
    if tflite and recipe.method == "float" and recipe.compute != "f32":
        return (
            f"names {tflite}, which onmetal lets compute floats in f32 only, not {recipe.compute}"
        )
    if recipe.split and (recipe.method != "static" or tflite != "tflm"):
        return "is split into bands of rows, which is done for 8-bit models of tflm alone"
    if (recipe.format is None) == (recipe.method in ("static", "weights")):
        need = "needs a" if recipe.format is None else "takes no"
        return f"of method {recipe.method!r} {need} [recipes.format]"
    if recipe.format is None:
        return None
    form = recipe.format
    if tflite:
        return _misfit_tflite(recipe, form, tflite)
    if form.activation == "s16" or recipe.compute == "i16":
        return "has 16-bit activations, which only litert and tflm compute with"
    if unknown := sorted({*form.operators, *form.same_scale} - OPERATORS):
        return f"lists the operator {unknown[0]!r}; there are: {', '.join(sorted(OPERATORS))}"
    if not form.operators:
        return "lists no operators in its format"
    if form.weight_symmetric and form.weight == "u8" and form.weight_bits == 7:
        return "has u8 weights of 7 bits, which are asymmetric: set weight_symmetric = false"
    return None


def _misfit_tflite(recipe: Recipe, form: Format, runtime: str) -> str | None:
    """TFLite's quantization is one specification, of which only the activations may be chosen."""
    if set(recipe.runtimes) != {runtime}:
        return f"names {runtime} beside others, whose formats differ: give each a recipe of its own"
    known = Format(activation=form.activation)
    if form != known or form.activation == "u8":
        return (
            'has a format other than TFLite\'s: only `activation`, "s8" or "s16", can be said for '
            f"{runtime}"
        )
    wide = form.activation == "s16"
    if wide != (recipe.compute == "i16"):
        return f"with activations of {form.activation} computes in {'i16' if wide else 'i8'}"
    return None
