"""Power meters: NVML, RAPL, and the rails of boards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.modules import forget
from trtq.bench.meters.jetson import JetsonRails
from trtq.bench.meters.nvml import Gpu, load_nvml
from trtq.bench.meters.rapl import Rapl
from trtq.errors import MeterError
from trtq.testing.nvml import load_fake_nvml, write_fake_nvml


def test_nvml_that_answers_not_supported(tmp_path):
    names = [
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetClockInfo",
    ]
    gpu = Gpu(nvml=load_fake_nvml(write_fake_nvml(tmp_path, missing=names)), uuid="GPU-0")
    state = gpu.state()
    assert state.sm_clock_mhz is None
    assert state.throttled_ns == {}
    assert gpu.missing["SM clock"] == "this board does not report it"
    assert state.temperature_c == 40  # each figure degrades alone
    with pytest.raises(MeterError, match="Cannot meter this GPU: this board does not report it"):
        gpu.meter()
    with pytest.raises(MeterError, match="MIG"):
        Gpu(nvml=load_fake_nvml(write_fake_nvml(tmp_path, mig=1)), uuid="GPU-0").meter()


def test_no_driver_and_the_wrong_package(tmp_path, monkeypatch):
    forget(monkeypatch, "pynvml")
    if not Path("/dev/nvidiactl").exists():
        with pytest.raises(MeterError, match="management library was not found"):
            load_nvml()
    (tmp_path / "pynvml.py").write_text("def nvmlInit(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("pynvml", None)
    with pytest.raises(MeterError, match="unofficial package pynvml shadows"):
        load_nvml()
    sys.modules["pynvml"] = None
    with pytest.raises(MeterError, match="nvidia-ml-py is not installed"):
        load_nvml()


def rapl(root: Path, energy: int, *, wraps: int = 1_000_000) -> Path:
    zone = root / "sys/class/powercap/intel-rapl:0"
    (root / "sys/class/powercap/intel-rapl:0:0").mkdir(
        parents=True, exist_ok=True
    )  # a part of the package: not counted
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "name").write_text("package-0\n")
    whole = (
        root / "sys/class/powercap/intel-rapl:1"
    )  # the platform, with the package in it: not counted either
    whole.mkdir(parents=True, exist_ok=True)
    (whole / "name").write_text("psys\n")
    (zone / "energy_uj").write_text(f"{energy}\n")
    (zone / "max_energy_range_uj").write_text(f"{wraps}\n")
    return zone


def test_rapl_counts_on_when_it_wraps_around(tmp_path):
    zone = rapl(tmp_path, 900_000)
    meter = Rapl(tmp_path)
    (zone / "energy_uj").write_text("950000")
    assert meter.read() == pytest.approx(0.05)
    (zone / "energy_uj").write_text("50000")
    assert meter.read() == pytest.approx(0.15)
    (zone / "energy_uj").write_text("x")
    with pytest.raises(MeterError, match="holds no number"):
        meter.read()
    with pytest.raises(MeterError, match="no RAPL counters"):
        Rapl(tmp_path / "none")


def hwmon(
    root: Path, number: int, rails: dict[str, tuple[int, int]], name: str = "ina3221"
) -> None:
    folder = root / f"sys/class/hwmon/hwmon{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    for i, (label, (mv, ma)) in enumerate(rails.items(), 1):
        (folder / f"in{i}_label").write_text(f"{label}\n")
        (folder / f"in{i}_input").write_text(f"{mv}\n")
        (folder / f"curr{i}_input").write_text(f"{ma}\n")


def test_rails_of_boards(tmp_path):
    hwmon(
        tmp_path / "orin-nx",
        3,
        {"VDD_IN": (5000, 1200), "VDD_CPU_GPU_CV": (5000, 400), "NC": (0, 0)},
    )
    hwmon(tmp_path / "orin-nx", 0, {"GPU": (1, 1)}, name="coretemp")
    meter = JetsonRails(tmp_path / "orin-nx")
    assert (meter.read(), meter.scope) == (6.0, "rail VDD_IN")
    hwmon(tmp_path / "xavier", 1, {"GPU": (19000, 100), "CPU": (19000, 50), "SOC": (19000, 60)})
    hwmon(tmp_path / "xavier", 2, {"CV": (19000, 0), "VDDRQ": (19000, 20), "SYS5V": (5000, 300)})
    meter = JetsonRails(tmp_path / "xavier")
    assert meter.scope.startswith("sum of monitored rails GPU + CPU")
    assert meter.read() == pytest.approx(1.9 + 0.95 + 1.14 + 0.38 + 1.5)
    nano = tmp_path / "nano/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    nano.mkdir(parents=True)
    for i, (label, mw) in enumerate(
        {"POM_5V_IN": 2100, "POM_5V_GPU": 40, "POM_5V_CPU": 400}.items()
    ):
        (nano / f"rail_name_{i}").write_text(label)
        (nano / f"in_power{i}_input").write_text(str(mw))
    assert (JetsonRails(tmp_path / "nano").read(), JetsonRails(tmp_path / "nano").scope) == (
        2.1,
        "rail POM_5V_IN",
    )
    with pytest.raises(MeterError, match="no INA3221 monitors"):
        JetsonRails(tmp_path / "empty")
    hwmon(tmp_path / "odd", 0, {"SOMETHING": (5000, 10)})
    with pytest.raises(MeterError, match="no total among the rails SOMETHING"):
        JetsonRails(tmp_path / "odd")


@pytest.mark.gpu
def test_nvml_on_a_real_gpu():
    gpu = Gpu("cuda:0")
    assert gpu.card()["uuid"].startswith("GPU-")
    assert gpu.state().temperature_c > 0
    assert gpu.meter().read() > 0
