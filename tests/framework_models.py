"""Writes models of TensorFlow or PyTorch: python tests/framework_models.py tensorflow|torch FOLDER

In a process of its own, so that no test's process holds these frameworks.
"""

import dataclasses
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["CUDA_VISIBLE_DEVICES"] = ""


def tensorflow(folder: Path) -> None:
    import keras
    import tensorflow as tf
    from keras import layers

    keras.utils.set_random_seed(0)

    def convolutional() -> keras.Model:
        image = layers.Input((16, 16, 3), name="image")
        hidden = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
        hidden = layers.ReLU(6.0)(layers.BatchNormalization()(hidden))
        hidden = layers.DepthwiseConv2D(3, padding="same", activation="relu")(hidden)
        hidden = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(hidden))
        return keras.Model(image, layers.Dense(10, activation="softmax", name="probs")(hidden))

    network = convolutional()
    network.save(folder / "cnn.keras")
    network.save(folder / "cnn.h5")
    network.save_weights(folder / "only.weights.h5")
    network.export(folder / "cnn", verbose=False)

    ids, mask = layers.Input((12,), dtype="int32", name="ids"), layers.Input((12,), name="mask")
    hidden = layers.LayerNormalization()(layers.Embedding(50, 8)(ids))
    hidden = layers.MultiHeadAttention(2, 4)(hidden, hidden)
    hidden = layers.Multiply()([hidden, layers.Reshape((12, 1))(mask)])
    pooled = layers.GlobalAveragePooling1D()(hidden)
    heads = {"kind": layers.Dense(3)(pooled), "score": layers.Dense(1)(pooled)}
    keras.Model([ids, mask], heads).save(folder / "two.keras")

    steps = layers.Input((8, 6), name="steps")
    keras.Model(steps, layers.Dense(4)(layers.LSTM(5)(steps))).save(folder / "lstm.keras")
    keras.Sequential([layers.Input((4,), name="pixels"), layers.Dense(3, name="scores")]).save(
        folder / "sequential.keras"
    )
    for name, layer in (
        ("gru", layers.GRU(5)),
        ("simple", layers.Bidirectional(layers.SimpleRNN(5))),
        ("stateful", layers.GRU(5, stateful=True)),
    ):
        steps = layers.Input((8, 6), name="steps", batch_size=1 if name == "stateful" else None)
        keras.Model(steps, layers.Dense(4)(layer(steps))).save(folder / f"{name}.keras")
    steps = layers.Input((200, 6), name="steps")
    keras.Model(steps, layers.Dense(4)(layers.GRU(5)(steps))).save(folder / "long.keras")
    free = layers.Input((None, 6), name="steps")
    keras.Model(free, layers.Conv1D(4, 3)(free)).save(folder / "free.keras")

    doubled = layers.Lambda(lambda value: value * 2.0)
    pixels = layers.Input((4,), name="pixels")
    for name in ("lambda.keras", "lambda.h5"):
        keras.Model(pixels, doubled(pixels)).save(folder / name)

    @keras.saving.register_keras_serializable("ours")
    class Doubled(layers.Layer):
        def call(self, value: tf.Tensor) -> tf.Tensor:
            return value * 2.0

    keras.Model(pixels, Doubled()(pixels)).save(folder / "custom.keras")

    def served(name: str, function: object) -> None:
        module = tf.Module()
        signature = tf.function(function, input_signature=[tf.TensorSpec([None, 4], name="x")])
        tf.saved_model.save(module, str(folder / name), signatures=signature)

    def by_python(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.ensure_shape(tf.py_function(lambda v: v, [x], tf.float32), [None, 4])}

    def reads(x: tf.Tensor) -> dict[str, tf.Tensor]:
        size = tf.strings.length(tf.io.read_file("/etc/hostname"))
        return {"y": x + tf.cast(size, tf.float32)}

    def writes(x: tf.Tensor) -> dict[str, tf.Tensor]:
        tf.io.write_file(str(folder / "written"), "harm")
        return {"y": x * 1.0}

    def prints(x: tf.Tensor) -> dict[str, tf.Tensor]:
        tf.print(x, output_stream=f"file://{folder}/printed")
        return {"y": x * 1.0}

    def doubles(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"twice": x * 2.0, "once": tf.nn.relu(x)}

    def swollen(x: tf.Tensor) -> dict[str, tf.Tensor]:
        large = tf.raw_ops.Fill(dims=tf.constant([1 << 29]), value=tf.constant(0.5))
        return {"y": x + tf.reduce_max(large)}

    for function in (by_python, reads, writes, prints, doubles, swollen):
        served(function.__name__, function)


def torch(folder: Path) -> None:
    import safetensors.torch
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Convolutional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6()),
                *(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Hardswish(), nn.AdaptiveAvgPool2d(1)),
                *(nn.Flatten(), nn.Dropout(), nn.Linear(8, 10)),
            )

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.layers(image)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.last = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 4)

        def forward(self, steps: torch.Tensor) -> dict[str, torch.Tensor]:
            hidden, _ = self.lstm(steps)
            return {"scores": self.last(hidden[:, -1]), "state": hidden[:, -1]}

    batch = {"image": {0: torch.export.Dim("batch")}}
    network, image = Convolutional().eval(), torch.randn(2, 3, 16, 16)
    program = torch.export.export(network, (image,), dynamic_shapes=batch)
    torch.export.save(program, folder / "cnn.pt2")
    recurrent, steps = Recurrent().eval(), torch.randn(1, 8, 6)
    torch.export.save(torch.export.export(recurrent, (steps,)), folder / "lstm.pt2")
    torch.save(network.layers, folder / "whole.pt")
    weights = network.state_dict()
    torch.save(weights, folder / "weights.pth")
    torch.save(weights, folder / "old.bin", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    torch.jit.save(torch.jit.trace(network, image), folder / "script.pt")

    used = torch.randn(2, 3, 16, 16)
    torch.onnx.export(network, (used,), dynamo=True, verbose=False)
    torch.export.save(torch.export.export(network, (used,)), folder / "used.pt2")
    sizes = {"steps": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(recurrent, (torch.randn(2, 8, 6),), dynamic_shapes=sizes)
    torch.export.save(program, folder / "sizes.pt2")

    @dataclasses.dataclass
    class Scores:
        scores: torch.Tensor

    class Gathering(nn.Module):
        def forward(self, x: torch.Tensor) -> Scores:
            return Scores(x * 2.0)

    torch.export.register_dataclass(Scores, serialized_type_name="ours.Scores")
    gathered = torch.export.export(Gathering(), (torch.randn(2, 4),))
    torch.export.save(gathered, folder / "gathered.pt2")

    class Swollen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.full((1 << 29,), 0.5).max()

    swollen = torch.export.export(Swollen(), (torch.randn(2, 4),))
    torch.export.save(swollen, folder / "swollen.pt2")
    training = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout())
    torch.export.save(torch.export.export(training, (torch.randn(2, 4),)), folder / "training.pt2")


if __name__ == "__main__":
    {"tensorflow": tensorflow, "torch": torch}[sys.argv[1]](Path(sys.argv[2]))
