"""Whole commands on boards and emulators: what is measured, what is refused, and what is said.

The boards are doubles that run the very file in TFLite Micro, at the far end of a pseudo-terminal
or a TCP port; the emulator is qemu, with a bundle's firmware. Measured windows last ten seconds, so
the runs that measure go on beside the others.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.writing import write
from onmetal.files import cache as caches
from onmetal.runtimes.tflm.session import Session
from tests import firmware_image, peer
from tests.conftest import DIGITS, Ran, deploy
from tests.peer import Fault, MeterPeer, Peer, until

MODEL = DIGITS / "digits_cnn.onnx"
SAMPLES = 200
WINDOW_S = 10
Document = dict[str, Any]
Run = Callable[..., Ran]


class Measured(NamedTuple):
    """How a run that measures ended, its --out, and what the board timed."""

    ran: Ran
    out: Path
    windows: list[tuple[int, int, int]]


Measuring = dict[str, Future[Measured]]


@pytest.fixture(scope="module", autouse=True)
def _steady() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer, "Model", peer.Steady)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fewer samples than the example has: a board is slow to be asked for so many."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("digits", SAMPLES), ("calibration", 32)):
        with np.load(DIGITS / f"{name}.npz") as stored:
            cut: dict[str, Any] = {key: stored[key][:count] for key in stored.files}
        np.savez(folder / f"{name}.npz", **cut)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, shared_home: Path) -> Run:
    """`deploy` of the example for a Cortex-M4."""

    def deployed(*words: str | Path) -> Ran:
        return deploy(
            *(MODEL, "--target", "cortex-m4", "--json", "--data", data / "digits.npz"),
            *("--calibration-data", data / "calibration.npz", *words),
            env={"ONMETAL_HOME": str(shared_home)},
        )

    return deployed


@pytest.fixture(scope="module")
def made(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that is to be flashed: of int8."""
    out = tmp_path_factory.mktemp("made") / "bundle"
    ran = run("--no-device", "--out", out)
    assert ran.code == 0 and ran.document["chosen"] == "int8@tflm", ran.err
    return out


def exchanged(made: Path, path: Path, order: list[int]) -> Path:
    """The model with the rows of its last layer, which are the ten classes, in another order."""
    net = read(made / "model.tflite")
    dense = next(op for op in net.ops if op.kind == "FULLY_CONNECTED")
    for tensor in dense.taken[1:]:
        assert tensor.data is not None and tensor.scale is not None
        assert tensor.data.shape[0] == 10 and len(set(tensor.scale)) == 1
        tensor.data = np.ascontiguousarray(tensor.data[order])
    path.write_bytes(write(net))
    return path


