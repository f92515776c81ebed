"""Models of other frameworks, each made once for all tests, and how they are read."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onmetal.deploy import model as models
from onmetal.errors import OnmetalError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.records import Model
from tests.conftest import ROOT, once

Read = Callable[..., Model]


def _made(framework: str, shared_folder: Path) -> Path:
    folder = shared_folder / framework

    def make() -> None:
        folder.mkdir()
        script = str(ROOT / "tests/framework_models.py")
        done = subprocess.run(
            [sys.executable, "-P", script, framework, str(folder)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]

    once(shared_folder / f"{framework}.made", make)
    return folder


@pytest.fixture(scope="session")
def of_tensorflow(shared_folder: Path) -> Path:
    return _made("tensorflow", shared_folder)


@pytest.fixture(scope="session")
def of_torch(shared_folder: Path) -> Path:
    return _made("torch", shared_folder)


@pytest.fixture
def read(cache: Cache) -> Read:
    """A model, read as `deploy` reads it."""
    device = Local(cache)

    def called(path: Path, *, trust: bool = False, **shapes: tuple[int, ...]) -> Model:
        return models.read(path, shapes, None, cache, device, trust)

    return called


@pytest.fixture
def refused(read: Read) -> Callable[..., str]:
    """What is said of a file that is not read, by an error of the user's (2) or of support (3)."""

    def called(path: Path, **options: Any) -> str:
        with pytest.raises(OnmetalError) as error:
            read(path, **options)
        assert error.value.exit_code in (2, 3)
        assert str(path) in str(error.value)
        return str(error.value)

    return called
