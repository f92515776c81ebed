"""Converters and the modules that go with a runtime: complete, alike, and repeatable."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from onmetal import runtimes, targets
from onmetal.calibration import samples, steps
from onmetal.calibration.calibrated import CalibratedModel
from onmetal.converters.onnx import reference
from onmetal.deploy import model
from onmetal.deploy.convert import convert
from onmetal.errors import UnsupportedError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.local_worker import LocalWorker, quiet_environment
from onmetal.records import Candidate, Model
from onmetal.runtimes import fit, reading, run_tail, running
from onmetal.targets import Recipe, Runtime
from tests import onnx_models
from tests.conftest import DIGITS, ROOT

NAMED = sorted(
    {runtime.name for name in targets.names() for runtime in fit.load_target(name).runtimes}
)
TARGET = fit.load_target("x86-64")


def test_every_runtime_that_a_target_names_is_a_folder() -> None:
    assert sorted(runtimes.RUNTIMES) == NAMED
    for name in NAMED:
        assert {"spec.py", "convert.py", "session.py", "profile.py"} <= {
            path.name for path in (ROOT / "runtimes" / name).iterdir()
        }


@pytest.mark.parametrize("name", NAMED)
def test_a_runtime_imports_what_it_says(name: str) -> None:
    """Types are checked against the Protocol; these are found when they are called."""
    known = runtimes.runtime(name)
    known.wrong_in_8_bits()
    for part in (known.converter(), known.profiler(), known.session()):
        assert part is not None
    assert (known.inner() is None) == (not known.spec.own_suffixes)
    assert (known.quantizer() is None) == (not known.spec.quantizer_package)
    assert (known.firmware() is None) == (not known.spec.in_firmware)


@pytest.mark.parametrize("name", NAMED)
def test_a_converter_is_what_the_protocol_says(name: str) -> None:
    found = runtimes.for_runtime(name)
    assert found.VERSION >= 1
    assert isinstance(found.OPTIONS, dict) and found.OPTIONS.keys() >= found.RESERVED
    assert isinstance(found.ALONE, bool)
    wanted = ["prepared", "compute", "folder", "hardware"]
    assert list(inspect.signature(found.convert).parameters) == wanted
    assert list(inspect.signature(found.options).parameters) == ["compute", "threads"]
    assert list(inspect.signature(found.describe).parameters) == ["path"]


@pytest.mark.parametrize("name", NAMED)
def test_what_a_converter_sets_may_be_set(name: str) -> None:
    found = runtimes.for_runtime(name)
    for compute in ("f32", "f16", "bf16"):
        options = found.options(compute, 3)
        assert options.keys() <= found.OPTIONS.keys()
        assert runtimes.misfits(name, options) == []
        assert 3 in options.values() or name == "tflm"  # which computes in one thread
        json.dumps(options)


@pytest.mark.parametrize("name", NAMED)
def test_a_runner_and_a_profile_offer_what_the_worker_asks_for(name: str) -> None:
    session = runtimes.runtime(name).session().Session
    wanted = ["files", "options", "inputs", "outputs"]
    assert list(inspect.signature(session).parameters) == wanted
    run = vars(session)["run"]
    assert list(inspect.signature(run).parameters)[:2] == ["self", "feed"]
    profile = runtimes.runtime(name).profiler().profile
    assert list(inspect.signature(profile).parameters) == ["feed", *wanted]


@pytest.mark.parametrize("name", NAMED)
def test_a_run_py_is_what_runs_in_workers(name: str) -> None:
    """Between the parts that all have stands the session, word by word."""
    text = running.program(name).decode()
    session = (ROOT / "runtimes" / name / "session.py").read_text()
    code = session.split("# run.py: the session\n")[1].strip()
    assert text.count(code) == 1
    assert text.endswith(Path(run_tail.__file__).read_text().split(running.TAIL)[1])
    assert "# run.py:" not in text and "@@" not in text
    compile(text, "run.py", "exec")


def test_openvino_knows_every_option_that_may_be_set() -> None:
    code = (
        "from onmetal.runtimes.openvino.session import openvino; import json;"
        "core = openvino.Core();"
        "print(json.dumps(sorted(core.get_property('CPU', 'SUPPORTED_PROPERTIES'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert set(json.loads(done.stdout)) >= runtimes.for_runtime("openvino").OPTIONS.keys()


def test_onnxruntime_knows_every_option_that_may_be_set() -> None:
    onnxruntime = vars(reference)["onnxruntime"]
    for name in runtimes.for_runtime("onnxruntime").OPTIONS:
        assert "." in name or hasattr(onnxruntime.SessionOptions(), name), name


def test_no_option_that_may_be_set_names_a_file() -> None:
    for name in NAMED:
        for option in runtimes.for_runtime(name).OPTIONS:
            lower = option.lower()
            assert not any(word in lower for word in ("path", "file", "dir", "log")), option


@pytest.mark.parametrize("name", targets.names())
def test_the_options_of_every_target_are_known(name: str) -> None:
    runtimes.check_options(fit.load_target(name))


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("option", ["optimized_model_filepath", "CACHE_DIR", "bogus", ""])
def test_an_unknown_option_is_refused(name: str, option: str) -> None:
    target = replace(TARGET, runtimes=(Runtime(name, {option: "x"}),))
    with pytest.raises(UsageError) as refused:
        runtimes.check_options(target)
    assert repr(option) in str(refused.value)
    assert name in str(refused.value)


@pytest.mark.parametrize("name", NAMED)
def test_a_known_option_is_taken(name: str) -> None:
    module = runtimes.for_runtime(name)
    known = sorted(module.OPTIONS.keys() - module.RESERVED)
    if not known:
        assert name in reading("tflite")  # which have none of their own
        return
    option = known[0]
    runtimes.check_options(replace(TARGET, runtimes=(Runtime(name, {option: 1}),)))


def made(
    recipe: Recipe, runtime: str, place: Path, **options: str | int
) -> tuple[Candidate, Model]:
    """A candidate of the example, made from its file with an empty cache at `place`."""
    own = tuple(
        replace(entry, options=options) if entry.name == runtime else entry
        for entry in TARGET.runtimes
    )
    with Cache(place) as cache:
        device = Local(cache)
        read = model.read(DIGITS / "digits_cnn.onnx", {}, None, cache, device)
        target = replace(TARGET, runtimes=own)
        name = f"{recipe.name}@{runtime}"
        made = CalibratedModel(read, target, None, device, cache)
        source = steps.source(made, recipe, runtime)
        return (
            convert(name, read, recipe, runtime, target, 1, device, cache, source),
            read,
        )


def quantized(
    recipe: Recipe, runtime: str, place: Path, path: Path, data: Path, device: Local | None = None
) -> Candidate:
    """A candidate in 8 bits as a deployment makes it, with the cache at `place`."""
    with Cache(place) as cache:
        device = device or Local(cache)
        read = model.read(path, {}, None, cache, device)
        given = samples.load(str(data), read, cache, option="--data", labelled=False)
        made = CalibratedModel(read, TARGET, given, device, cache)
        source = steps.source(made, recipe, runtime)
        name = f"{recipe.name}@{runtime}"
        return convert(name, read, recipe, runtime, TARGET, 1, device, cache, source, given)


WEIGHTS = (".onnx", ".bin", ".tflite")


def same(first: Candidate, second: Candidate) -> None:
    """Of two folders, one content."""
    assert [file.name for file in first.files] == [file.name for file in second.files]
    for one, other in zip(first.files, second.files, strict=True):
        assert one != other
        assert one.read_bytes() == other.read_bytes()
    assert (first.sha256, first.size_bytes) == (second.sha256, second.size_bytes)
    assert first.size_bytes == sum(file.stat().st_size for file in first.files)


def pairs(*, in_float: bool) -> list[Any]:
    """Every recipe with each of its runtimes; not `fast`, which timings decide."""
    return [
        pytest.param(recipe, runtime, id=f"{recipe.name}@{runtime}")
        for recipe in TARGET.recipes
        if (recipe.quantized_by is None) is in_float and recipe.quantized_by != "mixed"
        for runtime in recipe.runtimes
    ]


@pytest.mark.parametrize(("recipe", "runtime"), pairs(in_float=True))
def test_the_same_model_gives_the_same_bytes(recipe: Recipe, runtime: str, tmp_path: Path) -> None:
    first, _ = made(recipe, runtime, tmp_path / "first")
    second, _ = made(recipe, runtime, tmp_path / "elsewhere" / "second")
    same(first, second)
    assert str(tmp_path).encode() not in first.files[0].read_bytes()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for caches, so that each is calibrated for once, with few samples and a model of
    one MatMul in it."""
    folder = tmp_path_factory.mktemp("quantized")
    with np.load(DIGITS / "calibration.npz") as data:
        np.savez(folder / "digits.npz", x=data["x"][:24])
    onnx_models.save(onnx_models.dense(features=128, classes=64), folder / "dense.onnx")
    x = np.random.default_rng(0).random((24, 128), np.float32)
    np.savez(folder / "dense.npz", x=x)
    return folder


