"""The shell scripts that ask a device for its facts and for its state."""

from onmetal.runtimes import RUNTIMES, spec

# One function, which the shell reads whole before it runs, since the script may come on standard
# input. mksh has an alias `r`, and here-documents need a folder to write in, so neither is used.
# `grep . FILES /dev/null` prints `path:line` of all files that can be read, in one process. Old
# versions of busybox have another `timeout`.
_HEAD = """\
onmetal_facts() {
s() { echo; echo "@@$1"; }
has() { command -v "$1" >/dev/null; }
T=; timeout 10 true && T="timeout 10"
D=${1:-.}; while [ ! -d "$D" ] && [ "${D%/*}" != "$D" ]; do D=${D%/*}; D=${D:-/}; done
C=/sys/devices/system/cpu
P=/sys/class/power_supply
"""
_FACTS = """\
s uname; uname -s; uname -r; uname -v; uname -m
s kernel_arch; cat /proc/sys/kernel/arch
s exe; od -An -tx1 -N20 /proc/self/exe
s cpuinfo; cat /proc/cpuinfo
s allowed; grep Cpus_allowed_list /proc/self/status
s topology; grep . $C/cpu[0-9]*/topology/thread_siblings_list /dev/null
s boot_id; cat /proc/sys/kernel/random/boot_id
s getprop; has getprop && $T getprop
s os_release; cat /etc/os-release || cat /usr/lib/os-release
s dt_model; cat /proc/device-tree/model
s dt_compatible; cat /proc/device-tree/compatible
s dmi; grep . /sys/class/dmi/id/sys_vendor /sys/class/dmi/id/product_name /dev/null
s tegra; head -n 1 /etc/nv_tegra_release
s python; has "${2:-python3}" && $T "${2:-python3}" -c '
import sys
print("python", sys.version.split()[0])
from importlib.metadata import version
for name in "PACKAGES".split():
    try: print(name, version(name))
    except Exception: pass
'
s meters
first() { for f; do grep -q . "$f" && return; done; return 1; }
first /sys/class/powercap/intel-rapl:*/energy_uj && echo rapl
I=/sys/bus/i2c/drivers/ina3221
if first $I/*/hwmon/hwmon*/in1_input ${I}x/*/iio:device*/in_power0_input; then echo ina3221; fi
first /sys/bus/iio/devices/iio:device*/energy_value && echo odpm
first $P/[Bb][Aa][Tt]*/current_now && echo battery
has vcgencmd && $T vcgencmd pmic_read_adc | grep -q current && echo pmic
"""
_STATE = """\
s clocks
F="cpu[0-9]*/cpufreq"
(cd $C && grep . online cpu[0-9]*/online cpu[0-9]*/cpu_capacity \\
$F/cpuinfo_max_freq $F/scaling_max_freq $F/scaling_cur_freq $F/scaling_governor $F/scaling_driver \\
/dev/null)
s meminfo; grep Mem /proc/meminfo
s loadavg; cat /proc/loadavg
s df; $T df -k "$D"
s battery; has dumpsys && $T dumpsys battery
s supply; grep . $P/*/type $P/*/status $P/*/capacity $P/*/online $P/*/temp /dev/null
s thermalservice; has dumpsys && $T dumpsys thermalservice
Z=/sys/class/thermal
s zones; $T grep . $Z/thermal_zone*/type $Z/thermal_zone*/temp /dev/null
s vcgencmd; if has vcgencmd; then $T vcgencmd get_throttled; $T vcgencmd measure_temp; fi
s low_power; has settings && $T settings get global low_power
"""
_TAIL = """\
s end
}
onmetal_facts "$@" 2>/dev/null </dev/null
"""
METERS = ("rapl", "ina3221", "odpm", "battery", "pmic")
"""What the script prints of the power meters that can be read."""
PACKAGES = ("numpy", *(package for runtime in RUNTIMES for package in spec(runtime).packages))
SCRIPT: str = _HEAD + _FACTS.replace("PACKAGES", " ".join(PACKAGES)) + _STATE + _TAIL
"""Everything, for POSIX shells: mksh with toybox (Android 7 and later), busybox ash, dash, bash.

$1 is the folder whose free space counts (else the current one), $2 the Python to ask for its
packages (else python3). It prints sections that begin with a line `@@name`."""
STATE_SCRIPT: str = _HEAD + _STATE + _TAIL
"""Only what may change while a run lasts: clocks, load, memory, free space, battery, heat."""
