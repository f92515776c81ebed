"""Every operator of the specification in 8 and in 16 bits, by both sets of kernels."""

import numpy as np
import pytest

from onmetal.converters.tflite.check import problems
from onmetal.converters.tflite.grid import Activation
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.quantize import quantize
from onmetal.converters.tflite.reference import interpreter
from onmetal.converters.tflite.specification import FIXED, FREE, INT16, SHARED, WEIGHTED, supported
from onmetal.converters.tflite.writing import write
from tests.tflite_kinds import kind_net
from tests.tflite_quantized import (
    KERNELS,
    LEAST_DB,
    ROUGH,
    STEPS,
    calibrated,
    integer,
    kinds,
    outputs,
    sqnr,
    steps_off,
)

S8 = sorted(SHARED | FREE | WEIGHTED.keys() | FIXED["s8"].keys())
REFUSED_BY_REFERENCE = {"DEPTH_TO_SPACE", "ELU", "TILE"}
"""The reference kernels that LiteRT 2.3 ships have none of these, or only of an older version."""


DIFFER = 0.03
"""Share of comparisons and places that rounding may decide otherwise."""


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", S8)
def test_int8_kernel(kind: str, kernels: str) -> None:
    check_kind(kind, "s8", kernels)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", sorted(INT16))
def test_int16_kernel(kind: str, kernels: str) -> None:
    check_kind(kind, "s16", kernels)


def check_kind(kind: str, activation: Activation, kernels: str) -> None:
    m = kind_net(kind)
    feeds, net = m.feeds(), m.net
    made = read(write(quantize(net, calibrated(net, feeds), activation)))
    assert problems(made) == []
    assert any(op.kind == kind and integer(op) for op in made.ops), "it stayed float"
    if all(supported(op.kind, activation) for op in net.ops):
        assert kinds(made).count("DEQUANTIZE") == sum(t.is_float for t in net.outputs)
    if kernels == "reference" and kind in REFUSED_BY_REFERENCE:
        with pytest.raises(ValueError, match="find op for builtin opcode"):
            interpreter(write(made), reference=True)
        return
    for name, off in steps_off(made, feeds, KERNELS[kernels]).items():
        assert off <= ROUGH.get((activation, name), STEPS[activation]), name
    wanted, found = (outputs(n, feeds, KERNELS[kernels]) for n in (net, made))
    for name in wanted[0]:
        left, right = (np.stack([run[name] for run in runs]) for runs in (wanted, found))
        if left.dtype == np.float32:
            assert sqnr(left, right) >= LEAST_DB[activation], name
        else:
            assert np.mean(left != right) <= DIFFER, name


def test_every_table_is_known() -> None:
    """The specification's sets do not overlap, and what has 16-bit kernels has 8-bit ones."""
    sets = [SHARED, FREE, frozenset(WEIGHTED), frozenset(FIXED["s8"])]
    assert sum(map(len, sets)) == len(frozenset().union(*sets))
    assert FIXED["s16"].keys() <= INT16
    assert all(supported(kind, "s8") for kind in INT16)
    assert not supported("CUMSUM", "s8") and not supported("HARD_SWISH", "s16")
