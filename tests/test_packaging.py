"""What is installed, what it imports, and when."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from onmetal import targets
from tests.conftest import ROOT

FOLDERS = {
    "onmetal": ROOT / "onmetal",
    "onmetal/calibration": ROOT / "calibration",
    "onmetal/converters": ROOT / "converters",
    "onmetal/converters/tflite": ROOT / "converters" / "tflite",
    "onmetal/profilers": ROOT / "profilers",
    "onmetal/targets": ROOT / "targets",
}
MODULES = {
    f"{folder}/{path.name}": path
    for folder, place in FOLDERS.items()
    for path in sorted(place.glob("*.py"))
}
HEAVY = {"numpy", "onnx", "onnxruntime", "openvino", "onnx_ir", "nncf", "PIL", "msgspec", "psutil"}
RUNTIMES = {"onnx", "onnxruntime", "openvino", "onnx_ir", "nncf", "ai_edge_litert", "flatbuffers"}
RUNTIMES |= {"tflite_micro"}
ON_GRAPHS = (
    *(
        "compare",
        "compare_tflite",
        "exceptions",
        "exposed",
        "graph",
        "mixed",
        "placement",
        "quantize",
        "sanity",
        "search",
        "sensitivity",
    ),
    *("statistics", "weights"),
)
"""Of calibration, what looks at a model: run in workers alone."""
NATIVE = ROOT / "profilers" / "native"
BOARD = "onmetal/profilers/board_worker.py"
"""Runs on a board, with whichever runtime that has; nothing here imports it."""
ENDS = (".py", "/__init__.py")
LEAVES = (
    *("onmetal/converters/", "onmetal/profilers/run_", "onmetal/profilers/profile_", BOARD),
    *(f"onmetal/calibration/{name}.py" for name in ON_GRAPHS),
)
EXTRAS = {
    "onmetal/converters/nncf_int8.py": ("nncf", "nncf"),
    "onmetal/profilers/run_tflm.py": ("tflite-micro", "embedded"),
    "onmetal/profilers/link.py": ("pyserial", "devices"),
}
"""The only modules that need one of the extras: the package, and the extra that has it."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SPELLED = {
    **{"tree_sitter": "tree-sitter", "tree_sitter_kotlin": "tree-sitter-kotlin"},
    **{"PIL": "pillow", "onnx_ir": "onnx-ir", "google": "protobuf", "sklearn": "scikit-learn"},
    **{"ai_edge_litert": "ai-edge-litert", "tflite_runtime": "tflite-runtime"},
    **{"tflite_micro": "tflite-micro", "serial": "pyserial"},
}
"""Packages that are called otherwise where they are imported."""


def python(code: str, *, cwd: Path, path: Path | None = None) -> str:
    """What a fresh interpreter prints, started away from the repository."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git has, so that nothing lands in the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_symlink():
            (source / name).symlink_to((ROOT / name).readlink())
        elif name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", place, source],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    place = wheel.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return place


def test_the_wheel_has_one_top_level_name(contents: set[str]) -> None:
    tops = {name.split("/")[0] for name in contents}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"onmetal"}
    assert len(tops) == 2


def test_the_wheel_holds_every_module_and_every_target(contents: set[str]) -> None:
    packaged = {name for name in contents if name.startswith("onmetal/")}
    targets = {f"onmetal/targets/{path.name}" for path in (ROOT / "targets").glob("*.toml")}
    native = {f"onmetal/profilers/native/{path.name}" for path in sorted(NATIVE.glob("*.[ch]"))}
    templates = {
        f"onmetal/{path.relative_to(ROOT / 'onmetal')}"
        for path in (ROOT / "onmetal" / "templates").rglob("*")
        if path.is_file()
    }
    assert len(native) > 2 and len(templates) > 5
    assert packaged == {*MODULES, *targets, *native, *templates, "onmetal/py.typed"}
    assert "onmetal/profilers/run_onnxruntime.py" in packaged
    assert "onmetal/profilers/run_openvino.py" in packaged


def test_the_wheel_holds_its_licence(contents: set[str]) -> None:
    assert any(name.endswith("LICENSE") for name in contents)


def test_the_installed_package_works_away_from_the_checkout(
    installed: Path, tmp_path: Path
) -> None:
    code = "import onmetal, onmetal.cli; print(onmetal.__file__); onmetal.cli.main(['targets'])"
    said = python(code, cwd=tmp_path, path=installed)
    assert said.startswith(str(installed))
    for path in (ROOT / "targets").glob("*.toml"):
        assert path.stem in said


def test_the_installed_package_deploys(installed: Path, tmp_path: Path) -> None:
    example = ROOT / "examples" / "digits"
    words = [str(example / "digits_cnn.onnx"), "--target", "x86-64", "--dry-run"]
    code = f"import onmetal.cli; raise SystemExit(onmetal.cli.main({words!r}))"
    assert "fp32@openvino" in python(code, cwd=tmp_path, path=installed)


def test_the_version_is_said_once(wheel: Path) -> None:
    from onmetal import __version__

    assert wheel.name.startswith(f"onmetal-{__version__}-")


@pytest.mark.parametrize(
    "code",
    [
        "import onmetal",
        "import onmetal.cli",
        "import onmetal.errors",
        "from onmetal import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass",
        "from onmetal import cli\ntry: cli.main(['--version'])\nexcept SystemExit: pass",
        "from onmetal import cli\ntry: cli.main(['bench', '--help'])\nexcept SystemExit: pass",
        "from onmetal import cli\ncli.main(['net.onnx', '--bogus'])",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code: str, tmp_path: Path) -> None:
    loaded = "import sys; print('loaded:', *{name.split('.')[0] for name in sys.modules})"
    said = python(f"{code}\n{loaded}", cwd=tmp_path)
    assert not HEAVY & set(said.rpartition("loaded:")[2].split())


def test_the_main_process_loads_no_runtime(tmp_path: Path) -> None:
    example = ROOT / "examples" / "digits"
    words = [str(example / "digits_cnn.onnx"), "--target", "x86-64", "--dry-run", "--data"]
    words.append(str(example / "digits.npz"))
    code = f"import sys, onmetal.cli; onmetal.cli.main({words!r}); print('loaded:', *sys.modules)"
    loaded = {
        name.split(".")[0] for name in python(code, cwd=tmp_path).rpartition("loaded:")[2].split()
    }
    assert "numpy" in loaded
    assert not RUNTIMES & loaded


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for entry in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(entry, ast.Import):
            yield from (name.name for name in entry.names)
        elif isinstance(entry, ast.ImportFrom) and entry.module:
            yield entry.module
            yield from (f"{entry.module}.{name.name}" for name in entry.names)


def own(name: str) -> set[str]:
    """onmetal's modules that a module of it imports."""
    known = {key.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for key in MODULES}
    return {found for found in imported(MODULES[name]) if found in known - {"onmetal"}}


