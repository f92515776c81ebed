"""TFLite Micro, as it is known before it is imported."""

from onmetal.runtimes import Spec

SPEC = Spec(
    title="TFLite Micro",
    packages=("tflite-micro",),
    reads="tflite",
    runs={"float": ("f32",), "static": ("i8", "i16"), "split": ("i8", "i16")},
    in_firmware=True,
    install="pip install 'onmetal[embedded]'",  # which pins it
)
