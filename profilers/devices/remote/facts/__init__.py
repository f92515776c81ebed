"""What a device says of itself, read from the output of one shell script. Text in, records out.

The transport runs `script.SCRIPT` in the device's own shell, for example `sh -s -- FOLDER` with the
script on its standard input, and passes the output to `parsing.parse`. `script.STATE_SCRIPT` and
`state.parse_state` read only what may change while a run lasts. Nothing is written on the device,
and whatever it does not say is None or absent, never guessed. No text makes these functions raise.

Where the formats come from:

/proc/cpuinfo, /sys/devices/system/cpu   https://docs.kernel.org/admin-guide/cputopology.html,
                                         .../admin-guide/pm/cpufreq.html (frequencies in kHz)
CPU implementer and part                 Arm's MIDR_EL1; names as in util-linux, lscpu-arm.c
getprop, ABI names                       https://developer.android.com/ndk/guides/abis
dumpsys battery                          AOSP, BatteryService.java (0.1 degrees Celsius)
dumpsys thermalservice                   AOSP, ThermalManagerService.java and PowerManager.java
vcgencmd get_throttled                   https://www.raspberrypi.com/documentation/computers/os.html
thermal zones (millidegrees Celsius)     https://docs.kernel.org/driver-api/thermal/sysfs-api.html
/etc/nv_tegra_release                    NVIDIA Jetson Linux Developer Guide
"""
