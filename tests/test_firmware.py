"""The firmware of a bundle: compiled with all warnings, run on this machine and under QEMU."""

import contextlib
import ctypes
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import serial
from msgspec.structs import replace

from onmetal.bundles.artifact_io import ArtifactTensor
from onmetal.bundles.kinds import firmware
from onmetal.converters.tflite import net as tflite
from onmetal.converters.tflite import writing
from onmetal.errors import UnsupportedError
from onmetal.records import Tensor
from onmetal.targets import Core
from onmetal.texts.quoting import c_string
from tests import firmware_image as image
from tests.arm64 import needs
from tests.deployed import HOSTILE

STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror", "-Os")
COMPILERS = {
    "gcc": ("gcc", "g++", ()),
    "clang": ("clang", "clang++", ()),
    **{
        core: ("arm-none-eabi-gcc", "arm-none-eabi-g++", ("-mthumb", *flags))
        for core, flags in image.CORES.items()
    },
}
HEAP = re.compile(r"malloc|calloc|realloc|free|_Z(nw|na|dl|da)\w*|__cxa_\w+|atexit|\w*printf")
VARIANTS = (
    "-DONMETAL_KEEP_INPUT=0 -DONMETAL_SELFTEST=0",
    "-DONMETAL_SELFTEST_AT_START=1 -DONMETAL_TOLERANCE=1 -DONMETAL_DB_OFFSET=128",
)
QEMU = (
    *("qemu-system-arm", "-M", "mps3-an547", "-nographic", "-icount", "shift=0"),
    *("-monitor", "none", "-serial", "stdio", "-kernel"),
)
LIMIT_S = 120.0
"""A program that says nothing is stopped, so that reading from it ends."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image.unpack(image.bundle_files(), tmp_path_factory.mktemp("bundle"))


def objects(sources: Path, folder: Path, compiler: str, *more: str) -> list[Path]:
    """All sources that this compiler is for, compiled with all warnings as errors."""
    folder.mkdir(parents=True, exist_ok=True)
    c, cpp, flags = COMPILERS[compiler]
    include = (f"-I{sources}", f"-isystem{image.STUB}", f"-isystem{image.STUB}/stm32")
    left_out = ("mps3_an547",) if compiler in ("gcc", "clang") else ("posix.c",)
    made = []
    for path in sorted([*sources.rglob("*.c"), *sources.rglob("*.cc")]):
        if any(part in left_out for part in path.parts):
            continue
        own = (c, "-std=c11") if path.suffix == ".c" else (cpp, *image.CPP)
        made.append(folder / f"{path.stem}.o")
        image.call(folder, *own, *flags, *STRICT, *more, *include, "-c", path, "-o", made[-1])
    return made


def checked(*paths: Path) -> None:
    """Only read by the compiler, with all warnings as errors."""
    flags = (*image.CPP, *STRICT, f"-isystem{image.STUB}", "-fsyntax-only")
    image.call(paths[0].parent, "g++", *flags, *paths)


class Talk:
    """A program that speaks the protocol over its standard input and output."""

    def __init__(self, *command: str | Path) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.watch = threading.Timer(LIMIT_S, self.process.kill)
        self.watch.start()
        self.greeting = self.answer()

    def answer(self) -> list[str]:
        """Lines up to `m-ready`, without it."""
        assert self.process.stdout
        lines = []
        while (line := self.process.stdout.readline().decode("ascii")) != "m-ready\r\n":
            assert line.endswith("\r\n"), line
            lines.append(line[:-2])
        return lines

    def say(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def ask(self, command: str) -> list[str]:
        self.say(f"{command}%".encode())
        return self.answer()

    def load(self, data: bytes, piece: int = 31) -> list[str]:
        lines = self.ask(f"db load {len(data)}")
        for start in range(0, len(data), piece):
            lines += self.ask(f"db {data[start : start + piece].hex()}")
        return lines

    def outputs(self) -> list[bytes]:
        found = [re.fullmatch(r"m-output-(\d)-\[(\w+)\]", line) for line in self.ask("output")]
        pieces: dict[str, str] = {}
        for match in found:
            assert match
            pieces[match[1]] = pieces.get(match[1], "") + match[2]
        return [bytes.fromhex(pieces[key]) for key in sorted(pieces)]


@contextlib.contextmanager
def talking(*command: str | Path) -> Iterator[Talk]:
    talk = Talk(*command)
    try:
        yield talk
    finally:
        assert talk.process.stdin and talk.process.stdout
        talk.process.stdin.close()
        talk.watch.cancel()
        talk.process.kill()
        talk.process.wait()
        talk.process.stdout.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image.program(tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def board(program: Path) -> Iterator[Talk]:
    with talking(program) as talk:
        assert talk.greeting == ["m-init-done"]
        yield talk


def vector(number: int) -> tuple[bytes, list[bytes]]:
    """A golden vector's input and outputs, as the file stores them."""
    arrays = image.golden()
    taken = arrays[f"input/image/{number}"].transpose(0, 2, 3, 1)
    whole = np.clip(np.rint(taken / np.float32(0.03)) + 7, -128, 127).astype(np.int8)
    scores = arrays[f"output/scores/{number}"] / np.float32(0.125) + 3
    middle = arrays[f"output/map/{number}"].transpose(0, 2, 3, 1) / np.float32(0.05) - 128
    return whole.tobytes(), [np.rint(x).astype(np.int8).tobytes() for x in (scores, middle)]


