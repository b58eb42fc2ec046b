"""A stand-in for NVIDIA's management library.

It has the names of nvidia-ml-py that trtq calls, over a JSON file that says what the GPU does.

``write_fake_nvml(folder, **state)`` puts a module called ``pynvml`` there, for the front of the
path, and returns the file with its state. Keys: ``power_w`` (steady), ``missing`` (names of calls
that answer NotSupported), ``denied`` (NoPermission), ``tick_s`` (of the energy counter),
``average_s`` (of the power reading), ``square_s`` (the power is on for half of such a period, else
``idle_w``), ``processes``, ``reasons`` (bits), ``throttled_ns``, ``clock``, ``backwards_at`` and
``dies_after`` (reads). Time is the system's.
"""

from __future__ import annotations

import json
import time
import types
from pathlib import Path
from typing import Any

ERRORS = ("NotSupported", "NoPermission", "LibraryNotFound", "GpuIsLost")
DEFAULTS: dict[str, Any] = {
    "power_w": 200.0,
    "idle_w": 50.0,
    "missing": [],
    "denied": [],
    "tick_s": 0.1,
    "average_s": 0.0,
    "square_s": 0.0,
    "processes": [],
    "reasons": 0,
    "throttled_ns": {},
    "clock": 1980,
    "locked": None,
    "reads": 0,
    "backwards_at": None,
    "dies_after": None,
    "mig": 0,
    "memory": 1 << 30,
}


def write_fake_nvml(folder: Path, **state: Any) -> Path:
    """Write the module and its state, and return the file of the state."""
    state_file = folder / "gpu.json"
    state_file.write_text(json.dumps({**DEFAULTS, **state}))
    lines = (
        f"from trtq.testing.nvml import names_of\nglobals().update(names_of({str(state_file)!r}))\n"
    )
    (folder / "pynvml.py").write_text(lines)
    return state_file


def load_fake_nvml(state_file: Path) -> Any:
    """Return the module itself, without a path."""
    return types.SimpleNamespace(**names_of(str(state_file)))


def names_of(state_file: str) -> dict[str, Any]:
    """Return what the module has in it."""
    base = type("NVMLError", (Exception,), {})
    errors = {f"NVMLError_{n}": type(f"NVMLError_{n}", (base,), {}) for n in ERRORS}
    gpu = _Gpu(Path(state_file), errors)
    calls = {name: getattr(gpu, name) for name in dir(gpu) if name.startswith("nvml")}
    constants = {
        "NVML_CLOCK_SM": 1,
        "NVML_CLOCK_MEM": 2,
        "NVML_TEMPERATURE_GPU": 0,
        "NVML_FI_DEV_POWER_INSTANT": 186,
    }
    return {"NVMLError": base, **errors, **constants, **calls}


class _Gpu:
    def __init__(self, state_file: Path, errors: dict[str, Any]) -> None:
        self.held, self.errors, self.began = state_file, errors, time.perf_counter()

    def _state(self, call: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.held.read_text())
        if call in state["missing"]:
            raise self.errors["NVMLError_NotSupported"]("not supported")
        if call in state["denied"]:
            raise self.errors["NVMLError_NoPermission"]("denied")
        return state

    def _change(self, **changes: Any) -> None:
        state = json.loads(self.held.read_text())
        beside = self.held.with_suffix(".new")
        beside.write_text(json.dumps({**state, **changes}))
        beside.replace(self.held)

    def nvmlInit(self) -> None:
        self._state("nvmlInit")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"gpu{index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetName(self, handle: str) -> str:
        self._state("nvmlDeviceGetName")
        return "A GPU that is none"

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return "GPU-0"

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.00"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13000

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return types.SimpleNamespace(
            total=80 << 30, used=self._state("nvmlDeviceGetMemoryInfo")["memory"]
        )

    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle: str) -> list[int]:
        return [200_000, 700_000]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        self._state("nvmlDeviceGetEnforcedPowerLimit")
        return 700_000

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:
        return 1980

    def nvmlDeviceGetEccMode(self, handle: str) -> list[int]:
        return [1, 1]

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        return [self._state("nvmlDeviceGetMigMode")["mig"], 0]

    def nvmlDeviceGetPersistenceMode(self, handle: str) -> int:
        return 1

    def nvmlDeviceGetComputeMode(self, handle: str) -> int:
        return 0

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        return int(self._state("nvmlDeviceGetCurrentClocksEventReasons")["reasons"])

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return int(self._state("nvmlDeviceGetClockInfo")["clock"])

    def nvmlDeviceGetTemperature(self, handle: str, kind: int) -> int:
        return 40

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return [
            types.SimpleNamespace(pid=p)
            for p in self._state("nvmlDeviceGetComputeRunningProcesses")["processes"]
        ]

    def nvmlDeviceSetGpuLockedClocks(self, handle: str, low: int, high: int) -> None:
        self._state("nvmlDeviceSetGpuLockedClocks")
        self._change(locked=[low, high])

    def nvmlDeviceResetGpuLockedClocks(self, handle: str) -> None:
        self._change(locked=None)

    def nvmlDeviceGetFieldValues(self, handle: str, fields: list[tuple[int, int]]) -> list[Any]:
        state = self._state("nvmlDeviceGetFieldValues")
        readings = []
        for number, _ in fields:
            if number == 186:
                value = (
                    1e3 * self._watts(state, time.perf_counter())
                    if "instant" not in state["missing"]
                    else None
                )
            else:
                value = state["throttled_ns"].get(str(number))
            union = types.SimpleNamespace(ullVal=int(value or 0))
            readings.append(
                types.SimpleNamespace(nvmlReturn=0 if value is not None else 3, value=union)
            )
        return readings

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        state, now = self._state("nvmlDeviceGetPowerUsage"), time.perf_counter()
        span = state["average_s"]
        steps = 50 if span else 1
        return int(
            1e3 * sum(self._watts(state, now - span * i / steps) for i in range(steps)) / steps
        )

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        state = self._state("nvmlDeviceGetTotalEnergyConsumption")
        self._change(reads=state["reads"] + 1)
        if state["dies_after"] is not None and state["reads"] >= state["dies_after"]:
            raise self.errors["NVMLError_GpuIsLost"]("lost")
        at = time.perf_counter() // state["tick_s"] * state["tick_s"]
        if state["backwards_at"] is not None and state["reads"] >= state["backwards_at"]:
            at -= 1e4
        return int(1e3 * (1e7 + state["power_w"] * at))

    def _watts(self, state: dict[str, Any], at: float) -> float:
        period = state["square_s"]
        if not period or at % period < period / 2:
            return float(state["power_w"])
        return float(state["idle_w"])
