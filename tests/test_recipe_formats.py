"""Target files: recipes' methods and the rules of their 8-bit formats."""

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onmetal import targets
from onmetal.errors import UsageError
from onmetal.runtimes import fit
from onmetal.targets import OPERATORS, Format, Recipe, Target
from onmetal.targets import recipe as recipes
from onmetal.targets.inline import METHODS
from tests.conftest import ROOT

GUIDE = (ROOT / "docs" / "targets.md").read_text("utf-8")

HEAD = """\
description = "a board"
arch = "x86_64"
[device]
transport = "local"
[[runtimes]]
name = "onnxruntime"
[[runtimes]]
name = "openvino"
[[recipes]]
name = "fp32"
runtimes = ["onnxruntime", "openvino"]
compute = "f32"
"""


def table(fields: dict[str, Any]) -> str:
    """TOML; JSON's way of writing texts, lists and numbers is TOML's too."""
    return "".join(f"{key} = {json.dumps(entry)}\n" for key, entry in fields.items())


def with_recipe(recipe: dict[str, Any], form: dict[str, Any] | None = None) -> str:
    text = HEAD + "[[recipes]]\n" + table({"name": "ours", **recipe})
    return text + ("" if form is None else "[recipes.format]\n" + table(form))


def read(text: str) -> Target:
    return fit.resolve(targets.parse(text, "board.toml"))


def parsed(recipe: dict[str, Any], form: dict[str, Any] | None = None) -> Recipe:
    return read(with_recipe(recipe, form)).recipe("ours")


def refused(recipe: dict[str, Any], form: dict[str, Any] | None = None) -> str:
    with pytest.raises(UsageError) as error:
        parsed(recipe, form)
    assert "board.toml" in str(error.value)
    return str(error.value)


BOTH = ["onnxruntime", "openvino"]
STATIC = {"runtimes": BOTH, "compute": "i8", "method": "static"}
CONV = {"operators": ["Conv"]}


def test_a_format_has_defaults() -> None:
    found = parsed(STATIC, CONV)
    assert found.format == Format(operators=("Conv",))
    assert found.format == Format(
        operators=("Conv",),
        activation="u8",
        weight="s8",
        activation_symmetric=False,
        weight_symmetric=True,
        per_channel=True,
        weight_bits=8,
        same_scale=(),
    )
    assert found.calibrated


def test_a_format_says_every_rule() -> None:
    rules = {
        "operators": ["Conv", "Add"],
        "activation": "s8",
        "weight": "u8",
        "activation_symmetric": True,
        "weight_symmetric": False,
        "per_channel": False,
        "weight_bits": 7,
        "same_scale": ["Add"],
    }
    found = parsed(STATIC, rules).format
    assert found is not None
    for key in Format.__struct_fields__:
        wanted = rules[key]
        assert getattr(found, key) == (tuple(wanted) if isinstance(wanted, list) else wanted)


@pytest.mark.parametrize("kind", sorted(OPERATORS))
def test_every_operator_may_be_listed(kind: str) -> None:
    found = parsed(STATIC, {"operators": [kind], "same_scale": [kind]}).format
    assert found == Format(operators=(kind,), same_scale=(kind,))


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ({"operators": []}, "no operators"),
        ({"operators": ["Convolution"]}, "Convolution"),
        ({"operators": ["Conv", "Relu"]}, "Relu"),
        ({"operators": ["conv"]}, "conv"),
        ({"same_scale": ["Sigmoids"]}, "Sigmoids"),
        ({"activation": "s16"}, "activation"),
        ({"activation": "U8"}, "activation"),
        ({"weight": "s4"}, "weight"),
        ({"weight_bits": 6}, "weight_bits"),
        ({"weight_bits": "8"}, "weight_bits"),
        ({"per_channel": "yes"}, "per_channel"),
        ({"activation_symmetric": 1}, "activation_symmetric"),
        ({"weight": "u8", "weight_bits": 7}, "weight_symmetric"),
        ({"block_size": 32}, "block_size"),
    ],
)
def test_a_rule_that_is_none_is_refused_by_name(rule: dict[str, Any], word: str) -> None:
    assert word in refused(STATIC, {**CONV, **rule})


def test_a_format_without_operators_is_refused() -> None:
    assert "operators" in refused(STATIC, {"activation": "u8"})


