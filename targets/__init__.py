"""Target profiles: what hardware is, one TOML file each, named as on the command line.

A target says *what* (which runtimes, which formats under which rules, which limits), never *where*:
the device comes from `--device`. Facts carry their unit in the key; unknown keys are errors; there
is no inheritance. A path that ends in `.toml` works wherever a target's name does.
"""

import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from onmetal.errors import UsageError
from onmetal.files.reading import TOML_BYTES, parse_toml, read_bytes
from onmetal.targets import inline
from onmetal.targets.recipe import EXACT as EXACT
from onmetal.targets.recipe import OPERATORS as OPERATORS
from onmetal.targets.recipe import Format as Format
from onmetal.targets.recipe import Kind as Kind
from onmetal.targets.recipe import Named, listed
from onmetal.targets.recipe import Recipe as Recipe
from onmetal.texts.suggest import did_you_mean, near

Positive = Annotated[int, Meta(gt=0)]
Natural = Annotated[int, Meta(ge=0)]


class Runtime(Struct, frozen=True, forbid_unknown_fields=True):
    """An engine that executes models: a folder of runtimes/."""

    name: str
    options: dict[str, str | int | float | bool] = {}
    """The runtime's own options, which override those that onmetal sets."""


class Io(Struct, frozen=True, forbid_unknown_fields=True):
    """Inputs and outputs of a TFLite artifact; the bundle's run.py converts them where they differ
    from the model's own."""

    layout: Literal["onnx", "nhwc"] = "onnx"
    """nhwc: images come in and go out with channels last, as the operators in between have them."""
    dtype: Literal["float32", "int8"] = "float32"
    """int8: a fully quantized artifact takes and gives integers."""


Transport = Literal["local", "adb", "ssh", "serial"]


