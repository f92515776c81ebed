"""The Android side of a bundle: a Gradle library module with the model, a typed wrapper, a test.

Everything is written from templates beside this module and from the candidate alone, so that the
same candidate gives the same bytes. Names of the model's tensors are chosen by whoever made the
model: in Kotlin they appear as identifiers made of their letters, and as escaped literals.
"""

import hashlib
import re
from pathlib import Path

import numpy as np

from onmetal.bundles.artifact_io import (
    Port,
    Ports,
    count_vectors,
    file_names,
    float_literal,
    ports,
    raw_vectors,
    template,
)
from onmetal.errors import UnsupportedError
from onmetal.records import Candidate
from onmetal.texts.quoting import code, kotlin_string, plain

MAVEN = {
    "litert": ("com.google.ai.edge.litert:litert", ("2.1.5", "2.1.6", "2.2.0", "2.3.0")),
    "onnxruntime": (
        "com.microsoft.onnxruntime:onnxruntime-android",
        (
            *("1.24.3", "1.25.0", "1.25.1", "1.26.0", "1.27.0"),
            *("1.28.0", "1.29.0", "1.30.0", "1.31.0"),
        ),
    ),
}
"""Each runtime's artifact and its versions that are known to be published, oldest first: they lag
behind the packages of Python, and a version that is not there would break every build. Each
of these is named by public builds. LiteRT's are listed at
https://maven.google.com/web/index.html#com.google.ai.edge.litert:litert, ONNX Runtime's at
https://central.sonatype.com/artifact/com.microsoft.onnxruntime/onnxruntime-android/versions"""
ARRAYS = {
    "float32": "FloatArray",
    "float64": "DoubleArray",
    "int8": "ByteArray",
    "uint8": "ByteArray",
    "int16": "ShortArray",
    "int32": "IntArray",
    "int64": "LongArray",
    "bool": "BooleanArray",
}
BUFFERS = {
    "litert": ("float32", "int8", "int32", "int64", "bool"),
    "onnxruntime": tuple(ARRAYS),
}
"""The types that a runtime's own classes for Android can hand over."""
_WORDS = (
    "as break class continue do else false for fun if in interface is null object package return "
    "super this throw true try typealias typeof val var when while abstract assert boolean byte "
    "case catch char const default double enum extends final finally float goto implements import "
    "instanceof int long native new private protected public short static strictfp switch "
    "synchronized throws transient void volatile"
)
KEYWORDS = frozenset(_WORDS.split())
"""Kotlin's hard keywords and Java's words: a package's name must be good in both."""
TELEMETRY = """\

`Model` turns ONNX Runtime's telemetry off, and the module's manifest removes its provider
`ai.onnxruntime.TelemetryInitializer`: look into the app's merged manifest that it is not there.
"""
MODEL, TEST = "src/main/kotlin", "src/androidTest/kotlin"


def files(
    candidate: Candidate, golden: dict[str, np.ndarray], tolerance: float
) -> dict[str, bytes]:
    """The module's files by their path in the bundle (`android/…`).

    `golden`: as `vectors.write_golden` makes it. Raises UnsupportedError where the runtime has
    no way on Android to hand a tensor over.
    """
    found = ports(candidate)
    _check(candidate, found)
    return {
        **{path: text.encode() for path, text in _texts(candidate, found, golden, tolerance)},
        **{
            f"android/src/main/assets/{name}": file.read_bytes()
            for name, file in zip(file_names(candidate), candidate.files, strict=True)
        },
        **{
            f"android/src/androidTest/assets/golden/{name}": content
            for name, content in raw_vectors(found, golden).items()
        },
    }


def _check(candidate: Candidate, found: Ports) -> None:
    able = BUFFERS[candidate.runtime]
    for port in (*found.inputs, *found.outputs):
        if port.stored not in able:
            raise UnsupportedError(
                f"{candidate.runtime} for Android has no buffers of {port.stored}, which "
                f"{port.name!r} is in the artifact; there are: {', '.join(able)}"
            )


