"""The line protocol against a board's double: what is asked, what is understood of the answers, and
every way in which a line or a board fails."""

import errno
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from onmetal.errors import DeviceError
from onmetal.profilers.devices.board import exchange, link, protocol
from onmetal.profilers.devices.board.link import Serial, Tcp
from onmetal.profilers.devices.board.protocol import Tiny
from tests import peer
from tests.peer import Fault, Peer, until

DATA = bytes(range(72))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peer.net_file(tmp_path_factory.mktemp("net"), both=True)


def greeted(there: Peer) -> Tiny:
    """Its line is closed with the test's double, whose end is the other one of a pair."""
    host, _, port = there.wire.place.rpartition(":")
    line = Tcp(host, int(port)) if there.address.startswith("socket") else Serial(there.wire.place)
    try:
        return Tiny(line)
    except BaseException:
        line.close()
        raise


@pytest.fixture
def board(file: Path) -> Iterator[Tiny]:
    with Peer(file) as there:
        found = greeted(there)
        yield found
        found.close()


@functools.cache
def truth(file: Path) -> list[bytes]:
    """What the file gives for DATA, without a board."""
    model = peer.Model(file)
    try:
        return model.run(DATA, 1)
    finally:
        model.close()


# --- what is understood


def test_a_board_says_what_it_is(file: Path) -> None:
    with Peer(file, name="ACME a-[b]", model="kws", buffer=100) as there:
        said = greeted(there).profile
    assert (said.name, said.model, said.data_bytes) == ("ACME a-[b]", "kws", 100)
    assert said.firmware == "onmetal firmware 1"
    assert said.sha256 == there.sha256
    assert said.arena_used and said.arena_given and said.arena_used < said.arena_given


def test_firmware_of_others_says_less(file: Path) -> None:
    with Peer(file, digest=False) as there:
        said = greeted(there).profile
    assert (said.sha256, said.arena_used, said.arena_given) == (None, None, None)
    assert said.data_bytes == 31


@pytest.mark.parametrize("tcp", [False, True])
def test_data_go_there_and_outputs_come_back(file: Path, tcp: bool) -> None:
    with Peer(file, tcp=tcp, buffer=31) as there:
        found = greeted(there)
        found.load(DATA)
        laps = found.infer(3, 2, 10)
        assert found.outputs([10, 240]) == truth(file)
        found.close()
    assert laps.count == 3
    assert laps.results is not None
    whole = np.frombuffer(truth(file)[0], np.int8).astype(float)
    np.testing.assert_allclose(laps.results, (whole + 128) / 256, atol=5.01e-4)
    assert there.commands == [
        *("name", "profile", "db load 72"),
        *(f"db {DATA[at : at + 31].hex()[:34]}..." for at in (0, 31)),
        *(f"db {DATA[62:].hex()}", "infer 3 2", "output"),
    ]


def test_results_and_golden_vectors_are_told(board: Tiny, file: Path) -> None:
    board.load(DATA)
    board.infer(1, 0, 10)
    assert board.results() == pytest.approx(
        (np.frombuffer(truth(file)[0], np.int8).astype(float) + 128) / 256, abs=5.01e-4
    )
    assert board.check(5) == (3, 4)


def test_the_clock_may_come_round(file: Path) -> None:
    with Peer(file, began_us=(1 << 32) - 400_000) as there:
        found = greeted(there)
        found.load(DATA)
        began, laps = time.monotonic(), []
        while time.monotonic() - began < 0.8:
            laps.append(found.infer(500, 0, 10))
        found.close()
    assert there._now() < 1 << 31, "it has come round"
    for window in laps:
        assert 0 < window.us < 60e6
        # Where the round were missed or counted twice, it would be off by more than an hour.
        assert window.us / 1e6 == pytest.approx(window.host_s, abs=60)


def test_a_command_that_an_earlier_program_left_unfinished_is_no_matter(file: Path) -> None:
    with Peer(file) as there:
        before = Serial(there.wire.place)
        before.write(b"infer 1")
        before.close()
        found = greeted(there)
        assert found.profile.model == "double"
        found.close()
    assert there.commands[:2] == ["infer 1name", "name"]


# --- lines that are spoilt


