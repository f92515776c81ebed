"""TFLite Micro, as it is known before it is imported."""

from onmetal.runtimes.protocol import (
    Converter,
    Firmware,
    Profiler,
    Runtime,
    SessionModule,
    Spec,
)


class TFLiteMicro(Runtime):
    spec = Spec(
        title="TFLite Micro",
        packages=("tflite-micro",),
        reads="tflite",
        runs={"float": ("f32",), "static": ("i8", "i16"), "split": ("i8", "i16")},
        install="pip install 'onmetal[embedded]'",  # which pins it
        in_firmware=True,
    )

    def converter(self) -> Converter:
        from onmetal.runtimes.tflm import convert

        return convert

    def session(self) -> SessionModule:
        from onmetal.runtimes.tflm import session

        return session

    def profiler(self) -> Profiler:
        from onmetal.runtimes.tflm import profile

        return profile

    def firmware(self) -> Firmware:
        from onmetal.runtimes.tflm import firmware

        return firmware


RUNTIME: Runtime = TFLiteMicro()
