"""What programs read: documents are what the record's types say, and the schemas are theirs."""

import json
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from msgspec.structs import replace

from onmetal import cli, records
from onmetal.bundles import write
from onmetal.records import Trial, plain
from onmetal.reports import Form, of_trials, text
from onmetal.reports import json as json_form
from onmetal.reports.command_records import Check
from onmetal.reports.manifest_record import Manifest
from onmetal.reports.record import Candidate, Document, Failure, Report
from onmetal.texts.terminal import PLAIN
from tests import schemas
from tests.conftest import DIGITS, FLOAT, deploy

FORMS: tuple[Form, ...] = (text, json_form)
"""mypy holds each against the Protocol."""
MODEL, DATA = DIGITS / "digits_cnn.onnx", DIGITS / "digits.npz"
WORDS = (MODEL, "--target", "x86-64", "--data", DATA, "--no-device", *FLOAT, "--json")


def test_the_schemas_in_docs_are_those_of_the_record() -> None:
    written = {path.name: path.read_bytes() for path in schemas.FOLDER.glob("*.json")}
    assert written == schemas.schemas(), f"run `{schemas.WRITE}`"


def test_every_schema_is_named_in_docs() -> None:
    page = (schemas.FOLDER.parent / "json.md").read_text("utf-8")
    for name in schemas.schemas():
        assert f"schema/{name}" in page


class Deployed(NamedTuple):
    """A deployment without a device."""

    printed: str
    document: Document
    out: Path


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    out = tmp_path_factory.mktemp("json") / "out"
    ran = deploy(*WORDS, "--out", out)
    assert ran.code == 0, ran.err
    return Deployed(ran.out, msgspec.json.decode(ran.out, type=Document, strict=True), out)


def test_a_document_is_its_record(deployed: Deployed) -> None:
    document = deployed.document
    assert document.bundle == str(deployed.out) and document.chosen
    chosen = document.candidate(document.chosen)
    assert chosen and chosen.status == "chosen" and chosen.accuracy
    assert json_form.render(Report(document), PLAIN).decode() == deployed.printed


def test_a_manifest_is_the_document_and_more(deployed: Deployed) -> None:
    content = (deployed.out / "manifest.json").read_bytes()
    schemas.check(content)
    manifest = msgspec.json.decode(content, type=Manifest, strict=True)
    assert manifest.candidates == deployed.document.candidates
    assert manifest.run.files and manifest.golden.vectors and manifest.files
    assert manifest.device.address == "none" and manifest.unmeasured


def test_text_is_rendered_from_a_document_that_was_read_back(
    deployed: Deployed,
) -> None:
    """A form needs nothing but the record."""
    document = deployed.document
    lines = "\n".join(text.render(Report(document), PLAIN))
    assert lines.startswith("fp32 on ") or lines.startswith("bf16 on ")
    assert "decided by size instead of latency" in lines
    assert lines.endswith(f"The bundle is in {document.bundle}")


def test_a_refused_run_says_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main([*map(str, WORDS), "--max-size", "1kB", "--out", str(out)]) == 5
    printed = schemas.check(capsys.readouterr().out)
    kept = schemas.check((out / write.REPORT).read_bytes())
    for found in (printed, kept):
        document = msgspec.convert(found, Document)
        assert document.chosen is document.bundle is None
        assert isinstance(document.error, Failure) and document.error.code == 5
    assert list(printed) == list(kept)


def test_a_document_that_lacks_something_is_none(deployed: Deployed) -> None:
    """The check itself can fail."""
    built = json.loads(deployed.printed)
    with pytest.raises(msgspec.ValidationError, match="pareto"):
        msgspec.convert({key: part for key, part in built.items() if key != "pareto"}, Document)
    with pytest.raises(AssertionError):
        schemas.check(json.dumps({**built, "unknown": 1}))


# --- trials become records


def test_what_is_no_number_is_null_and_still_the_records() -> None:
    nothing, endless = float("nan"), float("inf")
    trial = Trial(
        *("int8@a", "int8", "a", "m"),
        accuracy=records.Accuracy("f1", nothing, nothing, (-endless, endless), 3),
        sqnr_db={"out": endless},
        equal={"count": nothing},
        slices={"out": records.Slice(1, 2, nothing, (-endless, endless))},
        versus_baseline=records.Versus(nothing, (0.0, endless), "inconclusive"),
        agreement={
            **{"identical": False, "largest_difference": endless, "peak": nothing},
            **{"same_argmax": False, "vectors": 1, "judged_on": "device"},
        },
    )
    text = msgspec.json.encode(of_trials.candidate(trial))
    candidate = msgspec.json.decode(text, type=Candidate, strict=True)
    assert msgspec.json.encode(candidate) == text
    assert candidate.accuracy and candidate.accuracy.drop_ci95 == (None, None)
    assert candidate.versus_baseline and candidate.versus_baseline.ci95 == (0.0, None)
    assert candidate.fidelity and candidate.fidelity.least_db is None


def test_a_key_that_the_record_does_not_have_is_a_defect_and_not_lost() -> None:
    check = {"name": "a", "found": "b", "enables": "c", "fix": None}
    assert of_trials.typed(check, Check) == Check("a", "b", "c")
    with pytest.raises(AssertionError, match="lacks a key"):
        of_trials.typed({**check, "more": 1}, Check)


def test_a_devices_facts_become_its_record() -> None:
    """Tuples of the one are lists of the other, and names may be no UTF-8."""
    more = {"model": "phone \udcff", "soc": None, "meters": ("lpm01a",)}
    facts = records.DeviceFacts(
        *("adb:1", "a cpu", "aarch64", "Android", 4, 1 << 30, False, ("neon",), {"litert": "2"}),
        more=more,
    )
    device = of_trials.device(facts)
    assert (device.flags, device.meters, device.soc) == (["neon"], ["lpm01a"], None)
    assert list(plain(device))[-3:] == ["model", "soc", "meters"]
    assert "accelerators" not in plain(device)
    gpu = records.Accelerator("gpu", "Adreno 740", "0512.762")
    found = plain(of_trials.device(replace(facts, accelerators=(gpu,))))["accelerators"]
    assert found == [plain(gpu)]


def test_names_that_are_no_utf8_are_spelled_out() -> None:
    """As paths have them: the odd byte is a lone surrogate."""
    name = "net\udcff@a"
    document = {"candidates": [plain(of_trials.candidate(Trial(name, "fp32", "a", "net\udcff")))]}
    (entry,) = json.loads(json_form.encode(document))["candidates"]
    assert entry["name"] == "net\\udcff@a"
