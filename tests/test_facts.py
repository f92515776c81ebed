"""What devices say of themselves.

The texts are reconstructed, not recorded: put together from what the vendors document and from what
owners of such devices have published (see onmetal/profilers/devices/remote/facts for the formats).
"""

import shutil
import subprocess
from typing import Any

import msgspec
import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.remote.facts import lines
from onmetal.profilers.devices.remote.facts.affinity import mask, pin
from onmetal.profilers.devices.remote.facts.fitness import unfit
from onmetal.profilers.devices.remote.facts.parsing import parse
from onmetal.profilers.devices.remote.facts.records import Cluster, Facts
from onmetal.profilers.devices.remote.facts.script import SCRIPT, STATE_SCRIPT
from onmetal.profilers.devices.remote.facts.state import parse_state
from onmetal.runtimes import RUNTIMES, spec

ARM_FLAGS = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp"
ELF64_ARM = " 7f 45 4c 46 02 01 01 00 00 00 00 00 00 00 00 00\n 03 00 b7 00"
ELF32_ARM = " 7f 45 4c 46 01 01 01 00 00 00 00 00 00 00 00 00\n 03 00 28 00"
ELF64_X86 = " 7f 45 4c 46 02 01 01 00 00 00 00 00 00 00 00 00\n 03 00 3e 00"


def said(**sections: str) -> str:
    """The output of the script with these sections, the others empty."""
    unknown = set(sections) - set(lines.SECTION_NAMES)
    assert not unknown, unknown
    return "\n".join(f"\n@@{name}\n{sections.get(name, '')}" for name in lines.SECTION_NAMES) + "\n"


def arm(*cores: tuple[int, int], flags: str = ARM_FLAGS, bogomips: str = "49.15") -> str:
    """/proc/cpuinfo of (implementer, part) each."""
    return "\n\n".join(
        f"processor\t: {number}\nBogoMIPS\t: {bogomips}\nFeatures\t: {flags}\n"
        f"CPU implementer\t: {maker:#04x}\nCPU architecture: 8\nCPU variant\t: 0x1\n"
        f"CPU part\t: 0x{part:03x}\nCPU revision\t: 1"
        for number, (maker, part) in enumerate(cores)
    )


def x86(model: str, count: int, threads: int = 2, flags: str = "fpu sse2 avx2") -> str:
    return "\n\n".join(
        f"processor\t: {number}\nvendor_id\t: GenuineIntel\nmodel name\t: {model}\n"
        f"physical id\t: 0\ncore id\t\t: {number // threads}\nflags\t\t: {flags}"
        for number in range(count)
    )


def properties(**values: str) -> str:
    return "\n".join(f"[ro.{name.replace('__', '.')}]: [{value}]" for name, value in values.items())


def clocks(
    *kinds: tuple[range, int, int | None],
    governor: str = "sched_pixel",
    limit: float = 1.0,
    driver: str = "exynos-cpufreq",
) -> str:
    """(CPUs, the hardware's kHz, capacity) each; `limit` caps the first of them."""
    count = sum(len(cpus) for cpus, _, _ in kinds)
    lines = [f"online:0-{count - 1}"]
    for index, (cpus, khz, capacity) in enumerate(kinds):
        allowed = int(khz * (limit if index == 0 else 1.0))
        for cpu in cpus:
            folder = f"cpu{cpu}/cpufreq"
            lines += [f"{folder}/cpuinfo_max_freq:{khz}", f"{folder}/scaling_max_freq:{allowed}"]
            lines += [f"{folder}/scaling_cur_freq:{khz // 2}"]
            lines += [f"{folder}/scaling_governor:{governor}", f"{folder}/scaling_driver:{driver}"]
            if capacity is not None:
                lines.append(f"cpu{cpu}/cpu_capacity:{capacity}")
    return "\n".join(lines)


def memory(total_mib: int, available_mib: int) -> str:
    return (
        f"MemTotal:       {total_mib * 1024} kB\nMemFree:         51200 kB\n"
        f"MemAvailable:   {available_mib * 1024} kB"
    )


def disk(free_mib: int, device: str = "/dev/block/dm-49") -> str:
    return (
        "Filesystem     1K-blocks     Used Available Use% Mounted on\n"
        f"{device} 114686972 51209472  {free_mib * 1024}  45% /data"
    )


