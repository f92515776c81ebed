"""Exported programs of PyTorch as models: what is read of them, and what is refused."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onmetal.converters.torch_export import checks
from onmetal.errors import UsageError
from tests.imported_models import Read

Refused = Callable[..., str]


def test_a_program_is_read_as_pytorch_computes_it(of_torch: Path, read: Read) -> None:
    found = read(of_torch / "cnn.pt2")
    assert (found.format, found.graph_format, found.batch) == ("torch_export", "onnx", 1)
    assert [(t.name, t.dtype, t.shape) for t in found.inputs] == [
        ("image", "float32", (1, 3, 16, 16))
    ]
    assert [t.shape for t in found.outputs] == [(1, 10)]
    assert found.imported and found.imported.largest_difference <= 1e-5
    assert "PyTorch 2" in found.imported.by
    assert read(of_torch / "cnn.pt2", image=(3, 3, 16, 16)).batch == 3


def test_a_recurrent_model_is_one_operator(of_torch: Path, read: Read) -> None:
    found = read(of_torch / "lstm.pt2")
    assert found.operators["LSTM"] == 1
    assert [t.shape for t in found.outputs] == [(1, 4), (1, 5)]


@pytest.mark.parametrize(
    ("name", "shapes", "output"),
    [
        ("used.pt2", {}, (2, 10)),  # its example was used by an exporter before
        ("sizes.pt2", {"steps": (3, 8, 6)}, (3, 4)),  # sizes that are written as Mul(…)
        ("gathered.pt2", {}, (2, 4)),  # its outputs are in a class of its program's own
    ],
)
def test_what_other_programs_hold_is_read(
    of_torch: Path, read: Read, name: str, shapes: dict[str, Any], output: tuple[int, ...]
) -> None:
    found = read(of_torch / name, **shapes)
    assert found.outputs[0].shape == output
    assert found.imported and found.imported.largest_difference <= 1e-5


def test_training_mode_is_named(of_torch: Path, refused: Refused) -> None:
    said = refused(of_torch / "training.pt2")
    assert "exported in training mode" in said and "batch_norm" in said and "model.eval()" in said


class Harm:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def changed(source: Path, target: Path, **members: Callable[[bytes], bytes]) -> Path:
    """A copy of a .pt2 file, some members (`a__b` of `a/b`) changed or added."""
    changes = {name.replace("__", "/").replace("_json", ".json"): c for name, c in members.items()}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        top = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            content, own = old.read(name), name.removeprefix(f"{top}/")
            new.writestr(name, changes.pop(own)(content) if own in changes else content)
        for name, change in changes.items():
            new.writestr(f"{top}/{name}", change(b""))
    return target


def pickled(value: object) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value))
    return content.getvalue()


def test_a_pickle_with_an_effect_is_refused_and_not_run(
    of_torch: Path, tmp_path: Path, refused: Refused
) -> None:
    with zipfile.ZipFile(of_torch / "cnn.pt2") as archive:
        top = archive.namelist()[0].partition("/")[0]
        members = {name: archive.read(name) for name in archive.namelist()}
    members[f"{top}/{checks.SAMPLES}"] = pickled(Harm(tmp_path / "harm"))
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert "posix mkdir" in refused(path)
    assert not (tmp_path / "harm").exists()


def json_with(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def changed_json(content: bytes) -> bytes:
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return changed_json


def first_node(**entry: Any) -> Callable[[bytes], bytes]:
    return json_with(lambda d: d["graph_module"]["graph"]["nodes"][0].update(entry))


def structured(key: str, **entry: Any) -> Callable[[bytes], bytes]:
    """Exchange what the inputs or outputs are gathered in."""

    def change(document: Any) -> None:
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        protocol, structure = json.loads(signature[key])
        structure.update(entry)
        signature[key] = json.dumps([protocol, structure])

    return json_with(change)


IMPORTS = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "y"})
"""PyTorch would import that module."""


def pickled_weight(document: Any) -> None:
    next(iter(document["config"].values()))["use_pickle"] = True


def lost_weight(document: Any) -> None:
    next(iter(document["config"].values()))["path_name"] = "../../etc/passwd"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"models__model_json": first_node(target="torch.hub.load")}, "'torch.hub.load'"),
        ({"models__model_json": first_node(target="os.system")}, "'os.system'"),
        ({"models__model_json": first_node(target="torch.ops.ours.harm")}, "torch.ops.ours.harm"),
        (
            {"models__model_json": first_node(more={"expr_str": "__import__('os').mkdir('x')"})},
            "is no expression of sizes",
        ),
        ({"models__model_json": first_node(more={"as_custom_obj": {"a": 1}})}, "a custom object"),
        ({"models__model_json": lambda content: content[:500]}, "it is damaged"),
        ({"models__model_json": structured("in_spec", type="ours.Inputs")}, "'ours.Inputs'"),
        ({"models__model_json": structured("in_spec", context=IMPORTS)}, "'builtins.tuple'"),
        ({"models__model_json": structured("in_spec", context=f"[{IMPORTS}]")}, "builtins.tuple"),
        ({"models__model_json": structured("out_spec", children_spec=3)}, "it is damaged"),
        ({"data__weights__model_weights_config_json": json_with(pickled_weight)}, "is a pickle"),
        (
            {"data__weights__model_weights_config_json": json_with(lost_weight)},
            "is not in the file",
        ),
        (
            {"data__constants__custom_obj_0": lambda _: b"\x80\x02."},
            "'data/constants/custom_obj_0'",
        ),
        ({"data__aotinductor__model.so": lambda _: b"\x7fELF"}, "compiled code"),
        ({"archive_format": lambda _: b"pt3"}, "another format than 'pt2'"),
    ],
)
def test_what_is_not_a_graph_of_pytorch_is_refused(
    of_torch: Path,
    tmp_path: Path,
    refused: Refused,
    members: dict[str, Callable[[bytes], bytes]],
    said: str,
) -> None:
    assert said in refused(changed(of_torch / "cnn.pt2", tmp_path / "harm.pt2", **members))


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("s0", True),
        ("2*s77 + Max(1, u0)", True),
        ("Symbol('s40', positive=True, integer=True)", True),
        ("FloorDiv(s0, 2)", True),
        ("Add(FloorDiv(Mul(Integer(4), Symbol('s6', integer=True)), Integer(2)), s1)", True),
        ("Float('1.5', precision=53)", True),
        ("Float('1.real', precision=53)", False),
        ("1 .real", False),
        ("().__class__", False),
        ("exit()", False),
        ("s0.__class__", False),
        ("lambda: 1", False),
        ("open('x')", False),
    ],
)
def test_only_expressions_of_sizes_are_evaluated(text: str, fine: bool) -> None:
    graph = {"a": [{"expr_str": text}]}
    if fine:
        checks._check_graph(graph, Path("model.pt2"))
        return
    with pytest.raises(UsageError, match="no expression of sizes"):
        checks._check_graph(graph, Path("model.pt2"))
