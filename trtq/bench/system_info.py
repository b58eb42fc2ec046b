"""The machine card: everything that affects latency on a machine, and its changes in a run."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from trtq.bench.machine_card import NEEDED, Card, JetsonCard
from trtq.bench.meters.jetson import LINES, is_jetson
from trtq.bench.meters.nvml import THROTTLE_FIELDS, Gpu, GpuState
from trtq.errors import MeterError
from trtq.machine import cpu_name
from trtq.typed import present

MAX_SPREAD = 0.02
MAX_OTHERS = 0.10


def take_card(device: str, *, root: Path = Path("/"), gpu: Gpu | None = None) -> Card:
    """Return the card of this machine for one device.

    Args:
        device: ``cpu`` or ``cuda:N``.
        root: of the file system; another one in tests.
        gpu: through NVML, where there is one.
    """
    missing: dict[str, str] = {}
    governor = _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor is None:
        missing["governor"] = "the system does not tell it (a virtual machine hides it)"
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is None:
        missing["affinity"] = "this system has none"
    card = Card(
        kind=_kind(device, root),
        device=device,
        cpu=cpu_name(),
        cores=os.cpu_count(),
        governor=governor,
        affinity=sorted(affinity(0)) if affinity is not None else None,
        load=[round(v, 2) for v in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        container=_container(root),
        host=hashlib.sha256(platform.node().encode()).hexdigest()[:12],
        kernel=platform.release(),
        missing=missing,
    )
    if card.kind == "jetson":
        card.jetson = _jetson(root, missing)
    elif gpu is not None:
        card.gpu = gpu.card()
        gpu.state()  # values that it lacks are entered in "missing", too
        missing["locked_clocks"] = "clocks were not locked by trtq"
        missing |= {NAMES.get(k, k): v for k, v in gpu.missing.items()}
    elif device != "cpu":
        missing |= dict.fromkeys(NEEDED["gpu"], "no NVML")
    return card


def _kind(device: str, root: Path) -> str:
    if is_jetson(root):
        return "jetson"
    return "cpu" if device == "cpu" else "gpu"


# Names of NVML's figures on the card.
NAMES = {
    "power limit": "power_limit_w",
    "power limits": "power_limits_w",
    "largest SM clock": "sm_clock_max_mhz",
    "compute mode": "compute_mode",
}


class Reading(NamedTuple):
    """The machine at one moment.

    Attributes:
        at: seconds of ``time.perf_counter``.
        slept: seconds that the machine was suspended since it started.
        cpu: CPU seconds of others and of all, over all cores; None where the system does not tell.
        loaded: whether the device was at work: only then do its clocks say something.
        gpu: its state, None without NVML.
    """

    at: float
    slept: float
    cpu: tuple[float, float] | None
    loaded: bool
    gpu: GpuState | None


class Watch:
    """Changes of the machine during a measurement.

    Args:
        device: ``cpu`` or ``cuda:N``.
        gpu: through NVML, where there is one.
        root: of the file system; another one in tests.
    """

    def __init__(self, device: str, gpu: Gpu | None = None, *, root: Path = Path("/")) -> None:
        self.device = device
        self.gpu = gpu
        self.root = root
        self.states: list[Reading] = []
        self.look()

    def look(self, *, loaded: bool = False) -> None:
        """Take a reading: between blocks, never inside.

        Args:
            loaded: whether the device has been at work just now.
        """
        self.states.append(
            Reading(
                at=time.perf_counter(),
                slept=_slept(),
                cpu=_cpu_seconds(self.root),
                loaded=loaded,
                gpu=self.gpu.state() if self.gpu is not None else None,
            )
        )

    def between(self) -> None:
        """Take a reading while the device is at work."""
        self.look(loaded=True)

    def reasons(self) -> list[str]:
        """Return why figures taken between the first and the last reading are not valid.

        The causes are sleep of the machine, over 10 % of the CPU used by others, throttling of the
        GPU, an SM clock that moved by over 2 % under load, and other processes on the GPU.
        """
        reasons = self._machine_reasons()
        states = self._gpu_states()
        if not states:
            return reasons
        clocks = self._clocks()
        if len(clocks) > 1 and max(clocks) > (1 + MAX_SPREAD) * min(clocks):
            moved = [f"the SM clock moved between {min(clocks)} and {max(clocks)} MHz"]
        else:
            moved = []
        strangers = _strangers([s.processes for s in states if s.processes is not None])
        others = [f"{strangers} other processes on the GPU"] if strangers else []
        return [*reasons, *_throttling(states), *moved, *others]

    def _machine_reasons(self) -> list[str]:
        first = self.states[0]
        last = self.states[-1]
        slept = last.slept - first.slept
        others = self.others()
        reasons = []
        if slept > 0.1:
            reasons.append(f"the machine slept {slept:.1f} s in the middle")
        if others is not None and others > MAX_OTHERS and last.at - first.at > 0.5:
            reasons.append(f"other processes used {others:.0%} of the CPU")
        return reasons

    def _gpu_states(self) -> list[GpuState]:
        return [s.gpu for s in self.states if s.gpu is not None]

    def _clocks(self) -> list[int]:
        """Return the SM clocks under load, MHz."""
        clocks = (s.gpu.sm_clock_mhz for s in self.states if s.loaded and s.gpu is not None)
        return present(clocks)

    def unwatched(self) -> dict[str, str]:
        """Return the reasons why something could not be watched, by its name."""
        if self.gpu is None:
            return {}
        names = ("SM clock", "clock event reasons", "processes", *THROTTLE_FIELDS.values())
        return {f"watching the {n}": self.gpu.missing[n] for n in names if n in self.gpu.missing}

    def others(self) -> float | None:
        """Return the share of all cores that other processes used, None when unknown."""
        first, last = self.states[0].cpu, self.states[-1].cpu
        if first is None or last is None or last[1] <= first[1]:
            return None
        return max(0.0, (last[0] - first[0]) / (last[1] - first[1]))

    def summary(self) -> dict[str, Any]:
        """Return the state before and after, for the record.

        Returns:
            ``other_processes_cpu`` (share of all cores, or None), and for a GPU ``before`` and
            ``after`` (fields of :class:`GpuState`) and ``sm_clocks_under_load_mhz`` (ascending).
        """
        others = self.others()
        share = None if others is None else round(others, 4)
        if self.gpu is None:
            return {"other_processes_cpu": share}
        return {
            "other_processes_cpu": share,
            "before": msgspec.to_builtins(self.states[0].gpu),
            "after": msgspec.to_builtins(self.states[-1].gpu),
            "sm_clocks_under_load_mhz": sorted(set(self._clocks())),
        }


def _throttling(states: Sequence[GpuState]) -> list[str]:
    """Return why the GPU was slowed down: by its counters, and by the reasons of a moment."""
    before, after = states[0].throttled_ns, states[-1].throttled_ns
    grown = {name: after[name] - before[name] for name in before if name in after}
    counted = [
        f"the GPU was slowed down for {grown[name] / 1e9:.2f} s: {name}"
        for name in THROTTLE_FIELDS.values()
        if grown.get(name, 0) > 0
    ]
    named = dict.fromkeys(text for s in states for text in s.throttle_reasons or ())
    return counted + [
        f"the GPU is being slowed down: {text}"
        for text in named
        if not any(text in line for line in counted)
    ]


def _strangers(readings: list[list[int]]) -> int:
    """Return how many processes other than this one were on the GPU.

    Inside a container the driver reports the host's process numbers, and this process is not
    found. A single process is then assumed to be this one.
    """
    processes = {p for pids in readings for p in pids}
    if os.getpid() in processes:
        return len(processes) - 1
    return max(0, max((len(pids) for pids in readings), default=0) - 1)


def open_gpu(device: str) -> tuple[Gpu | None, str]:
    """Return the GPU of a device through NVML, or None and why.

    Args:
        device: ``cpu`` or ``cuda:N``.
    """
    if device == "cpu":
        return None, "the device is a CPU"
    if is_jetson():
        return None, "a Jetson's NVML cannot be trusted: its rails are read instead"
    try:
        return Gpu(device), ""
    except MeterError as exc:
        return None, exc.reason


def _cpu_seconds(root: Path) -> tuple[float, float] | None:
    """Return the CPU seconds that other processes used since boot, and all CPU seconds.

    Both are sums over all cores.
    """
    text = _text(root / "proc/stat")
    if text is None or not text.startswith("cpu "):
        return None
    ticks = [float(v) for v in text.splitlines()[0].split()[1:9]]
    hertz = os.sysconf("SC_CLK_TCK")
    busy = (sum(ticks) - ticks[3] - ticks[4]) / hertz
    own = time.process_time()
    return busy - own, sum(ticks) / hertz


def _slept() -> float:
    """Return the seconds this machine was suspended since it started."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return float(time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC))


def _container(root: Path) -> str:
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    groups = _text(root / "proc/1/cgroup") or ""
    return next(
        (k for k in ("docker", "kubepods", "containerd", "lxc") if k in groups), "none seen"
    )


def _jetson(root: Path, missing: dict[str, str]) -> JetsonCard:
    """Return board, release and power mode; what the tools do not say is in ``missing``."""
    board = JetsonCard(
        model=(_text(root / "proc/device-tree/model") or "").strip("\0") or None,
        l4t=(_text(root / LINES) or "").partition("\n")[0] or None,
        power_mode=_output(["nvpmodel", "-q"]),
        clocks=_output(["jetson_clocks", "--show"]),
    )
    for key, tool in (("power_mode", "nvpmodel -q"), ("clocks", "jetson_clocks --show")):
        if getattr(board, key) is None:
            missing[key] = f"{tool} says nothing here (it may need root)"
    return board


def _output(line: list[str]) -> str | None:
    if shutil.which(line[0]) is None:
        return None
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
