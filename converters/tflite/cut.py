"""Cuts a TFLite graph at named tensors: these become its outputs, and what follows is left out."""

from collections.abc import Sequence
from pathlib import Path

from onmetal.converters import cutting
from onmetal.converters.tflite.net import Net, distinct, signature_names


def cut_at(net: Net, names: Sequence[str], source: Path) -> list[str]:
    """Make the named tensors the outputs, in that order, and remove the operators and inputs that
    they do not need. Outputs may be named as the signature has them.

    -> notes for the user. Raises UsageError where a name is unknown, or no tensor that is computed.
    """
    input_names, output_names = signature_names(net)
    called = {name: tensor for tensor, name in distinct(net).items()}
    called |= dict(zip(output_names, net.outputs, strict=True))
    results = {tensor for op in net.ops for tensor in op.outputs}
    computed = [name for name, tensor in called.items() if tensor in results]
    given = set(called) - set(computed) | set(input_names)
    wanted = cutting.resolve(names, computed, {}, given, source)
    before = list(net.ops)
    net.outputs = [called[name] for name in wanted]
    net.sweep()
    remaining = set(net.ops)
    left_out = [op.custom or op.kind for op in before if op not in remaining]
    taken = {tensor for op in net.ops for tensor in op.taken}
    ends = list(zip(input_names, net.inputs, strict=True))
    dropped = [name for name, tensor in ends if tensor not in taken]
    ends = [(name, tensor) for name, tensor in ends if tensor in taken]
    net.inputs = [tensor for _, tensor in ends]
    net.names = ([name for name, _ in ends], wanted)
    return cutting.notes(wanted, left_out, dropped)