class Unrested(Local):
    """Whose helpers serve on, whatever is asked for besides."""

    def worker(self, runtime: str | None = None) -> LocalWorker:
        return LocalWorker(quiet_environment(self.home))


@pytest.fixture(scope="module")
def unrested(home: Path) -> Iterator[Local]:
    with Cache(home / "elsewhere/second") as cache:
        device = Unrested(cache)
        yield device
        device.close()


@pytest.mark.parametrize(("recipe", "runtime"), pairs(in_float=False))
def test_the_same_model_and_samples_give_the_same_bytes(
    recipe: Recipe, runtime: str, home: Path, unrested: Local
) -> None:
    """Whatever else the processes have made before."""
    path, data = DIGITS / "digits_cnn.onnx", home / "digits.npz"
    if not recipe.calibrated:  # made for models of MatMuls
        path, data = home / "dense.onnx", home / "dense.npz"
    first = quantized(recipe, runtime, home / "first", path, data)
    second = quantized(recipe, runtime, home / "elsewhere/second", path, data, unrested)
    same(first, second)
    assert first.details == second.details
    assert str(home).encode() not in first.files[0].read_bytes()
    with_weights = next(file for file in first.files if file.suffix in WEIGHTS)
    assert with_weights.stat().st_size < 0.5 * path.stat().st_size, "it is not in 8 bits"