def battery(**changed: str) -> str:
    values = {
        "AC powered": "false",
        "USB powered": "true",
        "Wireless powered": "false",
        "Dock powered": "false",
        "Max charging current": "500000",
        "Charge counter": "4058000",
        "status": "2",
        "health": "2",
        "present": "true",
        "level": "83",
        "scale": "100",
        "voltage": "4310",
        "temperature": "312",
        "technology": "Li-ion",
    } | {name.replace("_", " "): value for name, value in changed.items()}
    lines = "\n".join(f"  {name}: {value}" for name, value in values.items())
    return f"Current Battery Service state:\n{lines}"


def thermal(status: int, skin: int = 0, cpu: str = "52.3") -> str:
    return f"""\
IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 4
\tkilled: false
\tbroadcasts count: -1
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=91.208, mType=0, mName=BIG, mStatus=3}}
\tTemperature{{mValue=51.517, mType=3, mName=VIRTUAL-SKIN, mStatus=5}}
HAL Ready: true
HAL connection:
\tThermalHAL AIDL 1  connected: yes
Current temperatures from HAL:
\tTemperature{{mValue={cpu}, mType=0, mName=BIG, mStatus=0}}
\tTemperature{{mValue=48.1, mType=0, mName=LITTLE, mStatus=0}}
\tTemperature{{mValue=NaN, mType=1, mName=G3D, mStatus=0}}
\tTemperature{{mValue=36.4, mType=3, mName=VIRTUAL-SKIN, mStatus={skin}}}
Current cooling devices from HAL:
\tCoolingDevice{{mValue=0, mType=2, mName=thermal-cpufreq-0}}
Temperature static thresholds from HAL:
\tTemperatureThreshold{{mType=3, mName=SKIN, mHotThrottlingThresholds=[NaN, 39.0, 43.0, 45.0]}}"""


A510, A715, X3 = (0x41, 0xD46), (0x41, 0xD4D), (0x41, 0xD4E)


def pixel(**changed: str) -> str:
    return said(
        **{
            "uname": "Linux\n5.15.137-android14-11-g1d8b7ef94a1c\n#1 SMP PREEMPT\naarch64",
            "exe": ELF64_ARM,
            "cpuinfo": arm(*[A510] * 4, *[A715] * 4, X3),
            "allowed": "Cpus_allowed_list:\t0-8",
            "getprop": properties(
                build__fingerprint="google/husky/husky:14/AP2A.240705.004/1:user/release-keys",
                build__version__release="14",
                build__version__sdk="34",
                hardware="zuma",
                product__cpu__abilist="arm64-v8a",
                product__manufacturer="Google",
                product__model="Pixel 8 Pro",
                soc__manufacturer="Google",
                soc__model="Tensor G3",
            )
            + "\n[persist.sys.boot.reason.history]: [reboot,1732006385\nreboot,1731934106]",
            "meters": "odpm\nbattery",
            "clocks": clocks(
                (range(4), 1_704_000, 171),
                (range(4, 8), 2_367_000, 727),
                (range(8, 9), 2_914_000, 1024),
            ),
            "meminfo": memory(11_600, 5_200),
            "loadavg": "3.12 3.40 3.31 2/5120 21033",
            "df": disk(40_000),
            "battery": battery() + "\n  Charging state: 1\n  Charging policy: 1",
            "thermalservice": thermal(1),
            "low_power": "0",
        }
        | changed
    )


def pi5(**changed: str) -> str:
    return said(
        **{
            "uname": "Linux\n6.6.31+rpt-rpi-2712\n#1 SMP PREEMPT Debian\naarch64",
            "kernel_arch": "aarch64",
            "exe": ELF64_ARM,
            "cpuinfo": arm(*[(0x41, 0xD0B)] * 4)
            + "\n\nRevision\t: d04170\nSerial\t\t: 0\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0",
            "allowed": "Cpus_allowed_list:\t0-3",
            "topology": "\n".join(
                f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list:{cpu}"
                for cpu in range(4)
            ),
            "boot_id": "304c592e-5c45-46b5-8a4b-4a422c4d98c6",
            "os_release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
            'NAME="Debian GNU/Linux"\nVERSION_ID="12"',
            "dt_model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "dt_compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
            "python": "python 3.11.2\nnumpy 1.26.4\ntflite-runtime 2.14.0\nai-edge-litert 2.3.0",
            "meters": "pmic",
            "clocks": clocks((range(4), 2_400_000, None), governor="ondemand", driver="cpufreq-dt"),
            "meminfo": memory(8_052, 7_300),
            "loadavg": "0.10 0.05 0.01 1/210 1502",
            "df": disk(20_000, "/dev/mmcblk0p2"),
            "zones": "/sys/class/thermal/thermal_zone0/type:cpu-thermal\n"
            "/sys/class/thermal/thermal_zone0/temp:61250",
            "vcgencmd": "throttled=0x50005\ntemp=62.0'C",
        }
        | changed
    )


