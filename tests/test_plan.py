"""Which candidates are planned, in which order, and why others are not."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from onmetal import targets
from onmetal.deploy.propose import plan as planning
from onmetal.deploy.propose.plan import Planned, calibrates, plan, without_samples
from onmetal.errors import UsageError
from onmetal.records import DeviceFacts, Model
from onmetal.runtimes import fit
from onmetal.targets import Target

WHOLE = fit.load_target("x86-64")
TARGET = replace(
    WHOLE,
    runtimes=tuple(runtime for runtime in WHOLE.runtimes if runtime.name != "litert"),
    recipes=tuple(
        replace(recipe, runtimes=tuple(name for name in recipe.runtimes if name != "litert"))
        for recipe in WHOLE.recipes
        if recipe.runtimes != ("litert",)
    ),
)
"""Without LiteRT, which is asked about by itself."""
TFLITE = fit.load_target("tflite-x86")
BF16 = ("avx2", "avx512_bf16")


NETWORK = {"Conv": 3, "Relu": 3, "MatMul": 1}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Modules that can be found, whatever is installed here; take from it what shall lack."""
    found = {"nncf"}
    monkeypatch.setattr(planning, "find_spec", lambda name: name if name in found else None)
    return found


def model(stem: str, operators: dict[str, int] | None = None, matmul_share: float = 0.6) -> Model:
    path = Path(f"{stem}.onnx")
    operators = NETWORK if operators is None else operators
    return Model(path, path, "", "onnx", "", 1, (), (), 0, 0, operators, 1, (), matmul_share)


def facts(*flags: str) -> DeviceFacts:
    return DeviceFacts("local", "a cpu", "x86_64", "an os", 2, 2**30, False, flags, {})


def planned(
    *stems: str,
    flags: tuple[str, ...] = BF16,
    asked: list[str] | None = None,
    samples: bool = True,
    timed: bool = True,
) -> list[Planned]:
    models = [model(stem) for stem in stems or ("net",)]
    return plan(TARGET, models, facts(*flags), asked, samples=samples, timed=timed)


def of(*models: Model, asked: list[str] | None = None) -> list[Planned]:
    return plan(TARGET, list(models), facts(*BF16), asked)


def tried(found: list[Planned]) -> list[str]:
    return [entry.name for entry in found if entry.skipped is None]


def reasons(found: list[Planned]) -> dict[str, str]:
    return {entry.name: entry.skipped for entry in found if entry.skipped is not None}


FLOAT = ["fp32@onnxruntime", "fp32@openvino", "bf16@openvino"]
RECIPES = (
    *("fp32", "fp16", "bf16", "wi8", "int8-dynamic", "int8-s8s8", "int8-u8s8", "int8-nncf"),
    *("int8-u8u8", "int8-u8s8-rr", "int8-fast"),
)
STATIC = ("int8-s8s8", "int8-u8s8", "int8-u8u8", "int8-u8s8-rr")


def test_the_most_exact_comes_first_then_the_targets_order() -> None:
    assert [entry.name for entry in planned()] == [
        f"{recipe}@{runtime}" for recipe in RECIPES for runtime in ("onnxruntime", "openvino")
    ]


def test_models_compete_within_a_recipe_under_names_of_their_own() -> None:
    names = [entry.name for entry in planned("small", "large")]
    assert names[:4] == [
        "small/fp32@onnxruntime",
        "small/fp32@openvino",
        "large/fp32@onnxruntime",
        "large/fp32@openvino",
    ]
    assert len(set(names)) == len(names) == 4 * len(RECIPES)
    for entry in planned("small", "large"):
        assert entry.name.startswith(f"{entry.model.stem}/{entry.recipe.name}@")


def test_a_cpu_without_the_instructions_does_not_try_them() -> None:
    found = planned(flags=("avx2",))
    assert set(tried(planned())) - set(tried(found)) == {"bf16@openvino"}
    assert tried(planned(flags=("avx2",), asked=["fp", "bf"])) == FLOAT[:2]
    assert "avx512_bf16 or amx_bf16" in reasons(found)["bf16@openvino"]
    assert "avx512_fp16 or amx_fp16" in reasons(found)["fp16@openvino"]


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_one_of_the_flags_is_enough(flag: str) -> None:
    assert tried(planned(flags=(flag,), asked=["fp", "bf"])) == FLOAT


def test_of_another_architecture_s_cpu_nothing_is_known_without_a_device() -> None:
    phone = replace(TARGET, arch="aarch64")
    found = reasons(plan(phone, [model("net")], facts("asimdhp"), None))
    assert "as only a device can show" in found["bf16@openvino"]


def test_a_flag_is_compared_whole() -> None:
    assert "bf16@openvino" not in tried(planned(flags=("avx512", "avx512_bf16x")))


def test_what_a_runtime_does_not_compute_says_so() -> None:
    why = reasons(planned())
    assert why["bf16@onnxruntime"] == "onnxruntime does not compute in bf16 on this target"
    assert why["int8-nncf@onnxruntime"] == "onnxruntime does not run int8-nncf on this target"
    assert why["int8-dynamic@openvino"] == "openvino does not run int8-dynamic on this target"