def test_noise_between_the_lines_is_passed_over_and_kept(file: Path) -> None:
    faults = (Fault("infer", "garbage"), Fault("output", "garbage"), Fault("db", "garbage", -1))
    with Peer(file, faults=faults) as there:
        found = greeted(there)
        found.load(DATA)
        found.infer(2, 0, 10)
        assert found.outputs([10, 240]) == truth(file)
        found.close()
    assert found.passed_over >= 10
    assert any("heap: 12 kB free" in line for line in found.strange)
    assert there.commands.count("infer 2 0") == 1, "nothing had to be repeated"


@pytest.mark.parametrize("kind", ["cut", "odd", "short"])
def test_a_damaged_answer_is_asked_for_again_once(file: Path, kind: peer.Kind) -> None:
    with Peer(file, faults=(Fault("output", kind),)) as there:
        found = greeted(there)
        found.load(DATA)
        found.infer(1, 0, 10)
        assert found.outputs([10, 240]) == truth(file)
        found.close()
    assert there.commands.count("output") == 2


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cut", "no pairs of hex digits|bytes instead of"),
        ("odd", "no pairs of hex digits"),
        ("short", "output 1 has 224 bytes instead of 240"),
    ],
)
def test_an_answer_damaged_twice_is_an_error(file: Path, kind: peer.Kind, said: str) -> None:
    with Peer(file, faults=(Fault("output", kind, 2),)) as there:
        found = greeted(there)
        found.load(DATA)
        found.infer(1, 0, 10)
        with pytest.raises(DeviceError, match=f"damaged twice: .*({said}).*check the cable"):
            found.outputs([10, 240])
        found.close()


def test_a_time_cut_short_is_asked_for_again(file: Path) -> None:
    with Peer(file, faults=(Fault("infer", "cut"), Fault("profile", "cut"))) as there:
        found = greeted(there)
        found.load(DATA)
        assert found.infer(2, 0, 10).us > 0
        assert found.profile.sha256 == there.sha256
        found.close()
    assert there.commands.count("profile") == there.commands.count("infer 2 0") == 2


@pytest.mark.parametrize(
    ("ask", "command", "said"),
    [
        (lambda board: board.load(DATA), "db load", "restarted while it was at `db load 72`"),
        (lambda board: board.load(DATA), "db", "restarted while it was at data"),
        (lambda board: board.infer(9, 0, 10), "infer", "restarted while it was at `infer 9 0`"),
        (lambda board: board.results(), "results", "restarted while it was at `results`"),
        (lambda board: board.outputs([10]), "output", "restarted while it was at `output`"),
    ],
)
def test_a_restart_is_told_from_an_answer(
    file: Path, ask: Callable[[Tiny], object], command: str, said: str
) -> None:
    with Peer(file, faults=(Fault(command, "reset"),)) as there:
        found = greeted(there)
        with pytest.raises(DeviceError, match=f"{said}: .*arena too small.*watchdog"):
            ask(found)
        found.close()


def test_a_restart_between_commands_is_noticed(file: Path) -> None:
    with Peer(file) as there:
        found = greeted(there)
        there.wire.write(b"m-init-done\r\nm-ready\r\n")
        until(lambda: found.link._port.in_waiting)  # type: ignore[attr-defined]
        with pytest.raises(DeviceError, match="restarted before `results`"):
            found.results()
        found.close()


def test_silence_ends_with_the_time_that_was_given(file: Path) -> None:
    with Peer(file, faults=(Fault("infer", "silence", -1),)) as there:
        found = greeted(there)
        began = time.monotonic()
        with pytest.raises(DeviceError, match=r"did not answer `infer 1 0` in time.*Reset"):
            found.infer(1, 0, 0.5)
        assert time.monotonic() - began < 60
        found.close()


def test_a_late_answer_is_not_taken_for_the_next_one(file: Path) -> None:
    with Peer(file) as there:
        found = greeted(there)
        found.load(DATA)
        found.infer(1, 0, 10)
        there.wire.write(b"m-results-[9.000]\r\nm-ready\r\n")
        until(lambda: found.link._port.in_waiting)  # type: ignore[attr-defined]
        assert 9.0 not in found.results()
        found.close()


@pytest.mark.parametrize("command", ["infer", "results", "output", "check"])
def test_what_the_firmware_refuses_is_told_in_its_words(file: Path, command: str) -> None:
    with Peer(file, faults=(Fault(command, "error", -1),)) as there:
        found = greeted(there)
        asks: dict[str, Callable[[], object]] = {
            "infer": lambda: found.infer(1, 0, 5),
            "results": found.results,
            "output": lambda: found.outputs([10]),
            "check": lambda: found.check(5),
        }
        with pytest.raises(DeviceError, match=r"refuses .*: Something is wrong"):
            asks[command]()
        found.close()


