"""The Android side of a bundle: a Gradle library module with the model, a typed wrapper, a test.

Everything is written from templates beside this module and from the candidate alone, so that the
same candidate gives the same bytes. Names of the model's tensors are chosen by whoever made the
model: in Kotlin they appear as identifiers made of their letters, and as escaped literals.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.bundles.artifact_io import (
    ArtifactIo,
    ArtifactTensor,
    artifact_tensors,
    count_vectors,
    file_names,
    float_literal,
    programs,
    raw_vectors,
    runtime_template,
    template,
)
from onmetal.bundles.kinds import PART, BundleKind, Contents
from onmetal.errors import UnsupportedError
from onmetal.records import Candidate
from onmetal.texts.quoting import code, kotlin_string, plain

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
_WORDS = (
    "as break class continue do else false for fun if in interface is null object package return "
    "super this throw true try typealias typeof val var when while abstract assert boolean byte "
    "case catch char const default double enum extends final finally float goto implements import "
    "instanceof int long native new private protected public short static strictfp switch "
    "synchronized throws transient void volatile"
)
KEYWORDS = frozenset(_WORDS.split())
"""Kotlin's hard keywords and Java's words: a package's name must be good in both."""
MODEL, TEST = "src/main/kotlin", "src/androidTest/kotlin"


def files(
    candidate: Candidate, golden: dict[str, np.ndarray], tolerance: float
) -> dict[str, bytes]:
    """The module's files by their path in the bundle (`android/…`).

    `golden`: as `vectors.write_golden` makes it. Raises UnsupportedError where the runtime cannot
    pass a tensor of the artifact's dtype on Android.
    """
    tensors = artifact_tensors(candidate)
    _check(candidate, tensors)
    return {
        **{path: text.encode() for path, text in _texts(candidate, tensors, golden, tolerance)},
        **{
            f"android/src/main/assets/{name}": file.read_bytes()
            for name, file in zip(file_names(candidate), candidate.files, strict=True)
        },
        **{
            f"android/src/androidTest/assets/golden/{name}": content
            for name, content in raw_vectors(tensors, golden).items()
        },
    }


def _check(candidate: Candidate, tensors: ArtifactIo) -> None:
    buffer_types = programs(candidate).BUFFERS
    for tensor in (*tensors.inputs, *tensors.outputs):
        if tensor.stored not in buffer_types:
            raise UnsupportedError(
                f"{candidate.runtime} for Android has no buffers of {tensor.stored}, which "
                f"{tensor.name!r} is in the artifact; there are: {', '.join(buffer_types)}"
            )


def _texts(
    candidate: Candidate, tensors: ArtifactIo, golden: dict[str, np.ndarray], tolerance: float
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
    golden_test = _golden_test(tensors, count_vectors(tensors, golden), tolerance)
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
            runtime_template(runtime, "AndroidManifest.xml"),
        ),
        (
            f"android/{MODEL}/{folder}/ModelConstants.kt",
            template("android/ModelConstants.kt", **fill, **_constants(candidate, tensors)),
        ),
        (f"android/{MODEL}/{folder}/Tensors.kt", template("android/Tensors.kt", **fill)),
        (
            f"android/{MODEL}/{folder}/Model.kt",
            runtime_template(runtime, "Model.kt", **fill, **_wrapper(candidate, tensors)),
        ),
        (
            f"android/{TEST}/{folder}/GoldenTest.kt",
            template("android/GoldenTest.kt", **fill, **golden_test),
        ),
    ]


# --- what the build needs


def dependency(candidate: Candidate) -> tuple[str, str]:
    """The Maven coordinate, and in words where its version comes from."""
    published = programs(candidate)
    name, known = published.MAVEN, published.PUBLISHED
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
        "telemetry": programs(candidate).ANDROID_NOTE,
        "output": identifiers(_names(candidate.model.outputs))[0],
    }


def _names(tensors: tuple[object, ...]) -> list[str]:
    return [str(getattr(tensor, "name", "")) for tensor in tensors]


# --- Kotlin


def identifiers(names: list[str], fallback: str = "tensor") -> list[str]:
    """For each name an identifier that is good in Kotlin and Java, no two the same."""
    unique_identifiers: list[str] = []
    for name in names:
        base = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or fallback
        if base[0].isdigit() or base in KEYWORDS:
            base = f"{fallback}_{base}"
        number = 1
        while (identifier := base if number == 1 else f"{base}_{number}") in unique_identifiers:
            number += 1
        unique_identifiers.append(identifier)
    return unique_identifiers


