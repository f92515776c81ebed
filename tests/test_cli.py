"""What the command line takes, refuses and prints: exit codes, streams, the commands beside."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onmetal import __version__, cli
from onmetal.deploy import run
from onmetal.errors import UsageError
from tests.attached import stand_in
from tests.conftest import DIGITS, FLOAT, deploy

MODEL = str(DIGITS / "digits_cnn.onnx")
DATA = str(DIGITS / "digits.npz")
PLAIN = (MODEL, "--target", "x86-64")
HEAVY = ("numpy", "msgspec", "psutil", "PIL", "onnx", "onnxruntime", "openvino", "argcomplete")
LATER = "converting"
"""The first step that takes long, as progress calls it."""

OPTIONS = (
    *("target", "data", "calibration-data", "metric", "output", "device", "no-device"),
    *("max-accuracy-drop", "min-accuracy", "max-latency", "max-size", "max-macs", "max-memory"),
    *("max-energy", "minimize", "recipes", "batch", "threads", "input-shape", "out", "force"),
    *("time-limit", "quick", "thorough", "dry-run", "json"),
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whatever is written lands in an empty folder, and no adb server of the user's is asked."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ADB", str(stand_in(tmp_path / "adb", "List of devices attached\n\n")))
    return folder


def refused(capsys: Capture, code: int, *words: str | Path) -> str:
    """Run it in this process, with and without --json. -> the message."""
    assert cli.main([*map(str, words)]) == code
    plain = capsys.readouterr()
    assert plain.out == ""
    assert "Traceback" not in plain.err
    assert cli.main([*map(str, words), "--json"]) == code
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert error["code"] == code
    assert f"deploy: {error['message']}" in plain.err
    assert LATER not in plain.err
    return str(error["message"])


def planned(capsys: Capture, *words: str | Path) -> dict[str, Any]:
    assert cli.main([*map(str, words), "--dry-run", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def buffered() -> dict[str, str]:
    """The environment of most users, in which Python writes some things only as it ends."""
    return {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}


# --- help


@pytest.mark.parametrize("words", [["--help"], ["bench", "--help"], ["help", "verify"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "onmetal.cli", *words],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0
    assert "usage: deploy" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not {name for name in imported if name.partition(".")[0] in HEAVY}


def test_help_names_every_option_of_the_main_job(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for option in OPTIONS:
        assert f"--{option}" in said


def test_help_says_what_a_percentage_is_of(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "50% of --max-size is of the model's file" in said
    assert "70% of --max-macs of its multiply-accumulates" in said
    assert "one percent of the float model's value of any other (rmse" in said


@pytest.mark.parametrize("words", [["help"], ["--help"], ["--json", "help"], ["-h"]])
def test_help_is_a_word_too(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: deploy MODEL")


@pytest.mark.parametrize("words", [[], ["bench"], ["completion"]])
def test_every_command_says_its_version(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"onmetal {__version__}\n"


def test_without_arguments_what_to_write_is_said(capsys: Capture) -> None:
    said = refused(capsys, 2)
    assert "no MODEL was given: `deploy MODEL.onnx --target x86-64 --data DATA.npz`" in said
    assert "`deploy targets` lists them" in refused(capsys, 2, MODEL)


def test_a_command_may_come_behind_json(capsys: Capture) -> None:
    assert cli.main(["--json", "targets", "x86-64"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "x86-64"


# --- words


def test_models_and_options_come_in_any_order(capsys: Capture, elsewhere: Path) -> None:
    other = elsewhere / "other.onnx"
    shutil.copyfile(MODEL, other)
    target, data = ("--target", "x86-64"), ("--data", DATA)
    orders = (
        (MODEL, other, *target, *data),
        (*target, MODEL, *data, other),
        (MODEL, *target, other, *data),
        (*data, *target, MODEL, other),
    )
    found = [planned(capsys, *words) for words in orders]
    for document in found:
        document["device"].pop("state")
    assert len(found[0]["models"]) == 2
    assert all(document == found[0] for document in found)


@pytest.mark.parametrize(
    "words",
    [
        (MODEL, "--targ", "x86-64"),
        (*PLAIN, "--thr", "2"),
        (*PLAIN, "--no-dev"),
        ("bench", MODEL, "--quic"),
        ("verify", ".", "--ru"),
        ("inspect", MODEL, "--targ", "x86-64"),
    ],
)
def test_abbreviations_are_refused(words: tuple[str, ...], capsys: Capture) -> None:
    refused(capsys, 2, *words)


@pytest.mark.parametrize(
    "words",
    [
        (),
        (MODEL,),
        ("--target", "x86-64"),
        (*PLAIN, "--colour"),
        (*PLAIN, "--quick", "--thorough"),
        (*PLAIN, "--minimize", "cost"),
        (*PLAIN, "--no-device", "--device", "local"),
        ("targets", "--colour"),
        ("targets", "x86-64", "x86-openvino"),
        ("devices", "more"),
        ("inspect",),
        ("inspect", MODEL, DATA),
        ("inspect", MODEL, "--against"),
        ("inspect", MODEL, "--against", MODEL, "--target", "x86-64"),
        ("bench",),
        ("verify",),
        ("compress", MODEL),
        ("history",),
        ("gate", "."),
        ("report", "."),
        ("fleet",),
        ("doctor", "more"),
        ("runner",),
        ("runner", "run"),
        ("init",),
    ],
)
def test_bad_usage_exits_2(words: tuple[str, ...], capsys: Capture) -> None:
    refused(capsys, 2, *words)


def test_an_error_with_json_is_one_document_on_stdout() -> None:
    ran = deploy(*PLAIN, "--colour", "--json")
    assert ran.code == 2
    assert set(ran.document) == {"error"}
    assert set(ran.document["error"]) == {"code", "message"}
    assert "--colour" in ran.document["error"]["message"]
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    "option", ["--target", "--data", "--device", "--out", "--time-limit", "--recipes", "--metric"]
)
def test_an_empty_value_is_refused(option: str, capsys: Capture) -> None:
    refused(capsys, 2, *PLAIN, "--data", DATA, "--dry-run", option, "")


# --- inputs


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "empty"), (b"no model", "ONNX"), (b"GGUF\0\0\0\0", "GGUF")]
)
def test_an_unreadable_model_exits_2(
    content: bytes, says: str, elsewhere: Path, capsys: Capture
) -> None:
    (elsewhere / "bad.onnx").write_bytes(content)
    assert says in refused(capsys, 2, "bad.onnx", "--target", "x86-64")


def test_a_model_called_like_a_command_is_reached_by_its_path(
    elsewhere: Path, capsys: Capture
) -> None:
    (elsewhere / "targets").write_bytes(b"no model")
    assert "targets: " in refused(capsys, 2, "./targets", "--target", "x86-64")
    shutil.copyfile(MODEL, elsewhere / "targets")
    assert planned(capsys, "./targets", "--target", "x86-64")["models"][0]["path"] == "targets"
    assert cli.main(["targets"]) == 0
    assert "x86-openvino" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nowhere.onnx", "--target", "x86-64"), "nowhere.onnx"),
        ((".", "--target", "x86-64"), "folder"),
        ((MODEL, "--target", "x87"), "x86-openvino"),
        ((MODEL, "--target", "board.toml"), "board.toml"),
        ((*PLAIN, "--data", "nowhere.npz"), "nowhere.npz"),
        ((*PLAIN, "--data", MODEL), "npz"),
        ((*PLAIN, "--data", str(DIGITS / "calibration.npz")), "labels"),
        ((*PLAIN, "--data", "nomodule:function"), "nomodule"),
        ((*PLAIN, "--calibration-data", "nowhere.npz"), "nowhere.npz"),
        ((*PLAIN, "--data", DATA, "--metric", "top2"), "top2"),
        ((*PLAIN, "--data", DATA, "--output", "nothing"), "logits"),
        ((*PLAIN, "--metric", "top1"), "--data"),
        ((*PLAIN, "--output", "logits"), "--data"),
        ((*PLAIN, "--recipes", "int9"), "int9"),
        ((MODEL, *PLAIN, "--data", DATA), "digits_cnn"),
    ],
)
def test_unreadable_or_unknown_input_exits_2(
    words: tuple[str, ...], says: str, capsys: Capture
) -> None:
    assert says in refused(capsys, 2, *words)


@pytest.mark.parametrize(
    "shape",
    [
        "image",
        "image=",
        "image=one",
        "image=1,1,8",
        "image=1,1,8,0",
        "image=1,1,9,9",
        "other=1,1,8,8",
        "=1,1,8,8",
    ],
)
def test_a_bad_input_shape_exits_2(shape: str, capsys: Capture) -> None:
    assert "--input-shape" in refused(capsys, 2, *PLAIN, "--input-shape", shape)


def test_an_input_shape_given_twice_exits_2(capsys: Capture) -> None:
    shape = ("--input-shape", "image=1,1,8,8")
    assert "already" in refused(capsys, 2, *PLAIN, *shape, *shape)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1000"])
@pytest.mark.parametrize("command", [PLAIN, ("bench", MODEL, "--quick")])
def test_a_bad_number_of_threads_exits_2(
    command: tuple[str, ...], value: str, capsys: Capture
) -> None:
    assert "--threads" in refused(capsys, 2, *command, "--threads", value)


@pytest.mark.parametrize("value", ["0", "-4", "many"])
def test_a_bad_batch_exits_2(value: str, capsys: Capture) -> None:
    assert "--batch" in refused(capsys, 2, *PLAIN, "--batch", value)


# --- budgets


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-accuracy-drop", "lots"),
        ("--max-accuracy-drop", "nan"),
        ("--max-accuracy-drop", "1ms"),
        ("--min-accuracy", "inf"),
        ("--min-accuracy", "none"),
        ("--max-latency", "20"),
        ("--max-latency", "20%"),
        ("--max-latency", "0ms"),
        ("--max-latency", "20 light-years"),
        ("--max-size", "4"),
        ("--max-size", "4XB"),
        ("--max-size", "0kB"),
        ("--max-macs", "1000"),
        ("--max-memory", "50%"),
        ("--max-energy", "5"),
        ("--max-energy", "5ms"),
        ("--time-limit", "soon"),
        ("--time-limit", "0s"),
        ("--time-limit", "5"),
    ],
)
def test_a_bad_budget_exits_2(option: str, value: str, capsys: Capture) -> None:
    assert option in refused(capsys, 2, *PLAIN, "--data", DATA, option, value)


@pytest.mark.parametrize("words", [("--max-energy", "5mJ"), ("--minimize", "energy")])
def test_energy_exits_4_before_anything_long(words: tuple[str, ...], capsys: Capture) -> None:
    assert "meter" in refused(capsys, 4, *PLAIN, "--data", DATA, *words)


@pytest.mark.parametrize("words", [("--max-latency", "20ms"), ("--max-memory", "64MB")])
def test_without_a_device_a_budget_of_what_is_measured_exits_4(
    words: tuple[str, ...], capsys: Capture
) -> None:
    refused(capsys, 4, *PLAIN, "--data", DATA, "--no-device", *words)
    refused(capsys, 4, *PLAIN, "--data", DATA, "--device", "none", *words)


@pytest.mark.parametrize(
    "words",
    [
        ("--min-accuracy", "70%"),
        ("--max-accuracy-drop", "2%"),
        ("--minimize", "accuracy-drop"),
    ],
)
def test_accuracy_cannot_be_asked_for_without_labels(
    words: tuple[str, ...], capsys: Capture
) -> None:
    assert "--data" in refused(capsys, 2, *PLAIN, *words)
    calibration = ("--calibration-data", str(DIGITS / "calibration.npz"))
    assert "--data" in refused(capsys, 2, *PLAIN, *calibration, *words)


def test_no_accuracy_budget_goes_with_other_budgets_and_no_labels(capsys: Capture) -> None:
    found = planned(capsys, *PLAIN, "--max-accuracy-drop", "none", "--max-size", "4MB")
    assert found["budget"] == {"max_size_bytes": 4_000_000}


def test_a_budget_is_said_in_base_units(capsys: Capture) -> None:
    words = ("--max-latency", "1.5s", "--max-size", "50%", "--max-memory", "4MiB")
    more = ("--max-macs", "70%", "--min-accuracy", "70%", "--max-accuracy-drop", "2%")
    found = planned(capsys, *PLAIN, "--data", DATA, *words, *more)
    model = found["models"][0]
    assert found["budget"] == {
        "max_accuracy_drop": 0.02,
        "min_accuracy": 0.7,
        "max_latency_ms": 1500.0,
        "max_size_bytes": model["size_bytes"] // 2,
        "max_memory_bytes": 4 * 2**20,
        "max_macs": int(0.7 * model["macs"]),
    }


def test_the_default_budget_is_a_drop_of_one_point(capsys: Capture) -> None:
    assert planned(capsys, *PLAIN, "--data", DATA)["budget"] == {"max_accuracy_drop": 0.01}


# --- devices


@pytest.mark.parametrize(
    "address",
    [
        "adbx",
        "ssh:pi@board",
        "serial:/dev/ttyACM0",
        "serial:///dev/ttyACM0?bauds=115200",
        "socket://localhost",
        "jtag:board",
        "local:2",
        "LOCAL",
        "moon",
    ],
)
def test_a_transport_that_is_not_built_is_unknown(address: str, capsys: Capture) -> None:
    said = refused(capsys, 2, *PLAIN, "--data", DATA, "--device", address)
    assert address in said
    assert "local" in said or "must be serial:///dev/tty" in said
    refused(capsys, 2, "bench", MODEL, "--device", address)
    refused(capsys, 2, "verify", ".", "--device", address)


# --- the output folder


@pytest.mark.parametrize("place", ["file/out", "file/more/out", "/proc/out", "/proc/more/out"])
def test_an_unwritable_out_exits_2_before_anything_long(
    place: str, elsewhere: Path, capsys: Capture
) -> None:
    (elsewhere / "file").write_text("kept")
    assert "--out" in refused(capsys, 2, *PLAIN, "--data", DATA, "--out", place)
    assert (elsewhere / "file").read_text() == "kept"


def test_an_existing_out_exits_2(elsewhere: Path, capsys: Capture) -> None:
    for name in ("out", "digits_cnn-x86-64"):
        (elsewhere / name).mkdir()
        (elsewhere / name / "notes.txt").write_text("kept")
    assert "--force" in refused(capsys, 2, *PLAIN, "--out", "out")
    assert "--force" in refused(capsys, 2, *PLAIN)
    assert sorted(path.name for path in elsewhere.rglob("*")) == [
        "digits_cnn-x86-64",
        "notes.txt",
        "notes.txt",
        "out",
    ]


def test_an_out_that_is_a_file_or_a_link_exits_2(elsewhere: Path, capsys: Capture) -> None:
    (elsewhere / "file").write_text("kept")
    (elsewhere / "empty").mkdir()
    (elsewhere / "link").symlink_to("empty")
    for name in ("file", "link"):
        refused(capsys, 2, *PLAIN, "--out", name)
        refused(capsys, 2, *PLAIN, "--out", name, "--force")
    assert (elsewhere / "file").read_text() == "kept"


# --- streams


def test_stdout_holds_results_and_stderr_progress(elsewhere: Path) -> None:
    ran = deploy(*PLAIN, *FLOAT, "--data", DATA, "--no-device", cwd=elsewhere)
    assert ran.code == 0, ran.err
    assert "[1/" in ran.err
    assert "converting" in ran.err
    assert "warning: " in ran.err
    assert "[1/" not in ran.out
    assert "warning: " not in ran.out
    assert "fp32@onnxruntime" in ran.out
    assert "digits_cnn-x86-64" in ran.out
    assert (elsewhere / "digits_cnn-x86-64" / "manifest.json").is_file()
    assert "\x1b" not in ran.out + ran.err
    assert "\r" not in ran.out + ran.err


def test_progress_counts_the_steps_that_there_are(elsewhere: Path) -> None:
    ran = deploy(*PLAIN, *FLOAT, "--data", DATA, "--no-device", cwd=elsewhere)
    steps = [line[1:].partition("]")[0] for line in ran.err.splitlines() if line.startswith("[")]
    assert steps == [f"{number}/{len(steps)}" for number in range(1, len(steps) + 1)]


def test_the_first_line_alone_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m onmetal.cli targets | head -1"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("android-arm64 ")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [["targets"], ["targets", "x86-64", "--json"], ["devices"], ["--help"]]
)
def test_a_reader_that_went_away_is_no_error(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "onmetal.cli", *words],
            env=buffered(),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
        )
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (0, 141)


# --- defects


def test_a_defect_exits_1_with_one_line_and_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setenv("ONMETAL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(run, "deploy", broken)
    assert cli.main([*PLAIN, "--json"]) == 1
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1
    assert json.loads(shown.out)["error"]["code"] == 1
    (log,) = (tmp_path / "home" / "logs").iterdir()
    assert str(log) in shown.err
    assert "Traceback" in log.read_text()
    assert "x86-64" in log.read_text()


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it cannot even be said")


@pytest.mark.parametrize(
    ("home", "error"),
    [
        ("{}/home", RuntimeError("a\udcff\ud800")),
        ("{}/home", Mute()),
        ("{}/file/home", RuntimeError("odd")),
        ("{}/loop", RuntimeError("odd")),
        ("{}/open", RuntimeError("odd")),
    ],
)
def test_nothing_hinders_what_is_said_of_a_defect(
    home: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    tmp_path: Path,
) -> None:
    def broken(*_: object) -> None:
        raise error

    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("ONMETAL_HOME", home.format(tmp_path))
    monkeypatch.setattr(run, "deploy", broken)
    assert cli.main([*PLAIN, "--out", "\udcff", "--json"]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("deploy: a defect of onmetal: ")
    assert type(error).__name__ in shown.err and len(shown.err.splitlines()) == 1
    assert json.loads(shown.out)["error"]["code"] == 1


def test_a_long_message_is_cut(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def wordy(*_: object) -> None:
        raise UsageError("it begins so " + "x" * 5_000_000 + " and ends so", details=["y" * 9999])

    monkeypatch.setattr(run, "deploy", wordy)
    assert cli.main([*PLAIN, "--json"]) == 2
    shown = capsys.readouterr()
    for text in (shown.err, json.loads(shown.out)["error"]["message"]):
        assert "it begins so" in text and "and ends so" in text and "letters …]" in text
        assert len(text) < 5000


def test_every_document_spells_odd_names_alike(capsys: Capture, tmp_path: Path) -> None:
    """JSON has no lone surrogates: strict readers refuse their escapes, too."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/net\xff.onnx")
    for words in (
        [odd, "--target", "x86-64"],
        [*PLAIN, "--out", odd, "--data", odd],
        ["inspect", odd],
    ):
        assert cli.main([*map(str, words), "--json"]) == 2
        text = capsys.readouterr().out
        assert "net\\\\udcff.onnx" in text
        assert "net\\udcff.onnx" in json.loads(text)["error"]["message"]
        text.encode()


