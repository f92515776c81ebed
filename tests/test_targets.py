"""Target files: those that ship, a user's own, and every way in which one can be wrong."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onmetal import targets
from onmetal.errors import UsageError
from onmetal.records import Step
from onmetal.runtimes import check_options, fit
from onmetal.targets import (
    OPERATORS,
    Chip,
    Device,
    Format,
    Io,
    Limits,
    Npu,
    Recipe,
    Runtime,
    Target,
)
from tests.conftest import ROOT, deploy

SHIPPED = sorted((ROOT / "targets").glob("*.toml"))
README = (ROOT / "README.md").read_text("utf-8")
GUIDE = (ROOT / "docs" / "targets.md").read_text("utf-8")
TFLITE = (ROOT / "docs" / "tflite.md").read_text("utf-8")
EMBEDDED = (ROOT / "docs" / "embedded.md").read_text("utf-8")
QUANTIZATION = (ROOT / "docs" / "quantization.md").read_text("utf-8")

BOARD = """\
description = "a board"
arch = "x86_64"
threads = 2

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

[[recipes]]
name = "bf16"
runtimes = ["openvino"]
compute = "bf16"

[limits]
memory_kib = 65536
"""

STATIC = """\
[[recipes]]
name = "int8-ours"
runtimes = ["onnxruntime", "openvino"]
compute = "i8"
method = "static"
[recipes.format]
activation = "u8"
weight = "s8"
operators = ["Conv", "MatMul", "MaxPool"]
same_scale = ["MaxPool"]
"""


def with_recipe(text: str, old: str = "", new: str = "") -> str:
    """BOARD with one more recipe, in which one thing is changed."""
    assert text.count(old) == 1 or not old
    return BOARD.replace("[limits]", f"{text.replace(old, new) if old else text}\n[limits]")


def recipe(method: str, compute: str, *runtimes: str, more: str = "") -> str:
    listed = ", ".join(f'"{name}"' for name in runtimes)
    return (
        f'[[recipes]]\nname = "other"\nruntimes = [{listed}]\ncompute = "{compute}"\n'
        f'method = "{method}"\n{more}'
    )


def write(folder: Path, text: str) -> Path:
    path = folder / "board.toml"
    path.write_text(text, "utf-8")
    return path


def changed(old: str, new: str) -> str:
    assert BOARD.count(old) == 1
    return BOARD.replace(old, new)


def read(text: str, source: str) -> Target:
    return fit.resolve(targets.parse(text, source))


def in_8_bits(recipe: Recipe) -> bool:
    return recipe.quantized_by not in (None, "half")


def test_every_file_is_a_target_and_every_target_a_file() -> None:
    assert targets.names() == [path.stem for path in SHIPPED]
    assert {"x86-64", "x86-onnxruntime", "x86-openvino"} <= set(targets.names())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
class TestShipped:
    def test_it_loads_by_name_and_by_path_alike(self, path: Path) -> None:
        found = fit.load_target(path.stem)
        assert found == fit.load_target(str(path))
        assert found.name == path.stem
        assert found.description
        check_options(found)

    def test_its_facts_are_explained_and_linked(self, path: Path) -> None:
        lines = path.read_text("utf-8").splitlines()
        comments = [line for line in lines if line.startswith("#")]
        assert lines[0].startswith("# ")
        assert any(re.search(r"https://\S+", line) for line in comments)

    def test_float_comes_first_where_the_device_computes_it(self, path: Path) -> None:
        found = fit.load_target(path.stem)
        assert found.recipes[0].name == ("int16x8" if found.chip else "fp32")

    def test_the_readme_lists_it(self, path: Path) -> None:
        row = next(line for line in README.splitlines() if line.startswith(f"| `{path.stem}` |"))
        recipes = fit.load_target(path.stem).recipes
        if row.count("as `tflite-x86`"):
            assert recipes == fit.load_target("tflite-x86").recipes
            return
        for name in (recipe.name for recipe in recipes if not in_8_bits(recipe)):
            assert f"`{name}`" in row
        small = [recipe.name for recipe in recipes if in_8_bits(recipe)]
        assert ("INT8" in row) is bool(small)
        for name in small:  # too many for a row: the text below the table has their names
            assert f"`{name}`" in README

    def test_the_page_on_quantization_tells_of_its_recipes(self, path: Path) -> None:
        shown = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT"}
        target = fit.load_target(path.stem)
        for recipe in target.recipes:
            if recipe.quantized_by is None:
                continue
            own = f"| `{recipe.name}` |"
            if set(recipe.runtimes) <= {"litert", "tflm"} and recipe.name != "int8-dynamic":
                assert own in (EMBEDDED if recipe.runtimes == ("tflm",) else TFLITE)
                continue
            row = next(line for line in QUANTIZATION.splitlines() if line.startswith(own))
            runs_on = row.split("|")[-2]
            assert all(shown[name] in runs_on for name in recipe.runtimes)
            if len(target.runtimes) == len(shown):
                assert [name for name in shown if shown[name] in runs_on] == [*recipe.runtimes]


def test_the_guide_shows_files_that_work(tmp_path: Path) -> None:
    board, own = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    (tmp_path / "int8-ours.toml").write_text(own)
    found = fit.load_target(str(write(tmp_path, board)))
    check_options(found)
    assert [recipe.name for recipe in found.recipes][-1] == "int8-ours"
    assert found.recipe("wi8").runtimes == ("onnxruntime",)
    assert not found.warnings
    assert found.limits.memory_kib == 131072


def test_the_guide_names_every_key() -> None:
    table = GUIDE[GUIDE.index("| key |") :]
    for record in (Target, Device, Runtime, Recipe, Format, Io, Limits, Chip, Npu):
        nested = {"name", "device", "runtimes", "io", "limits", "chip", "npu", "warnings"}
        for key in set(record.__struct_fields__) - nested:
            assert re.search(rf"`[a-z_.\[\]]*\b{key}`", table), key


def test_a_users_own_file_works_by_its_path(tmp_path: Path) -> None:
    found = fit.load_target(str(write(tmp_path, BOARD)))
    assert (found.name, found.threads) == ("board", 2)
    assert found.limits == Limits(memory_kib=65536)
    assert [recipe.name for recipe in found.recipes] == ["fp32", "bf16"]
    assert found.recipe("bf16").compute == "bf16"
    assert found.exactness("fp32") < found.exactness("bf16")


def test_a_recipe_is_of_float_where_the_file_says_no_more(tmp_path: Path) -> None:
    for found in fit.load_target(str(write(tmp_path, BOARD))).recipes:
        assert (found.steps, found.format, found.calibrated) == ((), None, False)


def test_the_rules_of_a_format_are_read_as_they_stand(tmp_path: Path) -> None:
    found = fit.load_target(str(write(tmp_path, with_recipe(STATIC)))).recipe("int8-ours")
    assert (found.steps, found.compute, found.calibrated) == ((Step("static"),), "i8", True)
    assert found.format == Format(
        operators=("Conv", "MatMul", "MaxPool"),
        activation="u8",
        weight="s8",
        activation_symmetric=False,
        weight_symmetric=True,
        per_channel=True,
        weight_bits=8,
        same_scale=("MaxPool",),
    )


FORMAT = '[recipes.format]\noperators = ["MatMul"]\n'


@pytest.mark.parametrize(
    ("text", "calibrated"),
    [
        (recipe("weights", "f32", "onnxruntime", "openvino", more=FORMAT), False),
        (recipe("dynamic", "i8", "onnxruntime"), False),
        (recipe("nncf", "i8", "openvino"), True),
        (STATIC + recipe("fast", "i8", "onnxruntime", "openvino"), True),
        (recipe("float", "f16", "openvino"), False),
    ],
)
def test_every_method_can_be_asked_for(tmp_path: Path, text: str, calibrated: bool) -> None:
    found = fit.load_target(str(write(tmp_path, with_recipe(text)))).recipe("other")
    assert found.calibrated is calibrated


def test_seven_bits_go_with_signed_weights_or_asymmetric_ones(tmp_path: Path) -> None:
    for more in ("weight_bits = 7\n", 'weight_bits = 7\nweight = "u8"\nweight_symmetric = false\n'):
        text = STATIC.replace('weight = "s8"\n', more)
        form = fit.load_target(str(write(tmp_path, with_recipe(text)))).recipe("int8-ours").format
        assert form
        assert form.weight_bits == 7


def test_a_users_own_file_may_have_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_bytes(BOARD.replace("\n", "\r\n").encode())
    assert fit.load_target(str(path)).name == "board"


WRONG = [
    ("an unknown key", 'colour = "red"\n' + BOARD, "colour"),
    ("an unknown limit", BOARD + "memory_mib = 64\n", "memory_mib"),
    ("a number as text", changed("memory_kib = 65536", 'memory_kib = "64MB"'), "memory_kib"),
    ("no memory at all", changed("memory_kib = 65536", "memory_kib = 0"), "memory_kib"),
    ("a fraction of a KiB", changed("65536", "65536.5"), "memory_kib"),
    ("negative threads", changed("threads = 2", "threads = -2"), "threads"),
    ("no threads", changed("threads = 2", "threads = 0"), "threads"),
    ("threads as a truth value", changed("threads = 2", "threads = true"), "threads"),
    ("another architecture", changed('"x86_64"', '"sparc"'), "arch"),
    ("no architecture", changed('arch = "x86_64"\n', ""), "arch"),
    ("no description", changed('description = "a board"\n', ""), "description"),
    ("no transport", changed('transport = "local"', ""), "transport"),
    ("an unknown transport", changed('"local"', '"telepathy"'), "transport"),
    ("an unknown runtime", changed('name = "onnxruntime"', 'name = "tensorrt"'), "runtimes"),
    (
        "a runtime twice",
        changed("[limits]", '[[runtimes]]\nname = "openvino"\n[limits]'),
        "the runtime 'openvino' stands there twice",
    ),
    (
        "a recipe twice",
        changed(
            "[limits]", BOARD[BOARD.rindex("[[recipes]]") :].partition("[limits]")[0] + "[limits]"
        ),
        "the recipe 'bf16' stands there twice",
    ),
    ("no fp32", changed('name = "fp32"', 'name = "float"'), "fp32"),
    ("an ill-formed recipe name", changed('name = "bf16"', 'name = "BF 16"'), "name"),
    ("a recipe of no runtime", changed('runtimes = ["openvino"]', "runtimes = []"), "bf16"),
    ("a runtime not listed", changed('[[runtimes]]\nname = "openvino"\n', ""), "openvino"),
    ("an unknown type", changed('"f32"', '"f24"'), "compute"),
    ("fp32 that is none", changed('compute = "f32"', 'compute = "bf16"'), "fp32"),
    ("f32 under another name", changed('compute = "bf16"', 'compute = "f32"'), "bf16"),
    (
        "bf16 by onnxruntime",
        changed('runtimes = ["openvino"]', 'runtimes = ["onnxruntime"]'),
        "bf16",
    ),
    ("a table as an option", changed("threads = 2", "threads = {a = 1}"), "threads"),
    ("8 bits of float", with_recipe(recipe("float", "i8", "openvino")), "compute floats in f32"),
    ("static in f32", with_recipe(STATIC, '"i8"', '"f32"'), "'static' computes in i8"),
    (
        "weights in i8",
        with_recipe(recipe("weights", "i8", "openvino", more=FORMAT)),
        "'weights' computes in f32",
    ),
    ("nncf in f32", with_recipe(recipe("nncf", "f32", "openvino")), "'nncf' computes in i8"),
    ("dynamic in f32", with_recipe(recipe("dynamic", "f32", "onnxruntime")), "computes in i8"),
    (
        "fast in f16",
        with_recipe(STATIC + recipe("fast", "f16", "openvino")),
        "'mixed' computes in i8",
    ),
    ("an unknown method", with_recipe(recipe("magic", "i8", "openvino")), "method"),
    (
        "fp32 by another method",
        changed('compute = "f32"', f'compute = "f32"\nmethod = "weights"\n{FORMAT}'),
        "fp32",
    ),
    (
        "dynamic by openvino",
        with_recipe(recipe("dynamic", "i8", "onnxruntime", "openvino")),
        "'dynamic', which runs on litert and onnxruntime alone",
    ),
    (
        "nncf by onnxruntime",
        with_recipe(recipe("nncf", "i8", "onnxruntime")),
        "'nncf', which runs on openvino alone",
    ),
    (
        "static without a format",
        with_recipe(STATIC.partition("[recipes.format]")[0]),
        "'static', which needs the rules of a format",
    ),
    (
        "weights without a format",
        with_recipe(recipe("weights", "f32", "openvino")),
        "'weights', which needs the rules of a format",
    ),
    (
        "float with a format",
        with_recipe(recipe("float", "f16", "openvino", more=FORMAT)),
        "but no step 'static' or 'weights' that follows them",
    ),
    (
        "nncf with a format",
        with_recipe(recipe("nncf", "i8", "openvino", more=FORMAT)),
        "but no step 'static' or 'weights' that follows them",
    ),
    (
        "fast with a format",
        with_recipe(STATIC + recipe("fast", "i8", "openvino", more=FORMAT)),
        "but no step 'static' or 'weights' that follows them",
    ),
    (
        "fast of nothing",
        with_recipe(recipe("fast", "i8", "openvino")),
        "'mixed' needs one with 'static'",
    ),
    ("an unknown key of a format", with_recipe(STATIC + "bias = 8\n"), "bias"),
    ("no operators", with_recipe(STATIC, '["Conv", "MatMul", "MaxPool"]', "[]"), "no operators"),
    (
        "operators left out",
        with_recipe(STATIC, 'operators = ["Conv", "MatMul", "MaxPool"]\n', ""),
        "operators",
    ),
    ("an unknown operator", with_recipe(STATIC, '"Conv"', '"Convolution"'), "'Convolution'"),
    (
        "an unknown operator that keeps its scale",
        with_recipe(STATIC, 'same_scale = ["MaxPool"]', 'same_scale = ["Pool"]'),
        "'Pool'",
    ),
    ("an unknown signedness", with_recipe(STATIC, '"s8"', '"s4"'), "weight"),
    ("too few bits", with_recipe(STATIC + "weight_bits = 6\n"), "weight_bits"),
    (
        "7 bits of symmetric u8",
        with_recipe(STATIC, 'weight = "s8"', 'weight = "u8"\nweight_bits = 7'),
        "weight_symmetric = false",
    ),
    ("no TOML", "this is not TOML", "line 1"),
    ("nothing", "", "description"),
    ("a number of too many digits", "threads = " + "9" * 5000 + "\n" + BOARD, ""),
]


@pytest.mark.parametrize(("text", "field"), [row[1:] for row in WRONG], ids=[r[0] for r in WRONG])
def test_a_wrong_file_is_refused_by_name_and_field(tmp_path: Path, text: str, field: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as refused:
        fit.load_target(str(path))
    assert str(path) in str(refused.value)
    assert field in str(refused.value)


def test_without_runtimes_nothing_runs(tmp_path: Path) -> None:
    text = 'runtimes = []\ndescription = "x"\narch = "x86_64"\n'
    text += '[device]\ntransport = "local"\n'
    text += '[[recipes]]\nname = "fp32"\nruntimes = []\ncompute = "f32"\n'
    with pytest.raises(UsageError, match=r"no \[\[runtimes\]\]"):
        fit.load_target(str(write(tmp_path, text)))


def test_nothing_is_listed_as_more_exact_than_float(tmp_path: Path) -> None:
    head, float_recipe, rest = re.split(r"(?=\[\[recipes\]\])", BOARD)
    half, limits = rest.split("[limits]")
    with pytest.raises(UsageError, match="fp32"):
        fit.load_target(str(write(tmp_path, head + half + float_recipe + "[limits]" + limits)))


def test_a_refused_operator_is_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        fit.load_target(str(write(tmp_path, with_recipe(STATIC, '"Conv"', '"Relu"'))))
    assert ", ".join(sorted(OPERATORS)) in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        fit.load_target(str(tmp_path / "nowhere.toml"))


def test_a_folder_is_no_target_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    with pytest.raises(UsageError, match=r"folder\.toml"):
        fit.load_target(str(folder))


def test_a_file_must_be_utf8(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_bytes(BOARD.replace("a board", "a b\xf6ard").encode("latin-1"))
    with pytest.raises(UsageError, match=r"board\.toml.*utf-8"):
        fit.load_target(str(path))


@pytest.mark.parametrize("name", ["", "x86", "../x86-64", "x86-64.TOML"])
def test_an_unknown_name_is_told_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        fit.load_target(name)
    assert "x86-64, x86-onnxruntime, x86-openvino" in str(refused.value)


PIECES = [
    *BOARD.splitlines(),
    *STATIC.splitlines(),
    "[limits]",
    "threads = 1",
    "x = [",
    "= 1",
    "\x00",
    "'",
]


@given(st.lists(st.sampled_from(PIECES), max_size=25).map("\n".join))
@example("threads = 1979-02-31")
def test_any_text_is_a_target_or_refused(text: str) -> None:
    try:
        found = read(text, "some.toml")
    except UsageError as refused:
        assert "some.toml" in str(refused)
    else:
        assert tomllib.loads(text)["arch"] == found.arch


def test_the_command_takes_a_users_own_file(tmp_path: Path) -> None:
    ran = deploy("targets", write(tmp_path, BOARD), "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "board" in ran.out
    bad = deploy("targets", write(tmp_path, "colour = 1\n" + BOARD), "--json", cwd=tmp_path)
    assert bad.code == 2
    assert "board.toml" in bad.err
    assert "colour" in bad.document["error"]["message"]


CHIP = """\
description = "a chip"
arch = "cortex-m"
device = { transport = "serial", required = true }
io = { layout = "nhwc", dtype = "int8" }
runtimes = [{ name = "tflm" }]
recipes = [
  { name = "int8", runtimes = ["tflm"], compute = "i8", method = "static", \
format = { activation = "s8" } },
]
chip = { core = "cortex-m4", clock_mhz = 120, flash_kib = 2048, ram_kib = 640 }
"""


class TestAMicrocontroller:
    @pytest.mark.parametrize(
        "path", sorted((ROOT / "examples" / "boards").glob("*.toml")), ids=lambda path: path.stem
    )
    def test_a_board_of_the_examples_is_fifteen_lines_at_most(self, path: Path) -> None:
        found = fit.load_target(str(path))
        lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
        assert len(lines) <= 15
        assert found.micro and found.chip and found.device.required
        assert path.name in EMBEDDED and f"{found.chip.clock_mhz} MHz" in EMBEDDED

    @pytest.mark.parametrize("name", ["cortex-m55", "ethos-u55-128", "ethos-u55-256"])
    def test_the_arena_has_all_of_the_sram_that_lies_in_one_piece(self, name: str) -> None:
        """Of AN547 the 4 MiB at 0x21000000, as the firmware's linker script has it too."""
        chip = fit.load_target(name).chip
        assert chip and chip.ram_kib == 4096
        script = ROOT / "onmetal/bundles/templates/firmware/ports/mps3_an547/memory.ld"
        region = re.search(r"SRAM .*ORIGIN = 0x21000000, LENGTH = (\d+)M", script.read_text())
        assert region and int(region[1]) * 1024 == chip.ram_kib

    def test_it_needs_no_float(self) -> None:
        found = read(CHIP, "chip.toml")
        assert [recipe.name for recipe in found.recipes] == ["int8"]
        assert found.micro and not fit.load_target("tflite-x86").micro

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ("serial", "local", "transport 'serial' and the runtime 'tflm' go together"),
            ('"cortex-m4"', '"cortex-m99"', "cortex-m99"),
            ("ram_kib = 640", "ram_kib = 0", "ram_kib"),
            ("ram_kib = 640", "ram_kib = 640, application_ram_kib = 640", "nothing of ram_kib"),
            (
                "flash_kib = 2048",
                "flash_kib = 2048, application_flash_kib = 4096",
                "nothing of flash_kib",
            ),
            ('activation = "s8"', 'activation = "u8"', "other than TFLite's"),
            ('method = "static",', 'method = "dynamic",', "no step 'static'"),
            ('name = "int8",', 'name = "int8", split = "yes",', "bool"),
        ],
    )
    def test_what_contradicts_itself_is_refused(self, old: str, new: str, said: str) -> None:
        assert CHIP.count(old) == 1
        with pytest.raises(UsageError, match=re.escape(said)):
            read(CHIP.replace(old, new), "chip.toml")

    def test_the_runtime_stands_alone(self) -> None:
        head, _, tail = changed('"openvino"\n\n', '"tflm"\n\n').partition(
            '[[recipes]]\nname = "bf16"'
        )
        text = head.replace('["onnxruntime", "openvino"]', '["onnxruntime", "tflm"]')
        with pytest.raises(UsageError, match="'tflm' stands beside others"):
            read(text + tail[tail.index("[limits]") :], "board.toml")

    def test_an_npu_needs_a_chip_and_a_chip_needs_the_runtime(self) -> None:
        npu = 'npu = { accelerator = "ethos-u55-128", system_config = "A", memory_mode = "B" }\n'
        head = "\n".join(line for line in CHIP.splitlines() if not line.startswith("chip"))
        with pytest.raises(UsageError, match=r"\[npu\] needs a \[chip\]"):
            read(f"{head}\n{npu}", "chip.toml")
        with pytest.raises(UsageError, match="of microcontrollers"):
            read(BOARD + "[chip]\n" + _table(CHIP), "board.toml")
        with pytest.raises(UsageError, match="system_config"):
            read(CHIP + npu.replace('"A"', '"../a.ini"'), "chip.toml")

    def test_only_a_static_recipe_of_tflm_is_split(self) -> None:
        text = STATIC.replace('method = "static"', 'method = "static"\nsplit = true')
        with pytest.raises(UsageError, match="'split', which runs on tflm alone"):
            read(with_recipe(text), "board.toml")


def _table(text: str) -> str:
    line = next(line for line in text.splitlines() if line.startswith("chip"))
    inside = line.partition("{")[2].rpartition("}")[0]
    return "\n".join(part.strip() for part in inside.split(",")) + "\n"
