"""What is installed, what it imports, and when."""

import ast
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = {
    "onmetal": ROOT / "onmetal",
    "onmetal/calibration": ROOT / "calibration",
    "onmetal/converters": ROOT / "converters",
    "onmetal/profilers": ROOT / "profilers",
    "onmetal/targets": ROOT / "targets",
}
MODULES = {
    f"{folder}/{path.name}": path
    for folder, place in FOLDERS.items()
    for path in sorted(place.glob("*.py"))
}
HEAVY = {"numpy", "onnx", "onnxruntime", "openvino", "onnx_ir", "PIL", "msgspec", "psutil"}
RUNTIMES = {"onnx", "onnxruntime", "openvino", "onnx_ir"}
LEAVES = ("onmetal/converters/", "onmetal/profilers/run_", "onmetal/profilers/profile_")


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
    assert packaged == {*MODULES, *targets, "onmetal/py.typed"}
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


@pytest.mark.parametrize("name", MODULES)
def test_every_import_is_a_dependency(name: str) -> None:
    said = (ROOT / "pyproject.toml").read_text("utf-8").partition("optional-dependencies")[0]
    spelled = {"PIL": "pillow", "onnx_ir": "onnx-ir", "google": "protobuf"}
    for found in {found.split(".")[0] for found in imported(MODULES[name])}:
        if found != "onmetal" and found not in sys.stdlib_module_names:
            assert f'"{spelled.get(found, found)}>=' in said, found


def test_imports_go_one_way() -> None:
    assert own("onmetal/errors.py") == set()
    assert own("onmetal/records.py") == set()
    assert own("onmetal/targets/__init__.py") == {"onmetal.errors"}
    for name in MODULES:
        if name != "onmetal/cli.py":
            assert not own(name) & {"onmetal.cli", "onmetal.pipeline", "onmetal.beside"}, name
        if name.count("/") > 1:
            upper = {"onmetal.plan", "onmetal.decide", "onmetal.choice", "onmetal.trials"}
            assert not own(name) & (upper | {"onmetal.judge", "onmetal.task"}), name


@pytest.mark.parametrize(
    "path", sorted((ROOT / "profilers").glob("run_*.py")), ids=lambda p: p.stem
)
def test_a_bundles_runner_needs_only_its_runtime_and_numpy(path: Path) -> None:
    needed = {found.split(".")[0] for found in imported(path)} - sys.stdlib_module_names
    assert needed == {"numpy", path.stem.removeprefix("run_")}