def test_a_pixel_with_three_kinds_of_cores() -> None:
    phone = parse(pixel())
    assert phone.model == "Pixel 8 Pro"
    assert phone.soc == "Google Tensor G3"
    assert phone.cpu == "4x Cortex-A510 + 4x Cortex-A715 + 1x Cortex-X3"
    assert (phone.arch, phone.abis) == ("aarch64", ("arm64-v8a",))
    assert phone.os == "Android 14 (API 34)"
    assert phone.build and phone.build.startswith("google/husky")
    assert phone.kernel == "5.15.137-android14-11-g1d8b7ef94a1c"
    assert (phone.cores, phone.online, phone.allowed) == (9, 9, tuple(range(9)))
    assert phone.memory_bytes == 11_600 << 20
    assert phone.flags == tuple(sorted(ARM_FLAGS.split()))
    assert phone.clusters == (
        Cluster((8,), 2_914_000, 1024),
        Cluster((4, 5, 6, 7), 2_367_000, 727),
        Cluster((0, 1, 2, 3), 1_704_000, 171),
    )
    assert not phone.emulated and not phone.virtual
    assert phone.meters == ("odpm", "battery")
    assert phone.state == {
        "governor": "sched_pixel",
        "governor_driver": "exynos-cpufreq",
        "clock_khz": [1_457_000, 1_183_500, 852_000],
        "clock_limit_khz": [2_914_000, 2_367_000, 1_704_000],
        "clock_hardware_khz": [2_914_000, 2_367_000, 1_704_000],
        "clock_limit_share": 1.0,
        "load_1min": 3.12,
        "temperature_c": 52.3,
        "thermal_status": 1,
        "battery_percent": 83,
        "battery_temperature_c": 31.2,
        "charging": True,
        "charging_by": "USB",
        "low_power": False,
        "free_bytes": 40_000 << 20,
        "available_bytes": 5_200 << 20,
    }
    refusals, flags = unfit(phone, 50_000_000)
    assert refusals == []
    assert [flag.split()[0] for flag in flags] == ["charging", "warm"]


def test_what_old_adb_makes_of_line_ends_changes_nothing() -> None:
    text = pixel()
    assert parse(text.replace("\n", "\r\n")) == parse(text)
    assert parse(text.replace("\n", "\r\r\n")) == parse(text)


def test_a_samsung_by_its_model_number() -> None:
    phone = parse(
        pixel(
            cpuinfo=arm(
                *[(0x41, 0xD80)] * 4,
                *[(0x41, 0xD81)] * 5,
                (0x41, 0xD82),
                flags="asimd sve2",
            ),
            getprop=properties(
                build__version__release="16",
                build__version__sdk="36",
                hardware="s5e9945",
                product__cpu__abilist="arm64-v8a",
                product__manufacturer="samsung",
                product__model="SM-S921B",
                soc__manufacturer="Samsung",
                soc__model="s5e9945",
            ),
            clocks=clocks(
                (range(4), 1_959_000, 250),
                (range(4, 7), 2_592_000, 700),
                (range(7, 9), 2_900_000, 780),
                (range(9, 10), 3_207_000, 1024),
                limit=0.9,
            ),
            battery=battery(USB_powered="false", status="3", level="12", temperature="455")
            + "\n  mSavedBatteryAsoc: 97\n  level: 99\n  current now: -234",
            thermalservice=thermal(0, skin=3),
            low_power="1",
        )
    )
    assert phone.model == "Samsung SM-S921B"
    assert phone.soc == "Samsung s5e9945"
    assert phone.cpu == "4x Cortex-A520 + 5x Cortex-A720 + 1x Cortex-X4"
    assert phone.flags == ("asimd", "sve2")
    assert phone.state["thermal_status"] == 3, "the skin's, where the system's stays at 0"
    assert phone.state["battery_percent"] == 12
    assert phone.state["charging"] is False and "charging_by" not in phone.state
    refusals, flags = unfit(phone, 0)
    assert [why.partition(" (")[0].partition(" has ")[0] for why in refusals] == [
        "it is too hot",
        "its battery",
    ]
    assert len(flags) == 3
    assert "12 %" in flags[0] and "saver" in flags[1] and "capped at 90%" in flags[2]


