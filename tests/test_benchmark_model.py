"""Google's benchmark_model beside onmetal's runner: its logs, here and on a phone."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onmetal import cli
from onmetal.errors import DeviceError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers import benchmark_model
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.remote import adb as adbs
from onmetal.profilers.devices.remote.device import Remote
from onmetal.reports import text
from onmetal.texts import terminal
from tests.attached import BY_EACH_ADB, Capture, here
from tests.conftest import deploy
from tests.devices import Phone, wait_for

LOG_2019 = """\
STARTING!
Min num runs: [10]
Min runs duration (seconds): [1]
Loaded model /data/local/tmp/tflite/tfmodel/mobilenet_v1_1.0_224_quant.tflite
resolved reporter
Initialized session in 9.933ms
Running benchmark for at least 4 iterations and at least 0.5 seconds
count=7 first=127425 curr=66709 min=66709 max=127425 avg=76605.9 std=20944

Running benchmark for at least 10 iterations and at least 1 seconds
count=15 first=66753 curr=66800 min=66699 max=66838 avg=66767.6 std=39

Average inference timings in us: Warmup: 76605.9, Init: 9933, no stats: 66767.6
"""
LOG_2020 = """\
STARTING!
Duplicate flags: num_threads
Num threads: [4]
Graph: [/data/local/tmp/espcn_harmonic_2x_slim_w_cl.tflite]
The input model file size (MB): 0.004448
Initialized session in 0.855ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding \
150 seconds.
count=15 first=49060 curr=33682 min=32825 max=49060 avg=34825.1 std=3930

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding \
150 seconds.
count=50 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=450

Inference timings in us: Init: 855, First inference: 49060, Warmup (avg): 34825.1, \
Inference (avg): 33209.4
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to \
the actual memory footprint of the model at runtime. Take the information at your discretion.
Peak memory footprint (MB): init=0 overall=12.8672
"""
LOG_2021 = """\
STARTING!
Log parameter values verbosely: [0]
Loaded model ./mobilenet_v1_1.0_224.tflite
Initialized session in 17.187ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding \
150 seconds.
count=1 curr=3512391

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding \
150 seconds.
count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798

Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51239e+06, \
Inference (avg): 2.95034e+06
Memory footprint delta from the start of the tool (MB): init=4.21094 overall=46.0859
"""
LOG_2024 = """\
INFO: STARTING!
INFO: Graph: [mobilenet_v1_1.0_224.tflite]
INFO: Signature to run: []
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 16.9008
INFO: Initialized session in 3.337ms.
INFO: count=9 first=81913 curr=55502 min=55502 max=81913 avg=58984.7 std=8115

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if \
exceeding 150 seconds.
INFO: count=1061 first=56576 curr=56299 min=54669 max=60236 avg=56265.8 std=982

