"""ONNX Runtime in programs that are not Python: C, and Kotlin for Android."""

from typing import Any

from onmetal.errors import UnsupportedError
from onmetal.texts.quoting import c_string, kotlin_string

MAVEN = "com.microsoft.onnxruntime:onnxruntime-android"
PUBLISHED: tuple[str, ...] = (
    *("1.24.3", "1.25.0", "1.25.1", "1.26.0", "1.27.0"),
    *("1.28.0", "1.29.0", "1.30.0", "1.31.0"),
)
"""Each is named by public builds:
https://central.sonatype.com/artifact/com.microsoft.onnxruntime/onnxruntime-android/versions"""
BUFFERS: tuple[str, ...] = (
    *("float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"),
)
ANDROID_NOTE = """\

`Model` turns ONNX Runtime's telemetry off, and the module's manifest removes its provider
`ai.onnxruntime.TelemetryInitializer`: look into the app's merged manifest that it is not there.
"""


def threads(options: dict[str, Any]) -> int:
    return int(options.get("intra_op_num_threads", 1))


# --- C


NUMBERS_IN_C = {
    "ORT_DISABLE_ALL": 0,
    "ORT_ENABLE_BASIC": 1,
    "ORT_ENABLE_EXTENDED": 2,
    "ORT_ENABLE_LAYOUT": 3,
    "ORT_ENABLE_ALL": 99,
    "ORT_SEQUENTIAL": 0,
    "ORT_PARALLEL": 1,
}
"""ONNX Runtime's enumerations, as its C API numbers them."""


def in_c(options: dict[str, Any]) -> dict[str, str]:
    lines = [_option(name, value) for name, value in sorted(options.items())]
    return {"options": "\n    ".join(lines)}


def _option(name: str, value: object) -> str:
    """ONNX Runtime's option by its function in C."""
    if "." in name:
        return f"CALL(AddSessionConfigEntry, options, {c_string(name)}, {c_string(str(value))});"
    switches = {"enable_mem_pattern": "MemPattern", "enable_cpu_mem_arena": "CpuMemArena"}
    if name in switches:
        return f"CALL({'Enable' if value else 'Disable'}{switches[name]}, options);"
    number_of = NUMBERS_IN_C.get(str(value))
    setters = {
        "intra_op_num_threads": ("SetIntraOpNumThreads", value),
        "inter_op_num_threads": ("SetInterOpNumThreads", value),
        "execution_mode": ("SetSessionExecutionMode", number_of),
        "graph_optimization_level": ("SetSessionGraphOptimizationLevel", number_of),
        "use_deterministic_compute": ("SetDeterministicCompute", int(bool(value))),
    }
    setter, number = setters.get(name, ("", None))
    if number is None:
        raise UnsupportedError(f"ONNX Runtime's C API has no option {name!r} of {value!r}")
    return f"CALL({setter}, options, {int(str(number))});"


# --- Kotlin


SETTERS = {
    "intra_op_num_threads": ("setIntraOpNumThreads", "{}"),
    "inter_op_num_threads": ("setInterOpNumThreads", "{}"),
    "enable_mem_pattern": ("setMemoryPatternOptimization", "{}"),
    "enable_cpu_mem_arena": ("setCPUArenaAllocator", "{}"),
    "use_deterministic_compute": ("setDeterministicCompute", "{}"),
    "execution_mode": ("setExecutionMode", "OrtSession.SessionOptions.ExecutionMode.{}"),
    "graph_optimization_level": ("setOptimizationLevel", "OrtSession.SessionOptions.OptLevel.{}"),
}
NAMES_IN_JAVA = {
    "ORT_SEQUENTIAL": "SEQUENTIAL",
    "ORT_PARALLEL": "PARALLEL",
    "ORT_DISABLE_ALL": "NO_OPT",
    "ORT_ENABLE_BASIC": "BASIC_OPT",
    "ORT_ENABLE_EXTENDED": "EXTENDED_OPT",
    "ORT_ENABLE_ALL": "ALL_OPT",
}


def in_kotlin(options: dict[str, Any]) -> dict[str, str]:
    """By its setters in Java, exactly the options that were measured."""
    lines = []
    for name, value in sorted(options.items()):
        if "." in name:
            lines.append(
                f"options.addConfigEntry({kotlin_string(name)}, {kotlin_string(str(value))})"
            )
        else:
            lines.append(f"options.{_setter(name, value)}")
    return {"options": "\n        ".join(lines)}


def _setter(name: str, value: object) -> str:
    if name not in SETTERS or (isinstance(value, str) and value not in NAMES_IN_JAVA):
        raise UnsupportedError(f"ONNX Runtime for Android has no option {name!r} of {value!r}")
    setter, form = SETTERS[name]
    argument = NAMES_IN_JAVA[value] if isinstance(value, str) else str(value).lower()
    return f"{setter}({form.format(argument)})"