def test_asked_for_bf16_alone_float_is_still_run_as_the_reference() -> None:
    found = planned(asked=["bf16"])
    assert tried(found) == FLOAT
    assert [entry.name for entry in found if entry.reference_only] == FLOAT[:2]


def test_what_was_not_asked_for_is_left_out_with_the_reason() -> None:
    found = planned(asked=["fp32"])
    assert not any(entry.reference_only for entry in found)
    assert tried(found) == FLOAT[:2]
    for name in ("bf16@openvino", "wi8@openvino", "int8-u8s8@onnxruntime", "int8-fast@openvino"):
        assert reasons(found)[name] == "left out by --recipes"


def test_what_was_not_asked_for_needs_no_samples() -> None:
    assert not calibrates(planned(asked=["fp32", "wi8", "int8-dynamic"]))
    for recipe in ("int8-s8s8", "int8-nncf", "int8-fast", "int8"):
        assert calibrates(planned(asked=[recipe])), recipe


def test_a_family_is_every_recipe_that_starts_with_it() -> None:
    both = planned(asked=["fp"], flags=("avx512_fp16", "avx512_bf16"))
    assert tried(both) == ["fp32@onnxruntime", "fp32@openvino", "fp16@openvino"]
    assert not any(entry.reference_only for entry in both)


def test_int8_is_a_family() -> None:
    found = planned(asked=["int8"])
    assert tried(found)[:2] == FLOAT[:2]
    assert tried(found)[2:] == [
        *("int8-dynamic@onnxruntime", "int8-s8s8@onnxruntime", "int8-s8s8@openvino"),
        *("int8-u8s8@onnxruntime", "int8-u8s8@openvino", "int8-nncf@openvino"),
        *("int8-u8u8@onnxruntime", "int8-u8u8@openvino"),
        *("int8-u8s8-rr@onnxruntime", "int8-u8s8-rr@openvino"),
        *("int8-fast@onnxruntime", "int8-fast@openvino"),
    ]
    assert all(entry.reference_only for entry in found if entry.recipe.name == "fp32")
    exact = planned(asked=["int8-u8s8"])
    assert {name.partition("@")[0] for name in tried(exact)} == {
        *("fp32", "int8-u8s8", "int8-u8s8-rr")
    }


@pytest.mark.parametrize(
    "asked", [["int9"], ["int8-u8s8-rrr"], [""], ["fp32", "bf17"], ["FP32"], ["p32"], ["u8s8"]]
)
def test_an_unknown_family_is_refused_with_the_known_ones(asked: list[str]) -> None:
    with pytest.raises(UsageError, match=", ".join(RECIPES)):
        planned(asked=asked)


def test_nncf_is_tried_only_where_it_is_installed(installed: set[str]) -> None:
    assert "int8-nncf@openvino" in tried(planned())
    with_it = tried(planned())
    installed.clear()
    assert set(with_it) - set(tried(planned())) == {"int8-nncf@openvino"}
    assert "pip install 'onmetal[nncf]'" in reasons(planned())["int8-nncf@openvino"]


def test_a_model_that_is_quantized_already_is_not_quantized_again() -> None:
    operators = {**NETWORK, "QuantizeLinear": 7, "DequantizeLinear": 9}
    found = of(replace(model("net", operators), quantized=7))
    assert tried(found) == FLOAT
    for recipe in (*STATIC, "wi8", "int8-nncf", "int8-fast"):
        assert "quantized already (7 operators" in reasons(found)[f"{recipe}@openvino"]


@pytest.mark.parametrize("operators", [{}, {"Relu": 1}, {"Einsum": 1, "Add": 2}])
def test_a_model_without_weighted_operators_has_nothing_to_quantize(
    operators: dict[str, int],
) -> None:
    found = of(model("net", operators))
    assert tried(found) == FLOAT
    for recipe in (*STATIC, "wi8", "int8-nncf", "int8-fast"):
        why = reasons(found)[f"{recipe}@openvino"]
        assert "nothing to quantize: no Conv, Gemm, MatMul" in why


@pytest.mark.parametrize("kind", ["Conv", "Gemm", "MatMul"])
def test_one_weighted_operator_is_worth_trying(kind: str) -> None:
    assert "int8-u8s8@openvino" in tried(of(model("net", {kind: 1})))


def test_matmuls_alone_are_quantized_where_they_are_most_of_the_model() -> None:
    heavy, light = of(model("net", matmul_share=0.5)), of(model("net", matmul_share=0.49))
    matmuls = {"wi8@onnxruntime", "wi8@openvino", "int8-dynamic@onnxruntime"}
    assert matmuls <= set(tried(heavy))
    assert set(tried(heavy)) - set(tried(light)) == matmuls
    assert "49%" in reasons(light)["wi8@openvino"]


def test_each_model_has_reasons_of_its_own() -> None:
    found = of(model("small", {"Relu": 1}), model("large"))
    assert "nothing to quantize" in reasons(found)["small/int8-u8s8@openvino"]
    assert "large/int8-u8s8@openvino" in tried(found)


