"""OpenVINO, as it is known before it is imported."""

from onmetal.runtimes import Spec

SPEC = Spec(
    title="OpenVINO",
    packages=("openvino",),
    reads="onnx",
    own_suffix=".xml",
)
