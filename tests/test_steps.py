"""Steps of recipes: each is a module, and is done to what the one before it made."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from msgspec.structs import replace
from onnx import numpy_helper

from onmetal.calibration import samples, steps
from onmetal.calibration.calibrated import CalibratedModel
from onmetal.deploy import model as models
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.records import Source, Step
from onmetal.runtimes import fit
from onmetal.targets.recipe import STEPS, StepKind
from tests.conftest import DIGITS, ROOT

TARGET = fit.load_target("x86-64")
FOLDER = ROOT / "calibration/steps"


def test_every_step_that_a_recipe_may_have_is_a_module() -> None:
    names = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert names == {name.replace("-", "_") for name in STEPS}
    for name in STEPS:
        assert callable(steps.step(name).apply)


class Negated(steps.Step):
    """Outputs of the other sign: the last product's weights and bias are negated."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def apply(self, variant: Source, options: dict[str, Any], making: steps.Making) -> Source:
        proto = onnx.load(str(variant.path))
        last = next(node for node in reversed(proto.graph.node) if node.op_type in ("Gemm", "Conv"))
        for stored in proto.graph.initializer:
            if stored.name in last.input:
                stored.CopyFrom(
                    numpy_helper.from_array(-numpy_helper.to_array(stored), stored.name)
                )
        path = self.folder / f"{options['name']}.onnx"
        onnx.save(proto, str(path))
        return Source(path, caches.sha256(path), {"negated": last.name}, {"sign": "other"})


def outputs(path: Path, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


def test_what_follows_a_step_is_calibrated_on_what_it_made(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Local(cache)
    read = models.read(DIGITS / "digits_cnn.onnx", {}, None, cache, device)
    data = samples.load(
        str(DIGITS / "calibration.npz"), read, cache, option="--data", labelled=False
    )
    model = CalibratedModel(read, TARGET, data, device, cache)
    plain = TARGET.recipe("int8-u8s8", "onnxruntime")
    chain = replace(plain, steps=(Step("negated", {"name": "other"}), *plain.steps))
    known = steps.step
    monkeypatch.setitem(STEPS, "negated", StepKind("outputs of the other sign"))
    monkeypatch.setattr(
        steps, "step", lambda name: Negated(tmp_path) if name == "negated" else known(name)
    )
    feeds = list(data.spread(read, 8))
    exact = outputs(read.prepared, feeds)
    made = steps.source(model, chain, "onnxruntime")
    assert made.details["negated"] and made.details["estimator"]  # what both steps say of it
    assert made.options == {"sign": "other"}
    found = outputs(made.path, feeds)
    error = np.square(found + exact).mean() / np.square(exact).mean()
    assert error < 1e-2
    same = outputs(steps.source(model, plain, "onnxruntime").path, feeds)
    assert np.square(same - exact).mean() / np.square(exact).mean() < 1e-2
