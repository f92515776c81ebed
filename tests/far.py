"""A phone behind each adb client in turn, and a board; what a run has left there."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from onmetal.files.cache import Cache
from onmetal.profilers.devices.remote import adb as adbs
from onmetal.profilers.devices.remote import native_runner
from onmetal.profilers.devices.remote import ssh as sshs
from onmetal.profilers.devices.remote.folder import Folder, Transport, shell
from onmetal.records import Candidate
from tests import adbd, deployed
from tests.deployed import Deployments
from tests.devices import CLIENTS, Board, Phone, adb_client, wait_for

TMP = "/data/local/tmp"
LONG_S = 120.0
"""A limit that only a defect reaches."""


class Far:
    """A device with its address, and what a run of onmetal has left there."""

    def __init__(self, device: Phone | Board) -> None:
        self.device = device

    @property
    def on_board(self) -> bool:
        return isinstance(self.device, Board)

    @property
    def address(self) -> str:
        if isinstance(self.device, Board):
            return self.device.address
        return f"adb:{self.device.serial}"

    def transport(self) -> Transport:
        if isinstance(self.device, Board):
            return sshs.choose(self.device.address)
        return adbs.choose(self.device.serial)

    def left(self) -> list[str]:
        """Files and folders of onmetal's on the device."""
        with contextlib.suppress(FileNotFoundError):
            return self._left()
        return self.left()  # something went while it was looked at

    def _left(self) -> list[str]:
        if isinstance(self.device, Phone):
            return self.device.leftovers()
        tops = [self.device.root / "tmp", self.device.root / "root/.cache"]
        found = {str(path.relative_to(top)) for top in tops for path in top.rglob("*")}
        return sorted(found)

    def here(self, path: str) -> Path:
        """A path of the device as this machine sees it."""
        return self.device.root / path.lstrip("/")

    def runners(self) -> list[int]:
        """The processes there that run models."""
        ends = ("./runner", "python_runner.py")
        return [pid for pid, line in self.device.processes().items() if line.endswith(ends)]

    def clear(self) -> None:
        """As it was: connected, and nothing on it."""
        if isinstance(self.device, Phone):
            self.device.thaw()
            self.device.faults(**dataclasses.asdict(adbd.Faults()))
            self.device.connect()
        with contextlib.closing(self.transport()) as transport:
            shell(transport, f'rm -rf "{transport.place}" {transport.lock}')


@pytest.fixture(scope="module", params=(*CLIENTS, "board"))
def far(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    """A phone behind each adb client in turn, and a board."""
    place = tmp_path_factory.mktemp("far")
    board = request.param == "board"
    with (
        Board(place) if board else Phone(place, adb_client(request.param)) as device,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in device.environment.items():
            patch.setenv(name, value)
        yield Far(device)


PHONES = pytest.mark.parametrize("far", CLIENTS, indirect=True)
PHONE = pytest.mark.parametrize("far", CLIENTS[:1], indirect=True)
BOARD = pytest.mark.parametrize("far", ["board"], indirect=True)
BOTH = pytest.mark.parametrize("far", [CLIENTS[0], "board"], indirect=True)


@pytest.fixture(scope="session")
def built(shared_home: Path) -> Path:
    """The native runner, built once."""
    with Cache(shared_home) as cache:
        return native_runner.build(cache)


Artifacts = Callable[[str], Candidate]


@pytest.fixture(scope="session")
def artifacts(deployments: Deployments) -> Artifacts:
    """Candidates by their kind (see deployed.KINDS)."""
    return lambda kind: deployed.candidate(deployments(kind))


@contextlib.contextmanager
def run_of(far: Far, keep: bool = False) -> Iterator[Folder]:
    """A run's folder on the device, with its transport closed at the end."""
    with contextlib.closing(far.transport()) as transport:
        run = Folder(transport)
        try:
            yield run
        finally:
            run.close(keep=keep)


def tidied(far: Far) -> None:
    """The guard has removed everything of the run's."""
    try:
        wait_for(lambda: far.left() == [], "the guard has tidied up")
    except TimeoutError:
        assert (far.left(), far.device.processes()) == ([], {})


def sized(folder: Path, name: str, size: int) -> Path:
    path = folder / name
    path.write_bytes(os.urandom(size))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def feeds_of(candidate: Candidate, path: Path, count: int = 3) -> Path:
    """An .npz of inputs as a worker reads them."""
    rng = np.random.default_rng(7)
    arrays = {
        f"{number}/{tensor.name}": rng.normal(size=tensor.shape).astype(np.float32)
        for number in range(count)
        for tensor in candidate.model.inputs
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def environment(monkeypatch: pytest.MonkeyPatch, device: Phone | Board) -> None:
    for name, value in device.environment.items():
        monkeypatch.setenv(name, value)
