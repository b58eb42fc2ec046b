"""The agent on a Jetson: one file, Python 3.6 to 3.13, standard library alone, no root.

Usage: python agent.py parse-tegrastats < LOG
       python agent.py VERB ARGUMENTS

``parse-tegrastats`` reads lines of tegrastats on standard input and writes one JSON object for
each: ``ram_used_mb``, ``ram_total_mb``, ``swap_used_mb``, ``gr3d_pct``, ``cpu``, ``temps_c``,
``rails_mw``. Values that a line lacks are null or empty; no line raises.

The other verbs (``VERBS`` at the end) are for ``trtq deploy``: ARGUMENTS is a JSON object in
URL-safe base64, so that no shell finds anything to expand in it. They answer with JSON lines behind
``@trtq``; what a login script prints before has no such mark. The first line says which copy of
this file answers: a workstation with another one replaces it. All files are in one folder of this
user alone that has a marker of our own; work is done detached in ``jobs/KEY``: the link may go at
any moment, and a client that asks for the same KEY again finds it.

A workstation starts this file as ``python3 -I`` does: neither the current folder nor PYTHONPATH nor
the packages of the user's home can put a module in the way of the standard library. Advice to the
user is sent as a name of ``HINTS`` with arguments; the workstation has the words.
"""

import base64
import ctypes
import errno
import fcntl
import glob
import gzip
import hashlib
import importlib
import importlib.util
import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Optional, Tuple

PROTOCOL = 2
FULL_BYTES = 1 << 20
MARK = "@trtq "
STOPPED = "stopped"  # in a job's folder: somebody asked for its end
MARKER = ".trtq-agent"  # in folders that are ours: nothing outside one is ever removed
# Another root in tests, or where a container has the board's own mounted.
ROOT = os.environ.get("TRTQ_ROOT", "/")
CHUNK = 1 << 20
F_SETPIPE_SZ = 1031  # of Linux; fcntl names it from Python 3.10 on
BUSY_S, SILENT_S = 20.0, 60.0  # how long an upload waits for another one, and for its own link
# a word while there is nothing else to say: a workstation takes silence for a link that is gone
BEAT_S = 5.0
MOST_TEXT, MOST_LOG = 1000, 1 << 20  # characters of a reason, bytes of a log that is shown
# The only forms in which a name is made, listed or taken.
FORMS = {
    "engines": re.compile(r"[0-9a-z-]{1,64}\.(?:engine(?:\.json|\.layers\.gz)?|json)\Z"),
    "files": re.compile(r"[0-9A-Za-z][\w.-]{0,127}\Z", re.ASCII),
    "jobs": re.compile(r"[0-9a-z]{2,64}\Z"),
}
ENGINE = re.compile(r"[0-9a-f]{32}\.engine\Z")

RAM = re.compile(r"(?<!\S)RAM\s+(\d+)/(\d+)MB")  # not IRAM
SWAP = re.compile(r"(?<!\S)SWAP\s+(\d+)/(\d+)MB")
# L4T up to 28: one clock behind the list, for all cores.
CPU = re.compile(r"(?<!\S)(?:CPU|cpu)\s*\[([^\]]*)\](?:@(\d+))?")
CORE = re.compile(r"(\d+)%(?:@(\d+))?$")
GPU = re.compile(r"(?<!\S)GR3D(?:_FREQ)?\s+(\d+)%")
GPU_FIELD = re.compile(r"(?<!\S)GR3D(?:_FREQ)?(?!\S)")
# NAME@45.5C; from JetPack 7.2 on current/maximum.
TEMPERATURE = re.compile(
    r"(?<!\S)([A-Za-z][\w.+-]*)@(-?\d+(?:\.\d+)?)C(?:/-?\d+(?:\.\d+)?C)*(?!\S)"
)
# NAME current/average, from JetPack 5 on with mW, from 7.2 on with a maximum behind.
RAIL = re.compile(
    r"(?<!\S)(?!I?RAM\s|SWAP\s)([A-Za-z][\w.+-]*)\s+(\d+)(mW)?/(\d+)(mW)?(?:/(\d+)(mW)?)?(?!\S)"
)
UNREADABLE_C = -256.0  # the zone is power-gated

