"""Calls of `onmetal.deploy` with models in memory: python tests/python_api_calls.py PAGE FOLDER

In a process of its own, so that no test's process holds TensorFlow or PyTorch, which are imported
once for all of it. It runs the Python examples of PAGE, a Markdown file, in FOLDER, and prints one
JSON document.
"""

import contextlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import pytest

import onmetal
from onmetal.converters import archive
from onmetal.converters.torch_export import checks
from onmetal.deploy import python_api
from onmetal.errors import OnmetalError
from onmetal.profilers import measure
from onmetal.records import plain

BRIEF = measure.Schedule(2, 3, 0.01, 0.01, 0.0, 1)
TARGET = "x86-onnxruntime"


def said(model: Any, **options: Any) -> str:
    """What an error says; empty where there is none."""
    try:
        onmetal.deploy(model, **{"target": TARGET, "dry_run": True, **options})
    except OnmetalError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def torch(folder: Path) -> dict[str, Any]:
    import torch
    from torch import nn

    class Net(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
            self.drop, self.last = nn.Dropout(0.5), nn.Linear(144, 3)

        def forward(self, image: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            hidden = torch.relu(self.norm(self.conv(image))) * scale
            return self.last(self.drop(torch.flatten(hidden, 1)))

    torch.manual_seed(0)
    net = Net()
    net(torch.randn(16, 1, 8, 8), torch.ones(16, 1, 1, 1))  # the norm's running means
    net.norm.eval()  # as where it is frozen in training
    images, scales = torch.randn(12, 1, 8, 8), torch.rand(12, 1, 1, 1)
    modes = [part.training for part in net.modules()]
    report = onmetal.deploy(
        net,
        example_inputs={"image": images[:1], "scale": np.ones((1, 1, 1, 1), np.float32)},
        target=TARGET,
        calibration_data={"image": images.numpy(), "scale": scales},
        recipes=["fp32"],
        no_device=True,
        out=folder / "bundle",
    )
    restored = modes == [part.training for part in net.modules()]
    with torch.no_grad():
        evaluated = net.eval()(images, scales).numpy().tolist()
    script = torch.jit.script(nn.Linear(2, 2))

    class Branches(nn.Module):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    branches = Branches().train()
    program = torch.export.export(nn.Linear(4, 2), (torch.zeros(1, 4),))
    (saved,), _ = python_api._model_paths(program, None, "given", folder)
    return {
        "restored": restored,
        "models": [(model.path, model.format, model.notes) for model in report.models],
        "source": report.data.source,
        "warnings": report.data.warnings,
        "bundle": report.bundle,
        "evaluated": evaluated,
        "inputs": {"image": images.tolist(), "scale": scales.tolist()},
        "given": [saved.name, checks.is_program(archive.names(saved))],
        "without": said(net),
        "text": said(net, example_inputs="image"),
        "name": said(net, example_inputs=images, name="../net"),
        "script": said(script, example_inputs=images),
        "branches": said(branches, example_inputs=images),
        "still": branches.training,
        "twice": said(program, example_inputs=images),
    }


def keras() -> dict[str, Any]:
    import keras
    from keras import layers

    class Doubled(layers.Layer):  # type: ignore[misc]
        def call(self, value: Any) -> Any:
            return value * 2.0

    pixels = layers.Input((4,), name="pixels")
    dropped = layers.Dropout(0.5)(layers.Dense(3, name="scores")(pixels))
    functional = keras.Model(pixels, dropped)
    custom = keras.Model(pixels, Doubled()(dropped))

    class Own(keras.Model):  # type: ignore[misc]
        pass

    (entry,) = onmetal.deploy(custom, name="custom", target=TARGET, dry_run=True).models
    difference = entry.imported.largest_difference if entry.imported else None
    found = (entry.path, entry.format, entry.notes, entry.inputs[0].name, difference)
    return {
        "custom": found,
        "unbuilt": said(Own()),
        "examples": said(functional, example_inputs=np.zeros(4)),
    }


def examples(page: Path, folder: Path) -> list[dict[str, Any]]:
    """Run the Python examples of a page as they stand there, each in a namespace of its own. Where
    they name no recipes, only `fp32` is tried, and measured for an instant. -> the report of
    each, or its plan."""
    deploy = python_api.deploy

    def in_brief(*values: Any, **options: Any) -> Any:
        return deploy(*values, **{**options, "recipes": options["recipes"] or "fp32"})

    measure.MODES["quick"] = BRIEF
    reports = []
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr(python_api, "deploy", in_brief)
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            names: dict[str, Any] = {}
            exec(compile(block, str(page), "exec"), names)
            report = names.get("report") or names.get("plan")
            reports.append(plain(report) if report else {})
    return reports


if __name__ == "__main__":
    place = Path(sys.argv[2])
    with contextlib.redirect_stdout(sys.stderr):
        document = {
            "torch": torch(place),
            "keras": keras(),
            "examples": examples(Path(sys.argv[1]), place),
        }
    print(json.dumps(document))