def test_a_box_with_64_bits_in_its_kernel_alone() -> None:
    box = parse(
        said(
            uname="Linux\n4.9.113\n#1 SMP PREEMPT\naarch64",
            exe=ELF32_ARM,
            cpuinfo="Processor\t: AArch64 Processor rev 4 (aarch64)\nprocessor\t: 0\n"
            "processor\t: 1\nprocessor\t: 2\nprocessor\t: 3\nFeatures\t: fp asimd aes crc32\n"
            "CPU implementer\t: 0x41\nCPU part\t: 0xd03\n\nHardware\t: Amlogic",
            getprop=properties(
                build__version__release="9",
                build__version__sdk="28",
                board__platform="gxl",
                hardware="amlogic",
                product__cpu__abilist="armeabi-v7a,armeabi",
                product__manufacturer="Amlogic",
                product__model="X96mini",
            ),
            clocks=clocks((range(4), 1_512_000, None), governor="powersave", driver="meson"),
            battery=battery(present="false", level="0", temperature="0"),
            meminfo=memory(1_800, 80),
            df="Filesystem           1K-blocks    Used Available Use% Mounted on\n"
            "/dev/block/a-very-long-name-that-breaks-lines\n"
            "                       5000000 4990000     10000 100% /data",
        )
    )
    assert box.arch == "armv7l"
    assert box.abis == ("armeabi-v7a", "armeabi")
    assert (box.model, box.soc) == ("Amlogic X96mini", "gxl")
    assert box.cpu == "Cortex-A53", "said once: which cores are so is not known"
    assert box.cores == 4
    assert not box.emulated, "a 64-bit kernel runs 32-bit programs by itself"
    assert not {"battery_percent", "charging"} & set(box.state)
    refusals, flags = unfit(box, 20_000_000)
    assert refusals == [
        "10.2 MB of storage are free where 20.0 MB are needed: delete something on the device or "
        "choose another folder",
        "83.9 MB of memory are available, less than 100.0 MB: close applications or restart the "
        "device",
    ]
    assert len(flags) == 1 and "powersave" in flags[0]
    assert unfit(box, 1000)[0] == refusals[1:]


def test_a_raspberry_pi_5_on_a_weak_supply() -> None:
    board = parse(pi5())
    assert board.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert board.soc == "brcm,bcm2712"
    assert board.cpu == "4x Cortex-A76"
    assert board.os == "Debian GNU/Linux 12, Linux 6.6.31+rpt-rpi-2712"
    assert board.boot_id == "304c592e-5c45-46b5-8a4b-4a422c4d98c6"
    assert board.runtimes == {"litert": "2.3.0"}
    assert board.packages == {"litert": "ai-edge-litert"}
    assert (board.numpy, board.python) == ("1.26.4", "3.11.2")
    assert board.state["temperature_c"] == 62.0
    assert board.state["throttled"] == {
        "now": ["under-voltage", "throttled"],
        "since_boot": ["under-voltage", "throttled"],
    }
    (refusal,), flags = unfit(board, 0)
    assert "under-voltage, throttled" in refusal and "supply" in refusal
    assert flags == []
    recovered = parse(pi5(vcgencmd="throttled=0x50000\ntemp=50.1'C"))
    assert unfit(recovered, 0) == ([], [])


def test_a_raspberry_pi_4_that_has_no_vcgencmd() -> None:
    board = parse(
        pi5(
            uname="Linux\n6.1.21-v8+\n#1642 SMP PREEMPT\naarch64",
            exe=ELF32_ARM,
            cpuinfo=arm(*[(0x41, 0xD08)] * 4),
            dt_model="Raspberry Pi 4 Model B Rev 1.4\0",
            dt_compatible="raspberrypi,4-model-b\0brcm,bcm2711\0",
            python="python 3.9.2\nnumpy 1.26.4\ntflite-runtime 2.14.0",
            meters="",
            vcgencmd="",
        )
    )
    assert board.arch == "armv7l", "32-bit programs under a 64-bit kernel"
    assert not board.emulated
    assert board.cpu == "4x Cortex-A72"
    assert (board.runtimes, board.packages) == (
        {"litert": "2.14.0"},
        {"litert": "tflite-runtime"},
    )
    assert board.meters == ()
    assert "throttled" not in board.state
    assert board.state["temperature_c"] == 61.25
    assert pin(board, 4) == () and pin(board, 1) == ()


