"""What runs on a Jetson: one file, Python 3.6 to 3.13, standard library alone, no root.

Usage: python agent.py parse-tegrastats < LOG

``parse-tegrastats`` reads lines of tegrastats on standard input and writes one JSON object for each: ``ram_used_mb``, ``ram_total_mb``,
``swap_used_mb``, ``gr3d_pct``, ``cpu``, ``temps_c``, ``rails_mw``. What a line does not say is null or empty; no line raises.
"""

import glob
import json
import os
import re
import sys
from typing import Any, Dict, List, Optional, Tuple

RAM = re.compile(r"(?<!\S)RAM\s+(\d+)/(\d+)MB")  # not IRAM
SWAP = re.compile(r"(?<!\S)SWAP\s+(\d+)/(\d+)MB")
# L4T up to 28: one clock behind the list, for all cores.
CPU = re.compile(r"(?<!\S)(?:CPU|cpu)\s*\[([^\]]*)\](?:@(\d+))?")
CORE = re.compile(r"(\d+)%(?:@(\d+))?$")
GPU = re.compile(r"(?<!\S)GR3D(?:_FREQ)?\s+(\d+)%")
GPU_FIELD = re.compile(r"(?<!\S)GR3D(?:_FREQ)?(?!\S)")
# NAME@45.5C; from JetPack 7.2 on current/maximum.
TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][\w.+-]*)@(-?\d+(?:\.\d+)?)C(?:/-?\d+(?:\.\d+)?C)*(?!\S)")
# NAME current/average, from JetPack 5 on with mW, from 7.2 on with a maximum behind.
RAIL = re.compile(r"(?<!\S)(?!I?RAM\s|SWAP\s)([A-Za-z][\w.+-]*)\s+(\d+)(mW)?/(\d+)(mW)?(?:/(\d+)(mW)?)?(?!\S)")
UNREADABLE_C = -256.0  # the zone is power-gated

# Rails that are the total by themselves, in the order to look for them; then those that must be added where there is none.
TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
SUMS = (
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin; VDDQ_VDD2_1V8AO is fed from VIN_SYS_5V0
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),  # Thor on other carriers
)


def parse_tegrastats(line: str) -> Dict[str, Any]:
    """Return what one line says; the first of several numbers is the current one."""
    ram, swap, gpu = RAM.search(line), SWAP.search(line), _gpu(line)
    return {
        "ram_used_mb": int(ram.group(1)) if ram else None,
        "ram_total_mb": int(ram.group(2)) if ram else None,
        "swap_used_mb": int(swap.group(1)) if swap else None,
        "gr3d_pct": gpu,
        "cpu": _cores(line),
        "temps_c": {m.group(1): None if float(m.group(2)) <= UNREADABLE_C else float(m.group(2)) for m in TEMPERATURE.finditer(line)},
        "rails_mw": _rails(line),
    }


def _gpu(line: str) -> Optional[int]:
    """Return the load of the first GPU field; ``GR3D_FREQ @[314,314,314]`` has clocks alone."""
    field = GPU_FIELD.search(line)
    load = GPU.match(line, field.start()) if field else None
    return int(load.group(1)) if load else None


def _cores(line: str) -> Optional[List[Optional[List[Optional[int]]]]]:
    found = CPU.search(line)
    if found is None:
        return None
    shared = found.group(2)
    cores = []  # type: List[Optional[List[Optional[int]]]]
    for text in found.group(1).split(","):
        core = CORE.match(text.strip())
        clock = (core.group(2) or shared) if core else None
        cores.append([int(core.group(1)), int(clock) if clock else None] if core else None)
    return cores


def _rails(line: str) -> Dict[str, List[int]]:
    rails = {}  # type: Dict[str, List[int]]
    for m in RAIL.finditer(line):
        name, now, unit, average, unit_of_average, _, unit_of_maximum = m.groups()
        if unit != unit_of_average or (m.group(6) and unit != unit_of_maximum):
            continue  # the line was cut inside a number
        rails.setdefault(name, [int(now), int(average)])
    return rails


def total_power(rails: Dict[str, List[int]]) -> Tuple[Optional[int], str]:
    """Return the board's current total in mW and what it is: a rail, a sum of named rails, or None and why."""
    for name in TOTALS:
        if name in rails:
            return rails[name][0], "rail " + name
    for names in SUMS:
        if all(n in rails for n in names):
            return sum(rails[n][0] for n in names), "sum of monitored rails " + " + ".join(names)
    if not rails:
        return None, "the line has no power rails"
    return None, "no total among the rails " + ", ".join(sorted(rails))


def read_rails(root: str = "/") -> Dict[str, int]:
    """Return the power of every rail that the INA3221 monitors have in sysfs, mW by name; empty where there are none.

    Newer kernels (JetPack 5 on) have ``hwmon`` with labels, millivolts and milliamperes, older ones ``iio`` with milliwatts. Rails
    labelled NC and the sum of shunts (channel 7) are none.
    """
    rails = {}  # type: Dict[str, int]
    for folder in sorted(glob.glob(os.path.join(root, "sys/class/hwmon/hwmon*"))):
        if _text(os.path.join(folder, "name")) != "ina3221":
            continue
        for channel in range(1, 4):
            label = _text(os.path.join(folder, "in%d_label" % channel))
            volts, amperes = (_number(os.path.join(folder, "%s%d_input" % (kind, channel))) for kind in ("in", "curr"))
            if label and "NC" not in label.split() and volts is not None and amperes is not None:
                rails[label] = volts * amperes // 1000
    # sys/bus/i2c/drivers/ina3221x/0-0040/iio:device0
    for folder in sorted(glob.glob(os.path.join(root, "sys/bus/i2c/drivers/ina3221x/*/iio:device*"))):
        for channel in range(3):
            label = _text(os.path.join(folder, "rail_name_%d" % channel))
            power = _number(os.path.join(folder, "in_power%d_input" % channel))
            if label and "NC" not in label.split() and power is not None:
                rails[label] = power
    return rails


def _text(path: str) -> str:
    try:
        with open(path) as handle:
            return handle.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: str) -> Optional[int]:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else None


def main(arguments: List[str]) -> int:
    """Run one command; return the exit status."""
    if arguments == ["parse-tegrastats"]:
        for raw in sys.stdin.buffer:
            print(json.dumps(parse_tegrastats(raw.decode("utf-8", "replace"))), flush=True)
        return 0
    sys.stderr.write("usage: agent.py parse-tegrastats < LOG\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
