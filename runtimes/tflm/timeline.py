"""Which buffers are live when in the arena: as text, a line an operator, and as a drawing."""

from collections.abc import Sequence
from html import escape

from onmetal.converters.tflite.net import Net, Op, Tensor
from onmetal.runtimes.tflm.memory import Buffer, Peak, Plan
from onmetal.texts.terminal import clean

BAR = "\u2588"
PARTS = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"
"""Eighths of a bar."""
NAMED = 12
"""How many buffers of the peak are named; the others are summed."""


def text(plan: Plan, net: Net, width: int = 80) -> str:
    """A line an operator: its number, its kind, the shape of its output, the live bytes while it
    runs, and a bar of them; then the live buffers at the peak, the largest first. `width`: columns.
    """
    if plan.peak is None:
        return "no operators"
    full_bytes = max(plan.head_bytes, 1)
    rows = [
        (f"{number}", _kind(op), _shape(op.outputs[0]), f"{plan.live_bytes(number + 1):,}")
        for number, op in enumerate(net.ops)
    ]
    sizes = [max(len(row[column]) for row in rows) for column in range(4)]
    room = max(8, width - sum(sizes) - 10)
    lines = []
    for number, (row, op) in enumerate(zip(rows, net.ops, strict=True)):
        left, middle = row[0].rjust(sizes[0]), f"{row[1]:{sizes[1]}}  {row[2]:{sizes[2]}}"
        bar = _bar(plan.live_bytes(number + 1) / full_bytes, room)
        mark = "<" if op is net.ops[plan.peak.number] else ""
        lines.append(f"{left}  {middle}  {row[3].rjust(sizes[3])}  {bar}{mark}".rstrip())
    return "\n".join([*lines, "", *_at_peak(plan, plan.peak, width)])


def _at_peak(plan: Plan, peak: Peak, width: int) -> list[str]:
    by_size = sorted(plan.live(peak.number + 1), key=lambda buffer: -buffer.size_bytes)
    gaps = plan.head_bytes - peak.live_bytes
    lines = [f"peak: {peak.live_bytes:,} bytes at operator {peak.number}, {peak.kind}, where live"]
    lines += [
        f"  {buffer.size_bytes:>11,}  {_short(buffer.name, width - 15)}"
        for buffer in by_size[:NAMED]
    ]
    if unnamed := by_size[NAMED:]:
        lines.append(f"  {sum(b.size_bytes for b in unnamed):>11,}  {len(unnamed)} more")
    unused = f", {gaps:,} of them unused even then" if gaps else ""
    return [*lines, f"head of the arena: {plan.head_bytes:,} bytes{unused}"]


def _bar(part: float, room: int) -> str:
    eighths = round(part * room * 8)
    return BAR * (eighths // 8) + PARTS[eighths % 8].strip()


def _short(name: str, room: int) -> str:
    """The name without its middle, where it is too long: its ends distinguish it best."""
    name = clean(name)
    if len(name) <= room:
        return name
    behind = (room - 1) // 2
    return f"{name[: room - 1 - behind]}\u2026{name[len(name) - behind :]}"


def _kind(op: Op) -> str:
    return clean(op.custom or op.kind)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


# --- as a drawing

WIDTH, HEIGHT = 1120, 560
"""Pixels of the plot, without its margins."""
LEFT, TOP, RIGHT, BELOW = 92, 64, 24, 210
TICKS = 6
COLOURS = ("#a0cbe8", "#8cd17d", "#f1ce63", "#d4a6c8", "#86bcb6", "#ffbe7d", "#d7b5a6", "#b6c9a4")
"""One after the other, so that neighbours differ; light, so that names can be read on them."""
SCRATCH, PEAK = "#9a948f", "#c8102e"
LEAST_LABEL = 13
"""Height in pixels from which a rectangle bears its name."""
LETTER = 6.9
"""Width in pixels of a letter of 11 pixels, about."""


def svg(plan: Plan, net: Net) -> str:
    """Buffers as rectangles: each from the first operator that needs it to the last, at its offset.
    Names and sizes show when pointed at, and within, where there is room."""
    columns = len(net.ops) + 1
    step, scale = WIDTH / columns, HEIGHT / max(plan.head_bytes, 1)
    total = (WIDTH + LEFT + RIGHT, HEIGHT + TOP + BELOW)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total[0]} {total[1]}" '
        f'width="{total[0]}" height="{total[1]}" font-family="system-ui, sans-serif" '
        'font-size="12" fill="#222">',
        f'<rect width="{total[0]}" height="{total[1]}" fill="#fff"/>',
        *_title(plan),
        *_scale(plan, scale),
    ]
    labels = ["inputs", *(f"{number} {_kind(op)}" for number, op in enumerate(net.ops))]
    for number, buffer in enumerate(plan.buffers):
        parts += _rectangle(buffer, number, labels, step, scale)
    parts += [*_peak_mark(plan, step), *_operators(plan, labels, step)]
    return "\n".join([*parts, "</svg>", ""])