def test_a_jetson_orin() -> None:
    board = parse(
        pi5(
            uname="Linux\n5.15.136-tegra\n#1 SMP PREEMPT\naarch64",
            cpuinfo=arm(*[(0x41, 0xD42)] * 6, bogomips="62.50"),
            allowed="Cpus_allowed_list:\t0-5",
            topology="",
            os_release='PRETTY_NAME="Ubuntu 22.04.4 LTS"\nNAME="Ubuntu"\nVERSION_ID="22.04"',
            dt_model="NVIDIA Jetson Orin Nano Developer Kit\0",
            dt_compatible="nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0"
            "nvidia,tegra23x\0",
            tegra="# R36 (release), REVISION: 3.0, GCID: 36191598, BOARD: generic, EABI: aarch64",
            meters="ina3221",
            clocks=clocks((range(6), 1_510_400, None), governor="schedutil", driver="tegra194"),
            vcgencmd="",
        )
    )
    assert board.model == "NVIDIA Jetson Orin Nano Developer Kit"
    assert board.soc == "nvidia,tegra234"
    assert board.cpu == "6x Cortex-A78AE"
    assert board.build == "L4T 36.3.0"
    assert board.os == "Ubuntu 22.04, Linux 5.15.136-tegra"
    assert board.meters == ("ina3221",)
    assert not board.emulated and not board.virtual


@pytest.mark.parametrize("arch", ["aarch64", "x86_64"])
@pytest.mark.parametrize("sign", ["kernel__qemu", "boot__qemu", "hardware"])
def test_an_android_emulator(arch: str, sign: str) -> None:
    abis = {"aarch64": "arm64-v8a", "x86_64": "x86_64,arm64-v8a"}[arch]
    signs = {"kernel__qemu": "1", "boot__qemu": "1", "hardware": "ranchu"}
    emulator = parse(
        pixel(
            uname=f"Linux\n6.1.23-android14-4\n#1 SMP PREEMPT\n{arch}",
            kernel_arch=arch,
            cpuinfo=x86("Android virtual processor", 4) if arch == "x86_64" else arm((0x61, 0)),
            getprop=properties(
                build__version__release="14",
                product__cpu__abilist=abis,
                product__manufacturer="Google",
                product__model=f"sdk_gphone64_{arch}",
                soc__manufacturer="AOSP",
                soc__model="ranchu",
                **{sign: signs[sign]},
            ),
        )
    )
    assert emulator.arch == arch
    assert emulator.os == "Android 14"
    assert emulator.emulated and emulator.virtual
    assert emulator.emulated_why and "Android emulator" in emulator.emulated_why
    assert "timings mean nothing" in unfit(emulator, 0)[1][0]


X86_HOST = x86("Intel(R) Xeon(R) CPU", 4, flags="fpu sse2 hypervisor")


@pytest.mark.parametrize("kernel", ["x86_64", ""])
def test_an_arm64_container_on_an_x86_host(kernel: str) -> None:
    """Before Linux 6.1 the kernel does not say what it is for; /proc/cpuinfo is the host's."""
    container = parse(pi5(kernel_arch=kernel, cpuinfo=X86_HOST, dt_model="", dt_compatible=""))
    assert container.arch == "aarch64"
    assert container.emulated and container.emulated_why and "qemu" in container.emulated_why
    assert container.flags == ("fpu", "hypervisor", "sse2")


