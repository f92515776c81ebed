"""Random graphs and random reshapes, lowered to TFLite, beside ONNX Runtime."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onmetal.converters.tflite import io
from onmetal.converters.tflite.net import Net
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.writing import write
from tests.tflite_graphs import (
    Graph,
    agrees,
    run,
)
from tests.tflite_random_graphs import grown, reshaped


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=grown(), simplified=st.booleans(), turned=st.booleans())
def test_random_graphs(
    made: Graph, simplified: bool, turned: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    net = agrees(made, tmp_path_factory.mktemp("grown"), simplified)
    assert write(read(write(net))) == write(net)
    if turned:
        check_channels_last(net, made)


def check_channels_last(net: Net, made: Graph) -> None:
    """The same numbers, where what is named is transposed by the caller."""
    plain = run(net, made.feed, False)
    names = io.channels_last(net)
    feed = {
        name: array.transpose(0, 2, 3, 1) if name in names else array
        for name, array in made.feed.items()
    }
    for name, array in run(net, feed, False).items():
        if name in made.wanted:
            again = array.transpose(0, 3, 1, 2) if name in names else array
            np.testing.assert_array_equal(again, plain[name])


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=reshaped())
def test_random_reshapes(made: Graph, tmp_path_factory: pytest.TempPathFactory) -> None:
    agrees(made, tmp_path_factory.mktemp("reshaped"), simplified=False)
