"""Read a GPU through NVIDIA's management library (NVML).

Each figure can fail on its own; the reason is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from trtq.bench.machine_card import GpuCard
from trtq.errors import MeterError, first_line

# Bits of the clock event reasons that make a latency worthless, and the cumulative times, ns, of
# the same (facts: NVML).
THROTTLES: Mapping[int, str] = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal limit",
    0x40: "hardware thermal limit",
    0x80: "power brake",
}
THROTTLE_FIELDS: Mapping[int, str] = {
    74: "power cap",
    269: "software thermal limit",
    270: "hardware thermal limit",
    271: "power brake",
}
POWER_INSTANT = 186
BOARD = 0
# Meaning of an exception of NVML for a person (facts: missing NVML).
MEANING = {
    "LibraryNotFound": "the NVIDIA management library was not found (no driver, a Jetson, or a "
    "container "
    "without the utility capability)",
    "DriverNotLoaded": "the NVIDIA driver is not loaded",
    "NoPermission": "that needs root",
    "NotSupported": "this board does not report it",
    "FunctionNotFound": "the driver is older than this figure",
    "GpuIsLost": "the GPU has fallen off the bus",
    "LibRmVersionMismatch": "driver and library differ in version: load the driver again, or "
    "reboot",
    "OperatingSystem": "the operating system keeps the device away from this process (cgroup)",
}


class GpuState(msgspec.Struct, frozen=True, kw_only=True):
    """Readings that vary on a GPU; None where it reports none.

    Attributes:
        throttle_reasons: why clocks are low at this moment; only reasons that make a latency
            worthless.
        throttled_ns: time in each of them since the driver was loaded, where the board counts it.
        processes: ids of the processes that compute on it.
    """

    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    throttle_reasons: list[str] | None
    throttled_ns: dict[str, int]
    processes: list[int] | None


def explain_nvml(exc: Exception) -> str:
    """Return what an exception of NVML means."""
    name = type(exc).__name__.removeprefix("NVMLError_")
    return MEANING.get(name, f"NVML says {name}: {str(exc)[:80]}")


def load_nvml() -> Any:
    """Return the initialised module ``pynvml`` of nvidia-ml-py.

    Raises:
        MeterError: it is missing, it is another package of that name, or there is no driver.
    """
    try:
        import pynvml
    except ImportError as exc:
        raise MeterError(
            "Cannot read the GPU's sensors",
            "nvidia-ml-py is not installed",
            "pip install nvidia-ml-py",
        ) from exc
    if not hasattr(pynvml, "NVML_FI_DEV_POWER_INSTANT"):
        raise MeterError(
            "Cannot read the GPU's sensors",
            "the unofficial package pynvml shadows NVIDIA's",
            "pip uninstall pynvml; pip install --force-reinstall nvidia-ml-py",
        )
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        raise MeterError("Cannot read the GPU's sensors", explain_nvml(exc)) from exc
    return pynvml


class Gpu:
    """One GPU through NVML.

    Args:
        device: ``cuda:N``; torch gives the UUID, since NVML numbers GPUs in another order.
        nvml: the module; a stand-in in tests.
        uuid: of the GPU, where it is known.

    Raises:
        MeterError: no NVML, or it does not know this GPU.
    """

    def __init__(
        self, device: str = "cuda:0", *, nvml: Any = None, uuid: str | None = None
    ) -> None:
        self.nvml = nvml if nvml is not None else load_nvml()
        try:
            self.handle = self.nvml.nvmlDeviceGetHandleByUUID(uuid or _uuid_of(device))
        except self.nvml.NVMLError as exc:
            raise MeterError(f"NVML does not know {device}", explain_nvml(exc)) from exc
        self.missing: dict[str, str] = {}

    def ask(self, name: str, call: Callable[[], Any]) -> Any:
        """Return one figure, or None with the reason in ``missing``.

        Args:
            name: of the figure, the key in ``missing``.
            call: asks NVML for it; bytes are returned as text.
        """
        try:
            value = call()
        except self.nvml.NVMLError as exc:
            self.missing[name] = explain_nvml(exc)
            return None
        except UnicodeDecodeError:
            self.missing[name] = "the driver's text is not UTF-8"
            return None
        except (AttributeError, TypeError) as exc:
            self.missing[name] = f"this nvidia-ml-py cannot ask for it ({exc})"
            return None
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def card(self) -> GpuCard:
        """Return the properties and settings of the GPU; None where it reports none."""
        n, h, ask = self.nvml, self.handle, self.ask
        memory = ask("memory", lambda: n.nvmlDeviceGetMemoryInfo(h))
        limits = ask("power limits", lambda: n.nvmlDeviceGetPowerManagementLimitConstraints(h))
        return GpuCard(
            name=ask("name", lambda: n.nvmlDeviceGetName(h)),
            uuid=ask("uuid", lambda: n.nvmlDeviceGetUUID(h)),
            driver=ask("driver", n.nvmlSystemGetDriverVersion),
            cuda=ask("cuda", lambda: _dotted(n.nvmlSystemGetCudaDriverVersion_v2())),
            memory_bytes=memory.total if memory is not None else None,
            power_limit_w=_thousandth(
                ask("power limit", lambda: n.nvmlDeviceGetEnforcedPowerLimit(h))
            ),
            power_limits_w=[_thousandth(v) for v in limits] if limits is not None else None,
            sm_clock_max_mhz=ask(
                "largest SM clock", lambda: n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_SM)
            ),
            ecc=ask("ecc", lambda: bool(n.nvmlDeviceGetEccMode(h)[0])),
            mig=ask("mig", lambda: bool(n.nvmlDeviceGetMigMode(h)[0])),
            persistence=ask("persistence", lambda: bool(n.nvmlDeviceGetPersistenceMode(h))),
            compute_mode=ask("compute mode", lambda: int(n.nvmlDeviceGetComputeMode(h))),
        )

    def state(self) -> GpuState:
        """Return the varying state of the GPU.

        It includes clocks, temperature, power, the reasons for low clocks, and other processes.
        """
        n, h, ask = self.nvml, self.handle, self.ask
        bits = ask("clock event reasons", lambda: n.nvmlDeviceGetCurrentClocksEventReasons(h))
        reasons = (
            [text for bit, text in THROTTLES.items() if bits & bit] if bits is not None else None
        )
        times = {text: self.field(field, text) for field, text in THROTTLE_FIELDS.items()}
        return GpuState(
            sm_clock_mhz=ask("SM clock", lambda: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM)),
            memory_clock_mhz=ask(
                "memory clock", lambda: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_MEM)
            ),
            temperature_c=ask(
                "temperature", lambda: n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU)
            ),
            power_w=_thousandth(ask("power", lambda: n.nvmlDeviceGetPowerUsage(h))),
            throttle_reasons=reasons,
            throttled_ns={text: ns for text, ns in times.items() if ns is not None},
            processes=ask(
                "processes",
                lambda: sorted(p.pid for p in n.nvmlDeviceGetComputeRunningProcesses(h)),
            ),
        )

    def field(self, number: int, name: str, *, scope: int = BOARD) -> int | None:
        """Return a field value after checking its own return code.

        Args:
            number: NVML's id of the field.
            name: of the figure, the key in ``missing`` where there is no value.
            scope: 0 for the board.
        """
        values = self.ask(
            name, lambda: self.nvml.nvmlDeviceGetFieldValues(self.handle, [(number, scope)])
        )
        if values is None:
            return None
        if values[0].nvmlReturn != 0:
            self.missing[name] = "this board does not report it"
            return None
        return int(values[0].value.ullVal)

    def memory_used(self) -> int | None:
        """Return the bytes in use on the device, by all processes."""
        info = self.ask("memory", lambda: self.nvml.nvmlDeviceGetMemoryInfo(self.handle))
        return int(info.used) if info is not None else None

    def meter(self) -> NvmlCounter | NvmlPower:
        """Return the energy counter, or power where there is no counter (before Volta).

        Raises:
            MeterError: neither, or the GPU is cut into instances, whose energy is not known.
        """
        if self.ask("mig", lambda: self.nvml.nvmlDeviceGetMigMode(self.handle)[0]):
            raise MeterError(
                "Cannot meter this GPU",
                "it is cut into MIG instances, and the sensor sees the whole board",
                "Turn MIG off",
            )
        for kind in (NvmlCounter, NvmlPower):
            meter = kind(self)
            try:
                meter.read()
            except MeterError as exc:
                why = exc.reason
                continue
            return meter
        raise MeterError("Cannot meter this GPU", why)


class NvmlCounter:
    """The energy counter of the board, since the driver was loaded."""

    name, scope, counter = "NVML energy counter", "GPU board", True

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.min_window_s = _window_of(gpu)
        self.limits = [
            "refreshed about every 100 ms",
            "within 5 % of an external meter, by card",
            "A100 and H100 sample a quarter of the time: a load that repeats every 100 ms can "
            "be misread",
            "the host's CPU, memory and power supply are not in it",
        ]

    def read(self) -> float:
        """Return joules since the driver was loaded.

        Raises:
            MeterError: the board has no counter, or does not answer.
        """
        value = self.gpu.ask(
            "energy", lambda: self.gpu.nvml.nvmlDeviceGetTotalEnergyConsumption(self.gpu.handle)
        )
        if value is None:
            raise MeterError("Cannot read the energy counter", self.gpu.missing["energy"])
        return float(value) / 1e3


class NvmlPower:
    """The instant power of the board.

    Without that field in the driver, the usual figure is read, which may be an average over 1 s.
    """

    name, scope, counter = "NVML power", "GPU board", False

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.min_window_s = _window_of(gpu)
        self.instant = gpu.field(POWER_INSTANT, "instant power") is not None
        seen = (
            "instant power, itself an average over 25 to 100 ms"
            if self.instant
            else "on recent boards an average over 1 s"
        )
        self.limits = [
            seen,
            "within 5 % of an external meter, by card",
            "the host's CPU, memory and power supply are not in it",
        ]

    def read(self) -> float:
        """Return watts.

        Raises:
            MeterError: the board does not answer.
        """
        if self.instant:
            value = self.gpu.field(POWER_INSTANT, "instant power")
        else:
            value = self.gpu.ask(
                "power", lambda: self.gpu.nvml.nvmlDeviceGetPowerUsage(self.gpu.handle)
            )
        if value is None:
            raise MeterError(
                "Cannot read the power",
                self.gpu.missing.get("power") or self.gpu.missing["instant power"],
            )
        return float(value) / 1e3


PART_TIME = (
    "A100",
    "H100",
    "H200",
    "GH200",
    "V100",
)  # they look at a quarter or a half of the time


def _window_of(gpu: Gpu) -> float:
    """Return the shortest window to believe, seconds."""
    name = str(gpu.ask("name", lambda: gpu.nvml.nvmlDeviceGetName(gpu.handle)))
    return 20.0 if any(p in name for p in PART_TIME) else 10.0


def _thousandth(value: Any) -> float | None:
    return value / 1e3 if value is not None else None


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _uuid_of(device: str) -> str:
    """Return the UUID of the GPU with this CUDA index.

    NVML numbers GPUs in another order and ignores CUDA_VISIBLE_DEVICES.

    Raises:
        MeterError: CUDA has no such GPU.
    """
    import torch

    try:
        return f"GPU-{torch.cuda.get_device_properties(torch.device(device)).uuid}"
    except (AssertionError, RuntimeError, AttributeError) as exc:
        raise MeterError(
            f"NVML cannot be asked about {device}",
            f"CUDA does not name that GPU ({first_line(exc)})",
        ) from exc