# Rows of the catalogue: python -m trtq.platform.agent_rows --write
MODELS = (  # in this order: a text may be a part of another
    ("orin nano", "orin-nano"),
    ("xavier nx", "xavier-nx"),
    ("orin nx", "orin-nx"),
    ("xavier", "xavier"),
    ("nano", "nano"),
    ("orin", "orin"),
    ("thor", "thor"),
    ("tx1", "tx1"),
    ("tx2", "tx2"),
    ("jetson-agx", "xavier"),
    ("quill", "tx2"),
)
SOCS = {  # capability, boards by the least MemTotal in GiB
    "tegra210": ("5.3", ((0, "nano"),)),
    "tegra186": ("6.2", ((0, "tx2"),)),
    "tegra194": ("7.2", ((9, "xavier"), (0, "xavier-nx"))),
    "tegra234": ("8.7", ((20, "orin"), (9, "orin-nx"), (0, "orin-nano"))),
    "tegra23x": ("8.7", ((20, "orin"), (9, "orin-nx"), (0, "orin-nano"))),
    "tegra264": ("11.0", ((0, "thor"),)),
    "tegra26x": ("11.0", ((0, "thor"),)),
}  # type: Dict[str, Tuple[str, Tuple[Tuple[int, str], ...]]]
RAILS = (  # what the total is the sum of
    ("POM_5V_IN",),
    ("VDD_IN",),
    ("VIN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
JETPACKS = {  # by L4T
    "32.1.0": "4.2",
    "32.2.0": "4.2.1",
    "32.2.1": "4.2.2",
    "32.2.3": "4.2.3",
    "32.3.1": "4.3",
    "32.4.2": "4.4",
    "32.4.3": "4.4",
    "32.4.4": "4.4.1",
    "32.5.0": "4.5",
    "32.5.1": "4.5.1",
    "32.5.2": "4.5.1",
    "32.6.1": "4.6",
    "32.7.1": "4.6.1",
    "32.7.2": "4.6.2",
    "32.7.3": "4.6.3",
    "32.7.4": "4.6.4",
    "32.7.5": "4.6.5",
    "32.7.6": "4.6.6",
    "34.1.0": "5.0",
    "34.1.1": "5.0.1",
    "35.1.0": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "35.6.1": "5.1.5",
    "35.6.2": "5.1.5",
    "35.6.3": "5.1.5",
    "35.6.4": "5.1.6",
    "35.6.5": "5.1.7",
    "36.2.0": "6.0",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "38.2.0": "7.0",
    "38.2.1": "7.0",
    "38.2.2": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
}
# End of the rows.


def parse_tegrastats(line: str) -> Dict[str, Any]:
    """Return what one line says; the first of several numbers is the current one."""
    ram, swap, gpu = RAM.search(line), SWAP.search(line), _gpu(line)
    return {
        "ram_used_mb": int(ram.group(1)) if ram else None,
        "ram_total_mb": int(ram.group(2)) if ram else None,
        "swap_used_mb": int(swap.group(1)) if swap else None,
        "gr3d_pct": gpu,
        "cpu": _cores(line),
        "temps_c": {
            m.group(1): None if float(m.group(2)) <= UNREADABLE_C else float(m.group(2))
            for m in TEMPERATURE.finditer(line)
        },
        "rails_mw": _rails(line),
    }


def _gpu(line: str) -> Optional[int]:
    """Return the load of the first GPU field; ``GR3D_FREQ @[314,314,314]`` has clocks alone."""
    field = GPU_FIELD.search(line)
    load = GPU.match(line, field.start()) if field else None
    return int(load.group(1)) if load else None


def _cores(line: str) -> Optional[List[Optional[List[Optional[int]]]]]:
    match = CPU.search(line)
    if match is None:
        return None
    shared = match.group(2)
    cores = []  # type: List[Optional[List[Optional[int]]]]
    for text in match.group(1).split(","):
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
    """Return the board's current total power in mW and its source.

    The source is a rail or a sum of named rails. Where there is no total, return None and the
    reason.
    """
    for names in RAILS:
        if all(n in rails for n in names):
            what = "rail " if len(names) == 1 else "sum of monitored rails "
            return sum(rails[n][0] for n in names), what + " + ".join(names)
    if not rails:
        return None, "the line has no power rails"
    return None, "no total among the rails " + ", ".join(sorted(rails))


def read_rails(root: str = "/") -> Dict[str, int]:
    """Return the power in mW of every INA3221 rail in sysfs, by name.

    The result is empty where there are none.

    Newer kernels (JetPack 5 on) have ``hwmon`` with labels, millivolts and milliamperes; older ones
    have ``iio`` with milliwatts. Rails labelled NC and the sum of shunts (channel 7) are left out.

    Args:
        root: of the file system; another one in tests.
    """
    rails = {}  # type: Dict[str, int]
    for folder in sorted(glob.glob(os.path.join(root, "sys/class/hwmon/hwmon*"))):
        # Thor's developer kit: the whole board, microwatts
        if _text(os.path.join(folder, "name")) == "ina238":
            power = _number(os.path.join(folder, "power1_input"))
            if power is not None:
                rails["VIN"] = power // 1000
            continue
        if _text(os.path.join(folder, "name")) != "ina3221":
            continue
        for channel in range(1, 4):
            label = _text(os.path.join(folder, "in%d_label" % channel))
            volts, amperes = (
                _number(os.path.join(folder, "%s%d_input" % (kind, channel)))
                for kind in ("in", "curr")
            )
            if label and "NC" not in label.split() and volts is not None and amperes is not None:
                rails[label] = volts * amperes // 1000
    # sys/bus/i2c/drivers/ina3221x/0-0040/iio:device0
    for folder in sorted(
        glob.glob(os.path.join(root, "sys/bus/i2c/drivers/ina3221x/*/iio:device*"))
    ):
        for channel in range(3):
            label = _text(os.path.join(folder, "rail_name_%d" % channel))
            power = _number(os.path.join(folder, "in_power%d_input" % channel))
            if label and "NC" not in label.split() and power is not None:
                rails[label] = power
    return rails


def sysfs_power(root: str = "/") -> Tuple[Optional[int], str]:
    """Return the total of the monitors in sysfs, as ``total_power`` does."""
    return total_power({name: [mw, mw] for name, mw in read_rails(root).items()})


def _text(path: str) -> str:
    try:
        # over SSH the locale of JetPack 4 is plain ASCII
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read().strip()
    except OSError:
        return ""


def _number(path: str) -> Optional[int]:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else None


# Requests to the board.

TRTEXEC = (
    "/usr/src/tensorrt/bin/trtexec",
    "/usr/bin/trtexec",
    "/usr/local/bin/trtexec",
    "/opt/tensorrt/bin/trtexec",
)
TOOL_FOLDERS = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin")
# Hints for a person, by name. The workstation fills its own copy of these words in: ``device`` is
# the board's name there, arguments that come from the board are quoted for a shell.
HINTS = {
    "": "",
    "sudoers": "on the board: sudo visudo -f /etc/sudoers.d/trtq, with the line: {user} "
    "ALL=(root) NOPASSWD: /usr/sbin/nvpmodel, /usr/bin/jetson_clocks",
    "install": "on the board: sudo apt-get install {package}",
    "start-trtexec": "on the board: {path} --help",
    "video": "on the board: sudo usermod -aG video,render {user}, then log in again",
    "desktop": "on the board: sudo systemctl isolate multi-user.target",
    "disk": "trtq device clean {device}, or give trtq device add another --workdir",
    "clock": "on the board: sudo timedatectl set-ntp true",
    "restore": "on the board: sudo nvpmodel -m {number}; a restart frees the clocks",
    "clocks": "on the board: sudo nvpmodel -q; a restart frees the clocks",
    "ask-mode": "on the board: sudo nvpmodel -q",
    "set-mode": "on the board: sudo nvpmodel -m {number}, and answer it; then deploy again",
    "own-folder": "Give trtq device add a --workdir of its own, such as {path}/trtq",
    "link": "Give trtq device add the folder itself: --workdir {path}",
    "private": "on the board: chmod go-w {path}; or give trtq device add another --workdir",
    "another-folder": "Give trtq device add another --workdir, of your own user there",
    "writable": "Give trtq device add a --workdir that can be written",
    "space": "Free some space on the board's disk (trtq device clean {device} removes what trtq "
    "left there), or give trtq device add another --workdir",
    "upload-again": "deploy again: the upload is checked then",
}
Hint = Dict[str, Any]


def hint(name: str, **arguments: Any) -> Hint:
    """Return a piece of advice as it is sent."""
    assert name in HINTS, name
    return {"name": name, "arguments": {k: str(v)[:MOST_TEXT] for k, v in arguments.items()}}


class Refused(Exception):
    """A request that the board cannot or must not do; ``mend`` is what a person can do about it."""

    def __init__(self, why: str, mend: Optional[Hint] = None) -> None:
        Exception.__init__(self, why)
        self.mend = mend or hint("")


def at(path: str) -> str:
    """Return where a path of the board is."""
    return path if ROOT == "/" else os.path.join(ROOT, path.lstrip("/"))


def tool(name: str) -> Optional[str]:
    """Return the path of one of the board's programs.

    The PATH of a session without a terminal lacks /usr/sbin.
    """
    for folder in TOOL_FOLDERS:
        path = at(os.path.join(folder, name))
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return shutil.which(name) if ROOT == "/" else None


def run(argv: List[str], limit_s: float = 30.0) -> Tuple[int, str]:
    """Run a program without a shell or input; return its exit status and its whole output.

    Status 127 means that the program is not there, 124 that it was too slow.
    """
    try:
        child = subprocess.Popen(
            as_bytes(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ(),
        )
    except OSError as exc:
        return 127, str(exc)
    try:
        output = child.communicate(timeout=limit_s)[0]
    except subprocess.TimeoutExpired:
        try:
            child.kill()  # one that runs as root is not ours to end, and is not waited for
        except OSError:
            pass
        return 124, "no answer in %d s" % limit_s
    return child.returncode, output.decode("utf-8", "replace")


def as_bytes(argv: List[str]) -> List[bytes]:
    """Return arguments as UTF-8 in any locale."""
    return [a.encode("utf-8", "surrogateescape") for a in argv]


def environ() -> Dict[str, str]:
    """Return the environment for the board's programs.

    Numbers have decimal points, and the library path includes CUDA's.
    """
    variables = dict(os.environ, LC_ALL="C")
    cuda = "/usr/local/cuda/lib64"
    if os.path.isdir(cuda):
        variables["LD_LIBRARY_PATH"] = ":".join(
            [p for p in variables.get("LD_LIBRARY_PATH", "").split(":") if p] + [cuda]
        )
    return variables


def as_root(argv: List[str], limit_s: float = 30.0) -> Tuple[int, str]:
    """Run a program as root without ever asking for a password."""
    if os.geteuid() == 0 and ROOT == "/":
        return run(argv, limit_s)
    sudo = tool("sudo")
    if sudo is None:
        return 127, "there is no sudo"
    return run([sudo, "-n"] + argv, limit_s)


def may_set_power() -> bool:
    """Whether sudo runs nvpmodel and jetson_clocks without a password.

    These two programs set power mode and clocks. sudo may allow them and nothing else.
    """
    queries = [(tool("nvpmodel"), "-q"), (tool("jetson_clocks"), "--show")]
    return all(
        path is not None and as_root([path, option], 20.0)[0] == 0 for path, option in queries
    )


def identify() -> Dict[str, Any]:
    """Return what the board is and which software it has, from files that need no root."""
    model = _text(at("/proc/device-tree/model")).strip("\0 \n")
    compatible = [c for c in _text(at("/proc/device-tree/compatible")).split("\0") if c]
    soc = next(
        (m.group(0) for m in (re.search(r"tegra\d\d[\dx]", c) for c in compatible) if m), None
    )
    memory = meminfo()
    total_gib = memory.get("MemTotal", 0) / 2.0**30
    name = next((short for text, short in MODELS if text in model.lower()), None)
    if name is None and soc in SOCS:  # other makers' carriers change the model text
        name = next(short for least, short in SOCS[soc][1] if total_gib >= least)
    l4t = _l4t()
    return {
        "model": model or None,
        "compatible": compatible,
        "soc": soc,
        "board": name,
        "capability": SOCS[soc][0] if soc in SOCS else None,
        "l4t": l4t,
        "jetpack": jetpack_of(l4t),
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "python": "%d.%d.%d" % sys.version_info[:3],
        "python_path": sys.executable,
        "agent": os.path.realpath(__file__),
        "tensorrt": _libnvinfer(),
        "trtexec": find_trtexec(),
        "tensorrt_python": _has_module("tensorrt"),
    }


def _l4t() -> Optional[str]:
    first = _text(at("/etc/nv_tegra_release")).split("\n")[0]
    release = re.search(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", first)
    if release is not None:
        return (release.group(1) + "." + release.group(2) + ".0")[
            : None if release.group(2).count(".") == 0 else -2
        ]
    query = tool("dpkg-query")
    if query is not None:
        code, text = run([query, "-W", "-f", "${Version}", "nvidia-l4t-core"])
        if code == 0 and re.match(r"\d+\.\d+", text):
            return text.split("-")[0]
    return None


def jetpack_of(l4t: Optional[str]) -> Optional[str]:
    """Return the JetPack of an L4T release.

    The result is ``6.x`` where only the generation is known, and None where not even that is.
    """
    if l4t is None:
        return None
    generations = {k.split(".")[0]: v.split(".")[0] for k, v in JETPACKS.items()}
    generation = generations.get(l4t.split(".")[0])
    return JETPACKS.get(l4t) or (generation + ".x" if generation else None)


def _libnvinfer() -> Optional[str]:
    """Return the version of the TensorRT library that is installed: its file name says it."""
    for pattern in (
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/local/lib",
        "/usr/lib",
    ):
        matches = [
            re.search(r"libnvinfer\.so\.(\d+\.\d+\.\d+)$", p)
            for p in glob.glob(os.path.join(at(pattern), "libnvinfer.so.*"))
        ]
        versions = [m.group(1) for m in matches if m is not None]
        if versions:
            return max(versions, key=lambda v: [int(x) for x in v.split(".")])
    return None


def find_trtexec() -> Optional[Dict[str, Any]]:
    """Return the path and the version number (8201, 100300) of trtexec.

    The number is None where trtexec does not start.
    """
    for place in (
        [os.environ.get("TRTQ_TRTEXEC", "")]
        + [at(p) for p in TRTEXEC]
        + [(shutil.which("trtexec") or "") if ROOT == "/" else ""]
    ):
        if place and os.path.isfile(place):
            code, text = run([place, "--help"], 120.0)
            version = re.search(r"\[TensorRT v(\d{4,6})\]", text)
            return {
                "path": place,
                "number": int(version.group(1)) if version else None,
                "said": "" if version else (text.strip()[-300:] or "status %d" % code),
            }
    return None


def _has_module(name: str) -> bool:
    """Whether the system's Python has a module.

    The module is not imported: for TensorRT that takes seconds and hundreds of MB.
    """
    return importlib.util.find_spec(name) is not None


def meminfo() -> Dict[str, int]:
    """Return /proc/meminfo in bytes."""
    return {
        m.group(1): int(m.group(2)) * 1024
        for m in re.finditer(r"^(\w+):\s+(\d+) kB", _text(at("/proc/meminfo")), re.MULTILINE)
    }


def boot_id() -> str:
    """Return an id that differs after every boot; the board's clock may say 1970."""
    return _text(at("/proc/sys/kernel/random/boot_id"))


def temperatures() -> Dict[str, float]:
    """Return temperatures in degrees Celsius by thermal zone.

    Zones that cannot be read (-256) and the constant one of the PMIC are left out.
    """
    celsius = {}  # type: Dict[str, float]
    for zone in sorted(glob.glob(at("/sys/class/thermal/thermal_zone*"))):
        name = (
            _text(os.path.join(zone, "type"))
            .replace("-thermal", "")
            .replace("_thermal", "")
            .replace("-therm", "")
        )
        value = _number(os.path.join(zone, "temp"))
        if (
            name
            and value is not None
            and value > UNREADABLE_C * 1000
            and not name.upper().startswith("PMIC")
        ):
            celsius[name] = value / 1000.0
    return celsius


def throttling() -> Dict[str, int]:
    """Return the over-current counters and the active alerts.

    A value above its earlier one means that the board has throttled.
    """
    counters = {}  # type: Dict[str, int]
    for device in glob.glob(at("/sys/class/thermal/cooling_device*")):
        name = _text(os.path.join(device, "type"))
        if "throttle-alert" in name:
            counters[name] = counters.get(name, 0) + (
                _number(os.path.join(device, "cur_state")) or 0
            )
    for folder in glob.glob(at("/sys/class/hwmon/hwmon*")):
        if _text(os.path.join(folder, "name")) == "soctherm_oc":
            for path in glob.glob(os.path.join(folder, "oc*_event_cnt")):
                counters[os.path.basename(path)] = _number(path) or 0
    return counters


def gpu_node() -> Optional[str]:
    """Return the folder of the GPU's clock; its name differs from board to board."""
    nodes = sorted(glob.glob(at("/sys/class/devfreq/*")))
    return next((n for n in nodes if re.search(r"\.(gpu|gp10b|gv11b|ga10b)$|gpu-gpc", n)), None)


def clocks() -> Dict[str, Any]:
    """Return the CPU's governor and the clock limits.

    GPU clocks are in Hz, CPU clocks in kHz. Clocks are pinned where minimum and maximum are equal.
    """
    gpu = {}  # type: Dict[str, Any]
    node = gpu_node()
    if node is not None:
        gpu = {"name": os.path.basename(node)}
        for key in ("min_freq", "max_freq", "cur_freq"):
            gpu[key] = _number(os.path.join(node, key))
    cpu = {}  # type: Dict[str, Any]
    folder = at("/sys/devices/system/cpu/cpu0/cpufreq")
    if os.path.isdir(folder):
        cpu = {"governor": _text(os.path.join(folder, "scaling_governor"))}
        for key in ("scaling_min_freq", "scaling_max_freq", "scaling_cur_freq"):
            cpu[key] = _number(os.path.join(folder, key))
    pinned = bool(gpu) and gpu["min_freq"] is not None and gpu["min_freq"] == gpu["max_freq"]
    return {"gpu": gpu, "cpu": cpu, "pinned": pinned}


def gpu_load() -> Optional[float]:
    """Return the GPU's load in percent; Thor's kernel does not tell it."""
    for path in (
        "/sys/devices/gpu.0/load",
        "/sys/devices/platform/gpu.0/load",
        "/sys/devices/platform/17000000.gpu/load",
    ):
        value = _number(at(path))
        if value is not None:
            return value / 10.0
    return None


def power_mode() -> Dict[str, Any]:
    """Return the board's current power mode and the modes it has.

    The form is ``{"id": 0, "name": "MAXN", "modes": {"MAXN": 0}}``; ``id`` is None where it is
    unknown.
    """
    modes = {
        m.group(2): int(m.group(1))
        for m in re.finditer(
            r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", _text(at("/etc/nvpmodel.conf"))
        )
    }
    path = tool("nvpmodel")
    name = None  # type: Optional[str]
    number = None  # type: Optional[int]
    if path is not None:
        lines = run([path, "-q"], 20.0)[1].splitlines()
        for i, line in enumerate(lines):
            match = re.search(r"NV Power Mode:\s*(\S+)", line)
            if match is not None:
                name = match.group(1)
                number = next((int(x) for x in lines[i + 1 :] if x.strip().isdigit()), None)
    if number is None:
        stored = re.search(r"pmode:(\d+)", _text(at("/var/lib/nvpmodel/status")))
        number = int(stored.group(1)) if stored else None
        name = name or next((n for n, i in modes.items() if i == number), None)
    return {"id": number, "name": name, "modes": modes}


def read_power() -> Tuple[Optional[int], str, str]:
    """Return the board's power in mW, what the figure is, and where it was read.

    The source is the INA3221 monitors in sysfs, or else one line of tegrastats.
    """
    if read_rails(ROOT):
        return sysfs_power(ROOT) + ("INA3221 in sysfs",)
    lines = list(tegrastats_lines(200, 2))
    total, what = total_power(parse_tegrastats(lines[-1])["rails_mw"] if lines else {})
    return total, what, "tegrastats"


def tegrastats_lines(interval_ms: int, count: int) -> Iterator[str]:
    """Yield lines of tegrastats; the child that writes them is ours and ends with this."""
    path = tool("tegrastats")
    if path is None:
        return
    try:
        child = subprocess.Popen(
            [path, "--interval", str(interval_ms)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
    except OSError:
        return
    late = threading.Timer(5.0 + count * interval_ms / 1000.0, child.kill) if count else None
    if late is not None:
        late.start()
    try:
        assert child.stdout is not None
        for raw in child.stdout:
            yield raw.decode("utf-8", "replace")
            count -= 1
            if count == 0:
                return
    finally:
        if late is not None:
            late.cancel()
        child.kill()
        child.wait()


def die_with_parent() -> None:
    """Ask the kernel to end this process together with its parent.

    A build must not outlive the agent that watches it.
    """
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        pass


def probe(home: str) -> Dict[str, Any]:
    """Return everything a workstation needs to know before it sends work.

    This includes what is missing, each with the command that fixes it.
    """
    lock = Lock(os.path.join(home, "board.lock"))
    if lock.take(wait=False):  # nobody is at work: what an interrupted job left set is set back now
        try:
            set_back(home)
        finally:
            lock.free()
    facts = identify()
    memory, disk, power = meminfo(), os.statvfs(home), power_mode()
    total, what, source = read_power()
    may = may_set_power()
    groups = _groups()
    facts.update(
        {
            "home": home,
            "memory": {
                k: memory.get(k) for k in ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
            },
            "disk": {"free": disk.f_bavail * disk.f_frsize, "inodes": disk.f_favail},
            "power_mode": power,
            "clocks": clocks(),
            "power": {"mw": total, "what": what, "source": source},
            "temperatures": temperatures(),
            "throttling": throttling(),
            "root": may,
            "user": _user(),
            "groups": groups,
            "boot_id": boot_id(),
            "time": time.time(),
            "desktop": _desktop(),
            "container": os.path.exists(at("/.dockerenv")),
            "tools": {n: tool(n) for n in ("tegrastats", "nvpmodel", "jetson_clocks")},
        }
    )
    lock = Lock(os.path.join(home, "board.lock"))
    idle = lock.take(wait=False)
    plan = read_json(os.path.join(home, "restore.json"))
    if idle:
        lock.free()
    facts["meanwhile"] = None
    # other settings are in force now: what counts is what the board returns to
    if plan is not None:
        if not idle:
            facts["meanwhile"] = {"mode": power["name"], "pinned": facts["clocks"]["pinned"]}
        facts["power_mode"].update(id=plan["mode"], name=plan["name"])
        facts["clocks"]["pinned"] = facts["clocks"]["pinned"] and not plan["store"]
    facts["missing"] = _missing(facts)
    if plan is not None and idle:
        what = "the power mode or the clocks that an earlier job set could not be set back"
        facts["missing"].append({"what": what, "mend": hint("restore", number=plan["mode"])})
    return facts


def _user(number: Optional[int] = None) -> str:
    import pwd

    number = os.geteuid() if number is None else number
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _groups() -> List[str]:
    import grp

    names = []
    for number in os.getgroups():
        try:
            names.append(grp.getgrgid(number).gr_name)
        except KeyError:
            names.append(str(number))
    return sorted(names)


def _desktop() -> bool:
    """Whether a desktop runs: it takes 250 to 865 MB of the memory that the GPU shares."""
    for path in (
        glob.glob("/proc/[0-9]*/comm") if ROOT == "/" else glob.glob(at("/proc/[0-9]*/comm"))
    ):
        if _text(path) in ("gnome-shell", "Xorg", "compiz", "lxsession"):
            return True
    return False


def _missing(facts: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Return what is not as it should be, each with what it costs and the advice."""
    faults = []  # type: List[Dict[str, Any]]

    def add(what: str, name: str = "", **arguments: Any) -> None:
        faults.append({"what": what, "mend": hint(name, **arguments)})

    user = facts["user"]
    if facts["trtexec"] is None and not facts["tensorrt_python"]:
        packages = "nvidia-jetpack" if facts["tensorrt"] is None else "libnvinfer-bin"
        add(
            "neither trtexec nor TensorRT's Python module: nothing can be built here",
            "install",
            package=packages,
        )
    elif facts["trtexec"] is None:
        add(
            "no trtexec: engines are built through Python, and no latency can be measured",
            "install",
            package="libnvinfer-bin",
        )
    elif facts["trtexec"]["number"] is None:
        add(
            "trtexec does not start: " + facts["trtexec"]["said"],
            "start-trtexec",
            path=facts["trtexec"]["path"],
        )
    if not facts["tensorrt_python"]:
        add(
            "no TensorRT for Python: no accuracy can be measured here",
            "install",
            package="python3-libnvinfer",
        )
    if not facts["root"]:
        add(
            "no sudo without a password: power mode and clocks are unchanged, and are recorded",
            "sudoers",
            user=user,
        )
    if facts["power"]["mw"] is None:
        add("no power figure: " + facts["power"]["what"])
    if os.geteuid() != 0 and ROOT == "/" and "video" not in facts["groups"]:
        add(
            "the user is not in the group video: CUDA will not start",
            "video",
            user=user,
        )
    if facts["desktop"] and (facts["memory"]["MemTotal"] or 0) < 9 * 2**30:
        add("a desktop runs: it takes memory that builds need", "desktop")
    if facts["disk"]["free"] < 2**30:
        add("%d MB of disk are free" % (facts["disk"]["free"] / 1e6), "disk")
    if facts["time"] < 1600000000:
        add(
            "the clock shows %s: only time differences are used"
            % time.strftime("%Y", time.gmtime(facts["time"])),
            "clock",
        )
    return faults


# Files: whole or not there.


def create(path: str) -> BinaryIO:
    """Open a file for writing that must not exist yet.

    Nothing is ever written through a link or into a file of another user.
    """
    return os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600),
        "wb",
    )


def beside(path: str) -> str:
    """Return a name beside ``path`` that nobody has."""
    return "%s.%s.new" % (path, os.urandom(8).hex())


def extend(path: str, mode: str = "ab") -> Any:
    """Open one of our files, which may exist already.

    The default mode appends; ``r+b`` continues inside the file.
    """
    flags = (
        os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_APPEND if "a" in mode else 0)
    )
    number = os.open(path, flags, 0o600)
    attributes = os.fstat(number)
    if not stat.S_ISREG(attributes.st_mode) or attributes.st_uid != os.geteuid():
        os.close(number)
        raise Refused("%s is no file of this user" % path, hint("another-folder"))
    return os.fdopen(number, mode, 0 if mode == "r+b" else -1)


def write_whole(path: str, data: bytes) -> None:
    """Write beside, flush, rename."""
    new = beside(path)
    try:
        with create(new) as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(new, path)
    except BaseException:
        _drop([new])
        raise


def write_json(path: str, value: Any) -> None:
    """Write a JSON value, whole or not at all."""
    write_whole(path, json.dumps(value).encode())


def touch(path: str) -> None:
    """Make an empty file unless it is there."""
    extend(path).close()


def read_json(path: str) -> Optional[Dict[str, Any]]:
    """Return a JSON object, None where there is none or half of one."""
    try:
        with open(path, encoding="utf-8") as handle:
            value = json.load(handle)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def sha256(path: str) -> str:
    """Return the digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(CHUNK), b""):
            digest.update(block)
    return digest.hexdigest()


def open_home(path: str) -> str:
    """Create our folder where it is missing and return its path without links.

    The folder must belong to this user alone and be writable.

    Raises:
        Refused: it is a link, somebody else's, writable by others, or holds files that trtq did not
            make.
    """
    given = os.path.abspath(os.path.expanduser(path))
    _require_own(given)
    home = os.path.realpath(given)
    # The marker is the first thing in the folder: a call beside this one may be making it, so look
    # inside before looking for it.
    try:
        contents = set(os.listdir(home)) - {"agents"} if os.path.isdir(home) else set()
    except OSError as exc:
        raise Refused("cannot read %s: %s" % (home, exc.strerror), hint("another-folder"))
    marker = os.path.join(home, MARKER)
    if contents and not (os.path.isfile(marker) and not os.path.islink(marker)):
        raise Refused(
            "%s is not empty, and trtq did not make it" % home, hint("own-folder", path=path)
        )
    try:
        os.makedirs(home, mode=0o700, exist_ok=True)
        touch(marker)
        for folder in ("files", "engines", "jobs", "locks", "agents"):
            os.makedirs(os.path.join(home, folder), mode=0o700, exist_ok=True)
            _require_own(os.path.join(home, folder))
        trial = beside(os.path.join(home, ".trial"))
        with create(trial) as handle:
            handle.write(b"x")
        os.unlink(trial)
    except OSError as exc:
        raise Refused(
            "cannot write to %s: %s" % (home, exc.strerror),
            _room(exc) if exc.errno != errno.EEXIST else hint("another-folder"),
        )
    return home


def _require_own(path: str) -> None:
    """Refuse a folder that is a link, another user's, or writable by others.

    A folder that does not exist is fine.
    """
    try:
        attributes = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise Refused("cannot use %s: %s" % (path, exc.strerror), hint("another-folder"))
    if stat.S_ISLNK(attributes.st_mode):
        raise Refused("%s is a link" % path, hint("link", path=os.path.realpath(path)))
    if not stat.S_ISDIR(attributes.st_mode):
        raise Refused("%s is no folder" % path, hint("another-folder"))
    if attributes.st_uid != os.geteuid():
        raise Refused(
            "%s belongs to another user (%s, not %s)" % (path, _user(attributes.st_uid), _user()),
            hint("another-folder"),
        )
    if attributes.st_mode & 0o022:
        raise Refused(
            "others can write to %s (mode %03o)" % (path, stat.S_IMODE(attributes.st_mode)),
            hint("private", path=path),
        )


def _room(exc: OSError) -> Hint:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return hint("space")
    return hint("writable" if exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM) else "")


def install(home: str, digest: str) -> Dict[str, Any]:
    """Put this file, which came by standard input, where the workstation starts it from."""
    source = globals().get("SOURCE") or b""
    if hashlib.sha256(source).hexdigest() != digest:
        return {"whole": False}
    folder = os.path.join(home, "agents", digest[:16])
    os.makedirs(folder, mode=0o700, exist_ok=True)
    _require_own(folder)
    write_whole(os.path.join(folder, "agent.py"), source)
    shutil.rmtree(os.path.join(folder, "__pycache__"), ignore_errors=True)
    return {"whole": True}


class Lock:
    """An exclusive lock on a file; the system frees it when its process ends.

    The file's text names the owner.
    """

    def __init__(self, path: str, owner: str = "") -> None:
        self.path, self.owner = path, owner
        self.handle = extend(path, "a")

    def take(self, wait: bool = True) -> bool:
        """Take it; return False where another has it and ``wait`` is off."""
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (IOError, OSError) as exc:
            if exc.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        self.handle.truncate(0)
        self.handle.write(self.owner)
        self.handle.flush()
        return True

    def free(self) -> None:
        """Give it back."""
        self.handle.truncate(0)
        self.handle.close()


def put(
    home: str, name: str, size: int, digest: str, offset: int, token: str, source: Any
) -> Dict[str, Any]:
    """Receive a file on standard input, from ``offset`` on.

    Bytes that arrived before a cut remain, and the next upload continues behind them.

    An upload that still waits for a broken link gives way to the next one with its ``token``; an
    upload with another token is waited for.

    Args:
        home: our folder.
        name: of the file in it, such as ``files/model.onnx``.
        size: bytes of the whole file.
        digest: its SHA-256.
        offset: where the upload continues; bytes behind it are dropped.
        token: of the deployment.
        source: standard input, opened for bytes.

    Returns:
        ``state`` and ``have``, the bytes that are here: ``stored`` (with ``path``), ``cut`` (send
        from ``have`` on), ``damaged`` (send all of it again) or ``busy`` (another upload has the
        file).

    Raises:
        Refused: the name is none of ours, or the disk has too little room.
    """
    path = inside(home, name)
    part = "%s.part.%s" % (path, digest[:16])
    lock = Lock(
        os.path.join(home, "locks", digest[:16]), json.dumps({"token": token, "pid": os.getpid()})
    )
    until = time.monotonic() + BUSY_S
    while not lock.take(wait=False):
        holder = read_json(lock.path) or {}
        if holder.get("token") == token and holder.get("pid"):
            try:
                os.kill(holder["pid"], signal.SIGKILL)
            except OSError:
                pass
        if time.monotonic() > until:
            return {"state": "busy", "have": 0}
        time.sleep(0.1)
    try:
        have = os.path.getsize(part) if os.path.exists(part) else 0
        if offset > have:
            return {"state": "cut", "have": have}
        hasher = hashlib.sha256()
        with extend(part, "r+b") as handle:
            left = offset
            while left:
                block = handle.read(min(CHUNK, left))
                hasher.update(block)
                left -= len(block)
            handle.truncate(offset)
            _require_room(home, size - offset)
            got = offset
            descriptor, view = source.fileno(), memoryview(bytearray(CHUNK))
            try:
                # a pipe of 64 KiB has sshd and this wait for each other all the time
                fcntl.fcntl(descriptor, F_SETPIPE_SZ, CHUNK)
            except (IOError, OSError):
                pass
            flusher = _Flusher(handle.fileno())
            flusher.start()
            while got < size and select.select([descriptor], [], [], SILENT_S)[0]:
                count = os.readv(descriptor, [view[: min(CHUNK, size - got)]])
                if not count:
                    break
                handle.write(view[:count])
                hasher.update(view[:count])
                got += count
            flusher.over.set()
            flusher.join()
            os.fsync(handle.fileno())
        if got < size:
            return {"state": "cut", "have": got}
        if hasher.hexdigest() != digest:
            os.unlink(part)
            return {"state": "damaged", "have": 0}
        os.replace(part, path)
        return {"state": "stored", "have": size, "path": path}
    finally:
        lock.free()


class _Flusher(threading.Thread):
    """Flushes to disk while more data arrives, so that little is left to wait for at the end."""

    def __init__(self, descriptor: int) -> None:
        threading.Thread.__init__(self)
        self.daemon, self.descriptor, self.over = True, descriptor, threading.Event()

    def run(self) -> None:
        """Flush repeatedly."""
        while not self.over.wait(0.1):
            try:
                os.fdatasync(self.descriptor)
            except OSError:  # the last flush says it
                return


def have(home: str, name: str, size: int, digest: str) -> Dict[str, Any]:
    """Return how much of a file is here; a whole file counts only with the right digest.

    Returns:
        ``state`` (``stored`` or ``part``), ``have`` (bytes) and ``path``.
    """
    path = inside(home, name)
    part = "%s.part.%s" % (path, digest[:16])
    if os.path.isfile(path) and os.path.getsize(path) == size and sha256(path) == digest:
        return {"state": "stored", "have": size, "path": path}
    return {
        "state": "part",
        "have": min(os.path.getsize(part), size) if os.path.exists(part) else 0,
        "path": path,
    }


def inside(home: str, name: str) -> str:
    """Return the path of ``name`` in our folder; refuse one that would leave it."""
    path = os.path.realpath(os.path.join(home, name))
    if not path.startswith(home + os.sep):
        raise Refused("%s is outside of %s" % (name, home))
    folder, _, rest = name.partition("/")
    if folder not in FORMS or not (
        FORMS[folder].match(rest.partition("/")[0] if folder == "jobs" else rest)
    ):
        raise Refused("%s is no name that trtq gives" % name)
    return path


# Work: one folder a job, done by a process of its own that outlives the link.


def alive(pid: Optional[int], started: Optional[str]) -> bool:
    """Whether this same process still runs: process ids are reused."""
    return pid is not None and started is not None and process_start(pid) == started


def process_start(pid: int) -> Optional[str]:
    """Return when a process started, in ticks since the boot.

    The result is None for a process that is gone or a zombie.
    """
    try:
        with open("/proc/%d/stat" % pid) as handle:
            fields = handle.read().rpartition(")")[2].split()
    except (OSError, IOError):
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def status(home: str, key: str) -> Dict[str, Any]:
    """Return a job's status.

    ``none`` (never asked for), ``waiting`` (for the board), ``running``, ``done`` (its result is
    there), ``lost`` (it ended without one: ``why``).
    """
    folder = inside(home, os.path.join("jobs", key))
    state, result = (
        read_json(os.path.join(folder, "state.json")),
        read_json(os.path.join(folder, "result.json")),
    )
    if result is not None:
        return {
            "state": "done",
            "key": key,
            "run": state["started"] if state else None,
            "result": result,
        }
    if state is None:
        return {"state": "none", "key": key}
    if alive(state["pid"], state["started"]) and state["boot"] == boot_id():
        return dict(state, key=key, run=state["started"])
    why = (
        "the board was restarted during the run"
        if state["boot"] != boot_id()
        else "its process was killed (out of memory, or by somebody)"
    )
    return {
        "state": "lost",
        "key": key,
        "why": why,
        "step": state.get("step"),
        "run": state["started"],
    }


def start(home: str, key: str, job: Dict[str, Any]) -> Dict[str, Any]:
    """Start a job, unless it is under way or has ended well, and return its status.

    A job that ended well is done again where ``again`` asks for it, or where a file that it made
    was changed.

    Two callers that ask at once get the same job.
    """
    folder = inside(home, os.path.join("jobs", key))
    lock = Lock(folder + ".lock")
    lock.take()
    try:
        now = status(home, key)
        if now["state"] in ("waiting", "running") or (
            now["state"] == "done" and not job.get("again") and _whole(folder, now["result"])
        ):
            return now
        if os.path.isdir(folder):
            shutil.rmtree(folder)
        os.makedirs(folder)
        write_json(os.path.join(folder, "job.json"), job)
        line = [
            sys.executable,
            "-I",
            os.path.realpath(__file__),
            "work",
            encode({"home": home, "key": key}),
        ]
        with extend(os.path.join(folder, "log.txt")) as log, open(os.devnull, "rb") as nothing:
            # A session of its own and no descriptor of the link's: it does not end with it, and
            # sshd does not wait for it.
            child = subprocess.Popen(
                line,
                stdin=nothing,
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
                close_fds=True,
            )
        write_json(
            os.path.join(folder, "state.json"),
            {
                "state": "waiting",
                "pid": child.pid,
                "started": process_start(child.pid),
                "boot": boot_id(),
                "step": None,
            },
        )
        touch(os.path.join(folder, "go"))
        return status(home, key)
    finally:
        lock.free()


def _whole(folder: str, result: Dict[str, Any]) -> bool:
    """Whether a job went well and everything it made is still what it made."""
    files = [
        (os.path.join(folder, path), file)
        for step in result["steps"]
        for path, file in step["files"].items()
    ]
    return result["ok"] and all(
        os.path.isfile(p) and os.path.getsize(p) == f["bytes"] and sha256(p) == f["sha256"]
        for p, f in files
    )


def wait(home: str, key: str, offset: int, seconds: float, run: Optional[str]) -> Dict[str, Any]:
    """Pass on the job's output, from ``offset`` of its log on; return the job's status.

    This ends when the job ends or the time is over.

    A job that was started again since ``run`` has a new log, passed on from its beginning.

    Args:
        home: our folder.
        key: of the job.
        offset: bytes of the log that were passed on before.
        seconds: at most.
        run: start of the run that ``offset`` is of; None for none.

    Returns:
        The answer of :func:`status`, and the new ``offset``.
    """
    folder, until = inside(home, os.path.join("jobs", key)), time.monotonic() + seconds
    last_step = None
    while True:
        now = status(home, key)  # before the log: what was written until a result came is passed on
        if now.get("run") is not None and now["run"] != run:
            run, offset = now["run"], 0
        try:
            with open(os.path.join(folder, "log.txt"), "rb") as log:
                log.seek(offset)
                text = log.read(1 << 16)
        except (OSError, IOError):
            text = b""
        offset += len(text)
        if text or now.get("step") != last_step:
            last_step = now.get("step")
            emit(
                "log", text=text.decode("utf-8", "replace"), offset=offset, step=last_step, run=run
            )
        if (now["state"] in ("done", "lost", "none") or time.monotonic() > until) and len(
            text
        ) < 1 << 16:
            return dict(now, offset=offset)
        if not text:
            time.sleep(0.1)


def stop(home: str, key: str) -> Dict[str, Any]:
    """End a job: what it set on the board is set back."""
    state = status(home, key)
    if state["state"] in ("waiting", "running"):
        touch(os.path.join(inside(home, os.path.join("jobs", key)), STOPPED))
        try:
            os.kill(state["pid"], signal.SIGTERM)
        except ProcessLookupError:  # it has just ended by itself
            return status(home, key)
        until = time.monotonic() + 15.0
        while alive(state["pid"], state["started"]) and time.monotonic() < until:
            time.sleep(0.1)
        if alive(state["pid"], state["started"]):
            os.killpg(state["pid"], signal.SIGKILL)
    return status(home, key)


class Watch(threading.Thread):
    """Samples the board while a job runs, and keeps the job's state fresh.

    The samples are power (mW), memory in use (bytes), the highest temperature (degrees Celsius),
    GPU clock (Hz) and load (percent), each None where it cannot be read; ``t`` is seconds of the
    monotonic clock. Throttling is counted beside them.
    """

    COLUMNS = ("t", "mw", "ram_bytes", "temp_c", "gpu_hz", "gpu_load")

    def __init__(self, interval_s: float, beat: Callable[[], None]) -> None:
        threading.Thread.__init__(self)
        self.daemon = True
        self.interval_s = interval_s  # type: float
        self.beat = beat  # type: Callable[[], None]
        self.rows = []  # type: List[List[Any]]
        self.over = threading.Event()  # type: threading.Event
        self.least_free = meminfo().get("MemAvailable")
        self.swap = meminfo().get("SwapFree")
        self.alerts = throttling()
        self.throttled = {}  # type: Dict[str, int]
        self.scope, self.failed = "", ""
        self.line = {}  # type: Dict[str, Any]
        self.sysfs = bool(read_rails(ROOT))
        self.source = "INA3221 in sysfs" if self.sysfs else "tegrastats"
        self.node = gpu_node()
        if not self.sysfs and tool("tegrastats") is not None:
            other = threading.Thread(target=self._follow)
            other.daemon = True
            other.start()

    def _follow(self) -> None:
        """Read tegrastats in the background.

        Its first line is left out: it holds averages since before the job.
        """
        for i, text in enumerate(tegrastats_lines(max(int(self.interval_s * 1000), 100), 0)):
            if self.over.is_set():
                return
            if i:
                self.line = dict(parse_tegrastats(text), fresh=True)
        self.failed = self.failed or (
            "" if self.over.is_set() else "tegrastats ended in the middle"
        )

    def _power(self) -> Optional[int]:
        line = self.line  # another thread puts the next one in its place
        if self.sysfs:
            total, what = sysfs_power(ROOT)
        elif line.pop("fresh", False):
            total, what = total_power(line["rails_mw"])
        else:
            return None
        self.scope = what
        return total

    def run(self) -> None:
        """Sample until the job ends."""
        last = 0.0
        while not self.over.is_set():
            now = time.monotonic()
            memory, warm = meminfo(), temperatures()
            free = memory.get("MemAvailable")
            load = gpu_load()
            if load is None and self.line:
                load = self.line.get("gr3d_pct")
            self.rows.append(
                [
                    round(now, 4),
                    self._power(),
                    memory["MemTotal"] - free
                    if free is not None and "MemTotal" in memory
                    else None,
                    max(warm.values()) if warm else None,
                    _number(os.path.join(self.node, "cur_freq")) if self.node else None,
                    load,
                ]
            )
            if free is not None:
                self.least_free = min(
                    free, self.least_free if self.least_free is not None else free
                )
            for name, count in throttling().items():
                # a counter only grows, an alert is on or off
                before = self.alerts.get(name, 0) if name.endswith("_event_cnt") else 0
                if count > before:
                    self.throttled[name] = max(count - before, self.throttled.get(name, 0))
            if now - last > 1.0:
                _try(self.beat)  # the disk may be full
                last = now
            self.over.wait(self.interval_s)

    def end(self) -> Dict[str, Any]:
        """Stop, and return what was seen.

        ``rows`` are the samples in the order of ``columns``; the other keys are those of
        ``Watched`` on the workstation.
        """
        self.over.set()
        self.join(10.0)
        swapped = (self.swap or 0) - (meminfo().get("SwapFree") or 0)
        warm = [r[3] for r in self.rows if r[3] is not None]
        return {
            "columns": list(self.COLUMNS),
            "rows": self.rows,
            "scope": self.scope,
            "source": self.source,
            "failed": self.failed,
            "least_free": self.least_free,
            "swapped": max(swapped, 0),
            "throttled": self.throttled,
            "hottest_c": max(warm) if warm else None,
        }


def set_up_power(home: str, mode: Optional[str], pin: bool) -> Optional[int]:
    """Set power mode and clocks where asked; return the descriptor that restores them.

    Closing the descriptor sets both back. The result is None where nothing was set.

    The previous state is on the disk before anything changes. A separate process waits for this one
    to end, for any reason.

    Args:
        home: our folder.
        mode: name of the power mode; None for the present one.
        pin: whether clocks are pinned to their maximum.

    Raises:
        Refused: the board has no such mode, root is needed, or an earlier job's settings are in
            force.
    """
    set_back(home)  # what a job before this left, if the power went before its guard could act
    if os.path.exists(os.path.join(home, "restore.json")):
        raise Refused(
            "the power mode or the clocks that an earlier job set cannot be set back",
            hint("clocks"),
        )
    before, pinned = power_mode(), clocks()["pinned"]
    switch = mode is not None and mode != before["name"]
    if not switch and not (pin and not pinned):
        return None  # it is as it is wanted
    if not may_set_power():
        raise Refused(
            "power mode and clocks need root, and sudo asks for a password here",
            hint("sudoers", user=_user()),
        )
    if mode is not None and mode not in before["modes"]:
        raise Refused(
            "this board has no power mode %s; it has %s"
            % (mode, ", ".join(sorted(before["modes"])) or "none that can be told")
        )
    if switch and before["id"] is None:
        raise Refused(
            "nvpmodel does not say which power mode is set, so it could not be set back",
            hint("ask-mode"),
        )
    plan = {
        "mode": before["id"],
        "name": before["name"],
        "store": None,
        "boot": boot_id(),
        "clocks": _limits(),
    }  # type: Dict[str, Any]
    jetson_clocks = tool("jetson_clocks")
    if pin and jetson_clocks is None:
        raise Refused("there is no jetson_clocks here", hint("install", package="nvidia-l4t-tools"))
    if pin and not pinned:  # a store of pinned clocks would keep them pinned
        plan["store"] = os.path.join(home, "clocks.conf")
        if os.path.exists(plan["store"]):  # root wrote it, but the folder is ours
            os.unlink(plan["store"])
        code, text = as_root([jetson_clocks or "", "--store", plan["store"]], 60.0)
        if code:
            raise Refused("jetson_clocks cannot store the clocks: " + text.strip()[-200:])
    write_json(os.path.join(home, "restore.json"), plan)
    end = _guard(home)
    try:
        if switch:
            number = before["modes"][str(mode)]
            _, text = as_root([tool("nvpmodel") or "nvpmodel", "-m", str(number)], 60.0)
            if power_mode()["id"] != number:
                again = (
                    "it needs a restart of the board" if "eboot" in text else text.strip()[-200:]
                )
                raise Refused(
                    "cannot set the power mode %s: %s" % (mode, again),
                    hint("set-mode", number=number),
                )
        if pin:  # also where they were pinned: a new mode has other limits
            code, text = as_root([jetson_clocks or ""], 60.0)
            if code:
                raise Refused("jetson_clocks fails: " + text.strip()[-200:])
    except BaseException:
        os.close(end)
        _await_guard(home)
        raise
    return end


def _limits() -> List[Optional[int]]:
    """Return the minimum and maximum clock of the GPU: equal where it is pinned."""
    gpu = clocks()["gpu"]
    return [gpu.get("min_freq"), gpu.get("max_freq")]


def _guard(home: str) -> int:
    """Fork a process that restores everything when the returned descriptor is closed.

    It does not matter what closes the descriptor.
    """
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            os.close(write)
            os.read(read, 1)
            set_back(home)
        finally:
            os._exit(0)
    os.close(read)
    os.set_inheritable(write, False)
    return write


def _await_guard(home: str) -> bool:
    """Wait until everything is set back; return whether it is."""
    until = time.monotonic() + 120.0
    while os.path.exists(os.path.join(home, "restore.json")) and time.monotonic() < until:
        time.sleep(0.05)
    return not os.path.exists(os.path.join(home, "restore.json"))


def set_back(home: str) -> None:
    """Restore clocks and power mode from ``restore.json``; remove the file once that is done."""
    lock = Lock(os.path.join(home, "restore.lock"))
    lock.take()
    try:
        path = os.path.join(home, "restore.json")
        plan = read_json(path)
        if plan is None:
            return
        free = True
        if plan["store"] and plan["boot"] == boot_id():  # a restart has let the clocks go
            as_root([tool("jetson_clocks") or "jetson_clocks", "--restore", plan["store"]], 60.0)
            free = _limits() == plan["clocks"]
        if plan["mode"] is not None and power_mode()["id"] != plan["mode"]:
            as_root([tool("nvpmodel") or "nvpmodel", "-m", str(plan["mode"])], 60.0)
            free = free or _limits()[0] != _limits()[1]  # another mode, other limits
        if free and (plan["mode"] is None or power_mode()["id"] == plan["mode"]):
            if plan["store"] and os.path.exists(plan["store"]):
                os.unlink(plan["store"])
            os.unlink(path)
    finally:
        lock.free()


class Ended(BaseException):
    """Somebody asked this job to end."""


def _end(number: int, _: Any) -> None:
    raise Ended("signal %d" % number)


def work(home: str, key: str) -> int:
    """Do a job: run its steps one after another, with the board to itself.

    Everything is set back at the end.

    ``job.json`` has ``steps`` and may have ``title``, ``owner``, ``mode`` (power mode), ``pin``
    (clocks), ``needs_bytes`` (free on the disk), ``sample_s`` (between two samples) and ``rest_s``
    (idle time at the end). A step has ``name`` and ``argv`` and may have ``limit_s``, ``idle_s``
    (seconds before it), ``marks`` (text to look for in the output, by name), ``fresh`` (files that
    are removed before), ``copies`` and ``makes`` (from, to).

    ``result.json`` has ``ok``, ``why`` and ``mend`` of a failure, ``steps``, the board's state
    ``before`` and ``after``, what the :class:`Watch` saw and the power mode that was ``restored``.
    The samples are in ``watch.json.gz``.

    Args:
        home: our folder.
        key: of the job.
    """
    folder = inside(home, os.path.join("jobs", key))
    # until the one who started this has written who does it
    while not os.path.exists(os.path.join(folder, "go")):
        time.sleep(0.01)
    job = read_json(os.path.join(folder, "job.json")) or {}
    signal.signal(signal.SIGTERM, _end)
    state = {
        "state": "waiting",
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "boot": boot_id(),
        "step": None,
        "beat": 0,
    }  # type: Dict[str, Any]

    beating = threading.Lock()  # the watch does, too

    def beat(**values: Any) -> None:
        with beating:
            state.update(values)
            state["beat"] += 1
            write_json(os.path.join(folder, "state.json"), state)

    result = {"ok": False, "steps": [], "why": "", "mend": hint("")}  # type: Dict[str, Any]
    spare = os.path.join(folder, "spare")  # room for the result when the work fills the disk
    _try(lambda: _fill(spare, 1 << 16))
    lock = Lock(
        os.path.join(home, "board.lock"),
        json.dumps({"owner": job.get("owner"), "key": key, "pid": os.getpid()}),
    )
    guard, watch = None, None
    try:
        while not lock.take(wait=False):
            holder = read_json(lock.path) or {}
            beat(
                state="waiting",
                step="waiting for another job here (of %s)" % (holder.get("owner") or "somebody"),
            )
            time.sleep(0.3)
        beat(state="running", step="preparing")
        _require_room(home, job.get("needs_bytes", 0))
        guard = set_up_power(home, job.get("mode"), bool(job.get("pin")))
        result["before"] = _card()
        watch = Watch(job.get("sample_s", 0.2), beat)
        watch.start()
        for step in job["steps"]:
            beat(step=step["name"])
            time.sleep(step.get("idle_s", 0.0))
            outcome = run_step(step, folder)
            result["steps"].append(outcome)
            if outcome["rc"] != 0:
                result["why"] = "%s ended with status %d" % (step["name"], outcome["rc"])
                # a program that cannot write says so in its own words, or not at all
                if _free(home) < FULL_BYTES:
                    result.update(
                        why="%s, and the disk is full" % result["why"],
                        mend=_room(OSError(errno.ENOSPC, "")),
                    )
                break
        else:
            result["ok"] = True
            beat(step="idle power")
            time.sleep(job.get("rest_s", 0.0))
    except Refused as exc:
        result.update(why=str(exc), mend=exc.mend)
    except Ended as exc:
        stopped = os.path.exists(os.path.join(folder, STOPPED))
        result["why"] = (
            "it was stopped (trtq device stop)" if stopped else "it was ended (%s)" % exc
        )
    except OSError as exc:
        result.update(why="%s: %s" % (exc.strerror, exc.filename or folder), mend=_room(exc))
    except Exception as exc:  # said to the workstation, where somebody reads it
        result["why"] = "%s: %s" % (type(exc).__name__, exc)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not result["ok"]:
            _drop([p for step in job["steps"] for p in step.get("fresh", [])])
        _drop([spare])
        if watch is not None:
            seen = watch.end()
            rows = seen.pop("rows")
            result["watch"] = seen
            _try(lambda: _write_rows(os.path.join(folder, "watch.json.gz"), seen["columns"], rows))
            seen["samples"] = len(rows)
            result["after"] = _card()
        if guard is not None:
            os.close(guard)
            if not _await_guard(home):
                result["ok"], result["why"] = False, "power mode and clocks could not be set back"
            result["restored"] = power_mode()["name"]
        result["why"] = result["why"][:MOST_TEXT]
        _try(lambda: write_json(os.path.join(folder, "result.json"), result))
        lock.free()
    return 0


def _fill(path: str, size: int) -> None:
    with create(path) as handle:
        handle.write(b"\0" * size)


def _drop(paths: List[str]) -> None:
    for path in paths:
        if os.path.lexists(path):
            os.unlink(path)


def _try(action: Callable[[], None]) -> None:
    """Do what may fail on a full disk without hiding what came before."""
    try:
        action()
    except OSError as exc:
        sys.stderr.write("%s\n" % exc)


def _write_rows(path: str, columns: List[str], rows: List[List[Any]]) -> None:
    write_whole(path, gzip.compress(json.dumps({"columns": columns, "rows": rows}).encode()))


def _card() -> Dict[str, Any]:
    """Return the state of the board that a figure depends on."""
    memory = meminfo()
    return {
        "power_mode": power_mode()["name"],
        "clocks": clocks(),
        "temperatures": temperatures(),
        "memory_available": memory.get("MemAvailable"),
        "swap_free": memory.get("SwapFree"),
        "load": os.getloadavg()[0],
        "boot": boot_id(),
        "uptime": time.monotonic(),
    }


def _free(home: str) -> int:
    volume = os.statvfs(home)
    return volume.f_bavail * volume.f_frsize


def _require_room(home: str, size: int) -> None:
    free = _free(home)
    if free < size:
        raise Refused(
            "%s needs %d MB, %d are free" % (home, size // 10**6 + 1, free // 10**6),
            _room(OSError(errno.ENOSPC, "")),
        )


def run_step(step: Dict[str, Any], folder: str) -> Dict[str, Any]:
    """Run one program of a job, with its output in the job's log.

    Note when lines with the texts of ``marks`` appear, and keep what the program made: only after
    status 0, and packed where the name ends with ``.gz``.

    The result has ``name``, ``rc`` (124 after the time limit, 127 where it does not start),
    ``seconds``, ``marks`` and ``begin`` and ``end`` (seconds of the monotonic clock), ``files``
    (digest and bytes by path) and ``log`` (where its output begins and ends in the log, bytes).
    """
    limit_s, over = step.get("limit_s"), []  # type: Optional[float], List[bool]
    marks, sought = {}, dict(step.get("marks", {}))  # type: Dict[str, float], Dict[str, str]
    argv = step["argv"]
    _drop(step.get("fresh", []))
    for path, copy in step.get("copies", []):
        if os.path.exists(path):
            with open(path, "rb") as source, create(copy) as target:
                shutil.copyfileobj(source, target)
    with extend(os.path.join(folder, "log.txt")) as log:
        log.write(("### %s: %s\n" % (step["name"], " ".join(argv))).encode())
        begin, offset = time.monotonic(), log.tell()
        try:
            child = subprocess.Popen(
                as_bytes(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environ(),
                preexec_fn=die_with_parent,
            )
        except OSError as exc:
            log.write(("cannot start %s: %s\n" % (argv[0], exc.strerror)).encode())
            return {
                "name": step["name"],
                "rc": 127,
                "seconds": 0.0,
                "marks": {},
                "files": {},
                "log": [offset, log.tell()],
                "begin": begin,
                "end": begin,
            }
        late = None
        if limit_s is not None:
            late = threading.Timer(limit_s, lambda: (over.append(True), child.kill()))  # type: ignore[func-returns-value]
            late.start()
        try:
            assert child.stdout is not None
            for raw in child.stdout:
                log.write(raw)
                log.flush()
                if sought:
                    text = raw.decode("utf-8", "replace")
                    for name in [n for n, part in sought.items() if part in text]:
                        marks[name] = round(time.monotonic(), 4)
                        del sought[name]
            code = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            if late is not None:
                late.cancel()
        if over:
            code = 124
            log.write(("[E] no end in %d s: it was ended\n" % (limit_s or 0)).encode())
        log.flush()
        end = log.tell()
    files = {}
    if code == 0:
        for new, path in step.get("makes", []):
            if os.path.exists(new):
                with open(new, "rb") as handle:
                    os.fsync(handle.fileno())
                if path.endswith(".gz"):
                    _pack(new, path)
                else:
                    os.replace(new, path)
                files[path] = {"sha256": sha256(path), "bytes": os.path.getsize(path)}
    now = time.monotonic()
    return {
        "name": step["name"],
        "rc": code,
        "seconds": round(now - begin, 4),
        "marks": marks,
        "files": files,
        "log": [offset, end],
        "begin": round(begin, 4),
        "end": round(now, 4),
    }


def _pack(path: str, to: str) -> None:
    new = beside(to)
    with open(path, "rb") as source, create(new) as target, gzip.GzipFile(
        filename="", mode="wb", fileobj=target
    ) as packed:
        shutil.copyfileobj(source, packed)
    os.replace(new, to)
    os.unlink(path)


def clean(home: str, everything: bool) -> Dict[str, Any]:
    """Remove what trtq left, and return the number of bytes removed.

    This covers uploads and jobs that have ended; with ``everything`` also the engines.
    """
    if not os.path.isfile(os.path.join(home, MARKER)):
        raise Refused("%s has no marker of trtq: nothing there is removed" % home)
    gone, kept = 0, []
    for key in os.listdir(os.path.join(home, "jobs")):
        folder = os.path.join(home, "jobs", key)
        if os.path.isdir(folder):
            if status(home, key)["state"] in ("waiting", "running"):
                kept.append(key)
                continue
            gone += _size(folder)
            shutil.rmtree(folder)
        elif not os.path.isdir(folder[: -len(".lock")]):
            os.unlink(folder)
    for name in ["files"] + (["engines"] if everything and not kept else []):
        folder = os.path.join(home, name)
        for entry in os.listdir(folder) if not kept else []:
            path = os.path.join(folder, entry)
            gone += _size(path)
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(
                path
            )
    return {"bytes": gone, "kept": kept}


def _size(path: str) -> int:
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(
        os.path.getsize(os.path.join(folder, f))
        for folder, _, files in os.walk(path)
        for f in files
    )


def listing(home: str) -> Dict[str, Any]:
    """Return the engines and the jobs that are here."""
    engines = [
        {
            "file": name,
            "bytes": os.path.getsize(os.path.join(home, "engines", name)),
            "model": _model(read_json(os.path.join(home, "engines", name + ".json"))),
        }
        for name in sorted(os.listdir(os.path.join(home, "engines")))
        if ENGINE.match(name)
    ]
    jobs = []
    for key in sorted(os.listdir(os.path.join(home, "jobs"))):
        folder = os.path.join(home, "jobs", key)
        if FORMS["jobs"].match(key) and os.path.isdir(folder):
            job_path = os.path.join(folder, "job.json")
            now, job = status(home, key), read_json(job_path) or {}
            jobs.append(
                {
                    "key": key,
                    "age_s": max(
                        time.time()
                        - os.path.getmtime(job_path if os.path.isfile(job_path) else folder),
                        0.0,
                    ),
                    "state": now["state"],
                    "title": job.get("title", ""),
                    "owner": job.get("owner", ""),
                    "why": now.get("why") or now.get("result", {}).get("why", ""),
                }
            )
    jobs.sort(key=lambda j: -j["age_s"])
    return {"engines": engines, "jobs": jobs}


def _model(manifest: Optional[Dict[str, Any]]) -> str:
    """Return what an engine was built from, as its manifest says."""
    known = manifest or {}
    spec = known.get("spec")
    return str(
        known.get("model")
        or (spec.get("onnx") if isinstance(spec, dict) else None)
        or "without a manifest"
    )[:MOST_TEXT]


# TensorRT through the Python that the board has.


def build_engine(request: Dict[str, Any]) -> int:
    """Build an engine through TensorRT's Python module, for boards without trtexec.

    The request is the one that ``trtq build`` sends to its own worker.

    Args:
        request: ``onnx``, ``out`` and ``report`` (path of the layer report, None for none),
            ``apis``, ``typed``, ``fp16``, ``int8``, ``float_nodes``, ``workspace`` (MiB),
            ``level``, ``dla`` (core, None for none), ``gpu_fallback``, ``shapes`` (least, usual and
            most sizes by input) and perhaps ``more`` (the same of further profiles).

    Returns:
        0, or 1 where TensorRT refuses; its reasons are printed.
    """
    trt = importlib.import_module("tensorrt")  # type: Any

    # the names of the Python API that this release has, from the workstation's table
    apis = set(request["apis"])
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flags = 0
    if "EXPLICIT_BATCH" in apis:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if request["typed"] and "STRONGLY_TYPED" in apis:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if request["dla"] is not None and "ADJUST_FOR_DLA" in apis:
        parser.set_flag(trt.OnnxParserFlag.ADJUST_FOR_DLA)
    with open(request["onnx"], "rb") as handle:
        parsed = parser.parse(handle.read())
    if not parsed:
        for i in range(parser.num_errors):
            error = parser.get_error(i)
            print(
                "[E] [TRT] ModelImporter.cpp: While parsing node number %d: %s"
                % (error.node(), error.desc())
            )
        return 1
    config = builder.create_builder_config()
    if request["workspace"] is not None:
        if "set_memory_pool_limit" in apis:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace"] << 20)
        else:
            config.max_workspace_size = request["workspace"] << 20
    if not request["typed"]:
        for name in ("FP16", "INT8"):
            if request[name.lower()] and name in apis:
                config.set_flag(getattr(trt.BuilderFlag, name))
        if request["float_nodes"] and request["fp16"] and "OBEY_PRECISION_CONSTRAINTS" in apis:
            config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
            for layer in [network.get_layer(i) for i in range(network.num_layers)]:
                if layer.name in request["float_nodes"]:
                    layer.precision = trt.float32
                    for k in range(layer.num_outputs):
                        layer.set_output_type(k, trt.float32)
    if "profiling_verbosity" in apis:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request["level"] is not None and "builder_optimization_level" in apis:
        config.builder_optimization_level = request["level"]
    if request["dla"] is not None:
        config.default_device_type, config.DLA_core = trt.DeviceType.DLA, request["dla"]
        if request["gpu_fallback"]:
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    for shapes in filter(None, [request["shapes"]] + request.get("more", [])):
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            profile.set_shape(name, least, usual, most)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        print("[E] [TRT] the builder gave no engine")
        return 1
    _drop([request["out"]])
    with create(request["out"]) as handle:
        handle.write(bytes(plan))
    if request["report"] and "create_engine_inspector" in apis:
        runtime = trt.Runtime(logger)
        if request["dla"] is not None:
            runtime.DLA_core = request["dla"]
        engine = runtime.deserialize_cuda_engine(plan)
        _drop([request["report"]])
        with create(request["report"]) as handle:
            handle.write(
                engine.create_engine_inspector()
                .get_engine_information(trt.LayerInformationFormat.JSON)
                .encode("utf-8", "replace")
            )
    return 0


SIZES = {"FLOAT": 4, "HALF": 2, "INT32": 4, "INT64": 8, "INT8": 1, "UINT8": 1, "BOOL": 1, "BF16": 2}


class Cuda:
    """The needed part of CUDA's runtime library, through ctypes: no board ships pycuda."""

    def __init__(self) -> None:
        folders = ["", "/usr/local/cuda/lib64/", "/usr/lib/aarch64-linux-gnu/"]
        names = [os.environ.get("TRTQ_CUDART", "")] + [
            f + n
            for f in folders
            for n in (
                "libcudart.so",
                "libcudart.so.13",
                "libcudart.so.12",
                "libcudart.so.11.0",
                "libcudart.so.10.2",
            )
        ]
        for name in filter(None, names):
            try:
                self.library = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            raise Refused("there is no libcudart here", hint("install", package="nvidia-jetpack"))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; raise where it does not succeed."""
        code = getattr(self.library, name)(*arguments)
        if code:
            raise Refused("%s fails with CUDA error %d" % (name, code))

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` bytes of the GPU's memory."""
        place = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(place), ctypes.c_size_t(size))
        return place.value or 0

    def copy(self, to: Any, source: Any, size: int, *, up: bool) -> None:
        """Copy bytes to the GPU or from it."""
        self.call(
            "cudaMemcpy",
            ctypes.c_void_p(to) if isinstance(to, int) else to,
            ctypes.c_void_p(source) if isinstance(source, int) else source,
            ctypes.c_size_t(size),
            ctypes.c_int(1 if up else 2),
        )


def infer(request: Dict[str, Any]) -> int:
    """Run an engine on inputs from a file and write its outputs, all in the engine's own types.

    The file holds the inputs batch by batch, and in each batch one input after another; the outputs
    are written in the same way.

    ``request`` is ``{"engine", "input", "output", "inputs": [{"name", "shape", "dtype"}], "count",
    "batch", "dla"}``; shapes are without the batch.
    """
    trt = importlib.import_module("tensorrt")  # type: Any

    cuda, logger = Cuda(), trt.Logger(trt.Logger.ERROR)
    runtime = trt.Runtime(logger)
    if request["dla"] is not None:
        runtime.DLA_core = request["dla"]
    with open(request["engine"], "rb") as handle:
        engine = runtime.deserialize_cuda_engine(handle.read())
    if engine is None:
        raise Refused("TensorRT cannot read the engine")
    context = engine.create_execution_context()
    named = hasattr(engine, "num_io_tensors")  # from 8.5 on
    names = (
        [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        if named
        else [engine.get_binding_name(i) for i in range(engine.num_bindings)]
    )
    is_input = [
        engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT if named else engine.binding_is_input(n)
        for n in names
    ]
    kinds = {
        n: str(engine.get_tensor_dtype(n) if named else engine.get_binding_dtype(n)).split(".")[-1]
        for n in names
    }
    given = {one["name"]: one for one in request["inputs"]}  # type: Dict[str, Any]
    _require_types([n for n, inward in zip(names, is_input) if inward], kinds, given)
    items = [(n, SIZES[kinds[n]] * product(one["shape"])) for n, one in given.items()]
    addresses = {}  # type: Dict[str, int]
    sizes = {}  # type: Dict[str, int]
    described = []  # type: List[Dict[str, Any]]
    for name, one in given.items():
        shape = [request["batch"]] + one["shape"]
        if named:
            context.set_input_shape(name, shape)
        elif -1 in list(engine.get_binding_shape(name)):
            context.set_binding_shape(names.index(name), shape)
    for i, name in enumerate(names):
        dims = list(context.get_tensor_shape(name) if named else context.get_binding_shape(i))
        size = SIZES[kinds[name]] * product(dims)
        addresses[name], sizes[name] = cuda.allocate(size), size
        if not is_input[i]:
            described.append({"name": name, "shape": dims[1:], "dtype": kinds[name]})
        if named:
            context.set_tensor_address(name, addresses[name])
    _drop([request["output"]])
    with open(request["input"], "rb") as source, create(request["output"]) as out:
        left = request["count"]
        while left > 0:
            real = min(request["batch"], left)
            for name, item in items:
                block = source.read(item * real)
                if len(block) != item * real:
                    raise Refused(
                        "%d samples are missing from %s" % (left, request["input"]),
                        hint("upload-again"),
                    )
                # the last batch is filled up, its filling not kept
                block += b"\0" * (item * (request["batch"] - real))
                cuda.copy(addresses[name], block, len(block), up=True)
            done = (
                context.execute_async_v3(0)
                if hasattr(context, "execute_async_v3")
                else context.execute_v2([addresses[n] for n in names])
            )
            cuda.call("cudaDeviceSynchronize")
            if not done:
                raise Refused("TensorRT failed to run the engine")
            for name, inward in zip(names, is_input):
                if not inward:
                    answer = ctypes.create_string_buffer(sizes[name])
                    cuda.copy(answer, addresses[name], sizes[name], up=False)
                    out.write(answer.raw[: sizes[name] // request["batch"] * real])
            left -= real
    print(MARK + json.dumps({"event": "answers", "outputs": described, "batch": request["batch"]}))
    return 0


def _require_types(inputs: List[str], kinds: Dict[str, str], given: Dict[str, Any]) -> None:
    """Refuse inputs of other names or types than the engine's."""
    wanted = sorted("%s %s" % (n, kinds[n]) for n in inputs)
    input_types = sorted("%s %s" % (n, one["dtype"]) for n, one in given.items())
    if wanted != input_types:
        raise Refused(
            "the engine takes %s, it was given %s" % (", ".join(wanted), ", ".join(input_types))
        )
    unknown = sorted("%s %s" % (n, k) for n, k in kinds.items() if k not in SIZES)
    if unknown:
        raise Refused("types that cannot be run here: %s" % ", ".join(unknown))


def product(sizes: List[int]) -> int:
    """Return the number of values of a tensor."""
    total = 1
    for size in sizes:
        total *= size
    return total


# The protocol.


def encode(value: Any) -> str:
    """Return a JSON value as text in which no shell finds anything to expand."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


TALKING = threading.Lock()


def emit(event: str, **values: Any) -> None:
    """Answer with one line."""
    with TALKING:
        sys.stdout.write(MARK + json.dumps(dict(values, event=event)) + "\n")
        sys.stdout.flush()


class Beat(threading.Thread):
    """Signals that this process is still at work while there is nothing else to send."""

    def __init__(self) -> None:
        threading.Thread.__init__(self)
        self.daemon, self.over = True, threading.Event()

    def run(self) -> None:
        """Send the signal at intervals."""
        while not self.over.wait(BEAT_S):
            try:
                emit("beat")
            except (OSError, ValueError):  # nobody listens; the work itself finds that out
                return

    def end(self) -> None:
        """Stop sending."""
        self.over.set()
        self.join(BEAT_S)


def _engine(home: str, request: Dict[str, Any]) -> None:
    """Answer with the manifest of an engine, once it is known to belong to this file."""
    path = inside(home, request["name"])
    manifest = read_json(path + ".json")
    is_file = os.path.isfile(path)
    whole = manifest is not None and is_file and sha256(path) == manifest.get("engine_sha256")
    emit(
        "engine",
        manifest=manifest if whole else None,
        changed=is_file and manifest is not None and not whole,
    )


def _get(home: str, request: Dict[str, Any], beat: Beat) -> None:
    path = inside(home, request["name"])
    if not os.path.isfile(path):
        raise Refused("there is no %s" % path)
    size, digest = os.path.getsize(path), sha256(path)
    beat.end()  # from here on every byte is the file's
    emit("file", size=size, sha256=digest)
    with open(path, "rb") as handle:
        handle.seek(request["offset"])
        for block in iter(lambda: handle.read(CHUNK), b""):
            sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


def _logs(home: str, request: Dict[str, Any]) -> None:
    folder = inside(home, os.path.join("jobs", request["key"]))
    try:
        with open(os.path.join(folder, "log.txt"), "rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(size - MOST_LOG, 0))
            text = handle.read(MOST_LOG).decode("utf-8", "replace")
    except OSError:
        size, text = 0, ""
    emit("logs", text=text.strip(), left_out=max(size - MOST_LOG, 0))


def _manifest(home: str, request: Dict[str, Any]) -> None:
    write_json(inside(home, request["name"]), request["value"])
    emit("written")


def _remove(home: str, request: Dict[str, Any]) -> None:
    wanted = _wanted(home)
    for name in request["names"]:
        if os.path.isfile(inside(home, name)) and os.path.basename(name) not in wanted:
            os.unlink(inside(home, name))
    emit("removed")


def _wanted(home: str) -> str:
    """Return what jobs that wait or run will read."""
    arguments = []
    for key in os.listdir(os.path.join(home, "jobs")):
        folder = os.path.join(home, "jobs", key)
        if os.path.isdir(folder) and status(home, key)["state"] in ("waiting", "running"):
            arguments += [
                a
                for step in (read_json(os.path.join(folder, "job.json")) or {"steps": []})["steps"]
                for a in step["argv"]
            ]
    return "\n".join(arguments)


VERBS = {
    "install": lambda home, a: emit("installed", **install(home, a["agent"])),
    "probe": lambda home, a: emit("board", **probe(home)),
    "have": lambda home, a: emit("have", **have(home, a["name"], a["size"], a["sha256"])),
    "put": lambda home, a: emit(
        "put",
        **put(home, a["name"], a["size"], a["sha256"], a["offset"], a["token"], sys.stdin.buffer),
    ),
    "engine": _engine,
    "start": lambda home, a: emit("job", **start(home, a["key"], a["job"])),
    "status": lambda home, a: emit("job", **status(home, a["key"])),
    "wait": lambda home, a: emit(
        "job", **wait(home, a["key"], a["offset"], a["seconds"], a["run"])
    ),
    "stop": lambda home, a: emit("job", **stop(home, a["key"])),
    "clean": lambda home, a: emit("cleaned", **clean(home, a["everything"])),
    "list": lambda home, a: emit("listing", **listing(home)),
    "logs": _logs,
    "manifest": _manifest,
    "remove": _remove,
}  # type: Dict[str, Callable[[str, Dict[str, Any]], None]]
INSIDE = {
    "work": lambda a: work(a["home"], a["key"]),
    "build-engine": build_engine,
    "infer": infer,
}  # type: Dict[str, Callable[[Dict[str, Any]], int]]
STALE = 3


def main(arguments: List[str]) -> int:
    """Run one command; return the exit status."""
    if arguments == ["parse-tegrastats"]:
        for raw in sys.stdin.buffer:
            print(json.dumps(parse_tegrastats(raw.decode("utf-8", "replace"))), flush=True)
        return 0
    if len(arguments) != 2 or arguments[0] not in list(VERBS) + list(INSIDE) + ["get"]:
        sys.stderr.write("usage: agent.py parse-tegrastats < LOG\n")
        return 2
    # one argument may have 128 KiB
    text = (
        base64.urlsafe_b64decode(arguments[1]) if arguments[1] != "-" else sys.stdin.buffer.read()
    )
    verb, request = arguments[0], json.loads(text.decode())
    beat = Beat()
    try:
        if verb in INSIDE:
            return INSIDE[verb](request)
        return _answer(verb, request, beat)
    except Refused as exc:
        return _refuse(str(exc), exc.mend)
    except OSError as exc:
        return _refuse("%s: %s" % (exc.strerror, exc.filename), _room(exc))
    except Exception as exc:  # said to the workstation, where somebody reads it
        place = traceback.extract_tb(sys.exc_info()[2])[-1]
        return _refuse(
            "the agent failed: %s: %s (%s, line %d)"
            % (type(exc).__name__, exc, place[2], place[1]),
            hint(""),
        )
    finally:
        beat.over.set()


def _answer(verb: str, request: Dict[str, Any], beat: Beat) -> int:
    """Do what a workstation asks for, if it knows this very file."""
    mine = request["agent"] if verb == "install" else sha256(os.path.realpath(__file__))
    emit("hello", protocol=PROTOCOL, agent=mine, python="%d.%d" % sys.version_info[:2])
    if request["agent"] != mine:
        emit("stale")
        return STALE
    beat.start()
    home = open_home(request["home"])
    if verb == "get":
        _get(home, request, beat)
    else:
        VERBS[verb](home, request)
    return 0


def _refuse(why: str, mend: Hint) -> int:
    emit("refused", why=why[:MOST_TEXT], mend=mend)
    sys.stderr.write("%s\n" % why[:MOST_TEXT])
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
