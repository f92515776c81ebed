"""OpenVINO, as it is known before it is imported."""

from onmetal.runtimes import Spec

SPEC = Spec(
    title="OpenVINO",
    packages=("openvino",),
    reads="onnx",
    runs={
        "float": ("f32", "f16", "bf16"),
        "weights": ("f32",),
        "static": ("i8",),
        "nncf": ("i8",),
        "mixed": ("i8",),
    },
    own_suffix=".xml",
)