@pytest.mark.parametrize("name", MODULES)
def test_only_leaves_import_a_runtime(name: str) -> None:
    heavy = {found.split(".")[0] for found in imported(MODULES[name])} & RUNTIMES
    assert not heavy or name.startswith(LEAVES)


@pytest.mark.parametrize(
    "name",
    [name for name in MODULES if not name.startswith(LEAVES) or name.endswith("__init__.py")],
)
def test_nothing_but_a_leaf_imports_one_that_loads_a_runtime(name: str) -> None:
    """Else a runtime comes into the main process by a detour."""
    for found in own(name):
        path = next(p for p in (f"{found.replace('.', '/')}{end}" for end in ENDS) if p in MODULES)
        heavy = {other.split(".")[0] for other in imported(MODULES[path])} & RUNTIMES
        assert not heavy, f"{name} imports {found}"


def outside(path: Path) -> set[str]:
    """Packages of others that a file imports, as they are called where they are installed."""
    found = {name.split(".")[0] for name in imported(path)}
    found -= {"onmetal", "tests", *sys.stdlib_module_names}
    return {SPELLED.get(name, name) for name in found}


def listed(*extras: str) -> set[str]:
    """What the package itself depends on, and with these extras."""
    wanted = [*PROJECT["dependencies"]]
    for extra in extras:
        wanted += PROJECT["optional-dependencies"][extra]
    return {re.split("[^a-z-]", text)[0] for text in wanted}


@pytest.mark.parametrize("name", MODULES)
def test_every_import_is_a_dependency(name: str) -> None:
    also = {EXTRAS.get(name, ("", ""))[0]}
    if name in (
        "onmetal/profilers/run_litert.py",
        BOARD,
    ):  # runs by it where there is nothing newer
        also.add("tflite-runtime")
    assert outside(MODULES[name]) - also <= listed()


@pytest.mark.parametrize("name", EXTRAS)
def test_what_an_extra_brings_is_in_it_and_in_what_developers_install(name: str) -> None:
    package, extra = EXTRAS[name]
    assert package in outside(MODULES[name])
    assert package not in listed()
    assert package in listed(extra)
    assert package in listed("dev"), "tests need it"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.stem)
def test_what_the_tests_import_comes_with_dev(path: Path) -> None:
    assert outside(path) <= listed("dev")


def test_imports_go_one_way() -> None:
    assert own("onmetal/errors.py") == set()
    assert own("onmetal/records.py") == set()
    assert own("onmetal/suggest.py") == own("onmetal/terminal.py") == set()
    assert own("onmetal/reading.py") == set()
    below = {"onmetal.errors", "onmetal.reading", "onmetal.suggest"}
    assert own("onmetal/targets/__init__.py") == below
    for name in MODULES:
        if name not in ("onmetal/cli.py", "onmetal/__main__.py"):
            face = {"onmetal.cli", "onmetal.pipeline", "onmetal.beside", "onmetal.inspecting"}
            assert not own(name) & face, name
        if name.count("/") > 1:
            upper = {
                "plan",
                "decide",
                "choice",
                "trials",
                "judge",
                "task",
                "sources",
                "look",
                "fast",
            }
            assert not own(name) & {f"onmetal.{module}" for module in upper}, name


@pytest.mark.parametrize(
    "path", sorted((ROOT / "profilers").glob("run_*.py")), ids=lambda p: p.stem
)
def test_a_bundles_runner_needs_only_its_runtime_and_numpy(path: Path) -> None:
    needed = outside(path)
    assert needed == {"numpy", *targets.packages(path.stem.removeprefix("run_"))}
