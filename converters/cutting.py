"""--cut-at in any format of graphs: which tensors its names stand for, and what is said of it."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from onmetal.errors import UsageError
from onmetal.texts.suggest import did_you_mean

OPTION = "--cut-at"
LISTED = 4
"""How many kinds of operators a note names."""


def resolve(
    names: Sequence[str],
    computed: Sequence[str],
    of_node: Mapping[str, Sequence[str]],
    given: Collection[str],
    source: Path,
) -> list[str]:
    """The tensors that are to be the outputs, each once, in the order of their names.

    `computed`: the tensors that operators give, in order; `of_node`: name of a node -> the tensors
    that it gives; `given`: inputs and constants. Raises UsageError for any other name.
    """
    tensors: list[str] = []
    known = set(computed)
    for name in names:
        if name in known:
            tensors.append(name)
        elif of_node.get(name):
            tensors += of_node[name]
        elif name in given:
            raise UsageError(
                f"{source}: {OPTION} {name}: this is an input or a constant of the model, nothing "
                "that it computes"
            )
        else:
            raise UsageError(
                f"{source}: {OPTION} {name}: the model computes no tensor and has no operator of "
                f"that name{_likely(name, computed, of_node)}"
            )
    return list(dict.fromkeys(tensors))


def _likely(name: str, computed: Sequence[str], of_node: Mapping[str, Sequence[str]]) -> str:
    last = ", ".join(computed[-LISTED:])
    return did_you_mean(name, [*computed, *of_node]) or f"; the last ones that it computes: {last}"


def notes(
    tensors: Sequence[str], left_out: Sequence[str], dropped_inputs: Sequence[str]
) -> list[str]:
    """Notes for the user. `left_out`: the kinds of the operators that were removed."""
    count = len(left_out)
    kinds = [kind for kind, _ in Counter(left_out).most_common(LISTED)]
    more = " …" if len(set(left_out)) > len(kinds) else ""
    removed = f"{count} operator{'' if count == 1 else 's'} ({', '.join(kinds)}{more})"
    tail = f"{removed} not needed for that left out" if count else "no operator left out"
    outputs = "output is" if len(tensors) == 1 else "outputs are"
    texts = [f"cut by {OPTION}: the {outputs} {', '.join(map(repr, tensors))}; {tail}"]
    if dropped_inputs:
        inputs = ", ".join(map(repr, dropped_inputs))
        texts.append(f"cut by {OPTION}: nothing that remains reads the input {inputs}: left out")
    return texts
