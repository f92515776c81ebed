"""Run as a program: onmetal with one more row in the table of costs, and what becomes of it.

The row is written into the table's source before anything else of onmetal is imported, as somebody
would write it there. The rest is the product as it is.
"""

import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROW = """
TEMPERATURE = Cost(
    name="temperature",
    key="peak_temperature_c",
    unit="°C",
    noun="peak temperature",
    noise="relative",
    needs="timed device",
    figure="{:.1f} °C".format,
    own="{:.1f} °C at its hottest".format,
    limit=Limit(
        option="--max-temperature",
        key="max_temperature_c",
        metavar="60C",
        help="of the package",
        parse=lambda text, option: float(text.removesuffix("C")),
        exceeded="peak temperature {value:g} °C is over {limit:g} °C",
    ),
    column=Column("heat", 8, (("°C", 1.0),), leaves=6),
    merit=Merit(5, "stays cooler"),
)
"""


def extended() -> ModuleType:
    """onmetal.costs with the row."""
    found = importlib.util.find_spec("onmetal.costs")
    assert found and found.origin
    source = Path(found.origin).read_text("utf-8")
    assert source.count("\nCOSTS = (") == 1 and source.count("ENERGY)") == 1
    source = source.replace("\nCOSTS = (", f"{ROW}\nCOSTS = (").replace(
        "ENERGY)", "ENERGY, TEMPERATURE)"
    )
    module = importlib.util.module_from_spec(found)
    sys.modules["onmetal.costs"] = module
    exec(compile(source, found.origin, "exec"), module.__dict__)
    import onmetal

    onmetal.costs = module
    return module


def ran(*words: str) -> tuple[int, str]:
    """-> the exit code and what was printed, or the error."""
    from onmetal import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(words)
        except SystemExit as end:  # --help
            code = int(end.code or 0)
    return code, out.getvalue() or err.getvalue()


def main(model: str, data: str) -> dict[str, Any]:
    costs = extended()
    from msgspec.structs import replace

    from onmetal.budget import Budget
    from onmetal.deploy import rank
    from onmetal.records import Candidate, Figure, Model, Trial, plain
    from onmetal.reports import of_trials, table
    from onmetal.reports.setting import Setting
    from onmetal.runtimes.fit import load_target
    from onmetal.texts.terminal import PLAIN

    target, goal = load_target("x86-64"), costs.goal("temperature")
    words = (model, "--target", "x86-64", "--data", data, "--dry-run", "--json")
    read = Model(Path("m"), Path("m"), "", "onnx", "", 9, (), (), 0, 9, {}, 1)
    bare = Trial("", "fp32", "openvino", "m")

    def trial(name: str, celsius: float) -> Trial:
        of = Candidate(name, "fp32", "openvino", "1", read, (), "", 9, {})
        figure = Figure(celsius, None, 1, "measured", "read")
        return replace(bare, name=name, candidate=of).with_figures(peak_temperature_c=figure)

    hot, cool = trial("hot@openvino", 80.0), trial("cool@openvino", 40.0)
    chosen = replace(cool, status="chosen")
    rows = [of_trials.candidate(entry) for entry in (chosen, hot)]
    budget = Budget(limits={"temperature": 60.0})
    return {
        "help": ran("--help")[1],
        "plan": ran(*words, "--max-temperature", "60C", "--minimize", "temperature"),
        "no device": ran(*words, "--max-temperature", "60C", "--no-device"),
        "objections": [budget.objections(entry) for entry in (hot, cool, bare)],
        "ranking": [t.name for t in rank.ranking([hot, cool], goal, target)],
        "pareto": rank.pareto([hot, cool], target),
        "why not": rank.why_not(hot, cool, goal, target),
        "preferred": rank.why_not(hot, cool, costs.goal("size"), target),
        "document": plain(rows[0]),
        "table": table.table(rows, None, Setting(), PLAIN),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
