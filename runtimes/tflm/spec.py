"""TFLite Micro, as it is known before it is imported."""

from onmetal.runtimes import Spec

SPEC = Spec(
    title="TFLite Micro",
    packages=("tflite-micro",),
    reads="tflite",
    install="pip install 'onmetal[embedded]'",  # which pins it
)
