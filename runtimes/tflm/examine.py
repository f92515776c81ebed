"""How the buffers of a file share TFLite Micro's arena, as text, as a drawing and for a core."""

from pathlib import Path
from typing import Any

import msgspec

from onmetal.runtimes.tflm.memory import plan, stored


def examine(path: str, core: str | None, host_tail_bytes: int) -> dict[str, Any]:
    """How the file's buffers share the head of the arena. `core`: as targets.Chip has it.

    -> `head_bytes`; `peak`: {`number`, `kind`, `output`, `live_bytes`} or None; `buffers`: a list
    of {`name`, `size_bytes`, `first`, `last`, `offset`}; `timeline`: text, a line an operator;
    `svg`: a drawing. These are for TFLite Micro's reference kernels, as they run on this machine.
    `modelled`: cmsis_nn.Modelled of the core as a dictionary, its tail from `host_tail_bytes`; None
    where there is no core.

    Raises UsageError and UnsupportedError as net.read.
    """
    from onmetal.runtimes.tflm import cmsis_nn, timeline

    net, order, offsets = stored(Path(path))
    layout = plan(net, None, order, offsets)
    modelled = cmsis_nn.modelled(net, core, host_tail_bytes, order, offsets) if core else None
    return {
        "head_bytes": layout.head_bytes,
        "peak": msgspec.to_builtins(layout.peak),
        "buffers": [msgspec.to_builtins(buffer) for buffer in layout.buffers],
        "timeline": timeline.text(layout, net),
        "svg": timeline.svg(layout, net),
        "modelled": msgspec.to_builtins(modelled),
    }