def _title(plan: Plan) -> list[str]:
    caption = f"Head of the arena: {plan.head_bytes:,} bytes"
    if plan.peak is not None:
        caption += f"; at its peak {plan.peak.live_bytes:,} live"
    return [
        f'<text x="{LEFT}" y="26" font-size="16" font-weight="600">{escape(caption)}</text>',
        *_legend_entry(
            LEFT, f'fill="none" stroke="{PEAK}" stroke-width="2"', "where most bytes live"
        ),
        *_legend_entry(LEFT + 180, f'fill="{SCRATCH}"', "scratch memory of a kernel"),
        *_legend_entry(LEFT + 390, f'fill="{COLOURS[0]}"', "a tensor, until it is last taken"),
    ]


def _legend_entry(x: int, look: str, caption: str) -> list[str]:
    return [
        f'<rect x="{x}" y="38" width="12" height="12" {look}/>',
        f'<text x="{x + 18}" y="48" fill="#555">{caption}</text>',
    ]


def _scale(plan: Plan, scale: float) -> list[str]:
    parts = []
    for number in range(TICKS + 1):
        size = plan.head_bytes * number // TICKS
        y = TOP + HEIGHT - size * scale
        parts += [
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>',
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{size:,}</text>',
        ]
    return parts


def _peak_mark(plan: Plan, step: float) -> list[str]:
    if plan.peak is None:
        return []
    x = LEFT + (plan.peak.number + 1) * step
    return [
        f'<rect x="{x:.1f}" y="{TOP}" width="{step:.1f}" height="{HEIGHT}" fill="none" '
        f'stroke="{PEAK}" stroke-width="2" pointer-events="none"/>'
    ]


def _rectangle(
    buffer: Buffer, number: int, labels: Sequence[str], step: float, scale: float
) -> list[str]:
    first, last = max(buffer.first, 0), max(buffer.last, 0)
    x, width = LEFT + first * step, (last - first + 1) * step
    height = buffer.size_bytes * scale
    y = TOP + HEIGHT - buffer.end * scale
    scratch = buffer.name.startswith("scratch memory of ")
    colour = SCRATCH if scratch else COLOURS[number % len(COLOURS)]
    lives = f"from {labels[first]} to {labels[last]}"
    caption = f"{clean(buffer.name)}: {buffer.size_bytes:,} bytes at {buffer.offset:,}, {lives}"
    parts = [
        f'<g><title>{escape(caption)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" fill="{colour}" stroke="#fff" stroke-width=".8"/>'
    ]
    letters = int((width - 8) / LETTER)
    if height >= LEAST_LABEL and letters >= 4:
        label = _short(buffer.name, letters)
        parts.append(
            f'<text x="{x + 4:.1f}" y="{y + min(height / 2, 24) + 4:.1f}" font-size="11" '
            f'fill="#222">{escape(label)}</text>'
        )
    return [*parts, "</g>"]


def _operators(plan: Plan, labels: Sequence[str], step: float) -> list[str]:
    """Names below the plot; of very many, every so many."""
    every = max(1, -(-14 // max(1, int(step))))
    y = TOP + HEIGHT + 14
    parts = []
    peak = None if plan.peak is None else plan.peak.number + 1
    for place, label in enumerate(labels):
        if place % every and place != peak:
            continue
        x = LEFT + (place + 0.5) * step
        look = f'fill="{PEAK}" font-weight="600"' if place == peak else 'fill="#333"'
        parts.append(
            f'<text transform="translate({x + 4:.1f} {y}) rotate(-90)" text-anchor="end" '
            f'font-size="11" {look}>{escape(label)}</text>'
        )
    return parts
