"""SavedModels as models: what is read of them, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from onmetal.converters.saved_model import checks
from tests.imported_models import Read

Refused = Callable[..., str]


def zipped(folder: Path, target: Path) -> Path:
    return Path(shutil.make_archive(str(target), "zip", folder.parent, folder.name))


def test_a_folder_or_an_archive_is_read_as_tensorflow_computes_it(
    of_tensorflow: Path, tmp_path: Path, read: Read
) -> None:
    for path in (of_tensorflow / "cnn", zipped(of_tensorflow / "cnn", tmp_path / "cnn")):
        found = read(path)
        assert (found.format, found.graph_format, found.stem) == ("saved_model", "onnx", "cnn")
        assert [(t.name, t.shape) for t in found.inputs] == [("image", (1, 16, 16, 3))]
        assert [t.shape for t in found.outputs] == [(1, 10)]
        assert found.imported and found.imported.largest_difference <= 1e-5
        assert "TensorFlow 2" in found.imported.by


def test_several_outputs_keep_their_names(of_tensorflow: Path, read: Read) -> None:
    found = read(of_tensorflow / "doubles")
    assert [t.name for t in found.inputs] == ["x"]
    assert sorted(t.name for t in found.outputs) == ["once", "twice"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("by_python", "EagerPyFunc, which runs Python code"),
        ("reads", "ReadFile, which reads or writes files"),
        ("writes", "WriteFile, which reads or writes files"),
        ("prints", "PrintV2, which reads or writes files"),
    ],
)
def test_what_runs_code_or_touches_files_is_refused(
    of_tensorflow: Path, refused: Refused, name: str, said: str
) -> None:
    assert said in refused(of_tensorflow / name)
    assert not (of_tensorflow / "written").exists() and not (of_tensorflow / "printed").exists()


def copied(of_tensorflow: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(of_tensorflow / "doubles", tmp_path / "model"))


def test_an_operator_that_tensorflow_has_not_is_refused(
    of_tensorflow: Path, tmp_path: Path, refused: Refused
) -> None:
    graph = copied(of_tensorflow, tmp_path) / checks.GRAPH
    graph.write_bytes(graph.read_bytes().replace(b"\x04Relu", b"\x04Rulu"))
    assert "Rulu, which TensorFlow itself does not have" in refused(graph.parent)


def test_a_link_in_it_is_refused(of_tensorflow: Path, tmp_path: Path, refused: Refused) -> None:
    folder = copied(of_tensorflow, tmp_path)
    (folder / "variables/more").symlink_to("/etc/passwd")
    assert "is a link or no regular file" in refused(folder)
    shutil.rmtree(folder / "variables")
    (folder / "variables").symlink_to("/etc")
    assert "is a link or no regular file" in refused(folder)


def test_a_folder_that_is_none_is_refused(tmp_path: Path, refused: Refused) -> None:
    assert "this is a folder" in refused(tmp_path)


def test_an_archive_of_two_is_refused(
    of_tensorflow: Path, tmp_path: Path, refused: Refused
) -> None:
    for name in ("a", "b"):
        shutil.copytree(of_tensorflow / "doubles", tmp_path / "both" / name)
    assert "or several" in refused(zipped(tmp_path / "both", tmp_path / "both"))