def test_without_samples_float_alone_is_tried() -> None:
    found = planned(samples=False)
    assert tried(found) == FLOAT
    assert not calibrates(found)
    for recipe in (*STATIC, "wi8", "int8-nncf", "int8-fast"):
        assert "--data or --calibration-data" in reasons(found)[f"{recipe}@openvino"]


def test_without_a_device_nothing_is_made_by_its_profile() -> None:
    found = planned(timed=False)
    fast = {"int8-fast@onnxruntime", "int8-fast@openvino"}
    assert set(tried(planned())) - set(tried(found)) == fast
    assert all("device" in reasons(found)[name] for name in fast)


def test_too_few_samples_take_what_is_calibrated_out_of_the_plan() -> None:
    found = without_samples(planned(asked=["fp", "wi8", "int8"]), "too few samples")
    assert not calibrates(found)
    assert tried(found) == [
        *FLOAT[:2],
        *("wi8@onnxruntime", "wi8@openvino", "int8-dynamic@onnxruntime"),
    ]
    for recipe in (*STATIC, "int8-nncf", "int8-fast"):
        assert reasons(found)[f"{recipe}@openvino"] == "too few samples"
    assert reasons(found)["bf16@openvino"] == "left out by --recipes"
    assert [entry.name for entry in found] == [entry.name for entry in planned()]


@pytest.mark.parametrize("name", targets.names())
def test_every_target_plans_float_for_every_runtime(name: str) -> None:
    target = fit.load_target(name)
    found = plan(target, [model("net")], facts(), None, samples=False)
    # A chip need not compute floats: then nothing can be made without samples.
    wanted = [] if target.chip else [f"fp32@{runtime.name}" for runtime in target.runtimes]
    wanted += [
        f"{recipe.name}@litert"
        for recipe in target.recipes
        if recipe.quantized_by == "half" and not recipe.requires_any_flag
    ]
    assert tried(found) == wanted


MICRO = fit.load_target("cortex-m4")


def test_a_chip_takes_what_is_quantized_already_under_the_name_of_its_format() -> None:
    for wide, wanted in ((False, ["int8@tflm", "int8-split@tflm"]), (True, ["int16x8@tflm"])):
        given = replace(model("net"), format="tflite", quantized=5, wide=wide)
        found = plan(MICRO, [given], facts(), None, samples=False, timed=False)
        assert tried(found) == wanted
        assert not calibrates(found)
        assert any("another format" in (entry.skipped or "") for entry in found)


def test_a_chip_quantizes_a_float_model_given_samples() -> None:
    given = model("net", matmul_share=0.0)
    found = plan(MICRO, [given], facts(), None)
    assert tried(found) == ["int16x8@tflm", "int8@tflm", "int8-split@tflm"]
    assert calibrates(found)
    for entry in plan(MICRO, [given], facts(), None, samples=False):
        assert "--calibration-data" in (entry.skipped or "")


def test_where_there_is_a_float_recipe_a_quantized_model_runs_under_it() -> None:
    given = replace(model("net"), format="tflite", quantized=5)
    assert tried(plan(fit.load_target("tflm"), [given], facts(), None)) == ["fp32@tflm"]


def in_tflite(target: Target = TFLITE, **more: Any) -> list[Planned]:
    graph = {"format": "tflite", "prepared": Path("net.tflite")}
    of_model = {**graph, "operators": {"CONV_2D": 3, "ADD": 1}, **more}
    return plan(target, [replace(model("net"), **of_model)], facts(), None)


def test_litert_tries_what_its_target_has() -> None:
    found = plan(TFLITE, [model("net", matmul_share=0.0)], facts(), None)
    recipes = ("fp32", "fp16", "int16x8", "int8-dynamic", "int8")
    assert tried(found) == [f"{recipe}@litert" for recipe in recipes]
    assert calibrates(found)


def test_litert_quantizes_convolutions_dynamically_and_onnxruntime_matmuls_alone() -> None:
    found = plan(WHOLE, [model("net", matmul_share=0.1)], facts(), None)
    assert "int8-dynamic@litert" in tried(found)
    assert "10%" in reasons(found)["int8-dynamic@onnxruntime"]


def test_a_tflite_model_that_is_not_exported_is_litert_s_alone() -> None:
    found = in_tflite(WHOLE)
    assert {name.partition("@")[2] for name in tried(found)} == {"litert"}
    why = reasons(found)
    assert why["fp32@openvino"] == "OpenVINO does not read TFLite models"
    assert tried(in_tflite()) == tried(plan(TFLITE, [model("net")], facts(), None))


def test_a_tflite_model_that_is_quantized_already_is_left_as_it_is() -> None:
    found = in_tflite(quantized=5)
    assert tried(found) == ["fp32@litert"]
    assert "5 operators hold integers" in reasons(found)["fp16@litert"]


def test_a_tflite_model_without_weights_has_nothing_to_quantize() -> None:
    found = in_tflite(operators={"SOFTMAX": 1})
    assert tried(found) == ["fp32@litert", "fp16@litert"]
    assert "no CONV_2D" in reasons(found)["int8@litert"]
