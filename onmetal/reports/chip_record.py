"""What a document says of a microcontroller's candidate: where RAM and flash go, and what an NPU is
modelled to do. Part of the record in record.py; units are in the names."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

Number = float | None
"""null in JSON where it is undefined (NaN) or infinite."""


class Agreement(Struct, frozen=True):
    """How outputs for the golden vectors differ between two that should compute the same."""

    identical: bool
    """Bit by bit, all of them."""
    largest_difference: Number
    peak: Number
    """The largest magnitude of the outputs on this machine."""
    same_argmax: bool
    """Of every output along its last axis."""
    vectors: int
    judged_on: str
    """Where the evaluation data ran: `device`, or `host` where the outputs are identical."""


class LiteRtAgreement(Struct, frozen=True):
    """The same against LiteRT, of the same file; or why there is none."""

    missing: str | UnsetType = UNSET
    identical: bool | UnsetType = UNSET
    largest_difference: Number | UnsetType = UNSET
    peak: Number | UnsetType = UNSET
    same_argmax: bool | UnsetType = UNSET
    vectors: int | UnsetType = UNSET
    judged_on: str | UnsetType = UNSET


class Category(Struct, frozen=True):
    """Bytes of the arena's tail that one kind of structure takes."""

    used: int
    """With what aligns them."""
    requested: int


class HostArena(Struct, frozen=True):
    """The arena in bytes, counted by TFLite Micro's recording allocator on this machine."""

    total: int
    head: int
    """Activations and scratch memory, planned to share it."""
    tail: int
    """What stays."""
    categories: dict[str, Category]


class ModelledArena(Struct, frozen=True):
    """The arena with CMSIS-NN's kernels on the chip's core, modelled."""

    core: str
    head_bytes: int
    tail_bytes: int
    total_bytes: int
    scratch_bytes: int
    """The most that a kernel asks for at once; planned into the head."""
    scratch_operator: str | None
    kept_bytes: int
    """What kernels keep in the tail on this core, beside what was counted on the host."""
    tail_32_bytes: int
    """The tail of a core of 32 bits, whose pointers are half as long."""


class Arena(Struct, frozen=True):
    host: HostArena
    modelled: ModelledArena | None
    """null: the target names no core, or the kernels are not known."""


class Flash(Struct, frozen=True):
    """Bytes of flash that the model and the code that runs it take."""

    weights_bytes: int
    graph_bytes: int
    code_bytes: int
    total_bytes: int
    code_basis: Literal["modelled"]
    operators: list[str]
    """The kernels that must be linked."""
    whole_numbers: bool
    """Whether it computes with integers alone, so that its outputs are the same everywhere."""


class Peak(Struct, frozen=True):
    """The operator at which most bytes live."""

    number: int
    """From 0."""
    kind: str
    output: str
    live_bytes: int


class Buffer(Struct, frozen=True):
    """A tensor, or a kernel's scratch memory, in the arena's head. It lives while the operators
    `first` to `last` run, counted from 1; 0 is before the first one."""

    name: str
    size_bytes: int
    first: int
    last: int
    offset: int
    """Bytes from the head's begin."""


class ArenaPlan(Struct, frozen=True):
    """The head of the arena over time."""

    head_bytes: int
    peak: Peak | None
    """null: the graph has no operators."""
    buffers: list[Buffer]
    timeline: str
    """The same, drawn in text."""


class NpuLayer(Struct, frozen=True):
    """What Vela models of one operator on the NPU."""

    operator: str
    name: str
    cycles: int
    macs: int
    utilisation: float
    """The part of the multiply-accumulate units that works, from 0 to 1."""
    staging_bytes: int


class OnCpu(Struct, frozen=True):
    """An operator that the NPU does not run."""

    operator: str
    output: str
    reason: str


class Npu(Struct, frozen=True):
    """What Vela, Arm's compiler for Ethos-U, models of the model on the NPU."""

    vela: str
    """Its version."""
    accelerator: str
    system_config: str
    memory_mode: str
    clock_mhz: float
    cycles: dict[str, int]
    """By where they are spent, and `total`, which is less than their sum."""
    inferences_per_s: float | None
    inference_ms: float
    memory_bytes: dict[str, int]
    """By memory."""
    macs: int
    utilisation: float | None
    layers: list[NpuLayer]
    on_cpu: list[OnCpu]
    """What is left to the core, whose cycles are not in the sum."""
    cpu_operators: int
    basis: Literal["modelled"]


class Chip(Struct, frozen=True):
    """The target's chip, as its TOML says."""

    core: str
    clock_mhz: int
    flash_kib: int
    ram_kib: int
    application_flash_kib: int
    """What of the flash is not the model's and its runtime's to use."""
    application_ram_kib: int
    """What of the RAM is not the arena's to use."""


class Embedded(Struct, frozen=True):
    """Of a microcontroller's candidate."""

    arena: Arena
    flash: Flash
    plan: ArenaPlan
    agreement_with_litert: LiteRtAgreement
    npu: Npu | None
    chip: Chip | None
