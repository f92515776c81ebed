"""Static quantization as a deployment does it: statistics, ranges, a graph for each format."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace

from onmetal.calibration import samples
from onmetal.calibration.calibrated import CalibratedModel
from onmetal.calibration.statistics import Statistics
from onmetal.deploy import model as model_file
from onmetal.errors import UnsupportedError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.ranges import ESTIMATORS
from onmetal.runtimes import fit
from tests.conftest import DIGITS
from tests.float_graphs import convolution, floats, kinds, root, roots, run, table
from tests.onnx_models import build, node, relu, save, value, weights
from tests.statistics_reference import Case, compare, streamed


def told(done: float, total: float, what: str) -> None:
    assert done <= total and what


TARGET = fit.load_target("x86-onnxruntime")
FORMATS = [
    entry.format for entry in TARGET.recipes if entry.quantized_by == "static" and entry.format
]


def hub(built: Any, folder: Path, cache: Cache, **arrays: Any) -> CalibratedModel:
    folder.mkdir(exist_ok=True)
    path = built if isinstance(built, Path) else save(built, folder / "given.onnx")
    host = Local(cache)
    model = model_file.read(path, {}, None, cache, host)
    np.savez(folder / "data.npz", **arrays)
    data = str(folder / "data.npz")
    found = samples.load(data, model, cache, option="--data", labelled=False)
    return CalibratedModel(model, TARGET, found, host, cache)


def digits_hub(folder: Path, cache: Cache) -> CalibratedModel:
    with np.load(DIGITS / "calibration.npz") as stored:
        return hub(DIGITS / "digits_cnn.onnx", folder, cache, image=stored["x"][:64])


@pytest.fixture(scope="module")
def example_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CalibratedModel]:
    folder = tmp_path_factory.mktemp("hub")
    with Cache(folder / "cache") as cache:
        yield digits_hub(folder, cache)


def test_the_statistics_of_a_deployment_are_exact(
    example_hub: CalibratedModel, tmp_path: Path
) -> None:
    """Made in several processes; the same bytes as in one."""
    folder = example_hub.statistics(told)
    assert example_hub.samples
    tensors = json.loads((folder / "statistics.json").read_text())["tensors"]
    with np.load(DIGITS / "calibration.npz") as stored:
        given = Case(
            example_hub.float_graph(),
            example_hub.model,
            example_hub.samples,
            {"image": stored["x"][:64]},
            tensors,
        )
    assert "image" in tensors and len(tensors) > 10
    compare(given, folder)
    alone = streamed(given, tmp_path / "alone")
    for name in ("statistics.npz", "statistics.json"):
        assert (alone / name).read_bytes() == (folder / name).read_bytes()


def test_one_set_of_statistics_serves_every_format(example_hub: CalibratedModel) -> None:
    made = [example_hub.quantized(form, told) for form in FORMATS]
    assert len({source.sha256 for source in made}) == len(FORMATS)
    in_cache = [path.name for path in (example_hub.cache.root / "entries").iterdir()]
    for kind in ("float", "statistics"):
        assert len([name for name in in_cache if name.startswith(f"{kind}-")]) == 1


def test_what_was_made_is_found_again(example_hub: CalibratedModel) -> None:
    steps: list[str] = []

    def heard(done: float, total: float, what: str) -> None:
        steps.append(what)

    first = example_hub.quantized(FORMATS[0], told)
    again = example_hub.quantized(FORMATS[0], heard)
    assert first == again and not steps
    assert example_hub.float_source().path == example_hub.float_graph()


def test_a_quantized_graph_gives_nearly_what_the_float_one_gives(
    example_hub: CalibratedModel,
) -> None:
    source = example_hub.quantized(FORMATS[0], told)
    graph = onnx.load(str(source.path))
    onnx.checker.check_model(graph, full_check=True)
    assert "QuantizeLinear" in kinds(graph)
    assert source.details["estimator"] in ESTIMATORS
    assert source.details["estimators_sqnr_db"].keys() == ESTIMATORS.keys()
    assert min(source.details["estimators_sqnr_db"].values()) > 10
    with np.load(DIGITS / "digits.npz") as stored:
        rows = stored["x"][:64]
    expected, found = (
        np.concatenate([run(path, {"image": row[None]})[0] for row in rows])
        for path in (example_hub.float_graph(), source.path)
    )
    noise = np.mean((expected - found) ** 2) / np.mean(expected**2)
    assert 0 < noise < 10**-2.5


def test_the_same_inputs_give_the_same_graph_in_another_cache(
    example_hub: CalibratedModel, tmp_path: Path
) -> None:
    with Cache(tmp_path / "cache") as cache:
        other = digits_hub(tmp_path, cache)
        assert other.float_graph().read_bytes() == example_hub.float_graph().read_bytes()
        folders = [entry.statistics(told) for entry in (other, example_hub)]
        for name in ("statistics.npz", "statistics.json"):
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
        made = [entry.quantized(FORMATS[0], told) for entry in (other, example_hub)]
        assert made[0].path != made[1].path
        assert made[0].path.read_bytes() == made[1].path.read_bytes()
        assert made[0].details == made[1].details


Built = Callable[[], Any]


@pytest.mark.parametrize(
    ("built", "data", "message"),
    [
        (root, {"x": np.full((9, 4), -1, np.float32)}, "NaN or infinite.*'root'"),
        (table, {"ids": np.array([[0, 1], [3, 99]])}, "out of data bounds"),
        (lambda: relu(["N", 4]), {"x": floats(9, 4)}, "nothing in it can be quantized"),
    ],
    ids=["never finite", "fails on a sample", "nothing to quantize"],
)
def test_why_a_model_cannot_be_quantized_is_said(
    tmp_path: Path, built: Built, data: dict[str, Any], message: str
) -> None:
    with Cache(tmp_path / "cache") as cache:
        given = hub(built(), tmp_path, cache, **data)
        with pytest.raises(UnsupportedError, match=message) as caught:
            given.quantized(FORMATS[0], told)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 900


def test_a_format_that_fits_nothing_does_not_stop_the_others(tmp_path: Path) -> None:
    built = build(
        [node("MatMul", "x w", "y")],
        [value("x", ["N", 4])],
        [value("y", ["N", 3])],
        [weights("w", 4, 3)],
    )
    with Cache(tmp_path / "cache") as cache:
        given = hub(built, tmp_path, cache, x=floats(9, 4))
        conv, matmul = (replace(FORMATS[0], operators=(name,)) for name in ("Conv", "MatMul"))
        given.recipes = [("int8-conv", conv), ("int8-matmul", matmul)]
        with pytest.raises(UnsupportedError, match="nothing in it can be quantized"):
            given.quantized(conv, told)
        assert given.quantized(matmul, told).details["operators_in_8_bits"] == 1


def test_what_is_not_finite_stays_float_and_the_rest_does_not(tmp_path: Path) -> None:
    data = np.abs(floats(9, 40)) + 0.1
    data[4, 1] = -1
    with Cache(tmp_path / "cache") as cache:
        given = hub(roots(), tmp_path, cache, x=data)
        found = Statistics(given.statistics(told))
        assert found.not_finite == {"root", "y"}
        source = given.quantized(FORMATS[0], told)
        graph = onnx.load(str(source.path))
        by_output = {name: entry for entry in graph.graph.node for name in entry.output}
        assert source.details["operators_in_8_bits"] == 2
        assert len(source.details["operators_in_float"]) == 1
        assert list(by_output["y"].input) == ["root", "w"]
        expected, found_rows = (
            run(path, {"x": data[:1]}) for path in (given.float_graph(), source.path)
        )
        for reference, row in zip(expected, found_rows, strict=True):
            np.testing.assert_allclose(row, reference, atol=0.02 * np.abs(reference).max())


def test_a_model_of_dead_ranges_is_quantized(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        given = hub(convolution(), tmp_path, cache, x=np.zeros((9, 3, 6, 6), np.float32))
        source = given.quantized(FORMATS[0], told)
        feed = {"x": np.zeros((1, 3, 6, 6), np.float32)}
        (expected,), (found,) = (run(p, feed) for p in (given.float_graph(), source.path))
        np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("opset", [8, 11])
def test_a_model_of_a_lower_opset_is_quantized_and_valid(tmp_path: Path, opset: int) -> None:
    built = convolution(opset=opset, ir=3 if opset == 8 else 6)
    if opset == 8:
        for tensor in built.graph.initializer:
            built.graph.input.append(value(tensor.name, list(tensor.dims)))
    with Cache(tmp_path / "cache") as cache:
        given = hub(built, tmp_path, cache, x=floats(9, 3, 6, 6))
        source = given.quantized(FORMATS[0], told)
        onnx.checker.check_model(onnx.load(str(source.path)), full_check=True)
        feed = {"x": floats(9, 3, 6, 6)[:1]}
        (expected,), (found,) = (run(p, feed) for p in (given.float_graph(), source.path))
        np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
