"""The C example of a bundle: compiled with all warnings, and run through the real libraries."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import helper

from onmetal.bundles.kinds import c_example
from onmetal.errors import UnsupportedError
from onmetal.records import Candidate, Tensor
from onmetal.runtimes import spec
from onmetal.texts.quoting import c_string
from tests import deployed, onnx_models
from tests.deployed import Deployments

STRICT = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")
LIBRARIES = {"litert": "libLiteRt.so", "onnxruntime": "capi/libonnxruntime.so*"}
CROSS = "aarch64-linux-gnu-gcc"


@pytest.fixture(scope="module", params=deployed.KINDS)
def bundle(
    request: pytest.FixtureRequest,
    deployments: Deployments,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    kind = request.param
    folder = Path(shutil.copytree(deployments(kind), tmp_path_factory.mktemp("c") / kind))
    unpack(written(folder), folder)
    return folder


def written(bundle: Path) -> dict[str, bytes]:
    golden, tolerance = deployed.golden(bundle), deployed.tolerance(bundle)
    return c_example.files(deployed.candidate(bundle), golden, tolerance)


def unpack(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def library(runtime: str) -> Path:
    spec = find_spec({"litert": "ai_edge_litert"}.get(runtime, runtime))
    assert spec and spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0]).glob(LIBRARIES[runtime]))


def compiled(folder: Path, compiler: str = "cc", *flags: str) -> Path:
    assert shutil.which(compiler), f"{compiler} is missing: apt-get install gcc gcc-{CROSS[:-4]}"
    program = folder / f"example-{compiler}"
    done = subprocess.run(
        [compiler, *(flags or STRICT), "example.c", "-o", program, "-ldl", "-lm"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return program


def run(program: Path, runtime: str, bundle: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, library(runtime), bundle], capture_output=True, text=True)


def prepared(candidate: Candidate, golden: dict[str, np.ndarray], folder: Path) -> Path:
    """A folder with the artifact and the example."""
    folder.mkdir()
    for file in candidate.files:
        shutil.copyfile(file, folder / file.name)
    unpack(c_example.files(candidate, golden, 1e-4), folder)
    return folder


class TestTheExample:
    def test_gives_the_golden_vectors(self, bundle: Path) -> None:
        done = run(compiled(bundle), deployed.candidate(bundle).runtime, bundle)
        assert done.returncode == 0, done.stderr
        assert "4 golden vectors agree" in done.stdout
        assert "p50" in done.stdout and "p90" in done.stdout

    def test_does_to_the_last_digits_what_run_py_does(self, bundle: Path, tmp_path: Path) -> None:
        """Which the tolerance of integers would hide: here both have one library and one CPU."""
        candidate = deployed.candidate(bundle)
        folder = prepared(candidate, deployed.golden(bundle), tmp_path / "strict")
        done = run(compiled(folder), candidate.runtime, folder)
        assert done.returncode == 0, done.stderr
        turned = ".channels_last = true" in (folder / "example.c").read_text()
        assert turned == bundle.name.endswith("nhwc")

    def test_says_where_they_are_not_given(self, bundle: Path, tmp_path: Path) -> None:
        candidate, golden = deployed.candidate(bundle), deployed.golden(bundle)
        name = candidate.model.outputs[0].name
        golden[f"output/{name}/1"] = golden[f"output/{name}/1"] * np.float32(1.01)
        folder = prepared(candidate, golden, tmp_path / "wrong")
        done = run(compiled(folder), candidate.runtime, folder)
        assert done.returncode == 1
        assert f"{name} is off by" in done.stderr and "golden vector 1, output 0" in done.stderr

    def test_compiles_for_64_bit_arm(self, bundle: Path) -> None:
        content = compiled(bundle, CROSS).read_bytes()
        assert content[:4] == b"\x7fELF" and content[18] == 183  # EM_AARCH64

    def test_compiles_and_runs_as_it_says_itself(self, bundle: Path) -> None:
        lines = [line[2:].strip() for line in (bundle / "example.c").read_text().splitlines()]
        commands = [line for line in lines if line.startswith(("cc ", "../example "))]
        done = subprocess.run(
            ["sh", "-ec", "\n".join(commands)],
            cwd=bundle,
            env={"PATH": os.defpath, "PYTHON": sys.executable, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        assert len(commands) == 2 and done.returncode == 0, done.stderr
        assert "golden vectors agree" in done.stdout

    def test_frees_what_it_takes(self, bundle: Path) -> None:
        """Of its own memory; and does nothing undefined."""
        flags = ("-std=c11", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
        program = compiled(bundle, "cc", *flags)
        done = subprocess.run(
            [program, library(deployed.candidate(bundle).runtime), bundle],
            env={"ASAN_OPTIONS": "detect_leaks=0"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]

    def test_is_the_same_again(self, bundle: Path) -> None:
        assert written(bundle) == written(bundle)

    def test_pins_what_was_measured(self, bundle: Path) -> None:
        candidate = deployed.candidate(bundle)
        pinned = f"{spec(candidate.runtime).packages[0]}=={candidate.runtime_version}"
        assert written(bundle)["requirements.txt"].decode() == f"numpy>=1.26\n{pinned}\n"


class TestRefusals:
    def test_are_said(self, bundle: Path, tmp_path: Path) -> None:
        program, runtime = compiled(bundle), deployed.candidate(bundle).runtime
        for arguments, part in (
            ((), "usage"),
            (("/no/such.so", bundle), "cannot be loaded"),
            (("libm.so.6", bundle), "the library has no"),
            ((library(runtime), tmp_path), "failed"),
        ):
            done = subprocess.run([program, *arguments], capture_output=True, text=True)
            assert done.returncode == 2 and part in done.stderr

    def test_a_vector_of_another_size_is_one(self, bundle: Path, tmp_path: Path) -> None:
        candidate, golden = deployed.candidate(bundle), deployed.golden(bundle)
        folder = prepared(candidate, golden, tmp_path / "short")
        (folder / "example-golden/input-0-0.bin").write_bytes(b"\0" * 7)
        done = run(compiled(folder), candidate.runtime, folder)
        assert done.returncode == 2 and "input-0-0.bin does not have" in done.stderr

    def test_types_that_it_does_not_know(self, bundle: Path) -> None:
        candidate = deployed.candidate(bundle)
        first, *others = candidate.model.inputs
        odd = Tensor(first.name, "uint16", first.shape)
        model = replace(candidate.model, inputs=(odd, *others))
        with pytest.raises(UnsupportedError, match="uint16"):
            c_example.files(replace(candidate, model=model), deployed.golden(bundle), 1e-4)


class TestNames:
    def test_do_not_break_out(self, deployments: Deployments, tmp_path: Path) -> None:
        """And are the ones that the runtime knows: the model itself has them."""
        one, two, out = deployed.HOSTILE
        model = onnx_models.add([2, 3], [2, 3], [2, 3])
        for part, name in ((model.graph.input[0], one), (model.graph.input[1], two)):
            part.name = name
        model.graph.node[0].input[:] = [one, two]
        model.graph.node[0].output[:] = [model.graph.output[0].name]
        model.graph.node[0].output[0] = model.graph.output[0].name = out
        arrays = {n: np.ones((2, 3), np.float32) * i for i, n in enumerate((one, two), 1)}
        golden = {f"input/{name}/0": array for name, array in arrays.items()}
        golden[f"output/{out}/0"] = np.full((2, 3), 3, np.float32)
        base = deployed.candidate(deployments("onnxruntime-fp32"))
        path = onnx_models.save(model, tmp_path / "model.onnx")
        tensors = tuple(Tensor(name, "float32", (2, 3)) for name in (one, two, out))
        entry = replace(base.model, inputs=tensors[:2], outputs=tensors[2:])
        candidate = replace(base, files=(path,), model=entry)
        folder = prepared(candidate, golden, tmp_path / "hostile")
        assert (folder / "example.c").read_bytes().isascii()
        done = run(compiled(folder), "onnxruntime", folder)
        assert done.returncode == 0, done.stderr

    def test_literals(self) -> None:
        assert c_string('a"\\?\n1é') == r'"a\042\134\077\0121\303\251"'


class TestOtherTypes:
    def test_of_16_bits_are_quantized(self, deployments: Deployments, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(deployments("litert-int16x8"), tmp_path / "bundle"))
        unpack(written(folder), folder)
        assert ".stored = INT16" in (folder / "example.c").read_text()
        done = run(compiled(folder), "litert", folder)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("dtype", ["int64", "int32", "float64", "uint8", "int8", "bool"])
    def test_are_handed_over(self, dtype: str, deployments: Deployments, tmp_path: Path) -> None:
        array = np.array([[1, 0, 3], [7, 5, 6]]).astype(dtype)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        model = onnx_models.build(
            [onnx_models.node("Transpose", "x", "y", perm=[1, 0])],
            [onnx_models.value("x", [2, 3], kind)],
            [onnx_models.value("y", [3, 2], kind)],
        )
        base = deployed.candidate(deployments("onnxruntime-fp32"))
        path = onnx_models.save(model, tmp_path / "model.onnx")
        entry = replace(
            base.model, inputs=(Tensor("x", dtype, (2, 3)),), outputs=(Tensor("y", dtype, (3, 2)),)
        )
        candidate = replace(base, files=(path,), model=entry)
        golden = {"input/x/0": array, "output/y/0": array.T}
        folder = prepared(candidate, golden, tmp_path / "typed")
        assert run(compiled(folder), "onnxruntime", folder).returncode == 0

    def test_every_option_of_onnx_runtime_is_set(
        self, deployments: Deployments, tmp_path: Path
    ) -> None:
        base = deployed.candidate(deployments("onnxruntime-fp32"))
        more = {
            "enable_mem_pattern": False,
            "enable_cpu_mem_arena": True,
            "use_deterministic_compute": True,
            "graph_optimization_level": "ORT_ENABLE_BASIC",
            "session.set_denormal_as_zero": "1",
        }
        candidate = replace(base, options={**base.options, **more})
        golden = deployed.golden(base.files[0].parent)
        folder = prepared(candidate, golden, tmp_path / "options")
        source = (folder / "example.c").read_text()
        assert "CALL(DisableMemPattern, options);" in source
        assert 'CALL(AddSessionConfigEntry, options, "session.set_denormal_as_zero"' in source
        assert run(compiled(folder), "onnxruntime", folder).returncode == 0
        for wrong in ({"no_such": 1}, {"execution_mode": "ORT_SIDEWAYS"}):
            with pytest.raises(UnsupportedError, match=next(iter(wrong))):
                c_example.files(replace(base, options=wrong), golden, 1e-4)
