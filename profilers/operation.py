"""A call of a function in a worker process: by the function's name, with its arguments as JSON.

Such functions stand in the `operations` modules, which import what does the work when they are
called: so the calling process loads no framework, and the types of arguments and results are
checked.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, get_type_hints

from onmetal.records import plain, restore

P = ParamSpec("P")
R = TypeVar("R")

PROGRESS = "progress"
"""The parameter by which a function reports its progress: an OnCount, which the worker passes."""


class Operation(Generic[R]):
    """A call that is to be made in a worker."""

    def __init__(self, function: Callable[..., R], arguments: dict[str, Any]) -> None:
        self.function, self.arguments = function, arguments

    def request(self) -> dict[str, Any]:
        """The call as JSON values: `function`, its `module:name`, and its `arguments`."""
        name = f"{self.function.__module__}:{self.function.__qualname__}"
        return {"function": name, "arguments": plain(self.arguments)}

    def result(self, value: Any) -> R:
        """The function's result, restored from JSON values."""
        kind = get_type_hints(self.function)["return"]
        return value if kind is type(None) else restore(value, kind)  # type: ignore[no-any-return]


def asked(function: Callable[P, R], *values: P.args, **named: P.kwargs) -> Operation[R]:
    """The call of a function of a module with these arguments, for a worker to make."""
    return Operation(function, inspect.signature(function).bind(*values, **named).arguments)


def perform(function: str, arguments: dict[str, Any], progress: Callable[[int, int], None]) -> Any:
    """Make the call that `request` describes. -> its result as JSON values."""
    module, _, name = function.partition(":")
    assert module.startswith("onmetal.")
    called = getattr(importlib.import_module(module), name)
    hints = get_type_hints(called)
    values = {name: restore(value, hints.get(name, Any)) for name, value in arguments.items()}
    if PROGRESS in hints:
        values[PROGRESS] = progress
    return plain(called(**values))
