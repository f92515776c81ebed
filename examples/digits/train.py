"""Train the small digits CNN of this folder and write the model and its data.

    pip install torch==2.13.0 onnx==1.23.2 numpy==2.4.6 scikit-learn==1.9.1
    python train.py [output folder; without it, the folder of this file]

Prints the test accuracy and writes digits_cnn.onnx, digits.npz (x, y: 600 test images that
training never sees) and calibration.npz (x: 256 training images). Half a minute on one core.
"""

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

EPOCHS, BATCH, WIDTH = 40, 64, 40


def conv(cin: int, cout: int, kernel: int, pad: int, **more: int) -> nn.Sequential:
    layer = nn.Conv2d(cin, cout, kernel, padding=pad, bias=False, **more)
    return nn.Sequential(OrderedDict(conv=layer, norm=nn.BatchNorm2d(cout), relu=nn.ReLU()))


class Residual(nn.Module):  # type: ignore[misc, unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(WIDTH, WIDTH, 3, 1), conv(WIDTH, WIDTH, 3, 1)[:2]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(x + self.second(self.first(x)))


def build() -> nn.Module:
    parts = {f"block{number}": Residual() for number in (1, 2, 3)}
    parts["depthwise"] = conv(WIDTH, WIDTH, 3, 1, stride=2, groups=WIDTH)
    parts["pointwise"] = conv(WIDTH, 2 * WIDTH, 1, 0)
    parts |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(2 * WIDTH, 10)}
    return nn.Sequential(OrderedDict(stem=conv(1, WIDTH, 3, 2), **parts))  # 8x8 image, 10x10 maps


def fit(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """AdamW with a one-cycle rate; every batch is shifted at random by up to one pixel."""
    steps = len(x) // BATCH
    adam = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 5e-3, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        for pick in torch.randperm(len(x)).split(BATCH)[:steps]:
            top, left = torch.randint(3, (2,)).tolist()
            moved = nn.functional.pad(x[pick], (1, 1, 1, 1))[:, :, top : top + 8, left : left + 8]
            adam.zero_grad()
            nn.functional.cross_entropy(model(moved), y[pick], label_smoothing=0.05).backward()
            adam.step()
            schedule.step()


def main(folder: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = load_digits()
    images, labels = (data.images[:, None] / 16).astype("float32"), data.target.astype("int64")
    split = train_test_split(images, labels, test_size=600, stratify=labels, random_state=0)
    x, x_test, y, y_test = map(torch.from_numpy, split)
    fit(model := build(), x, y)
    correct = int((model.eval()(x_test).argmax(1) == y_test).sum())
    print(f"test accuracy {correct}/{len(y_test)} = {correct / len(y_test):.4f}")
    np.savez_compressed(folder / "digits.npz", x=x_test.numpy(), y=y_test.numpy())
    np.savez_compressed(folder / "calibration.npz", x=x[:256].numpy())
    options = {"opset_version": 17, "input_names": ["image"], "output_names": ["logits"]}
    options["dynamic_axes"] = {"image": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(model, (x[:1],), folder / "digits_cnn.onnx", dynamo=False, **options)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
