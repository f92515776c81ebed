"""Random graphs in random formats keep the rules and the bound, and load in both runtimes."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onmetal.calibration import placement
from onmetal.calibration.placement import MOVERS, PAIRED, UNARY, WEIGHTED
from onmetal.converters.onnx.graph import Graph
from onmetal.targets import OPERATORS, Format
from tests.qdq_checks import check, check_bounds, check_exact, check_rules, made, right_in_openvino
from tests.qdq_random_graphs import EMIT, cases
from tests.qdq_reference import EVERY, Case


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@examples(150)
@given(cases())
def test_any_graph_in_any_format_keeps_the_rules_the_bound_and_loads(
    case: tuple[Case, Format],
) -> None:
    check(*case)


@pytest.mark.parametrize("kind", EVERY)
def test_every_operator_runs_in_8_bits_as_its_format_says(kind: str) -> None:
    reached = {"in 8 bits": 0, "in both runtimes": 0}

    @examples(5)
    @given(cases(kind))
    def run(case: tuple[Case, Format]) -> None:
        m = check(*case)
        there = kind in {entry.op_type for entry in m.twin.integer}
        reached["in 8 bits"] += there
        reached["in both runtimes"] += there and right_in_openvino(m)

    run()
    assert all(reached.values()), reached


@examples(60)
@given(cases(), st.data())
def test_what_is_kept_in_float_is_and_its_neighbours_are_right(
    case: tuple[Case, Format], data: st.DataObject
) -> None:
    listed = sorted(placement.place(Graph(case[0].model), case[1]).integer)
    keep = data.draw(st.sets(st.sampled_from(listed))) if listed else set()
    m = made(*case, keep_float=keep)
    assert not keep & m.twin.placed.integer
    check_rules(m)
    check_bounds(m, check_exact(m, m.feeds))


@examples(60)
@given(cases(), st.data())
def test_tensors_that_no_range_holds_stay_float(
    case: tuple[Case, Format], data: st.DataObject
) -> None:
    tensors = sorted(placement.place(Graph(case[0].model), case[1]).roots)
    lost = data.draw(st.sets(st.sampled_from(tensors))) if tensors else set()
    m = made(*case, not_finite=lost)
    assert not lost & m.twin.placed.roots.keys()
    check_rules(m)
    check_bounds(m, check_exact(m, m.feeds))


def test_the_groups_of_operators_are_all_that_targets_may_list() -> None:
    assert {*WEIGHTED, *PAIRED} | UNARY == OPERATORS
    assert MOVERS <= UNARY
    assert not {*WEIGHTED} & {*PAIRED} and not {*WEIGHTED, *PAIRED} & UNARY
    assert EMIT.keys() == OPERATORS