def test_what_else_is_emulated() -> None:
    tree = {"dt_model": "linux,dummy-virt\0", "dt_compatible": "linux,dummy-virt\0"}
    for changed in (
        {"cpuinfo": arm((0x00, 0x051)), **tree},
        {"cpuinfo": arm((0x41, 0xD08), bogomips="125.00"), **tree},
        {"uname": "Linux\n6.1\n#1\nx86_64", "exe": ELF64_X86},  # on an Arm host
        {
            "uname": "Linux\n6.1\n#1\nx86_64",
            "kernel_arch": "x86_64",
            "exe": ELF64_X86,
            "cpuinfo": x86("QEMU TCG CPU version 2.5+", 2),
        },
        {
            "uname": "Linux\n6.1\n#1\nx86_64",
            "kernel_arch": "",
            "exe": ELF64_X86,
            "cpuinfo": "processor\t: 0\nvendor_id\t: VirtualApple\nmodel name\t: VirtualApple",
        },
    ):
        assert parse(pi5(**changed)).emulated, changed


def test_what_is_virtual_and_not_emulated() -> None:
    tree = {"dt_model": "linux,dummy-virt\0", "dt_compatible": "linux,dummy-virt\0"}
    guest = parse(pi5(cpuinfo=arm((0x41, 0xD0C), bogomips="243.75"), **tree))
    assert guest.virtual and not guest.emulated and guest.soc is None
    assert any("virtual machine" in flag for flag in unfit(guest, 0)[1])
    cuttlefish = parse(
        pixel(
            getprop=properties(hardware="cutf_cvm", product__cpu__abilist="arm64-v8a"),
            cpuinfo=arm((0x41, 0xD0C)),
        )
    )
    assert cuttlefish.virtual and not cuttlefish.emulated
    for vendor, product, virtual in (
        ("Amazon EC2", "m7g.large", True),
        ("Amazon EC2", "m7g.metal", False),
        ("QEMU", "KVM Virtual Machine", True),
        ("Dell Inc.", "PowerEdge R650", False),
    ):
        dmi = f"/sys/class/dmi/id/sys_vendor:{vendor}\n/sys/class/dmi/id/product_name:{product}"
        server = parse(pi5(dmi=dmi, dt_model="", dt_compatible=""))
        assert server.virtual is virtual, product
        assert server.model == f"{vendor} {product}"


def server(**changed: str) -> str:
    return said(
        **{
            "uname": "Linux\n6.8.0-45-generic\n#45-Ubuntu SMP\nx86_64",
            "kernel_arch": "x86_64",
            "exe": ELF64_X86,
            "cpuinfo": x86("Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz", 8),
            "allowed": "Cpus_allowed_list:\t0-7",
            "os_release": "NAME=Fedora\nVERSION_ID=40",
            "dmi": "/sys/class/dmi/id/sys_vendor:Default string\n"
            "/sys/class/dmi/id/product_name:X12DPi",
            "python": "python 3.12.3\nnumpy 2.4.6\nonnxruntime 1.32.0\nopenvino 2026.4.1",
            "clocks": clocks(
                (range(4), 3_200_000, None),
                (range(4, 8), 3_100_000, None),
                governor="powersave",
                driver="intel_pstate",
            ),
            "meminfo": memory(64_000, 60_000),
            "loadavg": "6.50 5.05 1.01 9/210 1502",
            "zones": "/sys/class/thermal/thermal_zone0/type:acpitz\n"
            "/sys/class/thermal/thermal_zone0/temp:97000\n"
            "/sys/class/thermal/thermal_zone1/type:x86_pkg_temp\n"
            "/sys/class/thermal/thermal_zone1/temp:45000",
        }
        | changed
    )


def test_an_x86_server() -> None:
    host = parse(server())
    assert host.model == "X12DPi" and host.soc is None
    assert host.cpu == "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz"
    assert (host.arch, host.abis, host.os) == ("x86_64", (), "Fedora 40, Linux 6.8.0-45-generic")
    assert (host.cores, host.online) == (4, 8)
    assert host.runtimes == {"onnxruntime": "1.32.0", "openvino": "2026.4.1"}
    assert len(host.clusters) == 1, "favoured cores are no kind of their own"
    assert host.state["temperature_c"] == 45.0
    refusals, flags = unfit(host, 1 << 30)
    assert refusals == []
    assert len(flags) == 1 and flags[0].startswith("busy (load 6.5 on 4 cores)")
    assert parse(server(allowed="Cpus_allowed_list:\t0,4")).cores == 2


