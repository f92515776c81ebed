"""Completion on the command line, by argcomplete: the shell runs `deploy`, which offers words.

The shells' code comes from argcomplete too: `deploy completion SHELL` prints it.
"""

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import argcomplete
from argcomplete.completers import BaseCompleter
from argcomplete.lexers import split_line
from argcomplete.shell_integration import shellcode

from onmetal.commands import options

PROGRAMS = ("deploy", "onmetal")
MODELS = (".onnx", ".tflite", ".keras", ".h5", ".pt2")
OFFERED: dict[str, tuple[str, ...]] = {
    "metric": options.METRICS,
    "minimize": options.OBJECTIVES,
    "golden": options.GOLDEN,
    "device": options.TRANSPORTS,
    "addresses": options.TRANSPORTS[2:],
    "max_accuracy_drop": ("none", "1%"),
    "shell": options.SHELLS,
    "what": ("build",),
}
"""Option or name -> the words that may stand there."""
FILES: dict[str, tuple[str, ...]] = {
    "models": MODELS,
    "model": (*MODELS, ".xml"),
    "artifacts": (*MODELS, ".xml"),
    "against": MODELS,
    "data": (".npz",),
    "calibration_data": (".npz",),
    "bundle": (),
    "out": (),
    "file": (".onnx", ".tflite", ".xml"),
    "plot": (".svg",),
}
"""Option or name -> how the files end that may stand there; folders always may."""


def code(shell: str) -> str:
    """What a shell runs to complete the program from then on."""
    return shellcode(PROGRAMS, use_defaults=False, shell=shell)


def complete() -> None:
    """Offer the words that may follow what was typed, to the shell that asks, and exit."""
    line, point = os.environ.get("COMP_LINE", ""), int(os.environ.get("COMP_POINT", "0"))
    start = int(os.environ["_ARGCOMPLETE"])
    typed = split_line(line, point)[3][start:]
    if typed and typed[0] in options.COMMANDS:
        parser = options.COMMANDS[typed[0]]()
        os.environ["_ARGCOMPLETE"] = str(start + 1)
    else:
        parser = options.deploy()
    for action in parser._actions:
        _offer(action, first=not typed)
    argcomplete.autocomplete(parser, always_complete_options="long", default_completer=Nothing())


class Nothing(BaseCompleter):
    """The completer of values that only the user knows: it offers nothing, so that no files are
    offered for `--threads`."""

    def __call__(self, **_: object) -> Iterable[str]:
        return ()


def _offer(action: Any, *, first: bool) -> None:
    """Set the completer of an option or a positional argument. `first`: whether it is the first
    word, which may be a command."""
    if action.dest in OFFERED:
        action.completer = lambda **_: OFFERED[action.dest]
    elif action.dest in ("target", "name"):
        action.completer = _targets
    elif action.dest in ("recipes", "recipe"):
        action.completer = _recipes
    elif action.dest in FILES:
        commands = tuple(options.COMMANDS) if first and action.dest == "models" else ()
        action.completer = lambda prefix, **_: [*commands, *_files(prefix, FILES[action.dest])]


def _targets(prefix: str, **_: object) -> Iterable[str]:
    from onmetal import targets

    return [*targets.names(), *_files(prefix, (".toml",))]


def _recipes(prefix: str, parsed_args: argparse.Namespace, **_: object) -> Iterable[str]:
    """The recipes of the named target, else of all targets; the last word of a list with commas is
    completed."""
    from onmetal import targets
    from onmetal.errors import UsageError
    from onmetal.runtimes.fit import load_target

    target_name = getattr(parsed_args, "target", None)
    before, comma, _last = prefix.rpartition(",")
    try:
        chosen_targets = [
            load_target(name) for name in ([target_name] if target_name else targets.names())
        ]
    except UsageError:
        return []
    names = dict.fromkeys(recipe.name for target in chosen_targets for recipe in target.recipes)
    return [before + comma + name for name in names]


def _files(prefix: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Files with one of the suffixes, and folders, in the folder of the typed path."""
    folder, slash, start = prefix.rpartition("/")
    try:
        entries = sorted(Path((folder + slash) or ".").expanduser().iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") and not start.startswith("."):
            continue
        if entry.is_dir():
            yield f"{folder}{slash}{entry.name}/"
        elif entry.suffix.lower() in suffixes:
            yield f"{folder}{slash}{entry.name}"