class TestTheSources:
    @pytest.mark.parametrize("compiler", COMPILERS)
    def test_compile_without_a_warning(self, compiler: str, sources: Path, tmp_path: Path) -> None:
        names = {path.stem for path in objects(sources, tmp_path, compiler)}
        assert {"model_data", "onmetal_model", "onmetal_protocol", "stm32cube"} <= names
        assert ("posix" in names) == (compiler in ("gcc", "clang"))

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_compile_in_every_form(self, variant: str, sources: Path, tmp_path: Path) -> None:
        assert objects(sources, tmp_path, "cortex-m55", *variant.split())

    def test_use_no_heap(self, sources: Path, tmp_path: Path) -> None:
        made = objects(sources, tmp_path, "cortex-m4")
        listed = subprocess.run(
            ["arm-none-eabi-nm", "-u", *made], capture_output=True, text=True, check=True
        ).stdout
        wanted = {line.split()[1] for line in listed.splitlines() if line.startswith(" ")}
        assert "onmetal_port_putchar" in wanted
        assert not [name for name in wanted if HEAP.fullmatch(name)]

    def test_headers_are_for_c_too(self, sources: Path, tmp_path: Path) -> None:
        headers = sorted(p.name for p in sources.glob("*.h") if p.name != "onmetal_resolver.h")
        lines = [
            *(f'#include "{name}"' for name in headers[::-1]),
            "static const int shape[] = ONMETAL_INPUT_0_SHAPE;",
            "int main(void) {",
            "    float scale = ONMETAL_INPUT_0_SCALE;",
            "    return shape[3] == 2 && scale > 0.02f && ONMETAL_INPUT_0_ZERO_POINT == 7 &&",
            "        ONMETAL_OUTPUT_1_COUNT == 48u && ONMETAL_ARENA_BYTES == 1024u ? 0 : 1;",
            "}",
        ]
        (tmp_path / "user.c").write_text("\n".join(lines))
        image.call(tmp_path, "gcc", "-std=c11", *STRICT, f"-I{sources}", "user.c", "-o", "user")
        image.call(tmp_path, tmp_path / "user")

    def test_are_the_same_again(self, tmp_path: Path) -> None:
        assert image.written(tmp_path) == image.bundle_files()

    def test_lie_in_their_folder_and_are_plain_ascii(self) -> None:
        files = image.bundle_files()
        assert all(name.startswith("firmware/") and data.isascii() for name, data in files.items())
        assert not [name for name, data in files.items() if b"@@" in data]

    def test_have_every_byte_after_any_other(self, tmp_path: Path) -> None:
        content = b"TFL3" + bytes(a * step % 256 for step in (1, 3, 7, 85) for a in range(5000))
        path, original = tmp_path / "any.tflite", tmp_path / "model.tflite"
        path.write_bytes(content)
        original.write_bytes(image.content())
        files = firmware.files(
            image.candidate(original),
            image.golden(),
            shipped=path,
            arena_bytes=1024,
            operators=[],
            name="any",
            core=None,
        )
        self._held(image.unpack(files, tmp_path), content, tmp_path)

    def test_have_the_model_byte_for_byte(self, sources: Path, tmp_path: Path) -> None:
        self._held(sources, image.content(), tmp_path)

    def _held(self, sources: Path, content: bytes, folder: Path) -> None:
        shared = ("-std=c11", "-shared", "-fPIC", "-o", "data.so")
        image.call(folder, "gcc", *STRICT, *shared, sources / "model_data.c")
        library = ctypes.CDLL(str(folder / "data.so"))
        held = (ctypes.c_char * len(content)).in_dll(library, "onmetal_model_data")
        assert held.raw == content and ctypes.addressof(held) % 16 == 0

    def test_register_only_what_is_used(self, sources: Path) -> None:
        text = (sources / "onmetal_resolver.h").read_text()
        assert re.findall(r"resolver\.Add(\w+)", text) == ["Conv2D", "FullyConnected"]
        assert "MicroMutableOpResolver<2>" in text

    def test_know_every_operator_of_the_resolver(self, tmp_path: Path) -> None:
        """That is, of the stub's, which has what TFLite Micro's has."""
        path = tmp_path / "model.tflite"
        path.write_bytes(image.content())
        files = firmware.files(
            image.candidate(path),
            image.golden(),
            shipped=path,
            arena_bytes=1024,
            operators=[*firmware.METHODS, "CONV_2D", "UNIDIRECTIONAL_SEQUENCE_LSTM"],
            name="all",
            core=None,
        )
        folder = image.unpack(files, tmp_path)
        checked(folder / "onmetal_model.cc")
        assert f"MicroMutableOpResolver<{len(firmware.METHODS)}>" in (
            (folder / "onmetal_resolver.h").read_text()
        )


