"""Damaged .tflite files before TFLite Micro: whatever they do to a worker, the parent lives, and
each has a reason."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from onmetal import cache as caches
from onmetal import model as models
from onmetal.cache import Cache
from onmetal.converters.tflite import io, quantize
from onmetal.converters.tflite.net import read, write
from onmetal.errors import OnmetalError
from onmetal.profilers.local import Local, Worker
from tests.conftest import deploy
from tests.test_tflm import small

COUNT = 2000
LIMIT_S = 120.0


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small int8 network of operators of several kinds."""
    net = read(small(tmp_path_factory.mktemp("sound") / "net", "Relu", "Sigmoid", "LeakyRelu"))
    made = quantize.quantize(net, dict.fromkeys(quantize.observed(net), (-3.0, 3.0)), "s8")
    io.integers(made)
    return write(made)


def mutated(content: bytes, seed: int) -> bytes:
    """One of the ways in which files go wrong: bits, bytes, words of extremes, cuts, shifts."""
    rng = np.random.default_rng(seed)
    found = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(8, len(found) - 4))  # its identifier stays: else nothing is tried
        match int(rng.integers(6)):
            case 0:
                found[place] ^= 1 << int(rng.integers(8))
            case 1:
                found[place] = int(rng.integers(256))
            case 2:
                extreme = rng.choice([0, 1, 0x7F, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
                found[place : place + 4] = int(extreme).to_bytes(4, "little")
            case 3:
                del found[max(64, place) :]
            case 4:
                other = int(rng.integers(8, len(found) - 4))
                found[place : place + 4] = found[other : other + 4]
            case _:
                found[place:place] = bytes(int(rng.integers(1, 9)))
        if len(found) < 80:
            break
    return bytes(found)


class Trier:
    """Reads a file as `deploy` does and runs what is accepted in TFLite Micro, in one worker, which
    is started again where it died."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.device = cache, Local(cache)
        self.worker: Worker | None = None

    def outcome(self, path: Path) -> str:
        """`runs`, or the reason; the kind of error that it came with is one of onmetal's own."""
        if self.worker is None or self.worker.closed or not self.worker.running:
            self.close()
            self.worker = self.device.worker()
        try:
            facts = self.worker.call(
                "call",
                timeout_s=LIMIT_S,
                function="onmetal.converters.tflite.reader:examine",
                path=str(path),
                shapes={},
                batch=None,
                folder=str(path.parent / "out"),
            )
            models._check_memory(path, facts)
            names = [[t["name"] for t in facts[side]] for side in ("inputs", "outputs")]
            self.worker.call(
                "open",
                timeout_s=LIMIT_S,
                runtime="tflm",
                files=[str(path)],
                options={},
                inputs=names[0],
                outputs=names[1],
            )
            feed = {f"0/{t['name']}": np.zeros(t["shape"], t["dtype"]) for t in facts["inputs"]}
            np.savez(path.parent / "feed.npz", **feed)  # type: ignore[arg-type]
            self.worker.call(
                "run",
                timeout_s=LIMIT_S,
                path=str(path.parent / "feed.npz"),
                folder=str(path.parent / "out"),
            )
        except OnmetalError as error:
            return str(error)
        return "runs"

    def close(self) -> None:
        if self.worker and not self.worker.closed:
            self.worker.close()


def test_two_thousand_damaged_files_each_have_a_reason(
    sound: bytes, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "out").mkdir()
    path = tmp_path / "damaged.tflite"
    outcomes: Counter[str] = Counter()
    with Cache() as cache:
        trier = Trier(cache)
        request.addfinalizer(trier.close)
        for seed in range(COUNT):
            path.write_bytes(mutated(sound, seed))
            said = trier.outcome(path)
            assert said.strip(), seed
            outcomes["runs" if said == "runs" else "reason"] += 1
        path.write_bytes(sound)
        assert trier.outcome(path) == "runs"
    assert outcomes["reason"] > COUNT / 3, outcomes
    assert outcomes["runs"] > COUNT / 20, "mutations that leave nothing standing try little"


@pytest.mark.parametrize("seed", range(6))
def test_by_the_command_each_ends_with_a_message_and_nothing_written(
    seed: int, sound: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.tflite"
    path.write_bytes(mutated(sound, seed))
    ran = deploy(path, "--target", "cortex-m4", "--no-device", "--out", tmp_path / "out")
    assert ran.code in (0, 2, 3, 4, 5), ran.err
    assert (ran.code == 0) == (tmp_path / "out" / "manifest.json").exists()
    if ran.code:
        assert ran.err.strip().splitlines()[-1]


def test_a_sound_file_is_read_by_the_same_way(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sound.tflite"
    path.write_bytes(sound)
    with Cache() as cache:
        found = models.read(path, {}, None, cache, Local(cache))
    assert found.quantized and found.sha256 == caches.sha256(path)
