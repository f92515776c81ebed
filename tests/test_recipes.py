"""Recipes: those that ship, a user's own, tables in a target file, and who runs them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from onmetal import runtimes, targets
from onmetal.deploy.propose.plan import plan
from onmetal.errors import UsageError
from onmetal.records import DeviceFacts, Lineage, Model, Step
from onmetal.runtimes import fit
from onmetal.targets import Format, Recipe, Target, inline
from onmetal.targets import recipe as recipes
from tests import onnx_models
from tests.conftest import ROOT, Ran, deploy

GUIDE = (ROOT / "docs" / "targets.md").read_text("utf-8")
FILES = sorted((ROOT / "targets" / "recipes").glob("*.toml"))

HEAD = """\
description = "a board"
arch = "any"
{recipes}
[device]
transport = "local"
"""


def board(names: list[str], *engines: str) -> str:
    """A target file that lists recipes by name."""
    head = HEAD.format(recipes=f"recipes = {json.dumps(names)}")
    return head + "".join(f'[[runtimes]]\nname = "{name}"\n' for name in engines)


def load(folder: Path, text: str) -> Target:
    path = folder / "board.toml"
    path.write_text(text, "utf-8")
    return fit.load_target(str(path))


def refused(folder: Path, text: str) -> str:
    with pytest.raises(UsageError) as error:
        load(folder, text)
    assert str(folder / "board.toml") in str(error.value)
    return str(error.value)


# --- those that ship

ON_ARM = "fp32@litert,onnxruntime fp16@litert fp16-compute@litert int16x8@litert wi8@onnxruntime"
ON_ARM += " int8-dynamic@litert,onnxruntime int8@litert int8-s8s8@onnxruntime"
QDQ = ("int8-s8s8", "int8-u8s8", "int8-nncf", "int8-u8u8", "int8-u8s8-rr", "int8-fast")
ON_BOTH = " ".join(
    f"{name}@openvino" if name == "int8-nncf" else f"{name}@onnxruntime,openvino" for name in QDQ
)
SHIPPED = {
    "android-arm64": ON_ARM,
    "linux-arm64": ON_ARM,
    "tflite-x86": "fp32@litert fp16@litert int16x8@litert int8-dynamic@litert int8@litert",
    "tflm": "fp32@tflm int16x8@tflm int8@tflm int8-split@tflm",
    **dict.fromkeys(
        ("cortex-m4", "cortex-m7", "cortex-m55"), "int16x8@tflm int8@tflm int8-split@tflm"
    ),
    **dict.fromkeys(("ethos-u55-128", "ethos-u55-256", "ethos-u85-256"), "int16x8@tflm int8@tflm"),
    "x86-64": "fp32@onnxruntime,openvino,litert fp16@openvino bf16@openvino"
    " wi8@onnxruntime,openvino int8-dynamic@onnxruntime,litert int8@litert " + ON_BOTH,
    "x86-onnxruntime": "fp32@onnxruntime wi8@onnxruntime int8-dynamic@onnxruntime "
    + " ".join(f"{name}@onnxruntime" for name in QDQ if name != "int8-nncf"),
    "x86-openvino": "fp32@openvino fp16@openvino bf16@openvino wi8@openvino "
    + " ".join(f"{name}@openvino" for name in QDQ),
}
"""Target -> its recipes, each with the runtimes that run it."""


def test_every_target_tries_what_it_should() -> None:
    found = {
        name: " ".join(
            f"{recipe.name}@{','.join(recipe.runtimes)}" for recipe in fit.load_target(name).recipes
        )
        for name in targets.names()
    }
    assert found == SHIPPED


STEPS = {
    "fp32": ((), "f32"),
    "bf16": ((), "bf16"),
    "fp16-compute": (("half",), "f16"),
    "int16x8": (("static",), "i16"),
    "int8": (("static",), "i8"),
    "int8-split": (("static", "split"), "i8"),
    "wi8": (("weights",), "f32"),
    "int8-dynamic": (("dynamic",), "i8"),
    "int8-nncf": (("nncf",), "i8"),
    "int8-fast": (("mixed",), "i8"),
    **dict.fromkeys(("int8-s8s8", "int8-u8s8", "int8-u8u8", "int8-u8s8-rr"), (("static",), "i8")),
}


def test_recipes_do_what_their_names_stand_for() -> None:
    for name in recipes.names():
        for way in recipes.built_in(name).ways:
            does = tuple(step.do for step in way.steps), way.compute
            if name == "fp16":
                assert (
                    does == {"litert": (("half",), "f32"), "openvino": ((), "f16")}[way.runtimes[0]]
                )
            else:
                assert does == STEPS[name]
                assert way.runtimes == (("litert",) if name == "fp16-compute" else ())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestShipped:
    def test_it_is_explained(self, path: Path) -> None:
        assert path.read_text("utf-8").startswith("# ")

    def test_a_target_names_it(self, path: Path) -> None:
        words = {word.partition("@")[0] for text in SHIPPED.values() for word in text.split()}
        assert path.stem in words

    def test_runtimes_that_it_names_run_it(self, path: Path) -> None:
        for way in recipes.built_in(path.stem).ways:
            able = [name for name in runtimes.RUNTIMES if not fit.misfit(way, name)]
            assert able and set(way.runtimes) <= set(able)

    def test_its_own_lines_are_what_would_be_written_for_it(self, path: Path) -> None:
        entry = recipes.built_in(path.stem)
        if len(entry.ways) == 1:
            text = "\n".join(inline.file_lines(entry.ways[0]))
            assert recipes.parse(path.stem, text) == entry


def test_the_guide_names_every_step_and_key() -> None:
    for step in recipes.STEPS:
        assert re.search(rf"^\| `{step}` \| ", GUIDE, re.MULTILINE), step
    for key in ("steps", "compute", "requires_any_flag", "format", "runtimes", "for"):
        assert re.search(rf"^\| `{key}` \| ", GUIDE, re.MULTILINE), key


def test_every_step_that_a_runtime_must_be_able_to_do_is_run_by_some_and_no_other_is() -> None:
    runs = {step for name in runtimes.RUNTIMES for step in runtimes.spec(name).runs}
    assert runs == {"float", *(step for step, kind in recipes.STEPS.items() if kind.by_runtime)}


# --- a target's list


def test_a_name_stands_for_every_runtime_that_can(tmp_path: Path) -> None:
    found = load(tmp_path, board(["fp32", "int8-dynamic"], "openvino", "litert", "onnxruntime"))
    assert [recipe.runtimes for recipe in found.recipes] == [
        ("openvino", "litert", "onnxruntime"),
        ("litert", "onnxruntime"),
    ]


def test_a_name_is_narrowed_to_a_runtime_or_some(tmp_path: Path) -> None:
    names = ["fp32", "wi8@openvino", "int8-u8s8@openvino", "int8-u8s8@onnxruntime"]
    found = load(tmp_path, board(names, "onnxruntime", "openvino"))
    assert found.recipe("wi8").runtimes == ("openvino",)
    assert found.recipe("int8-u8s8").runtimes == ("onnxruntime", "openvino")
    assert len(found.recipes) == 3


def facts(*flags: str) -> DeviceFacts:
    return DeviceFacts("local", "a cpu", "x86_64", "an os", 2, 2**30, False, flags, {})


def model(**more: Any) -> Model:
    path = Path("net.onnx")
    given = Model(path, path, "", "onnx", "", 1, (), (), 0, 0, {"Conv": 3}, 1, (), 0.6)
    return replace(given, **more)


def test_one_name_may_mean_another_thing_on_another_runtime(tmp_path: Path) -> None:
    target = load(tmp_path, board(["fp32", "fp16"], "litert", "openvino", "onnxruntime"))
    assert target.recipe("fp16", "litert").does("half")
    assert target.recipe("fp16", "openvino").compute == "f16"
    assert target.exactness("fp16") == 1
    planned = plan(target, [model()], facts("amx_fp16"), None)
    assert [entry.name for entry in planned] == [
        f"{recipe}@{runtime}"
        for recipe in ("fp32", "fp16")
        for runtime in ("litert", "openvino", "onnxruntime")
    ]
    by_name = {entry.name: entry for entry in planned}
    assert [name for name, entry in by_name.items() if entry.skipped] == ["fp16@onnxruntime"]
    assert by_name["fp16@litert"].lineage == Lineage(steps=(Step("half"),))
    assert by_name["fp16@openvino"].lineage == Lineage()
    none = {entry.name: entry for entry in plan(target, [model()], facts(), None)}
    assert not none["fp16@litert"].skipped  # it asks for no flag
    assert "amx_fp16" in str(none["fp16@openvino"].skipped)


ALL = ("onnxruntime", "openvino", "litert")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["fp32", "int9"], "there is no recipe 'int9'; did you mean int8?"),
        (["fp32", ""], "there is no recipe ''"),
        (["fp32", "fp16", "fp16@litert"], "the recipe 'fp16' stands there twice"),
        (["fp32", "int8@litert", "int8@litert"], "the recipe 'int8' stands there twice"),
        (["fp32", "int8@tflm"], "'int8@tflm' names a runtime that is not among its [[runtimes]]"),
        (["fp32", "int8@"], "'int8@' names a runtime that is not among its [[runtimes]]"),
        (["fp32", "int8@openvino"], "'int8@openvino' lists no operators"),
        (["fp32", "fp16@onnxruntime"], "'fp16@onnxruntime' is not meant for this runtime"),
        (["fp32", "int8-split"], "on litert, it has the step 'split', which runs on tflm alone"),
        (["int8", "fp32"], "'fp32' must come first"),
        (["int8"], "it has no 'fp32' recipe"),
        ([], "it has no recipes"),
        (["fp32", "int8-fast"], "'mixed' needs one with 'static'"),
        (["fp32", "./nowhere.toml"], "recipe ./nowhere.toml: there is no such file"),
        (["fp32", "."], "there is no recipe '.'"),
        (["fp32", "./folder.toml"], "it is a folder"),
        (["fp32", "./board.toml"], "recipe ./board.toml: Object contains unknown field"),
        (["fp32", "./Ours.toml"], "of lower-case letters and digits"),
        (["fp32", "./binary.toml"], "utf-8"),
        (["fp32", "./a\0b.toml"], "null byte"),
    ],
)
def test_a_wrong_list_is_refused_by_what_is_wrong(
    tmp_path: Path, names: list[str], said: str
) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "Ours.toml").write_text('compute = "bf16"\n')
    (tmp_path / "binary.toml").write_bytes(b"# \xff\n")
    assert said in refused(tmp_path, board(names, *ALL))


def test_a_list_in_a_wrong_place_is_told_the_right_one(tmp_path: Path) -> None:
    listed = 'recipes = ["fp32"]\n'
    text = board(["fp32"], "openvino").replace(listed, "")
    for wrong in (text + listed, text + "[limits]\n" + listed):
        assert "must stand above the file's first [table]" in refused(tmp_path, wrong)
    assert load(tmp_path, listed + text).recipes


TABLE = '[[recipes]]\nname = "int8-ours"\nruntimes = ["litert"]\ncompute = "i8"\n'


def test_a_list_and_tables_are_told_what_to_write(tmp_path: Path) -> None:
    within = 'recipes = ["fp32", { name = "int8-ours", runtimes = ["litert"], compute = "i8" }]'
    listed = board(["fp32"], "litert")
    for text in (listed + TABLE, re.sub(r"recipes = .*", within, listed)):
        said = refused(tmp_path, text)
        assert 'list these by their paths: "./int8-ours.toml"' in said


# --- a file of a user's own

OURS = """\
steps = ["static"]
compute = "i8"
[format]
operators = ["Conv"]
"""


def test_an_own_recipe_lies_beside_the_target_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "int8-ours.toml").write_text(OURS)
    (tmp_path / "sub" / "wi8.toml").write_text(
        OURS.replace("static", "weights").replace("i8", "f32")
    )
    names = ["fp32", "sub/wi8.toml", "./int8-ours.toml@openvino"]
    found = load(tmp_path, board(names, *ALL))
    assert [(recipe.name, recipe.runtimes) for recipe in found.recipes[1:]] == [
        ("wi8", ("onnxruntime", "openvino")),
        ("int8-ours", ("openvino",)),
    ]
    assert found.recipe("int8-ours").format == Format(operators=("Conv",))
    assert found.recipe("wi8").format == Format(operators=("Conv",))


def test_a_step_may_be_a_table_and_windows_writes_files_too(tmp_path: Path) -> None:
    text = OURS.replace('["static"]', '[{ do = "static" }]').replace("\n", "\r\n")
    (tmp_path / "int8-ours.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = load(tmp_path, board(["fp32", "./int8-ours.toml"], *ALL))
    assert found.recipe("int8-ours").steps == (Step("static"),)


def test_rules_may_differ_by_runtime(tmp_path: Path) -> None:
    tables = "".join(
        f'[[for]]\nruntimes = ["{name}"]\nsteps = ["static"]\ncompute = "i8"\n'
        f'[for.format]\noperators = ["{operator}"]\n'
        for name, operator in (("onnxruntime", "Conv"), ("openvino", "MatMul"))
    )
    (tmp_path / "int8-ours.toml").write_text(tables)
    found = load(tmp_path, board(["fp32", "./int8-ours.toml"], *ALL))
    forms = [found.recipe("int8-ours", name).format for name in ALL[:2]]
    assert forms == [Format(operators=("Conv",)), Format(operators=("MatMul",))]


FOR_CHIPS = """\
runtimes = ["tflm"]
steps = ["static"]
compute = "i8"
format = { activation = "s8" }
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OURS.replace("static", "statics"), "there is no step 'statics'; did you mean static?"),
        (OURS.replace('["static"]', "[{ bits = 8 }]"), "a step's table has no `do`"),
        (OURS.replace('["static"]', '[{ do = "static", bits = 4 }]'), "has no option 'bits'"),
        (OURS.replace('["static"]', "[{ do = [1] }]"), "there is no step [1]"),
        (OURS.replace('["static"]', "[8]"), "$.steps[0]"),
        (OURS.replace('"static"', '"static", "nncf"'), "the steps 'static' and 'nncf'"),
        (OURS.replace('"static"', '"static", "static"'), "the step 'static' twice"),
        (OURS.replace('"static"', '"split", "static"'), "'split' (early operators in bands"),
        (OURS.replace('["static"]', '["nncf"]'), "but no step 'static' or 'weights'"),
        (OURS.partition("[format]")[0], "which needs the rules of a format"),
        (OURS.replace("i8", "f32"), "'static' computes in i8"),
        (OURS.replace("Conv", "Convolution"), "lists the operator 'Convolution'"),
        (OURS + 'activation = "s16"\n', "which only litert and tflm compute with"),
        ('runtimes = ["litert"]\n' + OURS, "other than TFLite's"),
        ('runtimes = ["onnxruntme"]\n' + OURS, "'onnxruntme', which is unknown"),
        (FOR_CHIPS, "it is for tflm alone"),
        ('compute = "f32"\n', "'fp32', and only it"),
        ('compute = "f16"\nruntimes = ["onnxruntime"]\n', "casting to f32, which is no f16"),
        ('compute = "f16"\nruntimes = ["litert"]\n', "lets compute floats in f32 only, not f16"),
        ('name = "other"\n' + OURS, "unknown field `name`"),
        ('method = "static"\n' + OURS, "unknown field `method`"),
        ("for = []\n", "for"),
        ('[[for]]\ncompute = "bf16"\n', "a [[for]] table names no runtimes"),
        ('[[for]]\ncompute = "bf16"\nruntimes = ["openvino"]\n' * 2, "'openvino' twice"),
        ('compute = "f16"\n[[for]]\ncompute = "bf16"\n', "unknown field `compute`"),
        ("this is no TOML", "line 1"),
        ("", "compute"),
    ],
)
def test_a_wrong_recipe_is_refused_by_file_and_field(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "int8-ours.toml").write_text(text)
    found = refused(tmp_path, board(["fp32", "./int8-ours.toml"], *ALL))
    assert "int8-ours" in found and said in found


