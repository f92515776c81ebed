"""LiteRT in programs that are not Python: C, and Kotlin for Android."""

from typing import Any

MAVEN = "com.google.ai.edge.litert:litert"
PUBLISHED: tuple[str, ...] = ("2.1.5", "2.1.6", "2.2.0", "2.3.0")
"""Each is named by public builds:
https://maven.google.com/web/index.html#com.google.ai.edge.litert:litert"""
BUFFERS: tuple[str, ...] = ("float32", "int8", "int32", "int64", "bool")
ANDROID_NOTE = ""


def threads(options: dict[str, Any]) -> int:
    return int(options.get("num_threads", 1))


def in_c(options: dict[str, Any]) -> dict[str, str]:
    return {}


def in_kotlin(options: dict[str, Any]) -> dict[str, str]:
    return {}
