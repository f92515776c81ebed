"""Bundles for phones and boards, made without one."""

from pathlib import Path

import numpy as np
import pytest

from tests import onnx_models
from tests.conftest import Ran, once
from tests.conftest import deploy_here as deploy

SMALL = """\
description = "For tests: LiteRT alone, to be quick."
arch = "aarch64"
[device]
transport = "adb"
required = true
[[runtimes]]
name = "litert"
[[recipes]]
name = "fp32"
runtimes = ["litert"]
compute = "f32"
"""


def make(model: Path, target: str | Path, out: Path, *words: str | Path) -> Ran:
    """A bundle made without a device."""
    asked = (model, "--target", target, "--no-device", "--recipes", "fp32", "--quick", "--json")
    ran = deploy(*asked, "--out", out, *words)
    assert ran.code == 0, ran.err
    return ran


@pytest.fixture(scope="session")
def small_bundle(shared_home: Path, shared_folder: Path) -> Path:
    """A bundle for phones of a small model by LiteRT, whose runner starts quickly."""
    top = shared_folder / "small"
    top.mkdir(exist_ok=True)

    def make_it() -> None:
        (top / "small.toml").write_text(SMALL)
        model = onnx_models.save(onnx_models.dense(batch=1), top / "small.onnx")
        images = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
        np.savez(top / "data.npz", x=images)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ONMETAL_HOME", str(shared_home))
            words = ("--calibration-data", top / "data.npz")
            make(model, top / "small.toml", top / "bundle", *words)

    once(top / "made", make_it)
    return top / "bundle"