@pytest.fixture
def _thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that changes the model, whatever runs it."""
    kind = recipes.StepKind("fewer channels", options={"sparsity": float, "rounds": int})
    monkeypatch.setitem(recipes.STEPS, "thin", kind)


THIN = '[{ do = "thin", rounds = 2, sparsity = 0.5 }, "static"]'


def test_a_step_that_changes_the_model_runs_on_every_runtime(tmp_path: Path, _thin: None) -> None:
    (tmp_path / "thin.toml").write_text('steps = ["thin"]\ncompute = "f32"\n')
    (tmp_path / "thin-int8.toml").write_text(OURS.replace('["static"]', THIN))
    found = load(tmp_path, board(["fp32", "./thin.toml", "./thin-int8.toml"], *ALL))
    assert found.recipe("thin").runtimes == ALL
    assert found.recipe("thin-int8").runtimes == ("onnxruntime", "openvino")
    options = {"sparsity": 0.5, "rounds": 2}
    assert found.recipe("thin-int8").steps == (Step("thin", options), Step("static"))
    planned = plan(found, [model()], facts(), ["thin-int8"])
    assert planned[-1].lineage == Lineage(steps=(Step("thin", options), Step("static")))


def test_a_recipe_of_several_steps_is_written_as_it_was_read(tmp_path: Path, _thin: None) -> None:
    (tmp_path / "ours.toml").write_text(OURS.replace('["static"]', THIN))
    (way,) = recipes.own("ours.toml", tmp_path).ways
    (tmp_path / "ours.toml").write_text("\n".join(inline.file_lines(way)))
    assert recipes.own("ours.toml", tmp_path).ways == (way,)
    assert inline.method(way) == "static"


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ('[{ do = "thin", bits = 1 }]', "no option 'bits'; there are: sparsity, rounds"),
        ('[{ do = "thin", sparsty = 1 }]', "'sparsty'; did you mean sparsity?"),
        ('[{ do = "thin", rounds = true }]', "the option 'rounds' of the step 'thin': Expected"),
        ('[{ do = "thin", rounds = 1.5 }]', "the option 'rounds' of the step 'thin': Expected"),
        ('[{ do = "thin", sparsity = "0.5" }]', "the option 'sparsity' of the step 'thin'"),
        ('["static", "thin"]', "'thin' (fewer channels), which must precede 'static'"),
        ('["static", "thin", "split"]', "'thin' (fewer channels), which must precede 'static'"),
    ],
)
def test_wrong_options_and_orders_of_steps_are_refused(
    tmp_path: Path, _thin: None, steps: str, said: str
) -> None:
    (tmp_path / "ours.toml").write_text(OURS.replace('["static"]', steps))
    assert said in refused(tmp_path, board(["fp32", "./ours.toml"], *ALL))


# --- tables in the target file


def with_tables(target: Target, ways: tuple[Recipe, ...]) -> str:
    """A target file as it was written once, with its recipes as tables."""
    text = HEAD.format(recipes="").replace('"local"', f'"{target.device.transport}"')
    text += "".join(f'[[runtimes]]\nname = "{entry.name}"\n' for entry in target.runtimes)
    for way in ways:
        lines = [line for line in inline.file_lines(way) if not line.startswith("steps")]
        lines = ["[recipes.format]" if line == "[format]" else line for line in lines]
        split = ["split = true"] if way.does("split") else []
        head = ["[[recipes]]", f'name = "{way.name}"', f'method = "{inline.method(way)}"']
        text += "\n".join([*head, *split, *lines, ""])
    return text


def rewritten(folder: Path, old: Target) -> Target:
    """The target after all that its warnings say was done."""
    text = (folder / "board.toml").read_text()
    listed, *files = old.warnings
    line = re.search(r"the line `(recipes = .*)`$", listed)
    assert line
    (folder / "board.toml").write_text(f"{line[1]}\n{text.partition('[[recipes]]')[0]}")
    for said in files:
        place = re.search(r"write the file (\S+) of the lines ", said)
        assert place
        lines = re.findall(r"`(.*?)`", said.partition(" of the lines ")[2])
        Path(place[1]).parent.mkdir(exist_ok=True)
        Path(place[1]).write_text("\n".join(lines) + "\n")
    return fit.load_target(str(folder / "board.toml"))


@pytest.mark.parametrize("name", targets.names())
def test_tables_of_what_ships_give_the_same_and_are_told_the_names(
    tmp_path: Path, name: str
) -> None:
    shipped = fit.load_target(name)
    old = load(tmp_path, with_tables(shipped, shipped.recipes))
    assert old.recipes == shipped.recipes
    (warning,) = old.warnings  # no file is to be written
    assert "[[recipes]] are deprecated" in warning
    new = rewritten(tmp_path, old)
    assert (new.recipes, new.warnings) == (shipped.recipes, ())


@pytest.mark.parametrize("name", ["x86-64", "cortex-m4", "android-arm64"])
def test_tables_that_differ_are_told_the_files_to_write(tmp_path: Path, name: str) -> None:
    """Fewer runtimes, other rules, a flag of its own, and a name that the target file has."""
    shipped = fit.load_target(name)
    changed = tuple(replace(way, runtimes=way.runtimes[-1:]) for way in shipped.recipes)
    changed = tuple(
        replace(way, format=replace(way.format, operators=("Conv",), weight_symmetric=False))
        if way.format and way.format.operators
        else way
        for way in changed
    )
    changed += tuple(
        replace(way, name=word, requires_any_flag=("avx2", "asimd"))
        for way, word in zip(changed[-2:], ("board", "own"), strict=True)
    )
    old = load(tmp_path, with_tables(shipped, changed))
    assert old.recipes == changed
    assert len(old.warnings) > 2
    new = rewritten(tmp_path, old)
    assert (new.recipes, new.warnings) == (old.recipes, ())


# --- what the commands do with them


def small(folder: Path) -> Path:
    graph = onnx_models.build(
        [
            onnx_models.node("Conv", "x w", "a", pads=[1] * 4),
            onnx_models.node("Relu", "a", "b"),
            onnx_models.node("Conv", "b v", "y"),
        ],
        [onnx_models.value("x", [1, 3, 8, 8])],
        [onnx_models.value("y", [1, 4, 6, 6])],
        [onnx_models.weights("w", 8, 3, 3, 3), onnx_models.weights("v", 4, 8, 3, 3)],
    )
    rng = np.random.default_rng(5)
    np.savez(folder / "data.npz", x=rng.normal(size=(16, 3, 8, 8)).astype(np.float32))
    return onnx_models.save(graph, folder / "net.onnx")


def made(folder: Path, text: str, out: str) -> Ran:
    (folder / "board.toml").write_text(text)
    ran = deploy(
        *(folder / "net.onnx", "--target", folder / "board.toml", "--no-device", "--json"),
        *("--calibration-data", folder / "data.npz", "--minimize", "size", "--quick"),
        *("--max-accuracy-drop", "none", "--out", folder / out),
    )
    assert ran.code == 0, ran.err
    return ran


def test_an_own_recipe_deploys_as_its_table_did(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "int8-ours.toml").write_text(OURS)
    new = made(tmp_path, board(["fp32", "./int8-ours.toml"], "onnxruntime"), "new")
    tables = [
        '[[recipes]]\nname = "fp32"\nruntimes = ["onnxruntime"]\ncompute = "f32"\n',
        '[[recipes]]\nname = "int8-ours"\nruntimes = ["onnxruntime"]\ncompute = "i8"\n',
        'method = "static"\n[recipes.format]\noperators = ["Conv"]\n',
    ]
    text = board([], "onnxruntime").replace("recipes = []", "") + "".join(tables)
    old = made(tmp_path, text, "old")
    for ran in (old, new):
        assert ran.document["chosen"] == "int8-ours@onnxruntime"
    first, second = (ran.document["candidates"] for ran in (old, new))
    assert first == second
    assert [entry["lineage"] for entry in second] == [
        {"parent": None, "steps": [], "seeds": {}},
        {"parent": None, "steps": [{"do": "static", "options": {}}], "seeds": {}},
    ]
    assert (tmp_path / "old/model.onnx").read_bytes() == (tmp_path / "new/model.onnx").read_bytes()
    told, usual = (ran.document["data"]["warnings"] for ran in (old, new))
    assert told[2:] == usual and '`recipes = ["fp32", "./int8-ours.toml"]`' in told[0]
    assert all(f"warning: {said}\n" in old.err for said in told)
    manifest = (tmp_path / "old/manifest.json").read_text()
    assert "are deprecated" in manifest and str(tmp_path) not in manifest


def test_every_command_that_reads_a_target_says_what_is_deprecated(tmp_path: Path) -> None:
    net = small(tmp_path)
    board_file = tmp_path / "board.toml"
    table = '[[recipes]]\nname = "fp32"\nruntimes = ["onnxruntime"]\ncompute = "f32"\n'
    board_file.write_text(board([], "onnxruntime").replace("recipes = []", "") + table)
    said = 'write above the file\'s first [table] the line `recipes = ["fp32"]`'
    shown = deploy("targets", board_file)
    assert said in shown.out
    ran = deploy("inspect", net, "--target", board_file, "--json")
    assert said in ran.document["warnings"][0] and said in ran.err
    timed = deploy("bench", net, "--target", board_file, "--quick", "--json")
    assert timed.code == 0, timed.err
    assert said in timed.document["warnings"][0] and said in timed.err
    assert timed.document["candidates"][0]["lineage"]["parent"] is None


def test_what_is_quantized_already_is_not_quantized_again() -> None:
    target = fit.load_target("cortex-m4")
    given = model(format="tflite", quantized=5)
    found = {entry.name: entry for entry in plan(target, [given], facts(), None, samples=False)}
    assert found["int8@tflm"].lineage == Lineage()
    assert found["int8-split@tflm"].lineage == Lineage(steps=(Step("split"),))
    assert found["int16x8@tflm"].skipped
    fresh = {entry.name: entry for entry in plan(target, [model()], facts(), None)}
    assert fresh["int8-split@tflm"].lineage == Lineage(steps=(Step("static"), Step("split")))
