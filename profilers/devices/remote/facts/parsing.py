"""The facts in the output of the script."""

from onmetal.profilers.devices.remote.facts.cpu import (
    allowed_cpus,
    common_flags,
    cpu_name,
    group_clusters,
    online_cpus,
    physical_cores,
    read_clocks,
    read_processors,
)
from onmetal.profilers.devices.remote.facts.emulation import is_virtual, why_emulated
from onmetal.profilers.devices.remote.facts.lines import (
    device_tree_strings,
    memory_bytes_of,
    one_line,
    sections,
    split_pairs,
)
from onmetal.profilers.devices.remote.facts.records import Facts
from onmetal.profilers.devices.remote.facts.script import METERS
from onmetal.profilers.devices.remote.facts.state import read_state
from onmetal.profilers.devices.remote.facts.system import (
    MACHINE_OF_ABI,
    android_abis,
    android_properties,
    chip_name,
    device_model,
    installed_runtimes,
    jetson_release,
    operating_system,
    program_architecture,
    python_versions,
)


def parse(text: str) -> Facts:
    """The facts in the output of `SCRIPT`."""
    answers = sections(text)
    properties = android_properties(answers["getprop"])
    processors = read_processors(answers["cpuinfo"])
    device_tree = device_tree_strings(answers["dt_compatible"])
    dmi = [value for _, value in split_pairs(answers["dmi"], ":")]
    uname = (answers["uname"] + [""] * 4)[:4]
    abis = android_abis(properties)
    arch = MACHINE_OF_ABI.get(abis[0]) if abis else program_architecture(uname[3], answers["exe"])
    why = why_emulated(properties, processors, answers["kernel_arch"], arch or uname[3])
    python, versions = python_versions(answers["python"])
    runtimes, packages = installed_runtimes(versions)
    online = online_cpus(answers, processors)
    allowed = allowed_cpus(answers["allowed"])
    state = read_state(answers)
    return Facts(
        model=one_line(device_model(properties, device_tree_strings(answers["dt_model"]), dmi)),
        soc=one_line(chip_name(properties, device_tree, processors)),
        cpu=one_line(cpu_name(processors)) or "unknown",
        arch=one_line(arch),
        abis=abis,
        os=one_line(operating_system(properties, answers["os_release"], uname)),
        build=one_line(properties.get("ro.build.fingerprint") or jetson_release(answers["tegra"])),
        kernel=one_line(uname[1]),
        cores=physical_cores(answers, processors, online, allowed),
        online=len(online) or None,
        allowed=allowed,
        memory_bytes=memory_bytes_of(answers["meminfo"], "MemTotal"),
        available_bytes=state.get("available_bytes"),
        free_bytes=state.get("free_bytes"),
        flags=common_flags(processors),
        clusters=group_clusters(read_clocks(answers["clocks"]), online),
        emulated=why is not None,
        emulated_why=one_line(why),
        virtual=why is not None or is_virtual(properties, processors, device_tree, dmi, uname[1]),
        runtimes=runtimes,
        packages=packages,
        numpy=versions.get("numpy"),
        python=python,
        meters=tuple(name for name in METERS if name in answers["meters"]),
        boot_id=one_line(next(iter(answers["boot_id"]), None)),
        state=state,
    )