def test_half_precision_is_about_half_as_large(tmp_path: Path) -> None:
    whole, _ = made(TARGET.recipe("fp32"), "openvino", tmp_path)
    half, _ = made(TARGET.recipe("fp16"), "openvino", tmp_path)
    assert half.size_bytes < 0.65 * whole.size_bytes


def test_a_target_files_options_are_over_the_converters(tmp_path: Path) -> None:
    found, _ = made(TARGET.recipe("fp32"), "openvino", tmp_path, INFERENCE_NUM_THREADS=2)
    assert found.options["INFERENCE_NUM_THREADS"] == 2
    assert found.options["INFERENCE_PRECISION_HINT"] == "f32"
    assert found.details["options"] == found.options


def test_the_users_model_is_left_as_it_is(tmp_path: Path) -> None:
    before = (DIGITS / "digits_cnn.onnx").read_bytes()
    for runtime in NAMED:
        made(TARGET.recipe("fp32"), runtime, tmp_path)
    assert (DIGITS / "digits_cnn.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("runtime", "option", "setting"),
    [
        ("openvino", "PERFORMANCE_HINT", "NONSENSE"),
        ("openvino", "INFERENCE_NUM_THREADS", "many"),
        ("onnxruntime", "graph_optimization_level", "ORT_ENABLE_NONSENSE"),
        ("onnxruntime", "intra_op_num_threads", "many"),
    ],
)
def test_a_setting_that_the_runtime_refuses_is_said(
    runtime: str, option: str, setting: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError) as refused:
        made(TARGET.recipe("fp32"), runtime, tmp_path, **{option: setting})
    assert str(refused.value).startswith(f"{runtime} ")
    assert len(str(refused.value)) > len(runtime) + 20


def test_what_cannot_be_opened_is_not_kept(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UnsupportedError):
            made(TARGET.recipe("fp32"), "openvino", tmp_path, PERFORMANCE_HINT="NONSENSE")
    kinds = {entry.name.partition("-")[0] for entry in (tmp_path / "entries").iterdir()}
    assert kinds == {"model"}