def _constants(candidate: Candidate, tensors: ArtifactIo) -> dict[str, str]:
    digests = [
        f"{kotlin_string(name)} to {kotlin_string(hashlib.sha256(file.read_bytes()).hexdigest())}"
        for name, file in zip(file_names(candidate), candidate.files, strict=True)
    ]
    return {
        "artifact": kotlin_string(file_names(candidate)[0]),
        "assets": _lines(digests, 8),
        "sha256": kotlin_string(candidate.sha256),
        "measured_version": kotlin_string(candidate.runtime_version),
        "threads": str(programs(candidate).threads(candidate.options)),
        "inputs": _lines([_spec(tensor) for tensor in tensors.inputs], 8),
        "outputs": _lines([_spec(tensor) for tensor in tensors.outputs], 8),
    }


def _lines(entries: list[str], indent: int) -> str:
    return (",\n" + " " * indent).join(entries)


def _spec(tensor: ArtifactTensor) -> str:
    shape = ", ".join(map(str, tensor.shape))
    return (
        f"TensorSpec({kotlin_string(tensor.name)}, intArrayOf({shape}), "
        f"{kotlin_string(tensor.dtype)}, {kotlin_string(tensor.stored)}, "
        f"{tensor.place}, {str(tensor.turned).lower()}, {float_literal(tensor.scale)}, "
        f"{tensor.zero_point})"
    )


def _wrapper(candidate: Candidate, tensors: ArtifactIo) -> dict[str, str]:
    input_names = identifiers([tensor.name for tensor in tensors.inputs])
    output_names = identifiers([tensor.name for tensor in tensors.outputs])
    parameter_docs = [
        f"     * @param {name} {tensor.dtype}, shape {list(tensor.shape)}"
        for name, tensor in zip(input_names, tensors.inputs, strict=True)
    ]
    return {
        "parameters": _typed(input_names, tensors.inputs, "", 8),
        "parameter_docs": "\n".join(parameter_docs),
        "arguments": ", ".join(input_names),
        "fields": _typed(output_names, tensors.outputs, "@JvmField val ", 8),
        "results": _lines(
            [f"found[{i}] as {ARRAYS[tensor.dtype]}" for i, tensor in enumerate(tensors.outputs)],
            12,
        ),
        **programs(candidate).in_kotlin(candidate.options),
    }


def _typed(names: list[str], side: tuple[ArtifactTensor, ...], before: str, indent: int) -> str:
    pairs = zip(names, side, strict=True)
    return _lines([f"{before}{name}: {ARRAYS[tensor.dtype]}" for name, tensor in pairs], indent)


def _golden_test(tensors: ArtifactIo, vectors: int, tolerance: float) -> dict[str, str]:
    readers = [
        f'read("input-{i}-$number.bin", ModelConstants.INPUTS[{i}]) as {ARRAYS[tensor.dtype]}'
        for i, tensor in enumerate(tensors.inputs)
    ]
    return {
        "vectors": str(vectors),
        "tolerance": repr(float(tolerance)),
        "readers": _lines(readers, 12),
        "found": ", ".join(
            f"found.{name}" for name in identifiers([tensor.name for tensor in tensors.outputs])
        ),
    }


class Android(BundleKind):
    transport = "adb"
    what = "an Android module"
    places = {  # noqa: RUF012
        "readme": r"android/README\.md",
        "artifact": rf"android/src/main/assets/{PART}\.(onnx|data|xml|bin|tflite)",
        "golden": rf"android/src/androidTest/assets/golden/{PART}\.bin",
        "source": rf"android/src/({PART}/)*{PART}\.(kt|xml)",
        "build": rf"android/{PART}\.(kts|pro|properties)",
    }

    def files(self, contents: Contents) -> dict[str, bytes]:
        return files(contents.candidate, contents.golden, contents.tolerance)

    def without(self, candidate: Candidate) -> dict[str, bytes]:
        return {}

    def shipped(self, candidate: Candidate, left_out: str | None, *, run: bool) -> dict[str, Any]:
        none = "nothing was measured: there was no device"
        unmeasured = "the application's build of the runtime is unmeasured"
        return {
            "kind": "Android module",
            "path": None if left_out else "android",
            "artifact": dependency(candidate)[0],
            "measured": False,
            "note": left_out or (unmeasured if run else none),
        }


KIND: BundleKind = Android()