INFO: Inference timings in us: Init: 3337, First inference: 81913, Warmup (avg): 58984.7, \
Inference (avg): 56265.8
INFO: Memory footprint delta from the start of the tool (MB): init=2.4375 overall=20.543
INFO: Overall peak memory footprint (MB) via periodic monitoring: 93.2383
"""
LOG_2026 = """\
I tflite  : Loaded model /data/local/tmp/best_int8.tflite
I tflite  : Initialized session in 92.318ms.
I tflite  : count=3 first=235158 curr=200386 min=199462 max=235158 avg=211669 std=16613 p5=199462 \
median=200386 p95=235158
I tflite  : count=25 first=187533 curr=140990 min=140071 max=195121 avg=145528 std=13583 \
p5=140545 median=141253 p95=187533
I tflite  : Inference timings in us: Init: 92318, First inference: 187533, Warmup (avg): 211669, \
Inference (avg): 145528
I tflite  : Memory footprint delta from the start of the tool (MB): init=54.2852 overall=73.4102
"""
MIB = 2**20


def expected(*values: float, **more: float) -> dict[str, Any]:
    names = ("runs", "avg_ms", "min_ms", "max_ms", "std_ms")
    found = {**dict(zip(names, values, strict=True)), **more}
    return {name: pytest.approx(value) for name, value in found.items()}


@pytest.mark.parametrize(
    ("log", "found"),
    [
        (LOG_2019, expected(15, 66.7676, 66.699, 66.838, 0.039)),
        (LOG_2020, expected(50, 33.2094, 32.641, 34.005, 0.45, init_ms=0.855, first_ms=49.06,
                            memory_bytes=12.8672 * MIB)),
        (LOG_2021, expected(50, 2950.34, 2727.568, 3189.954, 109.798, init_ms=17.187,
                            first_ms=3512.391, memory_bytes=46.0859 * MIB)),
        (LOG_2024, expected(1061, 56.2658, 54.669, 60.236, 0.982, init_ms=3.337, first_ms=81.913,
                            memory_bytes=20.543 * MIB)),
        (LOG_2026, expected(25, 145.528, 140.071, 195.121, 13.583, init_ms=92.318,
                            first_ms=187.533, memory_bytes=73.4102 * MIB, p5_ms=140.545,
                            median_ms=141.253, p95_ms=187.533)),
    ],
    ids=["2019", "2020", "2021", "2024", "2026"],
)  # fmt: skip
def test_logs_of_benchmark_model(log: str, found: dict[str, Any]) -> None:
    assert benchmark_model.parse(log) == found
    assert benchmark_model.parse(log.replace("\n", "\r\n")) == found


def test_a_log_of_equal_runs() -> None:
    """Neither one run nor equal ones are given an average by the tool."""
    for said, runs in (("count=1 curr=3512391", 1), ("count=812 curr=3512391(all same)", 812)):
        found = benchmark_model.parse(f"count=9 first=5 curr=5 min=5 max=5 avg=5 std=0\n{said}\n")
        assert found["runs"] == runs
        assert found["avg_ms"] == found["min_ms"] == found["max_ms"] == pytest.approx(3512.391)


def test_a_log_with_what_is_no_number() -> None:
    """The root of a variance that rounding made negative."""
    for odd in ("-nan", "nan", "inf", "1e", "-", "1.2.3"):
        found = benchmark_model.parse(f"count=50 first=5 curr=6 min=5 max=6 avg=5.5 std={odd}\n")
        assert found["avg_ms"] == pytest.approx(0.0055)
        assert np.isfinite(found.get("std_ms", 0.0))


def test_a_log_with_large_times() -> None:
    log = LOG_2021.replace("Init: 17187", "Init: 1.25e+06")
    assert benchmark_model.parse(log)["init_ms"] == pytest.approx(1250)


NO_TIMINGS = (
    "",
    "Failed to load model /data/local/tmp/x.tflite\nBenchmarking failed.\n",
    "count=0\n",
    # LiteRT's own tool of the same name, of 2026.
    "INFO: [benchmark_litert_model.h:100] Inference (avg):      7430.20 ms (10 runs)\n",
)


@pytest.mark.parametrize("text", NO_TIMINGS, ids=["empty", "failed", "none", "other"])
def test_a_log_without_timings(text: str) -> None:
    with pytest.raises(DeviceError, match="gave no timings"):
        benchmark_model.parse(text)


words = st.sampled_from(
    ["count=5", " avg=", "std=-nan", "1e999", "-", ".", "min=1.5e+06", "\n", "Init: ", "overall=",
     "First inference: ", "Memory footprint delta", "٣", "(all same)", " curr=7", "count="]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(words | st.text(max_size=6), max_size=30).map("".join))
def test_any_log(text: str) -> None:
    with contextlib.suppress(DeviceError):
        found = benchmark_model.parse(text)
        assert all(isinstance(value, int | float) for value in found.values())


def program(path: Path, shell: str, artifact: Path, threads: int, log: str = LOG_2026) -> Path:
    """A benchmark_model that looks at what it is asked for and fails on any other file."""
    path.write_text(
        f"#!{shell}\n"
        "for word; do case $word in --graph=*) graph=${word#--graph=};; esac; done\n"
        f'[ $(wc -c < "$graph") -eq {artifact.stat().st_size} ] || '
        '{ echo "INFO: STARTING!"; echo "Failed to load model" >&2; exit 1; }\n'
        f"for wanted in --num_threads={threads} --use_xnnpack=true --num_runs=50; do\n"
        '  case " $* " in *" $wanted "*) ;; *) echo "not $wanted: $*" >&2; exit 2;; esac\n'
        "done\n"
        f"cat <<'END OF OUTPUT'\n{log}END OF OUTPUT\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def artifact(small_bundle: Path) -> Path:
    """A .tflite file."""
    return small_bundle / "model.tflite"


def test_it_runs_here(artifact: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "a b"
    spaced.mkdir()
    tool = program(spaced / "bench 'mark", "/bin/sh", artifact, 3)
    other = tmp_path / "other.tflite"
    other.write_bytes(b"other")
    with Cache() as cache:
        device = Local(cache)
        assert benchmark_model.run(device, tool, artifact, 3) == benchmark_model.parse(LOG_2026)
        with pytest.raises(DeviceError, match=r"code 1: .*Failed to load model"):
            benchmark_model.run(device, tool, other, 3)
        with pytest.raises(DeviceError, match=r"code 2: .*not --num_threads=3"):
            benchmark_model.run(device, tool, artifact, 4)
        with pytest.raises(UsageError, match="there is no such file"):
            benchmark_model.run(device, tmp_path / "none", artifact, 3)
        tool.chmod(0o644)
        with pytest.raises(DeviceError, match="could not be run"):
            benchmark_model.run(device, tool, artifact, 3)


@BY_EACH_ADB
def test_it_runs_on_a_phone(phone: Phone, artifact: Path, tmp_path: Path) -> None:
    tool = program(tmp_path / "bench 'mark", "/system/bin/sh", artifact, 3)
    other = tmp_path / "other.tflite"
    other.write_bytes(b"other")
    with Cache() as cache, contextlib.closing(Remote(adbs.choose(phone.serial), cache)) as device:
        assert benchmark_model.run(device, tool, artifact, 3) == benchmark_model.parse(LOG_2026)
        with pytest.raises(DeviceError, match="Failed to load model"):
            benchmark_model.run(device, tool, other, 3)
        with pytest.raises(UsageError, match="there is no such file"):
            benchmark_model.run(device, tmp_path / "none", artifact, 3)
    wait_for(lambda: phone.leftovers() == [], "nothing is left")


def test_bench_shows_its_word(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Where it fails on one file, the other's is shown, and what was measured all the same."""
    other = tmp_path / "other.tflite"
    other.write_bytes(artifact.read_bytes() + bytes(16))
    tool = program(tmp_path / "benchmark_model", "/bin/sh", artifact, 1)
    reports: list[Any] = []
    show = cli._render

    def keep(report: Any, as_json: bool) -> None:
        reports.append(report)  # rendered without --json, too: to measure once is enough
        show(report, as_json)

    monkeypatch.setattr(cli, "_render", keep)
    words = ("--target", "tflite-x86", "--threads", "1", "--quick", "--json")
    ran = here(capsys, "bench", str(artifact), str(other), *words, "--benchmark-model", str(tool))
    assert ran.code == 0, ran.err
    first, second = ran.document["candidates"]
    assert first["benchmark_model"] == benchmark_model.parse(LOG_2026)
    assert "Failed to load model" in second["benchmark_model"]["error"]
    for candidate in (first, second):
        assert candidate["status"] == "ok"
        assert candidate["latency_ms"]["basis"] == "measured"
    (report,) = reports
    lines = text.render(report, terminal.of(io.StringIO()))
    assert "benchmark_model of model.tflite fp32@litert: 145.5 ms on average" in lines
    (failed,) = [line for line in lines if line.startswith("benchmark_model of other.tflite")]
    assert "fp32@litert: benchmark_model failed" in failed


def test_a_benchmark_model_that_is_missing(artifact: Path, tmp_path: Path) -> None:
    """It is said before anything long."""
    ran = deploy("bench", artifact, "--quick", "--benchmark-model", tmp_path / "none", "--json")
    assert ran.code == 2
    assert "there is no such file" in ran.document["error"]["message"]
    assert "measuring" not in ran.err
