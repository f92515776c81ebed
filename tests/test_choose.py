"""Quantization must pay: when 8 bits are chosen, and when float is."""

import pytest
from msgspec.structs import replace

from onmetal.budget import Budget
from onmetal.files.cache import Cache
from tests.conftest import deploy
from tests.int8_runs import Document, Made, candidates, manifest
from tests.trials import chosen_of, trial


def test_8_bits_that_are_faster_beyond_noise_win(cache: Cache) -> None:
    fp32, int8 = trial("fp32@openvino", 1.1), trial("int8-u8s8@openvino", 1.0, seed=1)
    assert chosen_of(cache, fp32, int8)[0] == int8.name


@pytest.mark.parametrize("minimize", ["latency", "throughput"])
def test_8_bits_that_are_no_faster_beyond_noise_do_not_beat_float(
    minimize: str, cache: Cache
) -> None:
    fp32, int8 = trial("fp32@openvino", 1.003), trial("int8-u8s8@openvino", 1.0, seed=1, size=9)
    pick, found = chosen_of(cache, int8, fp32, minimize=minimize)
    assert pick == fp32.name
    assert "no measurable difference" in str(found[int8.name].reason)


@pytest.mark.parametrize("ms", [1.0, 1.5])
def test_8_bits_that_do_not_pay_are_not_chosen_where_float_is_left_out(
    ms: float, cache: Cache
) -> None:
    fp32, int8 = trial("fp32@openvino", 1.0), trial("int8-u8s8@openvino", ms, seed=1, size=9)
    pick, found = chosen_of(cache, fp32, int8, reference_only=(fp32.name,))
    assert pick is None
    assert found[int8.name].status == "over-budget"
    said = str(found[int8.name].reason)
    assert ("no better, beyond noise, than" if ms == 1.0 else "worse than") in said
    assert fp32.name in said
    assert found[fp32.name].status == "skipped"


def test_8_bits_need_not_pay_where_float_is_too_large(cache: Cache) -> None:
    """A float candidate that may not ship is no alternative."""
    fp32, int8 = trial("fp32@openvino", 1.0), trial("int8-u8s8@openvino", 1.2, seed=1, size=90)
    limit = Budget(limits={"size": 100})
    assert chosen_of(cache, fp32, int8, budget=limit)[0] == int8.name
    assert chosen_of(cache, fp32, int8)[0] == fp32.name


def test_slow_8_bits_win_by_size(cache: Cache) -> None:
    fp32, int8 = trial("fp32@openvino", 1.0), trial("int8-u8s8@openvino", 3.0, seed=1, size=900)
    pick, found = chosen_of(cache, fp32, int8, minimize="size")
    assert pick == int8.name
    versus = found[int8.name].versus_baseline
    assert versus and versus.verdict == "slower"
    equal = replace(int8, candidate=fp32.candidate)
    assert chosen_of(cache, fp32, equal, minimize="size")[0] == fp32.name


def test_what_cannot_be_ranked_says_so(cache: Cache) -> None:
    """It fits, but what is minimized is not known of it."""
    unknown = replace(
        trial("fp32@openvino", 1.0), missing={"peak_memory_bytes": "the process was gone"}
    )
    pick, found = chosen_of(cache, unknown, minimize="memory")
    assert pick is None
    assert found[unknown.name].status == "skipped"
    assert found[unknown.name].reason == "its memory is not known: the process was gone"
    known = trial("fp32@onnxruntime", 2.0, memory=1e6)
    pick, found = chosen_of(cache, unknown, known, minimize="memory")
    assert pick == known.name
    assert found[unknown.name].status == "ok"


def test_a_smaller_bundle_in_8_bits_ships_where_size_decides(measured: Made) -> None:
    found = measured.document
    assert found["decided_by"] == found["minimize"] == "size"
    assert found["chosen"].startswith("int8-")
    chosen = candidates(found)[found["chosen"]]
    assert 2 * chosen["size_bytes"] < candidates(found)["fp32@onnxruntime"]["size_bytes"]
    assert chosen["latency_ms"]["p50"] > 0
    assert chosen["versus_baseline"]["verdict"] in ("faster", "slower", "inconclusive")
    there = sum(
        (measured.folder / f).stat().st_size for f in manifest(measured.folder)["run"]["files"]
    )
    assert there == chosen["size_bytes"]
    assert deploy("verify", measured.folder, "--run").code == 0


def test_what_ships_in_the_default_run_pays(document: Document) -> None:
    chosen = candidates(document)[document["chosen"]]
    if chosen["recipe"] != "fp32":
        assert chosen["versus_baseline"]["verdict"] == "faster"
        assert chosen["versus_baseline"]["ci95"][0] > 1
    assert chosen["accuracy"]["drop"] <= 0.01
