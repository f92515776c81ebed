"""ONNX Runtime, as it is known before it is imported."""

from onmetal.runtimes import Spec

SPEC = Spec(
    title="ONNX Runtime",
    packages=("onnxruntime",),
    reads="onnx",
    runs={
        "float": ("f32",),
        "weights": ("f32",),
        "dynamic": ("i8",),
        "static": ("i8",),
        "mixed": ("i8",),
    },
    other_floats="whose CPU kernels on x86 compute {type} by casting to f32, which is no {type}",
)
