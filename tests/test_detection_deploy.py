"""Detectors and segmentation nets deployed, cut and judged from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.deploy_runs import Document, Run, candidates
from tests.detectors import (
    CELL,
    coco,
    pixels,
    save_coco,
    save_masks,
    segmenter,
    squares,
    with_nms,
    yolo,
)

DRAWN = squares(24)
STILL = ("--target", "x86-onnxruntime", "--no-device", "--recipes", "fp32,int8-u8s8")


def accuracy(found: Document, name: str) -> Document:
    entry: Document = candidates(found)[f"{name}@onnxruntime"]["accuracy"]
    return entry


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_coco(tmp_path_factory.mktemp("detection") / "data", DRAWN)


def test_a_yolo_export_is_deployed_by_its_map(run_here: Run, folder: Path, tmp_path: Path) -> None:
    model = yolo(tmp_path / "yolo.onnx")
    words = ("--target", "x86-onnxruntime", "--quick", "--recipes", "fp32")
    code, found = run_here(model, *words, "--data", folder, "--golden", "real")
    assert code == 0
    assert found["chosen"]
    best = accuracy(found, "fp32")
    assert (best["metric"], best["samples"]) == ("map", 24)
    assert best["value"] == pytest.approx(1.0)
    manifest = json.loads((Path(found["bundle"]) / "manifest.json").read_text())
    assert manifest["classes"] == ["red", "green"]


def test_shifted_labels_give_the_known_map_and_int8_keeps_the_boxes(
    run_here: Run, tmp_path: Path
) -> None:
    """Boxes 4 of 16 pixels off: IoU 0.6, so found at 0.5, 0.55 and 0.6 of the ten thresholds; no
    square is at the right edge, where its box would be cut off."""
    inner = [[(c % 3, r, k) for c, r, k in of_image] for of_image in DRAWN]
    apart = [list({(c, r): (c, r, k) for c, r, k in of_image}.values()) for of_image in inner]
    shifted = save_coco(tmp_path / "shifted", apart, shift=CELL / 4 - 0.01)
    model = yolo(tmp_path / "yolo.onnx")
    code, found = run_here(model, *STILL, "--data", shifted, "--metric", "MAP")
    assert code == 0
    assert accuracy(found, "fp32")["value"] == pytest.approx(0.3)
    assert accuracy(found, "int8-u8s8")["value"] == pytest.approx(0.3)
    assert accuracy(found, "int8-u8s8")["drop_ci95"] is not None


def test_nms_in_the_model_and_cut_off_give_the_same_map(
    run_here: Run, folder: Path, tmp_path: Path
) -> None:
    model = with_nms(tmp_path / "nms.onnx")
    code, found = run_here(model, *STILL, "--data", folder)
    assert code == 0
    whole = [accuracy(found, name)["value"] for name in ("fp32", "int8-u8s8")]
    assert whole == pytest.approx([1.0, 1.0])
    words = ("--data", folder, "--cut-at", "boxes,scores", "--out", "cut")
    target = ("--target", "x86-onnxruntime", "--no-device", "--recipes", "fp32")
    code, found = run_here(model, *target, *words)
    assert code == 0
    assert [t["name"] for t in found["models"][0]["outputs"]] == ["boxes", "scores"]
    assert accuracy(found, "fp32")["value"] == pytest.approx(1.0)
    assert "NonMaxSuppression" in found["models"][0]["notes"][0]
    assert any("--cut-at" in text for text in found["data"]["warnings"])
    assert "cut by --cut-at" in Path("cut/README.md").read_text()
    assert "cut by --cut-at" in Path("cut/manifest.json").read_text()


def test_tflite_has_no_nms_and_says_what_to_do(run_here: Run, folder: Path, tmp_path: Path) -> None:
    model = with_nms(tmp_path / "nms.onnx")
    words = ("--target", "tflite-x86", "--no-device", "--recipes", "fp32", "--data", folder)
    code, found = run_here(model, *words)
    assert code == 3
    assert "--cut-at boxes,scores" in found["error"]["message"]
    code, found = run_here(model, *words, "--cut-at", "boxes,scores")
    assert code == 0
    assert candidates(found)["fp32@litert"]["accuracy"]["value"] == pytest.approx(1.0)


def test_a_segmentation_net_is_deployed_by_its_miou(run_here: Run, tmp_path: Path) -> None:
    masks = save_masks(tmp_path / "masks", DRAWN)
    words = ("--target", "x86-onnxruntime", "--recipes", "fp32", "--data", masks)
    code, found = run_here(segmenter(tmp_path / "seg.onnx"), *words, "--quick")
    assert (code, bool(found["chosen"])) == (0, True)
    assert accuracy(found, "fp32") == {
        "metric": "miou", "value": 1.0, "drop": 0.0, "drop_ci95": [0.0, 0.0], "samples": 24
    }  # fmt: skip
    model = segmenter(tmp_path / "numbers.onnx", numbers=True)
    code, found = run_here(model, *words, "--no-device")
    assert (code, accuracy(found, "fp32")["value"]) == (0, 1.0)


def test_boxes_and_masks_in_an_npz_file(run_here: Run, tmp_path: Path) -> None:
    images = np.stack([pixels(of_image).transpose(2, 0, 1) for of_image in DRAWN])
    feed = (images / 255).astype(np.float32)
    boxes = np.full((len(DRAWN), 4, 5), -1, np.float32)
    for number, of_image in enumerate(DRAWN):
        for place, (c, r, k) in enumerate(of_image):
            boxes[number, place] = [c * CELL, r * CELL, (c + 1) * CELL, (r + 1) * CELL, k]
    np.savez(tmp_path / "boxes.npz", x=feed, y=boxes)
    model = yolo(tmp_path / "yolo.onnx")
    words = ("--target", "x86-onnxruntime", "--no-device", "--recipes", "fp32")
    code, found = run_here(model, *words, "--data", tmp_path / "boxes.npz", "--metric", "map")
    assert (code, accuracy(found, "fp32")["value"]) == (0, pytest.approx(1.0))
    red, green = images[:, 0] > 0, images[:, 1] > 0
    masks = np.where(red, 1, np.where(green, 2, 0))
    masks[:, :, 32:] = 0
    np.savez(tmp_path / "masks.npz", x=feed, y=masks)
    model = segmenter(tmp_path / "seg.onnx")
    code, found = run_here(model, *words, "--data", tmp_path / "masks.npz")
    wanted = []
    predicted = np.where(red, 1, np.where(green, 2, 0))
    for number in range(3):
        both, either = (
            ((predicted == number) & (masks == number)).sum(),
            ((predicted == number) | (masks == number)).sum(),
        )
        wanted.append(both / either)
    assert (code, accuracy(found, "fp32")["metric"]) == (0, "miou")
    assert accuracy(found, "fp32")["value"] == pytest.approx(np.mean(wanted))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--metric", "top1"), "is labelled with boxes; give --metric map"),
        (("--metric", "miou"), "is labelled with boxes; give --metric map"),
        (("--cut-at", "conv"), "how to read detections from the outputs 'conv'"),
        (("--cut-at", "logits,boxs"), "computes no tensor"),
        (("--max-accuracy-drop", "5"), "did you mean"),
        (("--metric", "mapp"), "unknown"),
    ],
)
def test_what_does_not_fit_is_told_before_any_long_work(
    run_here: Run, folder: Path, tmp_path: Path, words: tuple[str, ...], reason: str
) -> None:
    model = yolo(tmp_path / "yolo.onnx")
    code, found = run_here(model, *STILL, "--data", folder, *words)
    assert code == 2
    assert reason in found["error"]["message"]


def test_a_detector_that_finds_nothing_is_warned_of(run_here: Run, tmp_path: Path) -> None:
    swapped = 'scale = 0.00392156862745098\nclasses = ["green", "red"]\n'
    wrong = save_coco(tmp_path / "wrong", DRAWN, toml=swapped)
    words = ("--target", "x86-onnxruntime", "--no-device", "--recipes", "fp32")
    code, found = run_here(yolo(tmp_path / "yolo.onnx"), *words, "--data", wrong)
    assert code == 0
    assert accuracy(found, "fp32")["value"] == 0
    assert any("finds hardly anything" in text for text in found["data"]["warnings"])
    assert coco(DRAWN)["categories"][0]["name"] == "red"