def test_data_that_were_refused_are_sent_again_once(file: Path) -> None:
    with Peer(file, faults=(Fault("db", "error"),)) as there:
        found = greeted(there)
        found.load(DATA)
        found.infer(1, 0, 10)
        assert found.outputs([10, 240]) == truth(file)
        found.close()
    assert there.commands.count("db load 72") == 2


@pytest.mark.parametrize("digest", [True, False])
def test_inputs_of_another_size_than_the_board_has_room_for(file: Path, digest: bool) -> None:
    with Peer(file, digest=digest, capacity=64) as there:
        found = greeted(there)
        with pytest.raises(DeviceError, match=r"does not take the 80 bytes.*another model, or its"):
            found.load(bytes(80))
        found.close()


# --- lines that are no board's


def test_a_port_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match="there is no serial port /dev/ttyACM7"):
        Serial("/dev/ttyACM7")


def test_without_pyserial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(DeviceError, match=r"pip install 'onmetal\[devices\]'"):
        Serial("/dev/ttyACM7")


def test_a_port_that_another_program_has(file: Path) -> None:
    with Peer(file) as there:
        first = Serial(there.wire.place)
        with pytest.raises(DeviceError, match="in use by another program"):
            Serial(there.wire.place)
        first.close()
        Serial(there.wire.place).close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "usermod -aG dialout"),
        (OSError(errno.EBUSY, "Device or resource busy"), "in use by another program"),
        (OSError(errno.EIO, "Input/output error"), "cannot be opened as a serial port"),
        (ValueError("Invalid baud rate: 7"), "cannot be set to 7 baud"),
    ],
)
def test_why_a_port_is_refused(error: Exception, said: str) -> None:
    assert said in str(link._refused("/dev/null", 7, error))


def test_a_file_is_no_port(file: Path) -> None:
    with pytest.raises(DeviceError, match="cannot be opened as a serial port"):
        Serial(str(file))


def test_nothing_answers(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HELLO_S", 0.2)
    with (
        Peer(file, faults=(Fault("name", "silence", -1),)) as there,
        pytest.raises(DeviceError, match=r"does not answer|nothing answers|speaks another"),
    ):
        greeted(there)
    assert there.commands == ["name"] * protocol.HELLOS


@pytest.mark.parametrize(
    ("babble", "said"),
    [
        (b"\xf8\x00\xe6\x80\x9e\xf8" * 9, "probably the baud rate differs"),
        (b"login: \r\n", "speaks another protocol"),
        (b"\0\0", "nothing answers"),
    ],
)
def test_what_answers_is_no_board(
    file: Path, monkeypatch: pytest.MonkeyPatch, babble: bytes, said: str
) -> None:
    monkeypatch.setattr(protocol, "HELLO_S", 0.2)
    with Peer(file, babble=babble) as there, pytest.raises(DeviceError, match=said):
        greeted(there)


def test_a_board_that_starts_slowly_is_waited_for(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HELLO_S", 0.3)
    with Peer(file, faults=(Fault("name", "silence", 3),)) as there:
        found = greeted(there)
        assert found.profile.model == "double"
        found.close()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(DeviceError, match=f"127.0.0.1:{port} cannot be reached"):
        Tcp("127.0.0.1", port)


@pytest.mark.parametrize("tcp", [False, True])
def test_the_other_end_hangs_up(file: Path, tcp: bool) -> None:
    with Peer(file, tcp=tcp, faults=(Fault("infer", "hang-up"),)) as there:
        found = greeted(there)
        with pytest.raises(DeviceError, match="hung up" if tcp else "unplugged"):
            found.infer(1, 0, 10)
        found.close()
        found.close()


def test_a_line_without_an_end_does_not_fill_the_memory(file: Path) -> None:
    with Peer(file, tcp=True, faults=(Fault("results", "silence"),)) as there:
        found = greeted(there)
        flood = threading.Thread(target=there.wire.write, args=(b"x" * (5 << 20),))
        flood.start()
        with pytest.raises(DeviceError, match="in time"):
            found.ask("results", 1.5)
        assert len(found._lines.part) <= exchange.LONGEST_LINE
        found.close()
        flood.join()


def test_an_interrupt_gives_the_port_back(file: Path) -> None:
    with Peer(file, faults=(Fault("name", "silence", -1),)) as there:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt) as caught:
            greeted(there)
        timer.join()
        Serial(there.wire.place).close()
        del caught
