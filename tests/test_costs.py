"""The table of costs: what each row must have, and that one more row is all that one more takes."""

import json
import subprocess
import sys
from typing import Any

import pytest

from onmetal import costs
from onmetal.commands import options
from onmetal.reports import table
from onmetal.reports.record import Candidate
from tests.conftest import DIGITS, ROOT

NAMES = [cost.name for cost in costs.COSTS]


def test_no_two_rows_have_one_name_key_option_or_place() -> None:
    places = [cost.column.place for cost in costs.COSTS if cost.column]
    places += [table.P90_PLACE, table.SPEED_UP_PLACE]
    leaving = [cost.column.leaves for cost in costs.COSTS if cost.column and cost.column.leaves]
    leaving += [table.P90_LEAVES, table.CHANGE_LEAVES]
    orders = [cost.merit.order for cost in costs.COSTS if cost.merit]
    keys = [cost.key for cost in costs.COSTS]
    limits = [word for _, limit in costs.LIMITS for word in (limit.option, limit.key)]
    for values in (places, leaving, orders, NAMES, keys, limits):
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("cost", costs.COSTS, ids=NAMES)
def test_a_row_is_whole(cost: costs.Cost) -> None:
    assert cost.key in Candidate.__struct_fields__
    assert cost.minimize or not (cost.must_pay or cost.stands_in or cost.merit)
    assert not (cost.must_pay and cost.stands_in)
    assert cost.read or cost in costs.MEASURED
    if cost.limit:
        assert cost.limit.option == f"--{cost.limit.key.rsplit('_', 1)[0]}".replace("_", "-") or (
            cost.limit.key == cost.limit.option[2:].replace("-", "_")
        )
        assert not cost.limit.original or cost.limit.counted_in
        shown = cost.limit.exceeded.format(value=2, limit=1)
        assert "2" in shown and "1" in shown


def test_what_decides_where_nothing_can_be_timed_needs_no_device() -> None:
    assert [goal.name for goal in costs.GOALS if goal.stands_in] == ["size"]
    assert costs.stand_in().needs == "nothing"


def test_the_command_line_takes_what_the_table_has() -> None:
    parser = options.deploy()
    for _, limit in costs.LIMITS:
        assert limit.option in parser._option_string_actions
    assert (
        *("latency", "throughput", "size", "memory", "energy"),
        "accuracy-drop",
    ) == options.OBJECTIVES


@pytest.fixture(scope="module")
def extended() -> dict[str, Any]:
    """What a program says that has one more row."""
    words = [str(DIGITS / "digits_cnn.onnx"), str(DIGITS / "digits.npz")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.one_more_cost", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_one_more_row_is_an_option_and_a_goal(extended: dict[str, Any]) -> None:
    assert "--max-temperature 60C" in extended["help"]
    assert "|temperature|" in extended["help"]
    code, text = extended["plan"]
    document = json.loads(text)
    assert code == 0
    assert document["budget"] == {"max_accuracy_drop": 0.01, "max_temperature_c": 60.0}
    assert document["minimize"] == document["decided_by"] == "temperature"
    assert document["candidates"][0]["peak_temperature_c"] is None


def test_one_more_row_is_refused_where_it_cannot_be_measured(extended: dict[str, Any]) -> None:
    code, text = extended["no device"]
    assert code == 4 and "--max-temperature need a device" in text


def test_one_more_row_is_judged_ranked_and_given_as_a_reason(extended: dict[str, Any]) -> None:
    assert extended["objections"] == [
        ["peak temperature 80 °C is over 60 °C"],
        [],
        ["peak temperature was not measured (no reason given)"],
    ]
    assert extended["ranking"] == ["cool@openvino", "hot@openvino"]
    assert extended["pareto"] == ["cool@openvino"]
    assert extended["why not"] == "more temperature than cool@openvino: 80.0 °C against 40.0 °C"
    assert extended["preferred"].endswith("which stays cooler")


def test_one_more_row_is_reported(extended: dict[str, Any]) -> None:
    assert extended["document"]["peak_temperature_c"]["value"] == 40.0
    keys = list(extended["document"])
    assert keys.index("peak_temperature_c") == keys.index("energy_mj") + 1
    title, unit, _, first, second, _ = extended["table"]
    assert title.split()[-1] == "heat" and unit.split()[-1] == "°C"
    assert first.split()[-1] == "40.0" and second.split()[-1] == "80.0"
