"""Models in OpenVINO's IR: what is read of them, and what is refused."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onmetal.errors import OnmetalError
from tests.deploy_runs import MODEL, Run
from tests.imported_models import Read

Refused = Callable[..., str]

WRITE = """
import sys
import openvino
model = openvino.Core().read_model(sys.argv[1])
openvino.save_model(model, sys.argv[2], compress_to_fp16=False)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as OpenVINO writes it, its batch free."""
    target = tmp_path_factory.mktemp("ir") / "digits.xml"
    subprocess.run([sys.executable, "-c", WRITE, MODEL, target], check=True, capture_output=True)
    return target


def test_it_is_read_with_static_shapes(written: Path, read: Read) -> None:
    found, original = read(written), read(MODEL)
    assert (found.format, found.graph_format, found.batch) == ("openvino_ir", "openvino_ir", 1)
    assert found.inputs == original.inputs and found.outputs == original.outputs
    assert found.macs == original.macs
    assert found.size_bytes == sum(
        written.with_suffix(suffix).stat().st_size for suffix in (".xml", ".bin")
    )
    assert any("free batch axis" in note for note in found.notes)
    assert read(written).sha256 == found.sha256
    assert found.imported is None and found.quantized == 0


def test_it_is_deployed_by_openvino_alone(written: Path, run_here: Run) -> None:
    code, found = run_here(written, "--target", "x86-64", "--no-device")
    assert code == 0
    candidates = {entry["name"]: entry for entry in found["candidates"]}
    assert found["chosen"].endswith("@openvino")
    assert min(candidates["fp32@openvino"]["fidelity"]["sqnr_db"].values()) > 100
    assert candidates["fp32@litert"]["reason"] == "LiteRT does not read OpenVINO IR models"
    assert "give the model that it was made from" in candidates["int8-u8s8@openvino"]["reason"]


def test_another_target_says_that_it_cannot_run_it(written: Path, run_here: Run) -> None:
    code, found = run_here(written, "--target", "cortex-m7", "--no-device")
    assert code == 3 and "OpenVINO IR" in found["error"]["message"]


def test_shapes_are_given_as_for_any_model(written: Path, read: Read, refused: Refused) -> None:
    (given,) = read(written).inputs
    found = read(written, **{given.name: (4, *given.shape[1:])})
    assert found.inputs[0].shape[0] == 4 and found.batch == 4
    assert "no such input" in refused(written, nothing=(1, 2))
    refused(written, **{given.name: (1, 3)})


def test_weights_that_are_missing(written: Path, tmp_path: Path, refused: Refused) -> None:
    alone = tmp_path / "alone.xml"
    shutil.copyfile(written, alone)
    assert "alone.bin: there is no such file, which holds the weights" in refused(alone)


def test_a_damaged_file_is_refused(written: Path, tmp_path: Path, read: Read) -> None:
    content = written.read_bytes()
    damaged = tmp_path / "damaged.xml"
    shutil.copyfile(written.with_suffix(".bin"), damaged.with_suffix(".bin"))
    random = np.random.default_rng(0)
    for cut in random.integers(8, len(content) - 10, 6):
        damaged.write_bytes(content[:cut])
        with pytest.raises(OnmetalError) as error:
            read(damaged)
        assert error.value.exit_code in (2, 3)
    damaged.write_bytes(b"<?xml version='1.0'?><html></html>")
    with pytest.raises(OnmetalError):
        read(damaged)
    damaged.write_bytes(content)
    damaged.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(OnmetalError):
        read(damaged)