def test_interrupting_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "deploy", interrupted)
    refused(capsys, 130, *PLAIN)


# --- the commands beside


def test_targets_lists_them(capsys: Capture) -> None:
    assert cli.main(["targets", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [entry["name"] for entry in found["targets"]]
    assert {"x86-64", "x86-onnxruntime", "x86-openvino"} <= set(names)
    assert all(entry["description"] for entry in found["targets"])
    assert cli.main(["targets"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == names


def test_targets_shows_one_in_full(capsys: Capture) -> None:
    assert cli.main(["targets", "x86-openvino", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "x86-openvino"
    assert found["arch"] == "x86_64"
    assert found["device"]["transport"] == "local"
    assert [entry["name"] for entry in found["runtimes"]] == ["openvino"]
    assert [entry["name"] for entry in found["recipes"]] == [
        *("fp32", "fp16", "bf16", "wi8", "int8-s8s8", "int8-u8s8", "int8-nncf", "int8-u8u8"),
        *("int8-u8s8-rr", "int8-fast"),
    ]
    form = next(entry["format"] for entry in found["recipes"] if entry["name"] == "int8-u8u8")
    assert (form["activation"], form["weight"], form["per_channel"]) == ("u8", "u8", False)
    assert cli.main(["targets", "x86-openvino"]) == 0
    assert "bf16" in capsys.readouterr().out
    assert "x86-64" in refused(capsys, 2, "targets", "x87")


def test_devices_says_what_is_ready_and_what_lacks(capsys: Capture) -> None:
    assert cli.main(["devices", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["devices"][0]
    assert found["address"] == "local"
    assert found["ready"] is True
    assert {"x86-64", "x86-openvino"} <= set(found["targets"])
    assert set(found["runtimes"]) == {"onnxruntime", "openvino", "litert", "tflm"}
    assert any("meter" in lack for lack in found["lacks"])
    assert cli.main(["devices"]) == 0
    said = capsys.readouterr().out
    assert "ready" in said
    assert all(lack in said for lack in found["lacks"])


def test_inspect_counts_the_example(capsys: Capture) -> None:
    assert cli.main(["inspect", MODEL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["inputs"] == [{"name": "image", "dtype": "float32", "shape": [1, 1, 8, 8]}]
    assert found["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [1, 10]}]
    assert found["parameters"] == 91_530
    stem, residual = 100 * 40 * 9, 6 * 100 * 40 * 40 * 9
    separable, linear = 25 * 40 * 9 + 25 * 80 * 40, 80 * 10
    assert found["macs"] == stem + residual + separable + linear
    assert found["operators"]["Conv"] == 9
    assert found["target"] is None


def test_inspect_says_what_a_target_cannot_run(capsys: Capture) -> None:
    assert cli.main(["inspect", MODEL, "--target", "x86-64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    support = {entry["candidate"]: entry for entry in found["support"]}
    assert support["fp32@onnxruntime"]["runs"] is True
    assert support["fp32@openvino"]["runs"] is True
    assert support["fp16@onnxruntime"]["runs"] is False
    assert "f16" in support["fp16@onnxruntime"]["says"]
    assert support["int8-u8s8@onnxruntime"]["runs"] is True
    assert "data" in support["int8-u8s8@onnxruntime"]["says"]
    assert support["int8-dynamic@openvino"]["runs"] is False
    assert cli.main(["inspect", MODEL, "--target", "x86-64"]) == 0
    said = capsys.readouterr().out
    assert all(entry["says"] in said for entry in found["support"])


def test_inspect_takes_a_batch(capsys: Capture) -> None:
    assert cli.main(["inspect", MODEL, "--batch", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["inputs"][0]["shape"] == [4, 1, 8, 8]
    assert found["batch"] == 4
    assert "nowhere.onnx" in refused(capsys, 2, "inspect", "nowhere.onnx")


@pytest.mark.parametrize(("code", "more"), [(0, ()), (2, ("--batch", "none"))])
def test_progress_that_nobody_reads_changes_nothing(
    code: int, more: tuple[str, ...], elsewhere: Path
) -> None:
    words = [*PLAIN, *FLOAT, "--data", DATA, "--no-device", "--out", "out", *more]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "onmetal.cli", *words],
        env=buffered(),
        stderr=writer,
        stdout=subprocess.PIPE,
    )
    os.close(writer)
    assert done.returncode == code
    assert (elsewhere / "out" / "manifest.json").exists() is (code == 0)