@pytest.fixture(scope="module")
def wrong(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, whose inputs and outputs look the same."""
    return exchanged(
        made, tmp_path_factory.mktemp("wrong") / "wrong.tflite", list(range(9, -1, -1))
    )


@pytest.fixture(scope="module")
def near(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is right but for two classes, which it takes for each other."""
    order = [1, 0, *range(2, 10)]
    return exchanged(made, tmp_path_factory.mktemp("near") / "near.tflite", order)


def by_recipe(document: Document) -> dict[str, Document]:
    return {entry["recipe"]: entry for entry in document["candidates"]}


def digest(path: Path) -> str:
    return caches.sha256(path)


# --- what takes long, all of it at once


@pytest.fixture(scope="module")
def measuring(
    run: Run,
    made: Path,
    near: Path,
    wrong: Path,
    shared_home: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Measuring]:
    """By name; begun all at once."""
    ours = made / "model.tflite"

    def on(there: Peer, name: str, *words: str | Path, meter: str = "") -> Measured:
        out = tmp_path_factory.mktemp(name) / "bundle"
        device = there.address + (f"?meter=lpm01a:{meter}" if meter else "")
        ran = run("--device", device, "--quick", "--out", out, *words)
        return Measured(ran, out, there.windows)

    def plainly() -> Measured:
        with Peer(ours) as there:
            return on(there, "plainly", "--max-latency", "30s")

    def metered() -> Measured:
        with MeterPeer() as meter, Peer(ours, energy=meter.pulse) as there:
            goal = ("--minimize", "energy", "--max-energy", "1J")
            return on(there, "metered", *goal, meter=meter.path)

    def of_others() -> Measured:
        out, noise = tmp_path_factory.mktemp("wide") / "bundle", Fault("infer", "garbage", times=-1)
        ran = run("--no-device", "--recipes", "int16x8", "--out", out)
        assert ran.code == 0, ran.err
        with Peer(out / "model.tflite", digest=False, faults=(noise,)) as there:
            return on(there, "of_others", "--recipes", "int16x8")

    def too_slow() -> Measured:
        with Peer(ours, digest=False) as there:
            return on(there, "too_slow", "--recipes", "int8", "--max-latency", "1us")

    def otherwise() -> Measured:
        with Peer(near, sha256=digest(ours)) as there:
            return on(there, "otherwise", "--max-accuracy-drop", "none")

    def benched() -> Measured:
        with Peer(ours, tcp=True) as there:
            words = ("bench", made, "--device", there.address, "--quick", "--json")
            ran = deploy(*words, env={"ONMETAL_HOME": str(shared_home)})
            return Measured(ran, made, there.windows)

    jobs = (plainly, metered, of_others, too_slow, otherwise, benched)
    with ThreadPoolExecutor(len(jobs)) as pool:
        yield {job.__name__: pool.submit(job) for job in jobs}


# --- what is refused at once


@pytest.mark.usefixtures("measuring")
class TestWhatIsRefused:
    def test_a_board_that_holds_none_of_the_candidates(
        self, run: Run, made: Path, wrong: Path, tmp_path: Path
    ) -> None:
        words = ("--recipes", "int8", "--quick", "--out", tmp_path / "out")
        with Peer(wrong) as there:
            ran = run("--device", there.address, *words)
            asked = [word for word in there.commands if word.startswith(("infer", "db"))]
        assert ran.code == 4
        assert digest(wrong)[:12] in ran.err and digest(made / "model.tflite")[:12] in ran.err
        assert "flash the firmware" in ran.err and "--no-device" in ran.err
        assert asked == [] and "counting memory" not in ran.err
        assert not (tmp_path / "out").exists()

    def test_firmware_that_does_not_say_which_of_several_it_holds(
        self, run: Run, made: Path, tmp_path: Path
    ) -> None:
        with Peer(made / "model.tflite", digest=False) as there:
            ran = run("--device", there.address, "--quick", "--out", tmp_path / "out")
        assert ran.code == 4
        assert "int16x8@tflm, int8@tflm" in ran.err and "--recipes" in ran.err
        assert not (tmp_path / "out").exists()

    def test_such_firmware_with_another_model_is_found_by_what_it_computes(
        self, run: Run, wrong: Path, tmp_path: Path
    ) -> None:
        words = ("--recipes", "int8", "--max-accuracy-drop", "none", "--quick")
        with Peer(wrong, digest=False) as there:
            ran = run("--device", there.address, *words, "--out", tmp_path / "out")
            assert there.windows, "it was never asked to compute"
        assert ran.code == 4
        assert "does not say which model" in ran.err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("words", [("--max-energy", "1mJ"), ("--minimize", "energy")])
    def test_energy_without_a_meter(
        self, run: Run, made: Path, words: tuple[str, str], tmp_path: Path
    ) -> None:
        with Peer(made / "model.tflite") as there:
            ran = run("--device", there.address, *words, "--out", tmp_path / "out")
        assert ran.code == 4
        assert "no meter" in ran.err and "meter in its address" in ran.err
        assert "calibrating" not in ran.err

    def test_the_plan_is_told_by_a_board_that_computes_nothing(self, run: Run, made: Path) -> None:
        with Peer(made / "model.tflite") as there:
            ran = run("--device", there.address, "--dry-run")
            assert there.windows == []
        assert ran.code == 0
        document = ran.document
        assert document["dry_run"] and document["device"]["address"] == there.address
        found = [(entry["name"], entry["status"]) for entry in document["candidates"]]
        assert found == [(f"{name}@tflm", "planned") for name in ("int16x8", "int8", "int8-split")]


# --- faults


class TestFaults:
    def failed(
        self, run: Run, there: Peer, out: Path, fault: Fault | None, pool: ThreadPoolExecutor
    ) -> Ran:
        """A run in the middle of whose measuring the fault happens."""
        words = ("--device", there.address, "--recipes", "int8", "--quick", "--out", out)
        ending = pool.submit(run, *words)
        if fault:
            # The vectors that tell whether it computes rightly are single inferences.
            until(lambda: ending.done() or any(count > 1 for count, _, _ in there.windows), 120)
            there.faults[fault.command] = fault
        ran = ending.result()
        assert ran.code == 4, ran.err
        assert not out.exists()
        assert ran.document["error"]["code"] == 4
        return ran

    @pytest.mark.parametrize(
        ("fault", "said"),
        [
            (Fault("infer", "reset"), "restarted while it was at `infer"),
            (Fault("db load", "silence", times=-1), "did not answer `db load 64` in time"),
        ],
    )
    def test_in_the_middle_of_measuring(
        self, run: Run, made: Path, fault: Fault, said: str, tmp_path: Path
    ) -> None:
        with Peer(made / "model.tflite") as there, ThreadPoolExecutor(1) as pool:
            ran = self.failed(run, there, tmp_path / "out", fault, pool)
        assert said in ran.err
        found = by_recipe(ran.document)
        assert found["int8"]["status"] == "failed" and said in found["int8"]["reason"]
        assert ran.document["chosen"] is None

    def test_what_is_no_text_is_another_baud_rate(
        self, run: Run, made: Path, tmp_path: Path
    ) -> None:
        noise = b"\xff\x00\x80\x81" * 8
        with Peer(made / "model.tflite", babble=noise) as there, ThreadPoolExecutor(1) as pool:
            ran = self.failed(run, there, tmp_path / "out", None, pool)
        assert "?baud=" in ran.err and "calibrating" not in ran.err


# --- verify and devices


class TestVerify:
    def test_the_vectors_agree_though_there_is_noise_on_the_line(self, made: Path) -> None:
        noise = Fault("infer", "garbage", times=-1)
        with Peer(made / "model.tflite", faults=(noise,)) as there:
            ran = deploy("verify", made, "--device", there.address, "--json")
            assert len(there.windows) == 4
        assert ran.code == 0, ran.err
        assert ran.document["checks"]["golden"] == "ok"

    def test_another_model_on_the_board_is_no_fault_of_the_bundle(
        self, made: Path, wrong: Path
    ) -> None:
        with Peer(wrong) as there:
            ran = deploy("verify", made, "--device", there.address)
            assert there.windows == []
        assert ran.code == 4, ran.err
        assert digest(wrong)[:12] in ran.err and digest(made / "model.tflite")[:12] in ran.err
        assert "not what it says it is" not in ran.err

    def test_what_firmware_of_others_holds_is_found_by_the_vectors(
        self, made: Path, wrong: Path
    ) -> None:
        with Peer(wrong, digest=False) as there:
            ran = deploy("verify", made, "--device", there.address)
        assert ran.code == 6
        assert ran.err.count("golden vector") == 4 and "'logits': off by" in ran.err

    @pytest.mark.parametrize(
        ("fault", "said"),
        [
            (Fault("infer", "reset"), "restarted"),
            (Fault("infer", "cut", times=-1), "came damaged twice"),
            (Fault("output", "hang-up"), "hung up"),
        ],
    )
    def test_a_board_that_fails_is_no_fault_of_the_bundle(
        self, made: Path, fault: Fault, said: str
    ) -> None:
        with Peer(made / "model.tflite", faults=(fault,), tcp=True) as there:
            ran = deploy("verify", made, "--device", there.address)
        assert ran.code == 4 and said in ran.err, ran.err

    def test_damage_to_the_bundle_is_found_before_the_board_is_asked(
        self, made: Path, tmp_path: Path
    ) -> None:
        copy = shutil.copytree(made, tmp_path / "copy")
        (copy / "golden.npz").write_bytes(b"")
        with Peer(made / "model.tflite") as there:
            ran = deploy("verify", copy, "--device", there.address)
            assert there.windows == []
        assert ran.code == 6 and "golden.npz was changed" in ran.err


class TestDevices:
    @pytest.mark.parametrize("tcp", [False, True])
    def test_a_board_is_ready_for_the_targets_of_boards(self, made: Path, tcp: bool) -> None:
        with Peer(made / "model.tflite", tcp=tcp) as there:
            ran = deploy("devices", there.address, "--json")
        assert ran.code == 0
        found = next(e for e in ran.document["devices"] if e["address"] == there.address)
        assert found["ready"], found["why"]
        assert {"cortex-m4", "cortex-m55", "ethos-u55-128"} <= set(found["targets"])
        assert found["model_digest"] == digest(made / "model.tflite")
        assert (found["arena_bytes_used"], found["arena_bytes_given"]) == (12345, 16384)
        assert any("power meter" in lack for lack in found["lacks"])

    def test_nothing_at_an_address_is_told_and_is_no_error(self, made: Path) -> None:
        with Peer(made / "model.tflite", tcp=True) as there:
            address = there.address
        ran = deploy("devices", address, "--json")
        assert ran.code == 0
        found = next(e for e in ran.document["devices"] if e["address"] == address)
        assert not found["ready"] and found["why"]


# --- qemu


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image, the model in it, and samples whose labels are what TFLite Micro gives."""
    place = tmp_path_factory.mktemp("qemu")
    firmware_image.image(place)
    (place / "little.tflite").write_bytes(firmware_image.content())
    session = Session([str(place / "little.tflite")], {}, ["image"], ["scores", "map"])
    x = np.random.default_rng(1).integers(-128, 128, (12, 6, 5, 2)).astype(np.int8)
    y = [session.run({"image": sample[None]})[0][0] for sample in x]
    np.savez(place / "data.npz", x=x, y=np.stack(y))
    return place


@pytest.fixture(scope="module")
def deployed(little: Path, shared_home: Path) -> tuple[Document, Path]:
    out = little / "bundle"
    ran = deploy(
        *(little / "little.tflite", "--target", "cortex-m55", "--json", "--out", out),
        *("--device", f"qemu:{little / 'firmware.elf'}", "--data", little / "data.npz"),
        env={"ONMETAL_HOME": str(shared_home)},
    )
    assert ran.code == 0, ran.err
    return ran.document, out


class TestQemu:
    """Of a model that is in 8 bits already, since the firmware's stub computes only that one."""

    def test_instructions_are_counted_and_size_decides(
        self, deployed: tuple[Document, Path]
    ) -> None:
        document = deployed[0]
        assert document["device"]["emulated"] and document["decided_by"] == "size"
        found = by_recipe(document)["int8"]
        assert found["status"] == "chosen" and document["baseline"] is None
        assert 1_000 < found["ran_on"]["instructions_per_inference"] < 1_000_000
        assert "icount" in found["ran_on"]["how"]
        assert found["accuracy"]["value"] == 0.0  # the error against TFLite Micro's own outputs

    def test_the_golden_vectors_agree_to_the_bit(self, deployed: tuple[Document, Path]) -> None:
        said = by_recipe(deployed[0])["int8"]["device_outputs"]
        assert said["identical"] and said["judged_on"] == "host" and said["vectors"] == 8

    def test_no_time_is_told_anywhere(self, deployed: tuple[Document, Path]) -> None:
        document, out = deployed
        for entry in document["candidates"]:
            for figure in ("latency_ms", "throughput_per_s", "load_ms", "energy_mj"):
                assert entry[figure] is None
            assert entry["versus_baseline"] is None
        assert "instructions are counted" in by_recipe(document)["int8"]["missing"]["latency_ms"]
        assert not (out / "measurements.npz").exists()
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["measured"] is False and "emulated" in manifest["unmeasured"]
        assert " ms" not in (out / "README.md").read_text()

    def test_the_bundle_does_not_claim_that_something_was_measured(
        self, deployed: tuple[Document, Path]
    ) -> None:
        out = deployed[1]
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["builds"]["shipped"]["measured"] is False
        assert "there was no device" not in (out / "README.md").read_text()

    def test_a_latency_budget_is_refused_before_anything_long(
        self, little: Path, tmp_path: Path
    ) -> None:
        ran = deploy(
            *(little / "little.tflite", "--target", "cortex-m55", "--max-latency", "5ms"),
            *("--device", f"qemu:{little / 'firmware.elf'}", "--out", tmp_path / "out"),
        )
        assert ran.code == 4 and "emulated" in ran.err

    def test_its_bundle_is_verified(self, deployed: tuple[Document, Path], little: Path) -> None:
        device = f"qemu:{little / 'firmware.elf'}"
        ran = deploy("verify", deployed[1], "--device", device, "--json")
        assert ran.code == 0, ran.err
        assert ran.document["checks"]["golden"] == "ok"

    def test_bench_counts_too(self, deployed: tuple[Document, Path], little: Path) -> None:
        device = f"qemu:{little / 'firmware.elf'}"
        ran = deploy("bench", deployed[1], "--device", device, "--json")
        assert ran.code == 0, ran.err
        (entry,) = ran.document["candidates"]
        mine = by_recipe(deployed[0])["int8"]["ran_on"]["instructions_per_inference"]
        # Of other inputs: branches differ by a few instructions.
        assert entry["ran_on"]["instructions_per_inference"] == pytest.approx(mine, rel=0.05)
        assert "latency_ms" not in entry

    def test_devices_names_the_machine(self, little: Path) -> None:
        address = f"qemu:{little / 'firmware.elf'}"
        ran = deploy("devices", address, "--json")
        found = next(e for e in ran.document["devices"] if e["address"] == address)
        assert found["emulated"] and "Cortex-M55" in found["soc"]
        assert found["ready"] and "cortex-m55" in found["targets"]


# --- what was measured


class TestMeasured:
    def test_what_the_board_holds_is_chosen_by_its_latency(self, measuring: Measuring) -> None:
        ran = measuring["plainly"].result().ran
        assert ran.code == 0, ran.err
        document = ran.document
        assert (document["chosen"], document["decided_by"]) == ("int8@tflm", "latency")
        found = by_recipe(document)["int8"]
        assert found["latency_ms"]["basis"] == "measured"
        assert (found["latency_ms"]["samples"], found["latency_ms"]["rounds"]) == (2, 2)
        assert document["baseline"] is None and found["versus_baseline"] is None
        assert found["ran_on"]["board"] == "Double Board"
        assert found["device_outputs"]["identical"]
        assert document["budget"]["max_latency_ms"] == 30_000

    def test_its_windows_last_ten_seconds(self, measuring: Measuring) -> None:
        ran, out, windows = measuring["plainly"].result()
        with np.load(out / "measurements.npz") as stored:
            raw = {name: stored[name] for name in stored.files}
        assert sorted(raw) == ["int8@tflm/0/0", "int8@tflm/0/1"]
        assert all(found.dtype == np.int64 and found.shape == (1,) for found in raw.values())
        each_ms = np.array(list(raw.values())) / 1e6
        latency = by_recipe(ran.document)["int8"]["latency_ms"]
        assert latency["p50"] == pytest.approx(float(np.median(each_ms)))
        assert np.all((each_ms >= 1e3 * peer.INFERENCE_S) & (each_ms < 1.1e3 * peer.INFERENCE_S))
        # Each of the samples is a window of the board's, and a long one.
        timed = {round((end - begin) * 1000 / count): end - begin for count, begin, end in windows}
        assert all(timed[int(found[0])] >= WINDOW_S * 1e6 for found in raw.values())

    def test_memory_is_what_the_board_says(self, measuring: Measuring) -> None:
        memory = by_recipe(measuring["plainly"].result().ran.document)["int8"]["peak_memory_bytes"]
        assert (memory["value"], memory["basis"]) == (12_345, "measured")
        assert "on the board" in memory["how"]

    def test_the_device_is_told(self, measuring: Measuring, made: Path) -> None:
        device = measuring["plainly"].result().ran.document["device"]
        assert (device["cpu"], device["arch"], device["emulated"]) == (
            *("Double Board", "cortex-m"),
            False,
        )
        assert device["model_digest"] == digest(made / "model.tflite")
        assert device["baud"] == 115_200 and device["meters"] == []

    def test_what_it_does_not_hold_is_not_measured(self, measuring: Measuring) -> None:
        found = by_recipe(measuring["plainly"].result().ran.document)["int16x8"]
        assert found["status"] == "skipped" and found["latency_ms"] is None
        for figure in ("latency_ms", "throughput_per_s", "load_ms", "energy_mj"):
            assert "the board holds another model" in found["missing"][figure]
        assert found["accuracy"] and found["peak_memory_bytes"]  # which need no board

    def test_energy_that_nothing_measures_says_so(self, measuring: Measuring) -> None:
        found = by_recipe(measuring["plainly"].result().ran.document)["int8"]
        assert found["energy_mj"] is None and "no meter" in found["missing"]["energy_mj"]

    def test_the_bundle_is_of_what_was_on_the_board(self, measuring: Measuring, made: Path) -> None:
        out = measuring["plainly"].result().out
        assert (out / "model.tflite").read_bytes() == (made / "model.tflite").read_bytes()
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["measured"] is True and "unmeasured" not in manifest
        assert "Double Board" in (out / "README.md").read_text()
        assert deploy("verify", out).code == 0

    def test_a_meter_tells_energy_which_decides(self, measuring: Measuring) -> None:
        ran, _, windows = measuring["metered"].result()
        assert ran.code == 0, ran.err
        document = ran.document
        assert document["decided_by"] == "energy" and document["device"]["meters"] == ["lpm01a"]
        found = by_recipe(document)["int8"]
        energy = found["energy_mj"]
        assert energy["basis"] == "measured" and "energy_mj" not in found["missing"]
        # The double takes 20 mW more while it computes: the last three windows, by its own clock.
        took_ms = [(end - begin) / 1e3 / count for count, begin, end in windows[-3:]]
        assert energy["value"] == pytest.approx(20 * np.median(took_ms) / 1e3, rel=0.05)
        assert document["budget"]["max_energy_mj"] == 1000

    def test_its_windows_last_ten_seconds_too(self, measuring: Measuring) -> None:
        ran, out, _ = measuring["metered"].result()
        energy = by_recipe(ran.document)["int8"]["energy_mj"]
        assert energy["samples"] >= 3 * WINDOW_S * 1000  # one a millisecond
        with np.load(out / "measurements.npz") as stored:
            raw = {n.rpartition("/")[2]: stored[n] for n in stored.files if "/energy_mj/" in n}
        assert raw["samples"].sum() == energy["samples"]
        each = (raw["energy_mj"] - raw["idle_mw"] * raw["seconds"]) / raw["inferences"]
        assert energy["value"] == pytest.approx(float(np.median(each)))

    def test_firmware_of_others_is_measured_where_it_is_known_what_it_holds(
        self, measuring: Measuring
    ) -> None:
        ran = measuring["of_others"].result().ran
        assert ran.code == 0, ran.err
        found = by_recipe(ran.document)["int16x8"]
        assert found["latency_ms"]["basis"] == "measured"
        # It prints three decimals, where a step of 16 bits is less.
        said = found["device_outputs"]
        assert said["largest_difference"] <= 0.00051 and said["same_argmax"]
        assert "12345" not in str(found["peak_memory_bytes"])
        assert "does not say what its arena takes" in found["missing"]["peak_memory_on_board"]

    def test_a_latency_budget_that_is_missed_leaves_a_report_and_no_bundle(
        self, measuring: Measuring
    ) -> None:
        ran, out, _ = measuring["too_slow"].result()
        assert ran.code == 5
        assert "p90 latency" in ran.err and "over 0.001" in ran.err
        assert [path.name for path in out.iterdir()] == ["report.json"]
        found = by_recipe(json.loads((out / "report.json").read_text()))["int8"]
        assert found["status"] == "over-budget" and found["latency_ms"]["basis"] == "measured"

    def test_a_board_that_computes_otherwise_is_judged_by_what_it_computes(
        self, measuring: Measuring, near: Path, made: Path, data: Path
    ) -> None:
        ran = measuring["otherwise"].result().ran
        assert ran.code == 0, ran.err
        found = by_recipe(ran.document)["int8"]
        assert found["device_outputs"]["judged_on"] == "device"
        assert not found["device_outputs"]["identical"]
        options = json.loads((made / "manifest.json").read_text())["run"]["options"]
        session = Session([str(near)], options, ["image"], ["logits"])
        with np.load(data / "digits.npz") as stored:
            given, wanted = stored["x"], stored["y"]
        right = [
            int(session.run({"image": image[None]})[0].argmax()) == label
            for image, label in zip(given, wanted, strict=True)
        ]
        assert found["accuracy"]["value"] == pytest.approx(np.mean(right))
        assert found["accuracy"]["drop"] > 0.05
        assert any("its outputs on the device differ" in said for said in found["warnings"])
        assert "warning: int8@tflm: its outputs on the device differ" in ran.err

    def test_bench_takes_a_bundle_and_needs_no_target(self, measuring: Measuring) -> None:
        ran = measuring["benched"].result().ran
        assert ran.code == 0, ran.err
        (entry,) = ran.document["candidates"]
        assert entry["name"] == "bundle int8@tflm"
        assert entry["latency_ms"]["basis"] == "measured" and entry["latency_ms"]["rounds"] == 2
        assert ran.document["device"]["cpu"] == "Double Board"

    def test_bench_tells_no_time_to_load_what_lies_in_flash(self, measuring: Measuring) -> None:
        (entry,) = measuring["benched"].result().ran.document["candidates"]
        assert entry["load_ms"] is None


class TestBenchRefuses:
    def test_another_model_than_the_board_holds(self, made: Path, wrong: Path) -> None:
        with Peer(wrong) as there:
            ran = deploy("bench", made, "--device", there.address, "--quick")
            assert there.windows == []
        assert ran.code == 4 and digest(wrong)[:12] in ran.err

    def test_firmware_of_others_that_computes_something_else(self, made: Path, wrong: Path) -> None:
        with Peer(wrong, digest=False) as there:
            ran = deploy("bench", made, "--device", there.address, "--quick")
        assert ran.code == 4 and "does not say which model" in ran.err