class Device(Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach a device of this kind; the user says which device (--device)."""

    transport: Transport
    required: bool = False
    """Whether deploying without a device needs the option --no-device."""


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """The hardware's storage and memory: a candidate that exceeds them is rejected."""

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
    """A microcontroller: its core, and the exact sizes of the memories that must hold the model."""

    core: Core
    """Decides which of CMSIS-NN's kernels run, and so the scratch memory that they ask for."""
    clock_mhz: Positive
    flash_kib: Positive
    ram_kib: Positive
    application_flash_kib: Natural = 0
    """The part of the flash that the model and its runtime cannot use."""
    application_ram_kib: Natural = 0
    """The part of the RAM that the arena cannot use: stack, buffers, the rest of the program."""


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


class _Facts(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields that a target and its file have in common."""

    name: str
    description: str
    arch: Literal["x86_64", "aarch64", "cortex-m", "any"]
    """any: a device of any architecture fits."""
    device: Device
    runtimes: tuple[Runtime, ...]
    threads: Positive | None = None
    """None: as many as the device has physical cores."""
    io: Io = Io()
    limits: Limits = Limits()
    chip: Chip | None = None
    npu: Npu | None = None

    @property
    def micro(self) -> bool:
        """Whether it is a microcontroller, which is reached by a serial line; its runtime runs on
        this machine too, where memory is then counted."""
        return self.device.transport == "serial"


class _Document(_Facts, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A target file as it is written."""

    recipes: tuple[str | inline.Table, ...]
    default: bool = False
    """Whether artifacts are measured by it on a device of its kind where no target is named."""


class TargetFile(_Facts, frozen=True, kw_only=True):
    """A target file that was read. `onmetal.runtimes.fit` makes a Target of it, by what each of its
    runtimes can run."""

    source: str
    recipes: tuple[Named, ...]
    """From the most exact to the least."""
    default: bool = False
    """Whether artifacts are measured by it on a device of its kind where no target is named."""
    deprecated: bool = False
    """Whether the file writes its recipes as [[recipes]] tables."""


class Target(_Facts, frozen=True, kw_only=True):
    """Hardware, and what can be tried on it."""

    recipes: tuple[Recipe, ...]
    """From the most exact to the least; several have one name where the target's runtimes run that
    recipe differently."""
    warnings: tuple[str, ...] = ()
    """What the user should change in the target's file."""

    def recipe(self, name: str, runtime: str | None = None) -> Recipe:
        """The recipe of this name as the runtime runs it; where the runtime runs none of this name,
        the first one of this name."""
        same_name = [known for known in self.recipes if known.name == name]
        return next((known for known in same_name if runtime in known.runtimes), same_name[0])

    def exactness(self, recipe: str) -> int:
        """Lower is more exact: the recipe's place in the file."""
        return list(dict.fromkeys(known.name for known in self.recipes)).index(recipe)


def names() -> list[str]:
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in files(__name__).iterdir()
        if entry.name.endswith(".toml")
    )


def default_for(transport: Transport) -> str:
    """The target by which artifacts are measured on a device of this transport."""
    entries = (read(name) for name in names())
    return next(e.name for e in entries if e.default and e.device.transport == transport)


def read(name: str) -> TargetFile:
    """Read a built-in target by its name, or any target file by its path.

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


def parse(text: str, source: str) -> TargetFile:
    """Raises UsageError. `source`: the file's path, in whose folder recipes of its own lie."""
    try:
        fields = parse_toml(text)
        document = msgspec.convert({"name": Path(source).stem, **fields}, _Document)
        _check(document)
        return _read(document, source)
    except ValueError as error:  # msgspec.ValidationError is one
        raise refused(source, f"{error}{_hint(text, str(error))}") from None


def refused(source: str, why: str) -> UsageError:
    return UsageError(f"target file {source}: {why}; see docs/targets.md")


def _check(target: _Document) -> None:
    """Raises ValueError for facts that contradict each other, which the types cannot express."""
    runtimes, chip = [runtime.name for runtime in target.runtimes], target.chip
    if not runtimes:
        raise ValueError("it has no [[runtimes]], so nothing could run the model")
    if double := sorted({name for name in runtimes if runtimes.count(name) > 1}):
        raise ValueError(f"the runtime {double[0]!r} stands there twice")
    if target.npu and not chip:
        raise ValueError("[npu] needs a [chip]: the core beside it, its flash and RAM")
    if chip and chip.application_ram_kib >= chip.ram_kib:
        raise ValueError("application_ram_kib leaves nothing of ram_kib")
    if chip and chip.application_flash_kib >= chip.flash_kib:
        raise ValueError("application_flash_kib leaves nothing of flash_kib")


def _read(document: _Document, source: str) -> TargetFile:
    words = tuple(entry for entry in document.recipes if isinstance(entry, str))
    tables = tuple(entry for entry in document.recipes if isinstance(entry, inline.Table))
    if words and tables:
        raise ValueError(_mixed(table.name for table in tables))
    if words:
        recipes = listed(words, Path(source).parent)
    else:
        recipes = inline.named(tables, [runtime.name for runtime in document.runtimes])
    _check_order(recipes)
    facts = {key: getattr(document, key) for key in _Facts.__struct_fields__}
    return TargetFile(
        **facts,
        recipes=recipes,
        source=source,
        default=document.default,
        deprecated=bool(tables),
    )


def _check_order(recipes: tuple[Named, ...]) -> None:
    if not recipes:
        raise ValueError("it has no recipes, so there is nothing to try")
    if any(entry.name == EXACT for entry in recipes[1:]):
        raise ValueError(
            f"{EXACT!r} must come first: the order is from the most exact to the least"
        )
    ways = [way for entry in recipes for way in entry.ways]
    if any(way.does("mixed") for way in ways) and not any(way.does("static") for way in ways):
        raise ValueError(
            "a recipe with the step 'mixed' needs one with 'static', from which it is made"
        )


def _mixed(tables: Iterable[str]) -> str:
    paths = ", ".join(f'"./{name}.toml"' for name in tables)
    return (
        "it lists recipes by name and has tables of them too: write each table as a file of its "
        'own beside this one (its lines without `name`, `method = "static"` as '
        '`steps = ["static"]`, [recipes.format] as [format]), and list these by their paths: '
        f"{paths}"
    )


_LIST = re.compile(r"^[ \t]*recipes[ \t]*=", re.MULTILINE)
_TABLE = re.compile(r"^[ \t]*\[\[[ \t]*recipes[ \t]*\]\]", re.MULTILINE)
_TABLE_NAME = re.compile(_TABLE.pattern + r"[^\[]*?^[ \t]*name[ \t]*=[ \t]*\"([a-z0-9-]+)\"", re.M)


def _hint(text: str, error: str) -> str:
    """What to write, where a list of recipes stands in a wrong place."""
    if not _LIST.search(text):
        return ""
    if _TABLE.search(text):
        return f": {_mixed(_TABLE_NAME.findall(text))}"
    if "unknown field `recipes`" in error or "required field `recipes`" in error:
        return (
            "; the line `recipes = […]` must stand above the file's first [table], of which it is "
            "a part otherwise"
        )
    return ""
