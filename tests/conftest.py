"""What tests share: the example model, a cache of their own, the command as a user runs it."""

import contextlib
import fcntl
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from onmetal import cli
from onmetal.files.cache import Cache
from onmetal.profilers.measure import MODES
from tests import schemas
from tests.arm64 import Missing
from tests.brief import BRIEF

pytest_plugins = (
    "tests.attached",
    "tests.bundles",
    "tests.deploy_runs",
    "tests.deployed",
    "tests.device_bundles",
    "tests.far",
    "tests.imported_models",
    "tests.int8_runs",
    "tests.statistics_reference",
)
"""Modules with fixtures that several files of tests share."""

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # As in what a shell starts in the background: ^C would end none of the commands that are tried.
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
"""NumPy's threads spin while they wait for work, in every process that imports it: a fifth of the
processor time of a brief deployment of the example."""

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "examples" / "digits"
FLOAT = ("--recipes", "fp,bf")
"""For what is not about 8 bits: nothing is calibrated, and all of DATA is evaluated."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes of `-n logical`: one more than cores, because some tests wait for something."""
    return 1 + (os.cpu_count() or 1)


class Ran(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """What it printed, which must be what its record says."""
        document: dict[str, Any] = schemas.check(self.out)
        return document


@pytest.fixture(scope="session", autouse=True)
def _brief() -> Iterator[None]:
    """`--quick` measures for an instant: tests ask for what was measured, not how fast it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODES, "quick", BRIEF)
        yield


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of the tests, the same one in each of its processes."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def shared_home(shared_folder: Path) -> Path:
    """One cache for all tests that do not ask for an empty one."""
    folder = shared_folder / "onmetal-home"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may read or write the user's own cache."""
    monkeypatch.setenv("ONMETAL_HOME", str(shared_home))
    monkeypatch.delenv("ONMETAL_CACHE_LIMIT", raising=False)


@pytest.fixture
def cache(shared_home: Path) -> Iterator[Cache]:
    with Cache(shared_home) as opened:
        yield opened


def deploy(*words: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> Ran:
    """`deploy WORDS` in a process of its own."""
    command = ["-P", str(ROOT / "tests/brief.py")] if "--quick" in words else ["-m", "onmetal.cli"]
    done = subprocess.run(
        [sys.executable, *command, *map(str, words)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


def deploy_here(
    *words: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> Ran:
    """The same in this process, which spares what a new one takes to import everything."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        code = cli.main([*map(str, words)])
    assert "Traceback" not in err.getvalue(), err.getvalue()
    return Ran(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process of this run of the tests at a time."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def once(made: Path, make: Callable[[], object], lock: Path | None = None) -> None:
    """`make` what the file `made` stands for, unless another process of this run has."""
    with locked(lock or made.with_name(f"{made.name}.lock")):
        if not made.exists():
            make()
            made.touch()


@pytest.fixture(scope="session")
def bundle(shared_home: Path, shared_folder: Path) -> Path:
    """A bundle of the example, made once. Copy it before changing anything in it."""
    out = shared_folder / "digits"
    model, data = DIGITS / "digits_cnn.onnx", DIGITS / "digits.npz"
    words = (model, "--target", "x86-64", "--data", data, "--quick", "--json", "--out", out)

    def make() -> None:
        ran = deploy_here(*words, env={"ONMETAL_HOME": str(shared_home)})
        assert ran.code == 0, ran.err
        (shared_folder / "digits.json").write_text(ran.out)

    once(shared_folder / "digits.made", make)
    return out


@pytest.fixture(scope="session")
def document(bundle: Path) -> dict[str, Any]:
    """What the run that made the bundle said: a whole run on the example, timed."""
    found: dict[str, Any] = schemas.check((bundle.parent / "digits.json").read_text())
    return found


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """What cannot be had here is skipped; with ONMETAL_REQUIRE_ALL=1 each skip is a failure."""
    outcome: Any = yield
    report = outcome.get_result()
    if call.excinfo is not None and isinstance(call.excinfo.value, Missing):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1], f"Skipped: {call.excinfo.value}")
    if report.skipped and os.environ.get("ONMETAL_REQUIRE_ALL") == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped, where ONMETAL_REQUIRE_ALL=1: {report.longrepr}"
