"""Which candidates are planned, in which order, and why others are not."""

from pathlib import Path

import pytest

from onmetal import targets
from onmetal.errors import UsageError
from onmetal.plan import Planned, plan
from onmetal.records import DeviceFacts, Model

TARGET = targets.load("x86-64")
BF16 = ("avx2", "avx512_bf16")


def model(stem: str) -> Model:
    path = Path(f"{stem}.onnx")
    return Model(path, path, "", "onnx", "", 1, (), (), 0, 0, {}, 1)


def facts(*flags: str) -> DeviceFacts:
    return DeviceFacts("local", "a cpu", "x86_64", "an os", 2, 2**30, False, flags, {})


def planned(
    *stems: str, flags: tuple[str, ...] = BF16, asked: list[str] | None = None
) -> list[Planned]:
    return plan(TARGET, [model(stem) for stem in stems or ("net",)], facts(*flags), asked)


def tried(found: list[Planned]) -> list[str]:
    return [entry.name for entry in found if entry.skipped is None]


def test_the_most_exact_comes_first_then_the_targets_order() -> None:
    assert [entry.name for entry in planned()] == [
        "fp32@onnxruntime",
        "fp32@openvino",
        "fp16@onnxruntime",
        "fp16@openvino",
        "bf16@onnxruntime",
        "bf16@openvino",
    ]


def test_models_compete_within_a_recipe_under_names_of_their_own() -> None:
    names = [entry.name for entry in planned("small", "large")]
    assert names[:4] == [
        "small/fp32@onnxruntime",
        "small/fp32@openvino",
        "large/fp32@onnxruntime",
        "large/fp32@openvino",
    ]
    assert len(set(names)) == len(names) == 12
    for entry in planned("small", "large"):
        assert entry.name.startswith(f"{entry.model.stem}/{entry.recipe.name}@")


def test_a_cpu_without_the_instructions_does_not_try_them() -> None:
    assert tried(planned(flags=("avx2",))) == ["fp32@onnxruntime", "fp32@openvino"]
    skipped = {entry.name: entry.skipped for entry in planned(flags=("avx2",))}
    assert "avx512_bf16 or amx_bf16" in str(skipped["bf16@openvino"])
    assert "avx512_fp16 or amx_fp16" in str(skipped["fp16@openvino"])


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_one_of_the_flags_is_enough(flag: str) -> None:
    assert tried(planned(flags=(flag,))) == ["fp32@onnxruntime", "fp32@openvino", "bf16@openvino"]


def test_a_flag_is_compared_whole() -> None:
    assert "bf16@openvino" not in tried(planned(flags=("avx512", "avx512_bf16x")))


def test_what_a_runtime_does_not_compute_says_so() -> None:
    skipped = {entry.name: entry.skipped for entry in planned()}
    assert skipped["bf16@onnxruntime"] == "onnxruntime does not compute in bf16 on this target"


def test_asked_for_bf16_alone_float_is_still_run_as_the_reference() -> None:
    found = planned(asked=["bf16"])
    assert tried(found) == ["fp32@onnxruntime", "fp32@openvino", "bf16@openvino"]
    assert [entry.name for entry in found if entry.reference_only] == [
        "fp32@onnxruntime",
        "fp32@openvino",
    ]


def test_what_was_not_asked_for_is_left_out_with_the_reason() -> None:
    found = planned(asked=["fp32"])
    assert not any(entry.reference_only for entry in found)
    assert tried(found) == ["fp32@onnxruntime", "fp32@openvino"]
    skipped = {entry.name: entry.skipped for entry in found}
    assert skipped["bf16@openvino"] == "left out by --recipes"


def test_a_family_is_every_recipe_that_starts_with_it() -> None:
    both = planned(asked=["fp"], flags=("avx512_fp16", "avx512_bf16"))
    assert tried(both) == ["fp32@onnxruntime", "fp32@openvino", "fp16@openvino"]
    assert not any(entry.reference_only for entry in both)


@pytest.mark.parametrize("asked", [["int8"], [""], ["fp32", "bf17"], ["FP32"], ["p32"]])
def test_an_unknown_family_is_refused_with_the_known_ones(asked: list[str]) -> None:
    with pytest.raises(UsageError, match="fp32, fp16, bf16"):
        planned(asked=asked)


@pytest.mark.parametrize("name", targets.names())
def test_every_target_plans_float_for_every_runtime(name: str) -> None:
    target = targets.load(name)
    found = plan(target, [model("net")], facts(), None)
    assert tried(found) == [f"fp32@{runtime.name}" for runtime in target.runtimes]