def test_a_laptop_by_the_kernels_power_supplies() -> None:
    supply = "/sys/class/power_supply"
    host = parse(
        server(
            supply=f"{supply}/AC/type:Mains\n{supply}/BAT0/type:Battery\n"
            f"{supply}/BAT0/status:Full\n{supply}/BAT0/capacity:100\n{supply}/AC/online:1"
        )
    )
    assert host.state["charging"] is False
    assert (host.state["charging_by"], host.state["battery_percent"]) == ("AC", 100)
    assert any("powered by AC" in flag for flag in unfit(host, 0)[1])


def test_unknown_cores_are_named_by_their_numbers() -> None:
    board = parse(pi5(cpuinfo=arm((0x41, 0xDFF), (0x99, 0x001), (0x51, 0x804))))
    assert board.cpu == "1x ARM 0xdff + 1x 0x99 0x001 + 1x Kryo 4xx Gold"


def test_the_generations_of_qualcomms_own_cores() -> None:
    """Part 002 as a phone with an SM8850 says it (https://github.com/pytorch/cpuinfo/issues/356)."""
    phone = parse(pixel(cpuinfo=arm(*[(0x51, 0x002)] * 8, bogomips="38.40")))
    assert phone.cpu == "8x Oryon Gen 3" and not phone.emulated
    assert parse(pixel(cpuinfo=arm((0x51, 0x001)))).cpu == "1x Oryon"


@pytest.mark.parametrize("part", [0xD8C, 0xD85, 0xD4F])
def test_a_counter_of_1_ghz_proves_nothing(part: int) -> None:
    """Armv8.6 asks for it of every core, and qemu has it too since 9.1: no real phone, and no guest
    of a hypervisor, is declared emulated by it."""
    for cpuinfo in (arm((0x41, part), bogomips="2000.00"), arm((0x61, 0x023), bogomips="2000.00")):
        phone = parse(pixel(cpuinfo=cpuinfo))
        assert not phone.emulated and not phone.virtual
        assert not any("timings mean nothing" in flag for flag in unfit(phone, 0)[1])
        tree = {"dt_model": "linux,dummy-virt\0", "dt_compatible": "linux,dummy-virt\0"}
        guest = parse(pi5(cpuinfo=cpuinfo, **tree))
        assert guest.virtual and not guest.emulated
        assert any("cannot always be told" in flag for flag in unfit(guest, 0)[1])
    with_qemus_cpu = parse(pi5(cpuinfo=arm((0x00, 0x051), bogomips="2000.00")))
    assert with_qemus_cpu.emulated, "qemu's own CPU is told by its number"


def test_threads_go_to_the_fastest_cores() -> None:
    phone = parse(pixel())
    assert pin(phone, 1) == (8,)
    assert pin(phone, 4) == (4, 5, 6, 7, 8)
    assert pin(phone, 6) == (), "all are needed"
    background = parse(pixel(allowed="Cpus_allowed_list:\t0-5"))
    assert pin(background, 2) == (4, 5)
    assert pin(parse(""), 1) == ()


def test_masks() -> None:
    assert mask((8,)) == "100"
    assert mask((4, 5, 6, 7)) == "f0"
    with pytest.raises(ValueError, match="no CPUs"):
        mask(())


def test_cores_that_are_switched_off_belong_to_no_cluster() -> None:
    phone = parse(pixel(clocks=clocks((range(4), 1_000_000, None)) + "\ncpu3/online:0"))
    assert phone.clusters == (Cluster((0, 1, 2), 1_000_000, None),)


def test_the_hotter_zone_of_the_cpu_counts() -> None:
    zone = "/sys/class/thermal/thermal_zone"
    warm = parse_state(
        said(
            zones=f"{zone}0/type:battery\n{zone}0/temp:90000\n{zone}1/type:mtktscpu\n"
            f"{zone}1/temp:481\n{zone}2/type:cpu-1-0\n{zone}2/temp:47\n{zone}3/type:cpu-bad\n"
            f"{zone}3/temp:-274000\n{zone}4/type:cpu-none\n{zone}5/temp:0"
        )
    )
    assert warm == {"temperature_c": 48.1}


def test_nothing_said_is_nothing_known() -> None:
    nothing = parse("")
    assert nothing == parse(said()) == parse("sh: syntax error\n@@nonsense\nx")
    assert (nothing.cpu, nothing.arch, nothing.cores, nothing.memory_bytes) == (
        "unknown",
        None,
        None,
        None,
    )
    assert not nothing.emulated and nothing.state == {} and nothing.clusters == ()
    assert unfit(nothing, 1 << 40) == ([], [])


