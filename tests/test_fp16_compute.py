"""The recipe fp16-compute: LiteRT computes in float16 where the CPU can, and that is proved.

On phones with and without `asimdhp`, by the native runner, and on a board by Python's LiteRT.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from msgspec.structs import replace

from onmetal import targets
from onmetal.bundles.manifest import TOLERANCE
from onmetal.calibration import operations
from onmetal.converters.tflite import check
from onmetal.converters.tflite.parsing import read
from onmetal.deploy import agree
from onmetal.files.cache import Cache
from onmetal.profilers import measure
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.remote import adb as adbs
from onmetal.profilers.devices.remote import ssh as sshs
from onmetal.profilers.devices.remote.device import Remote
from onmetal.records import Candidate
from onmetal.runtimes import fit
from onmetal.runtimes.litert import convert, half, on_device
from tests.attached import MODEL
from tests.conftest import DIGITS
from tests.conftest import deploy_here as deploy
from tests.devices import Board, Phone, adb_client
from tests.far import Artifacts, environment, feeds_of

WITHOUT = (
    "cortex-a57",
    "processor\t: {}\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: 0xd07\n"
    "CPU revision\t: 0\n\n",
)
"""A core of ARMv8.0, by its name in qemu and as Linux tells of it."""


class Pair(NamedTuple):
    """Candidates of the same weights in float16: computed in float32, and in float16."""

    stored: Candidate
    computed: Candidate
    feeds: Path


@pytest.fixture(scope="module")
def pair(artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("half")
    exact = artifacts("litert-fp32-nhwc")
    operations.tflite_half(str(exact.files[0]), targets.Io(), str(folder))
    made = {}
    for compute in ("f32", "f16"):
        place = folder / compute
        place.mkdir()
        (name,) = convert.convert(str(folder / "model.tflite"), compute, str(place), {})
        made[compute] = replace(exact, files=(place / name,))
    return Pair(made["f32"], made["f16"], feeds_of(exact, folder / "feeds.npz"))


def values(device: Local | Remote, candidate: Candidate, feeds: Path) -> np.ndarray:
    return np.concatenate(
        [array.ravel() for arrays in agree.outputs(device, candidate, feeds) for array in arrays]
    )


def all_float16(found: np.ndarray) -> bool:
    return bool((found.astype(np.float16).astype(np.float32) == found).all())


def test_the_file_differs_by_an_entry_that_allows_it(pair: Pair) -> None:
    stored, computed = (path.files[0] for path in pair[:2])
    assert computed.stat().st_size - stored.stat().st_size < 300
    assert half.VALUE in computed.read_bytes() and half.VALUE not in stored.read_bytes()
    assert check.problems(read(computed)) == []
    assert half.allow(computed.read_bytes()).count(half.NAME.encode()) == 1
    assert half.allow(stored.read_bytes()) == computed.read_bytes()


@pytest.fixture(scope="module")
def phones(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Phone]]:
    """One whose CPU has arithmetic in float16, and one whose has not."""
    client = adb_client("debian")
    with (
        Phone(tmp_path_factory.mktemp("able"), client) as able,
        Phone(tmp_path_factory.mktemp("unable"), client, cpu=WITHOUT) as unable,
    ):
        yield {"able": able, "unable": unable}


@pytest.fixture
def able(phones: dict[str, Phone], monkeypatch: pytest.MonkeyPatch) -> Phone:
    environment(monkeypatch, phones["able"])
    return phones["able"]


@pytest.fixture
def unable(phones: dict[str, Phone], monkeypatch: pytest.MonkeyPatch) -> Phone:
    environment(monkeypatch, phones["unable"])
    return phones["unable"]


def test_by_the_native_runner(able: Phone, pair: Pair, shared_home: Path) -> None:
    with Cache(shared_home) as cache:
        device = Remote(adbs.choose(able.serial), cache)
        try:
            stored, computed = (values(device, each, pair.feeds) for each in pair[:2])
            ran = [measure.profile(device, each, pair.feeds) for each in pair[:2]]
        finally:
            device.close()
    assert not all_float16(stored) and all_float16(computed)
    assert np.abs(stored - computed).max() <= TOLERANCE["f16"] * np.abs(stored).max()
    assert "f16" not in ran[0]["precision"] and ran[0]["precision"]["f32"] > 0.5
    assert "f32" not in ran[1]["precision"] and ran[1]["precision"]["f16"] > 0.5
    assert {entry["runner"] for entry in ran} == {"native"}


def test_on_a_cpu_that_cannot(unable: Phone, pair: Pair, shared_home: Path) -> None:
    """The file runs there all the same, in float32, to the bit as if it did not allow float16."""
    with Cache(shared_home) as cache:
        device = Remote(adbs.choose(unable.serial), cache)
        try:
            assert "asimdhp" not in device.facts().flags
            stored, computed = (values(device, each, pair.feeds) for each in pair[:2])
            ran = measure.profile(device, pair.computed, pair.feeds)
        finally:
            device.close()
    assert np.array_equal(stored, computed)
    assert ran["precision"]["f32"] > 0.5 and "f16" not in ran["precision"]


def test_by_a_board_s_python(
    pair: Pair, shared_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Board(tmp_path) as board, Cache(shared_home) as cache:
        environment(monkeypatch, board)
        device = Remote(sshs.choose(board.address), cache)
        try:
            ran = [measure.profile(device, each, pair.feeds) for each in pair[:2]]
        finally:
            device.close()
    assert {entry["runner"] for entry in ran} == {"python"}
    assert "f16" not in ran[0]["precision"]
    assert ran[1]["precision"]["f16"] > 0.5


def test_here(pair: Pair, shared_home: Path) -> None:
    """Whatever this machine computes it in, its profile says what its outputs show."""
    with Cache(shared_home) as cache:
        device = Local(cache)
        computed = values(device, pair.computed, pair.feeds)
        ran = measure.profile(device, pair.computed, pair.feeds)
    assert (ran["precision"].get("f16", 0) > 0.5) == all_float16(computed)


SPREAD = np.random.default_rng(0).normal(size=40).astype(np.float32)
ROUNDED = SPREAD.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize(
    ("outputs", "proved"),
    [
        ([ROUNDED], True),
        ([SPREAD], False),
        ([ROUNDED, SPREAD[:1]], False),
        ([ROUNDED[:1]], True),  # eight inputs together give enough
        ([np.array([np.inf, np.nan], np.float32), ROUNDED], True),
        ([np.array([0, 1, 0.25, -2], np.float32)], False),
        ([np.array([7e4], np.float32), ROUNDED], False),
        ([np.arange(5)], False),
        ([], False),
    ],
)
def test_what_outputs_prove(outputs: list[np.ndarray], proved: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"..reduced_precision_support..")
    assert on_device.in_float16(str(path), lambda scale: outputs) is proved
    path.write_bytes(b"a file that does not allow it")
    assert not on_device.in_float16(str(path), lambda scale: outputs)


@pytest.mark.parametrize("name", ["android-arm64", "linux-arm64"])
def test_targets_offer_it(name: str) -> None:
    recipe = fit.load_target(name).recipe("fp16-compute", "litert")
    assert recipe.compute == "f16" and recipe.requires_any_flag == ("asimdhp",)
    assert recipe.runtimes == ("litert",)


PHONE = """\
description = "a phone, without what android-arm64 tries besides"
arch = "aarch64"
recipes = ["fp32", "fp16-compute"]
[device]
transport = "adb"
required = true
[[runtimes]]
name = "litert"
"""


def words(phone: Phone, folder: Path) -> list[str | Path]:
    """A deployment by some of the example's samples: an emulated CPU evaluates them."""
    with np.load(DIGITS / "digits.npz") as data:
        arrays = {name: data[name][:16] for name in data.files}
    np.savez(folder / "few.npz", **arrays)
    (folder / "phone.toml").write_text(PHONE)
    return [
        *(MODEL, "--target", folder / "phone.toml", "--device", f"adb:{phone.serial}"),
        *("--data", folder / "few.npz", "--quick", "--json", "--max-accuracy-drop", "none"),
        *("--recipes", "fp16-compute", "--out", folder / "out"),
    ]


def test_a_deployment(able: Phone, tmp_path: Path) -> None:
    ran = deploy(*words(able, tmp_path))
    assert ran.code == 0, ran.err
    found = {entry["name"]: entry for entry in ran.document["candidates"]}
    entry = found["fp16-compute@litert"]
    assert entry["status"] in ("ok", "chosen"), entry["reason"]
    assert entry["ran_on"]["precision"]["f16"] > 0.9
    assert entry["device_outputs"]["judged_on"] == "device"
    assert entry["size_bytes"] < 0.7 * found["fp32@litert"]["size_bytes"]
    assert ran.document["chosen"] == "fp16-compute@litert"
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["golden"]["tolerance"] == TOLERANCE["f16"]
    assert half.VALUE in (tmp_path / "out/model.tflite").read_bytes()
    assert deploy("verify", tmp_path / "out", "--json").code == 0


def test_a_deployment_to_a_cpu_that_cannot(unable: Phone, tmp_path: Path) -> None:
    ran = deploy(*words(unable, tmp_path))
    assert ran.code == 3, ran.err
    assert "this CPU has no asimdhp" in ran.document["error"]["message"]