def test_an_unknown_operator_is_told_the_known_ones() -> None:
    said = refused(STATIC, {"operators": ["LSTM"]})
    assert all(kind in said for kind in OPERATORS)


COMPUTES = {
    "float": {"f32", "f16", "bf16"},
    "half": {"f32"},
    "static": {"i8"},
    "weights": {"f32"},
    "dynamic": {"i8"},
    "nncf": {"i8"},
    "fast": {"i8"},
}


def fits(recipe: dict[str, Any], has_format: bool) -> bool:
    """What the guide says, once more."""
    method, compute, runtimes = recipe["method"], recipe["compute"], set(recipe["runtimes"])
    return (
        compute in COMPUTES[method]
        and (method, compute) != ("float", "f32")  # which fp32 alone does
        and has_format == (method in ("static", "weights"))
        and (method != "float" or runtimes == {"openvino"})
        and (method != "dynamic" or runtimes == {"onnxruntime"})
        and (method != "nncf" or runtimes == {"openvino"})
        and method != "fast"  # there is no static one in HEAD
        and method != "half"  # which LiteRT alone runs
    )


@given(
    st.sampled_from(sorted(METHODS)),
    st.sampled_from(("f32", "f16", "bf16", "i8")),
    st.lists(st.sampled_from(BOTH), min_size=1, unique=True),
    st.booleans(),
)
def test_methods_types_runtimes_and_formats_go_together(
    method: str, compute: str, runtimes: list[str], has_format: bool
) -> None:
    recipe = {"runtimes": runtimes, "compute": compute, "method": method}
    form = CONV if has_format else None
    if fits(recipe, has_format):
        found = parsed(recipe, form)
        assert tuple(step.do for step in found.steps) == METHODS[method]
        assert found.calibrated == (method in ("static", "nncf", "fast"))
    elif method == "fast":
        refused(recipe, form)
    else:
        assert "'ours'" in refused(recipe, form)


def test_every_method_has_types_that_it_computes_in() -> None:
    assert COMPUTES.keys() == METHODS.keys()


def test_an_unknown_method_is_refused() -> None:
    assert "method" in refused({**STATIC, "method": "magic"}, CONV)


def test_the_fast_recipe_needs_a_static_one() -> None:
    fast = {"runtimes": BOTH, "compute": "i8", "method": "fast"}
    assert "'static'" in refused(fast)
    text = with_recipe(STATIC, CONV) + "[[recipes]]\n" + table({"name": "fast", **fast})
    found = read(text)
    assert found.recipe("fast").does("mixed")


def test_the_float_model_in_f32_has_one_name() -> None:
    assert "fp32" in refused({"runtimes": BOTH, "compute": "f32"})


def shipped() -> list[Target]:
    return [fit.load_target(name) for name in targets.names()]


@pytest.mark.parametrize("target", shipped(), ids=lambda target: target.name)
def test_what_ships_has_formats_that_can_be_told_apart(target: Target) -> None:
    static = [recipe for recipe in target.recipes if recipe.quantized_by == "static"]
    assert static
    assert len({(recipe.format, recipe.does("split")) for recipe in static}) == len(static)
    for recipe in static:
        assert recipe.format
        assert set(recipe.format.same_scale) <= set(recipe.format.operators)
        assert len(set(recipe.format.operators)) == len(recipe.format.operators)


def test_the_guide_shows_a_format_that_works() -> None:
    block = GUIDE.split("```toml\n")[2].split("```")[0]
    (way,) = recipes.parse("int8-ours", block).ways
    assert way.format
    assert list(way.format.operators) == tomllib.loads(block)["format"]["operators"]


def test_the_guide_names_every_rule_with_its_default() -> None:
    rows = [line for line in GUIDE.splitlines() if line.startswith("|")]
    for key in Format.__struct_fields__:
        row = next(row for row in rows if f"`{key}`" in row)
        place = row.split("|")[1].replace("`", "").replace(" ", "").split(",").index(key)
        if key in ("operators", "same_scale"):
            continue
        told = row.split("|")[2].replace("`", "").replace(" ", "").split(",")[place]
        default = getattr(Format(operators=("Conv",)), key)
        assert told == (str(default).lower() if isinstance(default, bool) else str(default))