def _texts(
    candidate: Candidate, found: Ports, golden: dict[str, np.ndarray], tolerance: float
) -> list[tuple[str, str]]:
    package = f"onmetal.{identifiers([candidate.model.stem.lower()], 'model')[0]}"
    folder = package.replace(".", "/")
    runtime = candidate.runtime
    coordinate, comment = dependency(candidate)
    fill = {
        "package": package,
        "coordinate": coordinate,
        "comment": comment,
        "runtime": runtime,
        "no_compress": ", ".join(_suffixes(candidate)),
        **_readme(candidate),
    }
    golden_test = _golden_test(found, count_vectors(found, golden), tolerance)
    return [
        *(
            (f"android/{name}", template(f"android/{name}", **fill))
            for name in (
                *("settings.gradle.kts", "build.gradle.kts", "gradle.properties"),
                *("consumer-rules.pro", "README.md"),
            )
        ),
        (
            "android/src/main/AndroidManifest.xml",
            template(f"android/{runtime}/AndroidManifest.xml"),
        ),
        (
            f"android/{MODEL}/{folder}/ModelConstants.kt",
            template("android/ModelConstants.kt", **fill, **_constants(candidate, found)),
        ),
        (f"android/{MODEL}/{folder}/Tensors.kt", template("android/Tensors.kt", **fill)),
        (
            f"android/{MODEL}/{folder}/Model.kt",
            template(f"android/{runtime}/Model.kt", **fill, **_wrapper(candidate, found)),
        ),
        (
            f"android/{TEST}/{folder}/GoldenTest.kt",
            template("android/GoldenTest.kt", **fill, **golden_test),
        ),
    ]


# --- what the build needs


def dependency(candidate: Candidate) -> tuple[str, str]:
    """The Maven coordinate, and in words where its version comes from."""
    name, known = MAVEN[candidate.runtime]
    measured = candidate.runtime_version
    if measured in known:
        return f"{name}:{measured}", f"{measured} is the version that onmetal ran."
    older = [version for version in known if _ordered(version) < _ordered(measured)]
    nearest = older[-1] if older else known[0]
    return f"{name}:{nearest}", (
        f"onmetal ran {plain(measured)}, which is not known to be published for Android: "
        f"{nearest} is the nearest that is."
    )


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _suffixes(candidate: Candidate) -> list[str]:
    suffixes = {Path(name).suffix.lstrip(".") for name in file_names(candidate)}
    return [kotlin_string(suffix) for suffix in sorted(suffixes)]


def _readme(candidate: Candidate) -> dict[str, str]:
    return {
        "model": code(candidate.model.path.name),
        "measured": plain(candidate.runtime_version),
        "usage": ", ".join(f"{name} = …" for name in identifiers(_names(candidate.model.inputs))),
        "telemetry": TELEMETRY if candidate.runtime == "onnxruntime" else "",
        "output": identifiers(_names(candidate.model.outputs))[0],
    }


def _names(tensors: tuple[object, ...]) -> list[str]:
    return [str(getattr(tensor, "name", "")) for tensor in tensors]


# --- Kotlin


def identifiers(names: list[str], fallback: str = "tensor") -> list[str]:
    """For each name an identifier that is good in Kotlin and Java, no two the same."""
    found: list[str] = []
    for name in names:
        base = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or fallback
        if base[0].isdigit() or base in KEYWORDS:
            base = f"{fallback}_{base}"
        number = 1
        while (made := base if number == 1 else f"{base}_{number}") in found:
            number += 1
        found.append(made)
    return found


def _constants(candidate: Candidate, found: Ports) -> dict[str, str]:
    digests = [
        f"{kotlin_string(name)} to {kotlin_string(hashlib.sha256(file.read_bytes()).hexdigest())}"
        for name, file in zip(file_names(candidate), candidate.files, strict=True)
    ]
    return {
        "artifact": kotlin_string(file_names(candidate)[0]),
        "assets": _lines(digests, 8),
        "sha256": kotlin_string(candidate.sha256),
        "measured_version": kotlin_string(candidate.runtime_version),
        "threads": str(_threads(candidate)),
        "inputs": _lines([_spec(port) for port in found.inputs], 8),
        "outputs": _lines([_spec(port) for port in found.outputs], 8),
    }


