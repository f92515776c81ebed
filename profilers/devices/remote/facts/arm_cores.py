"""Arm cores by name: CPU implementer and CPU part of MIDR_EL1, as /proc/cpuinfo states them."""

from collections.abc import Mapping

from onmetal.profilers.devices.remote.facts.lines import hexadecimal

_CORES_TEXT = """\
41 ARM: b76 ARM1176, c05 Cortex-A5, c07 Cortex-A7, c08 Cortex-A8, c09 Cortex-A9, c0d Cortex-A17,
    c0e Cortex-A17, c0f Cortex-A15, d01 Cortex-A32, d02 Cortex-A34, d03 Cortex-A53,
    d04 Cortex-A35, d05 Cortex-A55, d06 Cortex-A65, d07 Cortex-A57, d08 Cortex-A72,
    d09 Cortex-A73, d0a Cortex-A75, d0b Cortex-A76, d0c Neoverse-N1, d0d Cortex-A77,
    d0e Cortex-A76AE, d40 Neoverse-V1, d41 Cortex-A78, d42 Cortex-A78AE, d43 Cortex-A65AE,
    d44 Cortex-X1, d46 Cortex-A510, d47 Cortex-A710, d48 Cortex-X2, d49 Neoverse-N2,
    d4a Neoverse-E1, d4b Cortex-A78C, d4c Cortex-X1C, d4d Cortex-A715, d4e Cortex-X3,
    d4f Neoverse-V2, d80 Cortex-A520, d81 Cortex-A720, d82 Cortex-X4, d83 Neoverse-V3AE,
    d84 Neoverse-V3, d85 Cortex-X925, d87 Cortex-A725, d88 Cortex-A520AE, d89 Cortex-A720AE,
    d8a C1-Nano, d8b C1-Pro, d8c C1-Ultra, d8e Neoverse-N3, d8f Cortex-A320, d90 C1-Premium
42 Broadcom: 00f Brahma-B15, 100 Brahma-B53, 516 ThunderX2
43 Cavium: 0a0 ThunderX, 0af ThunderX2, 0b8 ThunderX3
46 Fujitsu: 001 A64FX
48 HiSilicon: d01 Kunpeng-920, d40 Cortex-A76
4e NVIDIA: 000 Denver, 003 Denver 2, 004 Carmel, 010 Olympus
50 APM: 000 X-Gene
51 Qualcomm: 001 Oryon, 002 Oryon Gen 3, 04d Krait, 06f Krait, 201 Kryo Silver, 205 Kryo Gold,
    211 Kryo Silver, 800 Kryo 2xx Gold, 801 Kryo 2xx Silver, 802 Kryo 3xx Gold, 803 Kryo 3xx Silver,
    804 Kryo 4xx Gold, 805 Kryo 4xx Silver, c00 Falkor, c01 Saphira
53 Samsung: 001 Exynos-M1, 002 Exynos-M3, 003 Exynos-M4, 004 Exynos-M5
61 Apple: 020 Apple Icestorm (A14), 021 Apple Firestorm (A14), 022 Apple Icestorm (M1),
    023 Apple Firestorm (M1), 024 Apple Icestorm (M1 Pro), 025 Apple Firestorm (M1 Pro),
    028 Apple Icestorm (M1 Max), 029 Apple Firestorm (M1 Max), 032 Apple Blizzard (M2),
    033 Apple Avalanche (M2)
70 Phytium: 660 FTC660, 661 FTC661, 662 FTC662, 663 FTC663
c0 Ampere: ac3 Ampere-1, ac4 Ampere-1a
"""


def _read_core_names(text: str) -> dict[int, tuple[str, dict[int, str]]]:
    makers = (line.split(":") for line in text.replace("\n    ", " ").splitlines())
    return {
        int(maker[:2], 16): (
            maker[3:],
            {int(part[:3], 16): part[4:] for part in parts.strip().split(", ")},
        )
        for maker, parts in makers
    }


ARM_CORES = _read_core_names(_CORES_TEXT)
"""CPU implementer -> (vendor, CPU part -> name)."""


def arm_identity(fields: Mapping[str, str]) -> tuple[int | None, int | None]:
    return hexadecimal(fields.get("CPU implementer")), hexadecimal(fields.get("CPU part"))