class TestGoldenVectors:
    def test_agree_on_this_machine(self, program: Path) -> None:
        done = subprocess.run([program, "--selftest"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        assert done.stdout.count("agrees") == image.VECTORS * 2

    def test_agree_on_a_cortex_m55(self, tmp_path: Path) -> None:
        needs("qemu-system-arm", "qemu-system-arm")
        with talking(*QEMU, image.image(tmp_path)) as talk:
            assert talk.greeting == ["m-init-done"]
            assert talk.ask("check") == [f"m-check-[{image.VECTORS} of {image.VECTORS}]"]
            assert talk.ask("name") == ["m-name-dut-[Arm/MPS3-AN547]"]

    def test_of_another_output_do_not(self, tmp_path: Path) -> None:
        arrays = image.golden()
        wrong = arrays["output/scores/1"].copy()
        wrong[0, 2] += 0.125 if wrong[0, 2] < 0 else -0.125
        files = image.written(tmp_path, arrays | {"output/scores/1": wrong})
        done = self._selftest(files, tmp_path)
        assert done.returncode == 1
        said = [line for line in done.stdout.splitlines() if "agrees" not in line]
        assert said == ["golden vector 1, output 0: 1 values differ, by up to 1"]

    def test_of_other_weights_do_not(self, tmp_path: Path) -> None:
        kernel = image.net().ops[0].taken[1]
        assert kernel.data is not None
        content = bytearray(image.content())
        content[content.index(kernel.data.tobytes())] ^= 0x40
        path = tmp_path / "other.tflite"
        path.write_bytes(content)
        original = tmp_path / "model.tflite"
        original.write_bytes(image.content())
        files = firmware.files(
            image.candidate(original),
            image.golden(),
            shipped=path,
            arena_bytes=image.ARENA_BYTES,
            operators=image.OPERATORS,
            name="other",
            core=None,
        )
        done = self._selftest(files, tmp_path)
        assert done.returncode == 1 and "differ" in done.stdout

    def _selftest(self, files: dict[str, bytes], folder: Path) -> subprocess.CompletedProcess[str]:
        sources = image.unpack(files, folder)
        made = objects(sources, folder / "objects", "gcc")
        own = [path for path in made if path.stem != "stm32cube"]
        image.call(folder, "g++", *own, image.library(), "-o", "program")
        return subprocess.run([folder / "program", "--selftest"], capture_output=True, text=True)

    def test_take_little_of_the_flash(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert b"VECTORS 3u" in image.bundle_files()["firmware/golden_data.h"]
        for limit, kept in ((1, 1), (2 * 113, 2)):
            monkeypatch.setattr(firmware, "GOLDEN_BYTES", limit)
            files = image.written(tmp_path)
            assert f"VECTORS {kept}u".encode() in files["firmware/golden_data.h"]


class TestTheProtocol:
    def test_says_what_the_board_is(self, board: Talk) -> None:
        assert board.ask("name") == ["m-name-dut-[onmetal]"]
        profile = board.ask("profile")
        digest = image.candidate(Path("model.tflite")).sha256
        assert profile[:2] == ["m-profile-[onmetal firmware 1]", "m-model-[little]"]
        assert profile[2:] == [f"m-sha256-[{digest}]", "m-buffer-[254]", "m-arena-[128 1024]"]
        assert re.fullmatch(r"m-lap-us-\d+", board.ask("timestamp")[0])
        assert any("infer N" in line for line in board.ask("help"))

    @pytest.mark.parametrize("number", range(image.VECTORS))
    @pytest.mark.parametrize("piece", [1, 31, 254])
    def test_gives_golden_outputs(self, board: Talk, number: int, piece: int) -> None:
        """Also after other inferences with the same input, whose memory the model uses itself."""
        taken, wanted = vector(number)
        assert board.load(taken, piece) == ["m-[Expecting 60 bytes]", "m-load-done"]
        for count in (1, 3):
            lines = board.ask(f"infer {count} {number}")
            scores = image.golden()[f"output/scores/{number}"].ravel()
            assert lines[:3] == [
                f"m-warmup-start-{number}",
                "m-warmup-done",
                f"m-infer-start-{count}",
            ]
            assert re.fullmatch(r"m-ticks-\[\d+ 1000000000\]", lines[6])
            assert lines[7] == f"m-results-[{','.join(f'{score:.3f}' for score in scores)}]"
            assert board.ask("results") == lines[7:]
            assert board.outputs() == wanted

    def test_speaks_as_mlperf_tiny_expects(self, board: Talk) -> None:
        """The patterns are those of mlcommons/tiny: benchmark/runner, device_under_test.py and
        script.py. Its runner takes every line with `m-ready` in it for the end."""
        assert re.match(r"^m-(name)-dut-\[([^]]+)]$", board.ask("name")[0])
        found = [re.match(r"^m-(model|profile)-\[([^]]+)]$", x) for x in board.ask("profile")]
        assert [match[1] for match in found if match] == ["profile", "model"]
        board.load(vector(0)[0])
        lines = board.ask("infer 2 1")
        laps = [m for line in lines if (m := re.match(r"^m-lap-us-([0-9]+)$", line))]
        assert len(laps) == 2 and int(laps[1][1]) >= int(laps[0][1])
        results = [m for line in lines if (m := re.match(r"^m-results-\[([^]]+)\]$", line))]
        assert [float(x) for x in results[0][1].split(",") if x.strip()]
        assert not [line for line in board.ask("help") if "m-ready" in line]

    def test_shows_what_was_loaded(self, board: Talk) -> None:
        taken = vector(1)[0]
        board.load(taken)
        rows = [taken[start : start + 8] for start in range(0, 60, 8)]
        assert board.ask("db print") == [f"m-buffer-{row.hex('-')}" for row in rows]
        assert board.ask("db print 3 58") == [f"m-buffer-{taken[58:].hex('-')}"]

    @pytest.mark.parametrize(
        ("command", "answer"),
        [
            ("", None),
            ("  \r\n ", None),
            ("bogus 1", "e-[Unknown command: bogus]"),
            ("NAME", "e-[Unknown command: NAME]"),
            ("db", "e-[Command 'db' requires a subcommand]"),
            ("db load", "e-[Command 'db load' requires the number of bytes]"),
            ("db load 6x", "e-[Command 'db load' requires the number of bytes]"),
            ("db load 99999999999", "e-[Command 'db load' requires the number of bytes]"),
            ("db load 61", "e-[The input has 60 bytes, not 61]"),
            ("db load 0", "e-[The input has 60 bytes, not 0]"),
            ("db 00", "e-[Data without a 'db load' before]"),
            ("db print x", "e-[Not a number of bytes]"),
            ("infer 0", "e-[Inference iterations must be > 0]"),
            ("infer -1 2", "e-[Inference iterations must be > 0]"),
            ("infer 1 x", "e-[Inference warmup must be >= 0]"),
            ("x" * 512, f"e-[Unknown command: {'x' * 512}]"),
            ("x" * 513, "e-[A command has at most 512 characters]"),
            ("db " + "00" * 10000, "e-[A command has at most 512 characters]"),
        ],
    )
    def test_refuses(self, board: Talk, command: str, answer: str | None) -> None:
        board.load(vector(0)[0])
        assert board.ask(command) == ([] if answer is None else [answer])
        assert board.ask("name") == ["m-name-dut-[onmetal]"]

    def test_refuses_damaged_data_and_takes_it_again(self, board: Talk) -> None:
        taken, wanted = vector(2)
        board.ask("db load 60")
        assert board.ask(f"db {taken[:31].hex()}") == []
        assert board.ask("db 123") == ["e-[An odd number of hex digits]"]
        assert board.ask("db 00g0") == ["e-[Invalid hex digit]"]
        assert board.ask("infer 1 0") == ["e-[Only 31 of 60 bytes were loaded]"]
        assert board.ask(f"db {taken[31:].hex()}ffff") == ["m-load-done"]
        board.ask("infer 1 0")
        assert board.outputs() == wanted

    def test_lives_on_whatever_comes(self, board: Talk) -> None:
        rng = np.random.default_rng(1)
        noise = rng.integers(0, 256, 20000).astype(np.uint8).tobytes().replace(b"%", b"$")
        board.say(noise + b"%\0\r\n na")
        assert board.answer() == ["e-[A command has at most 512 characters]"]
        board.say(b"me \xff%")
        assert board.answer() == ["m-name-dut-[onmetal]"]
        assert board.ask("check") == [f"m-check-[{image.VECTORS} of {image.VECTORS}]"]

    def test_runs_ten_warm_ups_where_none_are_named(self, board: Talk) -> None:
        board.load(vector(0)[0])
        assert board.ask("infer")[:3] == ["m-warmup-start-10", "m-warmup-done", "m-infer-start-1"]


class TestPorts:
    def test_a_pseudo_terminal(self, program: Path) -> None:
        with running(program, "--pty") as name, serial.Serial(name, 115200, timeout=120) as port:
            port.write(b"check%")
            heard = port.read_until(b"m-check-[3 of 3]\r\nm-ready\r\n")
            assert heard.endswith(b"m-check-[3 of 3]\r\nm-ready\r\n"), heard

    def test_a_socket_for_one_host_after_another(self, program: Path) -> None:
        with running(program, "--listen", "0") as address:
            host, _, number = address.partition(":")
            for _ in range(2):
                with socket.create_connection((host, int(number)), 20) as port:
                    port.sendall(b"name%")
                    with port.makefile("rb") as lines:
                        assert b"m-name-dut-[onmetal]\r\n" in (next(lines) for _ in range(5))

    def test_says_how_it_is_called(self, program: Path) -> None:
        done = subprocess.run([program, "--what"], capture_output=True, text=True)
        assert done.returncode == 2 and "usage" in done.stderr

    def test_instructions_under_qemu_repeat(self, tmp_path: Path) -> None:
        path, taken = image.image(tmp_path), vector(0)[0]
        seen = []
        for _ in range(2):
            with talking(needs(QEMU[0], QEMU[0]), *QEMU[1:], path) as talk:
                talk.load(taken)
                lines = talk.ask("infer 20 2")
                match = re.fullmatch(r"m-ticks-\[(\d+) (\d+)\]", lines[6])
                assert match
                # One instruction is a nanosecond under `-icount shift=0`.
                seen.append(int(match[1]) * 1e9 / int(match[2]) / 20)
                assert talk.outputs() == vector(0)[1]
        assert seen[0] == seen[1] and 10_000 < seen[0] < 200_000


@contextlib.contextmanager
def running(*command: str | Path) -> Iterator[str]:
    """A firmware of this machine. -> the first line that it says: its address"""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class TestTheBuild:
    @pytest.mark.parametrize(
        ("options", "part"),
        [
            ((), "TFLite Micro's headers are missing"),
            (("-DTFLM_INCLUDE=/usr/include",), "has tensorflow/lite/micro/micro_interpreter.h"),
            ((f"-DTFLM_INCLUDE={image.STUB}", "-DONMETAL_PORT=avr"), "There is no port 'avr'"),
            ((f"-DTFLM_INCLUDE={image.STUB}", "-DTFLM_LIB=/no.a"), "library is missing"),
            (
                (
                    f"-DTFLM_INCLUDE={image.STUB}",
                    f"-DTFLM_LIB={image.STUB}/stub.cc",
                    "-DONMETAL_PORT=mps3_an547",
                ),
                "for a Cortex-M55",
            ),
        ],
    )
    def test_says_what_is_missing(
        self, options: tuple[str, ...], part: str, sources: Path, tmp_path: Path
    ) -> None:
        done = subprocess.run(
            ["cmake", "-S", sources, "-B", tmp_path, *options], capture_output=True, text=True
        )
        assert done.returncode != 0 and part in " ".join(done.stderr.split()), done.stderr

    def test_without_a_port_is_a_library(self, sources: Path, tmp_path: Path) -> None:
        built = image.build(sources, tmp_path / "build", tmp_path, "-DONMETAL_PORT=none")
        assert (built / "libonmetal_model.a").is_file() and not (built / "firmware").exists()

    def test_that_spares_memory(self, sources: Path, tmp_path: Path) -> None:
        """Without golden vectors and a second place for the input, for a host of unsigned bytes."""
        built = image.build(
            sources,
            tmp_path / "build",
            image.library(),
            *("-DONMETAL_KEEP_INPUT=OFF", "-DONMETAL_SELFTEST=OFF"),
            *("-DONMETAL_BOARD_NAME=ST/NUCLEO-L4R5ZI", "-DCMAKE_CXX_FLAGS=-DONMETAL_DB_OFFSET=128"),
        )
        with talking(built / "firmware") as talk:
            assert talk.ask("name") == ["m-name-dut-[ST/NUCLEO-L4R5ZI]"]
            assert talk.ask("check") == ["m-check-[0 of 0]"]
            for number in range(image.VECTORS):
                taken, wanted = vector(number)
                talk.load(bytes((byte + 128) % 256 for byte in taken))
                assert talk.ask("db print 1") == [f"m-buffer-{taken[:1].hex()}"]
                talk.ask("infer 1 0")
                assert talk.outputs() == wanted

    def test_with_too_small_an_arena_says_so(self, sources: Path, tmp_path: Path) -> None:
        built = image.build(
            sources,
            tmp_path / "build",
            image.library(),
            *("-DONMETAL_ARENA_BYTES=64", "-DONMETAL_SELFTEST_AT_START=ON"),
        )
        why = (
            "the tensors could not be allocated: the arena is too small, or TFLite Micro lacks a "
            "kernel"
        )
        with talking(built / "firmware") as talk:
            assert talk.greeting[0] == why and talk.greeting[-1] == "m-init-done"
            assert "the golden vectors do not agree" in talk.greeting
            refusal = ["e-[The model is not ready: see what was said at the start]"]
            for command in ("infer 1 0", "results", "output", "check", "db load 60", "db print"):
                assert talk.ask(command) == refusal
            assert talk.ask("profile")[4] == "m-arena-[0 64]"
        done = subprocess.run([built / "firmware", "--selftest"], capture_output=True, text=True)
        assert done.returncode == 1 and why in done.stdout


# --- quantization and text, called from here


class Facts(ctypes.Structure):
    """As `struct onmetal_tensor` of a model whose tensors have at most four axes."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int),
        ("bytes", ctypes.c_size_t),
        ("count", ctypes.c_size_t),
        ("scale", ctypes.c_float),
        ("zero_point", ctypes.c_int32),
        ("channels_last", ctypes.c_int),
        ("rank", ctypes.c_int),
        ("shape", ctypes.c_int32 * 4),
    )


@pytest.fixture(scope="module")
def library(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("library")
    (folder / "port.c").write_text(
        "static char said[256];\nstatic int length;\n"
        "void onmetal_port_putchar(char c) { said[length++] = c; said[length] = 0; }\n"
        "const char *heard(void) { length = 0; return said; }\n"
    )
    names = [sources / "onmetal_quantize.c", sources / "onmetal_text.c", folder / "port.c"]
    flags = ("-std=c11", "-O2", "-shared", "-fPIC", f"-I{sources}")
    image.call(folder, "gcc", *flags, *names, "-o", "library.so")
    found = ctypes.CDLL(str(folder / "library.so"))
    found.heard.restype = ctypes.c_char_p
    found.onmetal_text_real.argtypes = [ctypes.c_float]
    return found


CODES = {"float32": 0, "int8": 1, "uint8": 2, "int16": 3, "int32": 4, "int64": 5, "bool": 6}


def facts(dtype: str, shape: tuple[int, ...], scale: float, zero: int, turned: bool) -> Facts:
    count = int(np.prod(shape))
    return Facts(
        *(b"x", CODES[dtype], count * np.dtype(dtype).itemsize, count, scale, zero),
        *(turned, len(shape), (ctypes.c_int32 * 4)(*shape)),
    )


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class TestQuantization:
    @pytest.mark.parametrize(
        ("dtype", "scale", "zero"),
        [
            ("int8", 0.03, 7),
            ("int8", 1 / 256, -128),
            ("uint8", 0.5, 128),
            ("int16", 1e-4, 0),
            ("int8", 0.1, -3),
        ],
    )
    def test_rounds_as_run_py_does(
        self, library: ctypes.CDLL, dtype: str, scale: float, zero: int
    ) -> None:
        step = np.float32(scale)
        limits = np.iinfo(dtype)
        halves = (np.arange(limits.min, limits.max) + np.float32(0.5)) * step
        rng = np.random.default_rng(3)
        values = np.concatenate(
            [
                halves,
                *(np.nextafter(halves, np.float32(end)) for end in (-np.inf, np.inf)),
                rng.normal(0, 200 * scale, 5000),
                [0, -0.0, 1e30, -1e30, np.inf, -np.inf],
            ]
        ).astype(np.float32)
        wanted = np.clip(np.rint(values / step) + zero, limits.min, limits.max).astype(dtype)
        found = np.empty(values.shape, dtype)
        tensor = facts(dtype, values.shape, scale, zero, False)
        library.onmetal_quantize(ctypes.byref(tensor), pointer(values), pointer(found))
        np.testing.assert_array_equal(found, wanted)
        back = np.empty(values.shape, np.float32)
        library.onmetal_dequantize(ctypes.byref(tensor), pointer(found), pointer(back))
        np.testing.assert_array_equal(back, (wanted.astype(np.float32) - np.float32(zero)) * step)

    def test_turns_the_channels(self, library: ctypes.CDLL) -> None:
        values = np.random.default_rng(4).normal(size=(2, 3, 4, 5)).astype(np.float32)
        turned = values.transpose(0, 2, 3, 1)
        tensor = facts("float32", turned.shape, 0, 0, True)
        found, back = np.empty(turned.shape, np.float32), np.empty_like(values)
        library.onmetal_quantize_original(ctypes.byref(tensor), pointer(values), pointer(found))
        np.testing.assert_array_equal(found, turned)
        library.onmetal_dequantize_original(ctypes.byref(tensor), pointer(found), pointer(back))
        np.testing.assert_array_equal(back, values)

    @pytest.mark.parametrize("dtype", ["int32", "int64", "bool"])
    def test_whole_numbers_stay_what_they_are(self, library: ctypes.CDLL, dtype: str) -> None:
        values = np.array([0, 1, 1, 0] if dtype == "bool" else [-3, 7, 1 << 20, 0], np.float32)
        found, back = np.empty(4, dtype), np.empty(4, np.float32)
        tensor = facts(dtype, (4,), 0, 0, False)
        library.onmetal_quantize(ctypes.byref(tensor), pointer(values), pointer(found))
        np.testing.assert_array_equal(found, values.astype(dtype))
        library.onmetal_dequantize(ctypes.byref(tensor), pointer(found), pointer(back))
        np.testing.assert_array_equal(back, values)

    def test_not_a_number_is_the_least(self, library: ctypes.CDLL) -> None:
        values, found = np.array([np.nan], np.float32), np.empty(1, np.int8)
        tensor = facts("int8", (1,), 0.5, 3, False)
        library.onmetal_quantize(ctypes.byref(tensor), pointer(values), pointer(found))
        assert found[0] == -128

    def test_golden_outputs_become_integers_again(self) -> None:
        whole = np.arange(-32768, 32768, 7).astype(np.int16)
        port = ArtifactTensor("x", "float32", whole.shape, "int16", 0, False, 3.7e-5, 0)
        real = whole.astype(np.float32) * np.float32(port.scale)
        assert firmware.stored(port, real) == whole.tobytes()


class TestText:
    def test_of_reals_is_printf_s(self, library: ctypes.CDLL) -> None:
        rng = np.random.default_rng(2)
        steps = np.arange(-1300, 1300) / 256
        values = np.concatenate(
            [steps, rng.normal(0, 10, 3000), rng.normal(0, 1e6, 500), [0.9995, 0.99951, 1e-9, 4e9]]
        ).astype(np.float32)
        for value in values:
            library.onmetal_text_real(float(value))
            heard, wanted = library.heard().decode(), f"{value:.3f}"
            assert heard == wanted or {heard, wanted} <= {"-0.000", "0.000"}

    def test_of_what_is_no_number(self, library: ctypes.CDLL) -> None:
        for value, wanted in ((np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1e30, "inf")):
            library.onmetal_text_real(float(value))
            assert library.heard().decode() == wanted


# --- other models


def strange(dtype: str, names: tuple[str, str, str]) -> tuple[tflite.Net, tuple[Tensor, ...]]:
    """Two inputs and an output of the type, under names that would break out of a literal."""
    kind = np.dtype(dtype)
    tensors = [tflite.Tensor(name, (1, 2, 2, 3), kind) for name in names]
    for tensor in tensors:
        if dtype in ("int8", "uint8", "int16"):
            tensor.scale, tensor.zero_point = np.array([1e-5], np.float32), np.array([0])
    made = tflite.Net(tensors[:2], tensors[2:], [tflite.Op("ADD", [*tensors[:2]], tensors[2:])])
    user = "float32" if tensors[0].scale is not None else dtype
    return made, tuple(Tensor(name, user, (1, 2, 2, 3)) for name in names)


def of(folder: Path, dtype: str, names: tuple[str, str, str], **options: bool) -> dict[str, bytes]:
    made, tensors = strange(dtype, names)
    path = folder / "model.tflite"
    path.write_bytes(writing.write(made))
    base = image.candidate(path)
    model = replace(base.model, inputs=tensors[:2], outputs=tensors[2:])
    golden = {
        f"{side}/{tensor.name}/0": np.ones(tensor.shape, tensor.dtype)
        for side, mine in (("input", tensors[:2]), ("output", tensors[2:]))
        for tensor in mine
    }
    return firmware.files(
        replace(base, model=model, options=options),
        golden,
        shipped=path,
        arena_bytes=4096,
        operators=["ADD", "ethos-u"],
        name=names[0],
        core=None,
    )


class TestHowItIsBuilt:
    """README.md says it for the chip's own core; the flags are tried on one of the sources."""

    def readme(self, core: str | None, tmp_path: Path) -> str:
        path = tmp_path / "model.tflite"
        path.write_bytes(image.content())
        files = firmware.files(
            image.candidate(path),
            image.golden(),
            shipped=path,
            arena_bytes=4096,
            operators=image.OPERATORS,
            name="x",
            core=core,
        )
        return files["firmware/README.md"].decode()

    @pytest.mark.parametrize("core", get_args(Core))
    def test_for_every_core(self, core: str, sources: Path, tmp_path: Path) -> None:
        text = self.readme(core, tmp_path)
        (arch,) = re.findall(r"^ +TARGET_ARCH=(\S+) ", text, re.MULTILINE)
        assert arch.partition("+")[0] == core
        flags = set(re.findall(r"-DCMAKE_C(?:XX)?_FLAGS=\"(.+)\"", text))
        others = set(re.findall(r"`(-mcpu=[^`]+)`", text))
        assert len(flags) == 1 and all(f"-mcpu={core}" in told for told in flags | others)
        floats = core in ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55", "cortex-m85")
        assert ("-mfloat-abi=hard" in next(iter(flags))) == floats
        if core == "cortex-m85":  # younger than the gcc of the README's packages
            assert "gcc" in text and "13" in text
            return
        for number, told in enumerate(flags | others):
            place = tmp_path / f"{number}.o"
            source = sources / "onmetal_quantize.c"
            image.call(tmp_path, "arm-none-eabi-gcc", *told.split(), "-c", source, "-o", place)

    def test_for_a_chip_that_is_not_known(self, tmp_path: Path) -> None:
        text = self.readme(None, tmp_path)
        assert "names no chip" in text and "`cortex-m85`" in text

    def test_as_it_says_itself(self, sources: Path, tmp_path: Path) -> None:
        text = (sources / "README.md").read_text()
        start = text.index("    cmake -B build")
        command = text[start : text.index("\n\n", start)].replace(
            '"$T;$D/flatbuffers/include;$D/gemmlowp;$D/ruy"', str(image.STUB)
        )
        folder = shutil.copytree(sources, tmp_path / "firmware")
        image.call(folder, "sh", "-ec", command)
        assert (folder / "build/libonmetal_model.a").is_file()


class TestOtherModels:
    @pytest.mark.parametrize("dtype", firmware.DTYPES)
    def test_compile(self, dtype: str, tmp_path: Path) -> None:
        sources = image.unpack(of(tmp_path, dtype, HOSTILE, stateful=True), tmp_path)
        checked(sources / "onmetal_model.cc", sources / "selftest.cc")
        text = (sources / "onmetal_model.h").read_text()
        assert "#define ONMETAL_STATEFUL 1" in text and c_string(HOSTILE[0]) in text
        assert "resolver.AddEthosU()" in (sources / "onmetal_resolver.h").read_text()
        assert "ethosu_init" in (sources / "README.md").read_text()

    def test_names_do_not_end_an_answer(self, tmp_path: Path) -> None:
        files = of(tmp_path, "int8", ("m-ready]%\r\n", "b", "c"))
        assert firmware.label("m-ready]%\r\n") == "m_ready????"
        told = f"#define ONMETAL_MODEL_NAME {c_string('m_ready????')}\n"
        assert told.encode() in files["firmware/onmetal_model.h"]

    def test_of_types_that_there_are_not_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedError, match="float64"):
            of(tmp_path, "float64", ("a", "b", "c"))

    def test_operators_that_there_are_not_are_named(self, tmp_path: Path) -> None:
        path = tmp_path / "model.tflite"
        path.write_bytes(image.content())
        with pytest.raises(UnsupportedError, match="no operator REDUCE_PROD"):
            firmware.files(
                image.candidate(path),
                image.golden(),
                shipped=path,
                arena_bytes=1024,
                operators=["CONV_2D", "REDUCE_PROD"],
                name="x",
                core=None,
            )
