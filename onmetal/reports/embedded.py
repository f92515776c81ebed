"""The memory and flash that a candidate takes on a microcontroller, as text."""

from onmetal import costs
from onmetal.reports.chip_record import Npu
from onmetal.reports.record import Candidate


def lines(candidate: Candidate) -> list[str]:
    """Lines about the RAM, flash and NPU of a candidate; none where it is not for a
    microcontroller."""
    embedded, memory = candidate.embedded, candidate.figure(costs.MEMORY)
    if embedded is None or memory is None:
        return []
    chip, flash = embedded.chip, embedded.flash
    room = f" of {chip.ram_kib * 1024:,}" if chip else ""
    texts = ["", f"{candidate.name}: RAM {memory.value:,.0f}{room} bytes: {memory.how}."]
    room = f" of {chip.flash_kib * 1024:,}" if chip else ""
    texts += [
        f"Flash {flash.total_bytes:,}{room} bytes: weights {flash.weights_bytes:,}, graph "
        f"{flash.graph_bytes:,}, code about {flash.code_bytes:,}."
    ]
    if count := candidate.instructions:
        counted = "instructions per inference, counted by the emulator; this is not a time."
        texts += [f"{count:,} {counted}"]
    return texts + (npu_lines(embedded.npu) if embedded.npu else [])


def npu_lines(npu: Npu) -> list[str]:
    """Lines about the cycles that Vela models, and the operators that it leaves to the core."""
    modelled = (
        f"{npu.accelerator} at {npu.clock_mhz:.0f} MHz, modelled: "
        f"{npu.cycles['total']:,} cycles; left to the core: {npu.cpu_operators} operator(s)."
    )
    return [modelled, *(f"  {row.operator} {row.output}: {row.reason}" for row in npu.on_cpu)]
