"""Runs the code of docs/exporting.md: python tests/exporter_lines.py torch|tensorflow FOLDER

In a process of its own, so that no test's process holds these frameworks. Each block runs in a
folder of its number, in which `expected.npz` then has an input and what the framework gives for it.
"""

import os
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

DOCUMENT = Path(__file__).parent.parent / "docs/exporting.md"
SECTIONS = {
    "torch": ("PyTorch", "Weights alone: state dicts, safetensors", "Hugging Face"),
    "tensorflow": ("Keras", "TensorFlow"),
}


class Block(NamedTuple):
    """A block of code of the document."""

    number: int
    section: str
    language: str
    code: str

    @property
    def file(self) -> str:
        """What it writes: the last name of a model in it."""
        names: list[str] = re.findall(r"model(?:\.\w+|_folder)\b", self.code)
        return [name for name in names if "_" in name or name.split(".")[1] in KINDS][-1]


KINDS = ("onnx", "pt2", "keras", "h5", "tflite")


def blocks(framework: str) -> list[Block]:
    found = re.findall(r"^## ([^\n]+)$|^```(\w+)\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S)
    section = ""
    result: list[Block] = []
    for title, language, code in found:
        section = title or section
        if code:
            result.append(Block(len(result), section, language, code))
    return [block for block in result if block.section in SECTIONS[framework]]


def run(block: Block, place: Path, names: dict[str, Any]) -> None:
    place.mkdir(exist_ok=True)
    os.chdir(place)
    if block.language == "python":
        exec(compile(block.code, f"{DOCUMENT.name}, block {block.number}", "exec"), names)
        return
    python, option, module, *words = shlex.split(block.code)
    assert (python, option) == ("python", "-m")
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__")


def torch(folder: Path) -> None:
    import dataclasses

    import numpy as np
    import safetensors.torch
    import torch
    from torch import nn

    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(8, 10)),
    )
    image = torch.randn(2, 3, 16, 16)

    @dataclasses.dataclass
    class Output:
        logits: torch.Tensor

    torch.export.register_dataclass(Output)

    class Classifier(nn.Module):
        """Takes and gives what models of Hugging Face do."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.last = nn.Embedding(50, 16), nn.Linear(16, 3)
            self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Output:
            padding = attention_mask == 0
            hidden = self.encoder(self.embedding(input_ids), src_key_padding_mask=padding)
            return Output(logits=self.last(hidden[:, 0]))

    classifier = Classifier()
    ids = torch.randint(0, 50, (2, 12))
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[:, 9:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    for block in blocks("torch"):
        place = folder / str(block.number)
        place.mkdir()
        torch.save(network.state_dict(), place / "weights.pth")
        safetensors.torch.save_file(network.state_dict(), place / "weights.safetensors")
        hugging = block.section == "Hugging Face"
        model = (classifier if hugging else network).train()
        run(block, place, {"torch": torch, "model": model, "example": image, "inputs": inputs})
        with torch.no_grad():
            given = classifier.eval()(**inputs).logits if hugging else network.eval()(image)
        arrays = {k: v.numpy() for k, v in (inputs if hugging else {"image": image}).items()}
        np.savez(place / "expected.npz", y=given.numpy(), **arrays)


def tensorflow(folder: Path) -> None:
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers

    keras.utils.set_random_seed(0)
    image = layers.Input((16, 16, 3), name="image")
    hidden = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(image)
    hidden = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(hidden))
    model = keras.Model(image, layers.Dense(10, name="scores")(layers.Dropout(0.5)(hidden)))
    array = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    given = np.asarray(model(array, training=False))
    place = folder
    for block in blocks("tensorflow"):
        # a command converts the folder that the block before it wrote
        place = place if block.language == "bash" else folder / str(block.number)
        run(block, place, {"tf": tf, "model": model})
        if block.language == "bash":
            (folder / str(block.number)).mkdir()
            (place / block.file).rename(folder / str(block.number) / block.file)
        np.savez(folder / str(block.number) / "expected.npz", y=given, image=array)


if __name__ == "__main__":
    {"torch": torch, "tensorflow": tensorflow}[sys.argv[1]](Path(sys.argv[2]).resolve())