def _threads(candidate: Candidate) -> int:
    names = {"litert": "num_threads", "onnxruntime": "intra_op_num_threads"}
    return int(candidate.options.get(names[candidate.runtime], 1))


def _lines(entries: list[str], indent: int) -> str:
    return (",\n" + " " * indent).join(entries)


def _spec(port: Port) -> str:
    shape = ", ".join(map(str, port.shape))
    return (
        f"TensorSpec({kotlin_string(port.name)}, intArrayOf({shape}), {kotlin_string(port.dtype)}, "
        f"{kotlin_string(port.stored)}, {port.place}, {str(port.turned).lower()}, "
        f"{float_literal(port.scale)}, {port.zero_point})"
    )


def _wrapper(candidate: Candidate, found: Ports) -> dict[str, str]:
    taken = identifiers([port.name for port in found.inputs])
    given = identifiers([port.name for port in found.outputs])
    said = [
        f"     * @param {name} {port.dtype}, shape {list(port.shape)}"
        for name, port in zip(taken, found.inputs, strict=True)
    ]
    return {
        "parameters": _typed(taken, found.inputs, "", 8),
        "parameter_docs": "\n".join(said),
        "arguments": ", ".join(taken),
        "fields": _typed(given, found.outputs, "@JvmField val ", 8),
        "results": _lines(
            [f"found[{i}] as {ARRAYS[port.dtype]}" for i, port in enumerate(found.outputs)], 12
        ),
        "options": _options(candidate) if candidate.runtime == "onnxruntime" else "",
    }


def _typed(names: list[str], side: tuple[Port, ...], before: str, indent: int) -> str:
    pairs = zip(names, side, strict=True)
    return _lines([f"{before}{name}: {ARRAYS[port.dtype]}" for name, port in pairs], indent)


SETTERS = {
    "intra_op_num_threads": ("setIntraOpNumThreads", "{}"),
    "inter_op_num_threads": ("setInterOpNumThreads", "{}"),
    "enable_mem_pattern": ("setMemoryPatternOptimization", "{}"),
    "enable_cpu_mem_arena": ("setCPUArenaAllocator", "{}"),
    "use_deterministic_compute": ("setDeterministicCompute", "{}"),
    "execution_mode": ("setExecutionMode", "OrtSession.SessionOptions.ExecutionMode.{}"),
    "graph_optimization_level": ("setOptimizationLevel", "OrtSession.SessionOptions.OptLevel.{}"),
}
LEVELS = {
    "ORT_SEQUENTIAL": "SEQUENTIAL",
    "ORT_PARALLEL": "PARALLEL",
    "ORT_DISABLE_ALL": "NO_OPT",
    "ORT_ENABLE_BASIC": "BASIC_OPT",
    "ORT_ENABLE_EXTENDED": "EXTENDED_OPT",
    "ORT_ENABLE_ALL": "ALL_OPT",
}


def _options(candidate: Candidate) -> str:
    """ONNX Runtime's options by its setters in Java, exactly those that were measured."""
    lines = []
    for name, value in sorted(candidate.options.items()):
        if "." in name:
            lines.append(
                f"options.addConfigEntry({kotlin_string(name)}, {kotlin_string(str(value))})"
            )
        else:
            lines.append(f"options.{_setter(name, value)}")
    return "\n        ".join(lines)


def _setter(name: str, value: object) -> str:
    if name not in SETTERS or (isinstance(value, str) and value not in LEVELS):
        raise UnsupportedError(f"ONNX Runtime for Android has no option {name!r} of {value!r}")
    setter, form = SETTERS[name]
    given = LEVELS[value] if isinstance(value, str) else str(value).lower()
    return f"{setter}({form.format(given)})"


def _golden_test(found: Ports, vectors: int, tolerance: float) -> dict[str, str]:
    readers = [
        f'read("input-{i}-$number.bin", ModelConstants.INPUTS[{i}]) as {ARRAYS[port.dtype]}'
        for i, port in enumerate(found.inputs)
    ]
    return {
        "vectors": str(vectors),
        "tolerance": repr(float(tolerance)),
        "readers": _lines(readers, 12),
        "found": ", ".join(
            f"found.{name}" for name in identifiers([port.name for port in found.outputs])
        ),
    }
