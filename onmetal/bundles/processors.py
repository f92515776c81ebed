"""How gcc compiles TFLite Micro and a firmware for the cores of microcontrollers."""

import textwrap

from msgspec import Struct


class Build(Struct, frozen=True):
    """How gcc compiles for a core, as TFLite Micro's Makefile does for its TARGET_ARCH."""

    target_arch: str
    flags: str
    note: str = ""


_WITH_FPU = "-mfloat-abi=hard -mfpu=auto"


BUILDS = {
    "cortex-m0": Build("cortex-m0", "-mfloat-abi=soft"),
    "cortex-m0plus": Build("cortex-m0plus", "-mfloat-abi=soft"),
    "cortex-m3": Build("cortex-m3", "-mfloat-abi=soft"),
    "cortex-m4": Build(
        "cortex-m4+fp",
        _WITH_FPU,
        "That is for a Cortex-M4 with an FPU (Cortex-M4F). Without one: `TARGET_ARCH=cortex-m4`, "
        "and below `-mcpu=cortex-m4+nofp -mthumb -mfloat-abi=soft`.",
    ),
    "cortex-m7": Build(
        "cortex-m7+fp",
        _WITH_FPU,
        "That is for a Cortex-M7 with an FPU of double precision. Of single precision (as in "
        "STM32F74x): `FPU=fpv5-sp-d16` besides, and below `-mfpu=fpv5-sp-d16`. Without one: "
        "`TARGET_ARCH=cortex-m7`, and below `-mcpu=cortex-m7+nofp -mthumb -mfloat-abi=soft`.",
    ),
    "cortex-m33": Build(
        "cortex-m33",
        _WITH_FPU,
        "That is for a Cortex-M33 with DSP instructions and an FPU. Without both: "
        "`TARGET_ARCH=cortex-m33+nodsp`, and below "
        "`-mcpu=cortex-m33+nodsp -mthumb -mfloat-abi=soft`.",
    ),
    "cortex-m55": Build(
        "cortex-m55",
        _WITH_FPU,
        "That is for a Cortex-M55 with an FPU. Without one: `TARGET_ARCH=cortex-m55+nofp`, and "
        "below `-mcpu=cortex-m55+nofp -mthumb -mfloat-abi=softfp`.",
    ),
    "cortex-m85": Build(
        "cortex-m85", _WITH_FPU, "gcc knows the Cortex-M85 from its version 13 on."
    ),
}
"""By core, as targets.Core has them; TFLite Micro's are in
tensorflow/lite/micro/tools/make/targets/cortex_m_generic_makefile.inc."""


def processor(core: str | None) -> dict[str, str]:
    """How TFLite Micro and the firmware are compiled for the chip."""
    core_name = core or "cortex-m4"
    build, notes = BUILDS[core_name], [BUILDS[core_name].note]
    if core is None:
        alternatives = ", ".join(f"`{entry.target_arch}`" for entry in BUILDS.values())
        notes.insert(
            0,
            f"The target names no chip; {core_name} stands for your core, which may be: "
            f"{alternatives}.",
        )
    text = "\n".join(textwrap.fill(note, 100) for note in notes if note)
    return {
        "target_arch": build.target_arch,
        "processor": core_name,
        "machine": f"-mcpu={core_name} -mthumb {build.flags}",
        "processor_notes": f"{text}\n\n" if text else "",
    }
