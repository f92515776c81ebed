"""The tables of docs/tflite.md, from the rules: `python -m onmetal.converters.tflite.supported`."""

import sys
from pathlib import Path

from onmetal.converters.tflite import convert
from onmetal.converters.tflite.lowering import TABLE
from onmetal.converters.tflite.specification import FIXED, FREE, INT16, SHARED, WEIGHTED

BEGIN, END = "<!-- generated: {} -->", "<!-- end of {} -->"


def operators() -> str:
    """The table of ONNX operators: the TFLite operators that each becomes, and its limits."""
    assert convert.FAMILIES
    rows = ["| ONNX | TFLite | supported are |", "|---|---|---|"]
    for name in sorted(TABLE):
        rule = TABLE[name]
        rows.append(f"| `{name}` | {rule.to} | {rule.limits or 'all of it'} |")
    return "\n".join(rows)


def integers() -> str:
    """The table of TFLite operators that compute in integers."""
    rows = ["| TFLite | int8 | int16x8 |", "|---|---|---|"]
    for name in sorted(SHARED | FREE | set(WEIGHTED) | set(FIXED["s8"])):
        if name in WEIGHTED:
            axis = WEIGHTED[name].axis
            scales = "one scale" if axis is None else "a scale for each output"
            description = f"weights with {scales}, bias int32"
        elif name in FIXED["s8"]:
            scale, zero = FIXED["s8"][name]
            description = f"output 1/{1 / scale:g}, zero point {zero}"
        else:
            description = (
                "one scale for what goes in and out" if name in SHARED else "scales of their own"
            )
        rows.append(f"| `{name}` | {description} | {'yes' if name in INT16 else 'stays float'} |")
    return "\n".join(rows)


TABLES = {"operators": operators, "integers": integers}


def rendered(text: str) -> str:
    """The document with its generated parts replaced by new ones."""
    for name, table in TABLES.items():
        begin, end = BEGIN.format(name), END.format(name)
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = f"{head}{begin}\n\n{table()}\n\n{end}{tail}"
    return text


if __name__ == "__main__":
    for place in map(Path, sys.argv[1:]):
        place.write_text(rendered(place.read_text("utf-8")), "utf-8")
    if len(sys.argv) == 1:
        print("\n\n".join(table() for table in TABLES.values()))
