"""`did you mean …?`: what is unknown is refused with the likely word, wherever it is given."""

import json
import shutil
from pathlib import Path

import pytest

from onmetal import cli
from onmetal.texts import suggest
from tests.conftest import DIGITS, FLOAT

MODEL, DATA = str(DIGITS / "digits_cnn.onnx"), str(DIGITS / "digits.npz")
PLAIN = (MODEL, "--target", "x86-64")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, data, a target and a bundle to be misspelled."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(MODEL, "digits_cnn.onnx")
    shutil.copyfile(DATA, "digits.npz")
    Path("board.toml").write_text("")
    Path("digits-bundle").mkdir()
    Path("notes.txt").write_text("")
    return tmp_path


def refused(capsys: Capture, *words: str) -> str:
    assert cli.main([*words, "--json"]) == 2
    return str(json.loads(capsys.readouterr().out)["error"]["message"])


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("verfy", "digits-bundle"), "verify"),
        (("benhc", MODEL), "bench"),
        (("Targets",), "targets"),
        ((*PLAIN, "--max-acc", "1%"), "--max-accuracy-drop"),
        ((*PLAIN, "--recipe", "int8"), "--recipes"),
        ((*PLAIN, "--thread=2"), "--threads"),
        ((*PLAIN, "-quick"), "--quick"),
        (("verify", "digits-bundle", "--rum"), "--run"),
        (("inspect", MODEL, "--tagret", "x86-64"), "--target"),
        ((MODEL, "--target", "x86_64"), "x86-64"),
        ((MODEL, "--target", "cortexm4"), "cortex-m4"),
        ((MODEL, "--target", "boards.toml"), "board.toml"),
        (("targets", "openvino-x86"), "x86-openvino"),
        ((*PLAIN, "--recipes", "int8u8s8"), "int8-u8s8"),
        ((*PLAIN, "--recipes", "f32"), "fp32"),
        ((*PLAIN, "--data", DATA, "--metric", "top-1"), "top1"),
        ((*PLAIN, "--data", DATA, "--metric", "accurcy"), "accuracy"),
        ((*PLAIN, "--data", DATA, "--output", "logit"), "logits"),
        ((*PLAIN, "--minimize", "speed-size"), None),
        ((*PLAIN, "--minimize", "accuracy"), "accuracy-drop"),
        ((*PLAIN, "--device", "locl"), "local"),
        (("digit_cnn.onnx", "--target", "x86-64"), "digits_cnn.onnx"),
        (("inspect", "digits_cnn"), "digits_cnn.onnx"),
        (("bench", "digits.onnx"), "digits_cnn.onnx"),
        ((*PLAIN, "--data", "digit.npz"), "digits.npz"),
        ((*PLAIN, "--calibration-data", "digits"), "digits.npz"),
        (("verify", "digit-bundle"), "digits-bundle"),
        (("verify", "digits_bundle"), "digits-bundle"),
    ],
)
def test_the_likely_word_is_named(
    words: tuple[str, ...], meant: str | None, capsys: Capture
) -> None:
    said = refused(capsys, *words)
    assert (f"did you mean {meant}" in said) if meant else ("did you mean" not in said), said


def test_a_file_like_none_there_is_answered_with_what_the_folder_has(
    folder: Path, capsys: Capture
) -> None:
    said = refused(capsys, "zzz.onnx", "--target", "x86-64")
    assert "the folder . has: digits_cnn.onnx" in said
    said = refused(capsys, "nowhere/zzz.onnx", "--target", "x86-64")
    assert "there is no folder nowhere either" in said
    for number in range(5):
        (folder / f"{number}{number}.onnx").write_text("")
    assert "the folder" not in refused(capsys, "zzz.onnx", "--target", "x86-64")


def test_a_command_behind_a_model_is_told_where_it_belongs(capsys: Capture) -> None:
    assert "comes first: `deploy bench …`" in refused(capsys, MODEL, "bench")


def test_names_are_read_in_any_case(capsys: Capture) -> None:
    words = (*PLAIN, *FLOAT, "--data", DATA, "--metric", "F1", "--minimize", "Size", "--dry-run")
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["data"]["metric"], found["minimize"]) == ("f1", "size")


def test_what_begins_so_comes_before_what_is_alike() -> None:
    names = ["--max-macs", "--max-accuracy-drop", "--max-memory"]
    assert suggest.alike("--max-acc", names) == ["--max-accuracy-drop"]
    assert suggest.alike("--max-", names) == ["--max-macs", "--max-memory"]
    assert suggest.did_you_mean("zzz", names) == ""
    assert suggest.did_you_mean("x", ["xylophone"]) == ""
