"""LiteRT, as it is known before it is imported."""

from onmetal.runtimes import Spec

SPEC = Spec(
    title="LiteRT",
    packages=("ai-edge-litert", "tflite-runtime"),
    reads="tflite",
    runs={
        "float": ("f32",),
        "half": ("f32",),
        "dynamic": ("i8",),
        "static": ("i8", "i16"),
    },
)
