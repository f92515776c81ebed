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

from onmetal.runtimes import RUNTIMES as KNOWN
from onmetal.runtimes import running, spec
from tests.conftest import ROOT

ROOMS = {path.name: path for path in sorted((ROOT / "onmetal").iterdir()) if path.is_symlink()}
"""Folders at the root that are subpackages of onmetal, by the links to them."""
MODULES = {
    f"onmetal/{path.relative_to(ROOT / 'onmetal')}": path
    for path in sorted((ROOT / "onmetal").rglob("*.py"))
    if path.relative_to(ROOT / "onmetal").parts[0] not in ROOMS
} | {
    f"onmetal/{room}/{path.relative_to(place.resolve())}": path
    for room, place in ROOMS.items()
    for path in sorted(place.resolve().rglob("*.py"))
}
HEAVY = {"numpy", "onnx", "onnxruntime", "openvino", "onnx_ir", "nncf", "PIL", "msgspec", "psutil"}
RUNTIMES = {"onnx", "onnxruntime", "openvino", "onnx_ir", "nncf", "ai_edge_litert", "flatbuffers"}
RUNTIMES |= {"tflite_micro"}
RUNNERS = "onmetal/profilers/devices/remote"
BOARD = f"{RUNNERS}/python_runner.py"
"""Runs on a board, with whichever runtime that has; nothing here imports it."""
FACE = ("cli", "commands", "deploy", "bundles", "reports")
"""What runs in the main process."""
EXTRAS = {
    "onmetal/calibration/detection/average_precision.py": ({"pycocotools"}, "detection"),
    "onmetal/runtimes/openvino/nncf_int8.py": ({"nncf"}, "nncf"),
    "onmetal/runtimes/tflm/session.py": ({"tflite-micro"}, "embedded"),
    "onmetal/profilers/devices/board/link.py": ({"pyserial"}, "devices"),
    "onmetal/converters/tf.py": ({"tensorflow-cpu", "tf2onnx"}, "tensorflow"),
    "onmetal/converters/keras/checks.py": ({"h5py"}, "tensorflow"),
    "onmetal/converters/keras/framework.py": ({"keras"}, "tensorflow"),
    "onmetal/converters/saved_model/framework.py": ({"tensorflow-cpu"}, "tensorflow"),
    "onmetal/converters/torch_export/framework.py": ({"torch"}, "torch"),
    "onmetal/converters/torch_export/live.py": ({"torch"}, "torch"),
}
"""The only modules that need one of the extras: the packages, and the extra that has them."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SPELLED = {
    **{"tree_sitter": "tree-sitter", "tree_sitter_kotlin": "tree-sitter-kotlin"},
    **{"PIL": "pillow", "onnx_ir": "onnx-ir", "google": "protobuf", "sklearn": "scikit-learn"},
    **{"ai_edge_litert": "ai-edge-litert", "tflite_runtime": "tflite-runtime"},
    **{"tflite_micro": "tflite-micro", "serial": "pyserial", "tensorflow": "tensorflow-cpu"},
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


def tracked() -> list[str]:
    """Files of the repository that git has, or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git has, so that nothing lands in the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    for name in tracked():
        if (ROOT / name).is_symlink():
            (source / name).symlink_to((ROOT / name).readlink())
        elif (ROOT / name).is_file():
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
    data = {
        name
        for name in tracked()
        if name.split("/")[0] in ("onmetal", *ROOMS) and not (ROOT / name).is_symlink()
    }
    wanted = {name if name.startswith("onmetal/") else f"onmetal/{name}" for name in data}
    assert packaged == wanted
    assert {name for name in wanted if name.endswith(".py")} == {*MODULES}


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


def on_start(path: Path) -> Iterator[str]:
    """Every module that a file imports when it is imported itself, not within its functions."""
    for entry in ast.parse(path.read_text("utf-8")).body:
        if isinstance(entry, ast.Import):
            yield from (name.name for name in entry.names)
        elif isinstance(entry, ast.ImportFrom) and entry.module:
            yield entry.module
            yield from (f"{entry.module}.{name.name}" for name in entry.names)


DOTTED = {
    name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in MODULES
}


def test_the_face_loads_no_runtime_by_any_detour() -> None:
    by = {name: "" for name in MODULES if name.split("/")[1].removesuffix(".py") in FACE}
    waiting = list(by)
    while waiting:
        current = waiting.pop()
        found = set(on_start(MODULES[current]))
        heavy = {other.split(".")[0] for other in found} & RUNTIMES
        assert not heavy, f"{current} loads {heavy}, and is imported by {by[current]}"
        for other in {DOTTED[module] for module in found if module in DOTTED} - by.keys():
            by[other] = current
            waiting.append(other)


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
    return {re.split("[^a-z0-9-]", text)[0] for text in wanted}


def test_every_import_is_a_dependency() -> None:
    older = ("onmetal/runtimes/litert/session.py", BOARD)  # run by it where there is nothing newer
    for name, path in MODULES.items():
        also = EXTRAS[name][0] if name in EXTRAS else set()
        also = also | ({"tflite-runtime"} if name in older else set())
        assert outside(path) - also <= listed(), name


@pytest.mark.parametrize("name", EXTRAS)
def test_what_an_extra_brings_is_in_it_and_in_what_developers_install(name: str) -> None:
    packages, extra = EXTRAS[name]
    assert packages <= outside(MODULES[name])
    assert not packages & listed()
    assert packages <= listed(extra)
    assert packages <= listed("dev"), "tests need them"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.stem)
def test_what_the_tests_import_comes_with_dev(path: Path) -> None:
    assert outside(path) <= listed("dev")


@pytest.mark.parametrize("name", KNOWN)
def test_a_bundles_runner_needs_only_its_runtime_and_numpy(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.py"
    path.write_bytes(running.program(name))
    assert outside(path) == {"numpy", *spec(name).packages}
