"""Which CPUs a program runs on, and the mask that `taskset` takes."""

from collections.abc import Iterable

from onmetal.profilers.devices.remote.facts.records import Facts


def pin(facts: Facts, threads: int) -> tuple[int, ...]:
    """The CPUs to run `threads` threads on: the fastest cluster, joined by the next fastest until
    there are as many. Empty where there is nothing to choose: one kind of CPU, or all are needed.
    """
    allowed = set(facts.allowed)
    kinds = [
        [cpu for cpu in cluster.cpus if not allowed or cpu in allowed] for cluster in facts.clusters
    ]
    kinds = [kind for kind in kinds if kind]
    chosen: list[int] = []
    for kind in kinds:
        if chosen and len(chosen) >= threads:
            return tuple(sorted(chosen))
        chosen += kind
    return ()


def mask(cpus: Iterable[int]) -> str:
    """CPUs as the hexadecimal mask that every `taskset` takes (util-linux, busybox, toybox: without
    0x). Raises ValueError where there are none, or one is negative."""
    bits = 0
    for cpu in cpus:
        bits |= 1 << cpu
    if not bits:
        raise ValueError("a mask of no CPUs: nothing could run there")
    return f"{bits:x}"