GARBAGE = """\
processor
flags
CPU implementer : 0x41
CPU part : 0xd05
cpu0/cpufreq/cpuinfo_max_freq:0
cpu0/cpufreq/cpuinfo_max_freq:9
cpu0/cpufreq/scaling_max_freq:1
cpu9999/online:0
online:0-99999999
Cpus_allowed_list: 0-9999
MemTotal:
7f 45 4c 46
level: 5
scale: 0
present: true
Thermal Status: 7
Current temperatures
Temperature{mValue=x, mType=0, mStatus=9
throttled=0xffffffff
-99999999999999999999
1e999
NaN
temp"""

WORDS = st.sampled_from(
    [
        *(f"\n@@{name}\n" for name in lines.SECTION_NAMES),
        *GARBAGE.splitlines(),
        *("\n", "\r\n", "\0", ":", ": ", "0-", "0", "[", "]", "/", "%", "kB", "\u0665", "9" * 5000),
    ]
)


def check_bearable(text: str) -> None:
    found = parse(text)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Facts) == found
    assert found.state == parse_state(text)
    for words in unfit(found, 1):
        assert all(isinstance(word, str) for word in words)
    if cpus := pin(found, 2):
        assert int(mask(cpus), 16)


@given(st.text(max_size=300))
@example("@@df\nx 1 1 -5 100%")
def test_no_text_raises(text: str) -> None:
    check_bearable(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=60).map("".join))
@example("\n@@battery\nlevel: 5\nscale: 0\n")
def test_no_garbage_raises(text: str) -> None:
    check_bearable(text)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([pixel(), pi5(), server()]), st.integers(0, 4000), st.integers(0, 500))
def test_no_truncated_text_raises(text: str, end: int, hole: int) -> None:
    check_bearable(text[:end])
    check_bearable(text[:end] + text[end + hole :])


SHELLS = [
    [shell, *words]
    for shell, *words in (["sh"], ["dash"], ["bash"], ["mksh"], ["busybox", "ash"])
    if shutil.which(shell)
]
"""Those that are here; sh is everywhere."""


def run(shell: list[str], script: str, *arguments: str) -> str:
    """As a transport does it: the script on standard input."""
    done = subprocess.run(
        [*shell, "-s", "--", *arguments],
        input=script,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_this_machine_says_what_is_known_of_it(shell: list[str], tmp_path: Any) -> None:
    text = run(shell, SCRIPT, str(tmp_path))
    assert text.rstrip().endswith("@@end")
    here, known = parse(text), Local(Cache(tmp_path)).facts()
    assert here.arch == known.arch
    assert here.cores == known.cores
    assert here.memory_bytes == known.memory_bytes
    assert here.emulated == known.emulated
    assert here.flags == known.flags or known.flags == ()
    assert here.free_bytes and abs(here.free_bytes - psutil.disk_usage(str(tmp_path)).free) < 1e9
    assert here.clusters and here.boot_id and here.kernel
    state = parse_state(run(shell, STATE_SCRIPT, str(tmp_path)))
    assert {"load_1min", "free_bytes", "available_bytes"} <= set(state)


def test_the_script_asks_the_python_that_it_is_told_to(tmp_path: Any) -> None:
    asked = tmp_path / "python of mine"
    asked.write_text("#!/bin/sh\necho python 3.11.2\necho ai-edge-litert 2.3.0\n")
    asked.chmod(0o755)
    here = parse(run(["sh"], SCRIPT, str(tmp_path), str(asked)))
    assert (here.python, here.runtimes) == ("3.11.2", {"litert": "2.3.0"})
    assert parse(run(["sh"], SCRIPT, ".", "/no/such/python")).python is None


def test_a_folder_that_is_not_there_has_the_space_of_the_one_above(tmp_path: Any) -> None:
    assert parse(run(["sh"], SCRIPT, str(tmp_path / "absent" / "too"))).free_bytes
    assert parse(run(["sh"], SCRIPT, "absent")).free_bytes is None


def test_the_script_asks_for_every_package_of_every_runtime() -> None:
    assert all(package in SCRIPT for runtime in RUNTIMES for package in spec(runtime).packages)


def test_the_script_fits_where_the_oldest_adb_takes_a_command() -> None:
    assert len(SCRIPT.encode()) < 4096  # MAX_PAYLOAD of adb's protocol before version 2
