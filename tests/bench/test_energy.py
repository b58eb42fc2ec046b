"""Energy from power readings and counters with known answers."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

from trtq.bench.energy import EnergySettings, Recorder, Track, mean_power, measure_energy
from trtq.bench.meters.nvml import Gpu, NvmlCounter, NvmlPower
from trtq.errors import MeterError
from trtq.testing.nvml import load_fake_nvml, write_fake_nvml

pytestmark = pytest.mark.alone


# ---- meters ------------------------------------------------------------------------------------


def test_mean_power_of_a_counter_lies_between_its_ticks():
    times = [i * 0.01 for i in range(1001)]
    track = Track(times, [50.0 * (i // 10) * 0.1 for i in range(1001)])
    found = mean_power(track, counter=True, start=1.03, end=9.07)
    assert found.watts == pytest.approx(50.0, rel=1e-6)
    assert found.readings == pytest.approx(80, abs=1)


def test_mean_power_of_readings_is_the_trapezoid():
    times = [i * 0.01 for i in range(1001)]
    track = Track(times, [10.0 + t for t in times])
    assert mean_power(track, counter=False, start=2.0, end=6.0).watts == pytest.approx(14.0)


@pytest.mark.parametrize(
    ("track", "counter", "text"),
    [
        (Track([0, 1, 2, 3], [5, 6, 2, 7]), True, "went backwards"),
        (Track([0, 1, 2, 3], [5, 5, 5, 5]), True, "did not move"),
        (
            Track([0, 1, 2, 3], [5, 6, 7, 8], "the GPU has fallen off the bus"),
            True,
            "stopped in the middle.*fallen off the bus",
        ),
        (Track([0, 0.01, 2, 2.01], [5, 6, 7, 8]), False, "have a gap"),
        (Track([], []), False, "no readings"),
    ],
)
def test_meters_that_cannot_be_believed(track, counter, text):
    with pytest.raises(MeterError, match=text):
        mean_power(track, counter=counter, start=0.0, end=3.0)


def test_pain_10_a_square_wave_under_a_sensor_that_averages_a_second():
    """A load is on for half of each 0.4 s and seen through a 1 s average.

    A window of 10 s gives the right power; a short one is marked.
    """
    on, idle, period = 300.0, 60.0, 0.4

    def watts(t: float) -> float:
        return on if t > 0 and t % period < period / 2 else idle

    times = [i * 0.01 for i in range(1, 1300)]
    averaged = [float(np.mean([watts(t - k / 100) for k in range(100)])) for t in times]
    true = (on + idle) / 2
    assert mean_power(
        Track(times, averaged), counter=False, start=2.0, end=12.0
    ).watts == pytest.approx(true, rel=0.05)
    early = mean_power(Track(times, averaged), counter=False, start=0.0, end=0.5).watts
    assert abs(early - true) > 0.05 * true  # what the mark is for


def test_a_slow_request_counts_by_its_share_from_its_start(tmp_path):
    """Requests of 0.8 s, and a window that begins 0.2 s after the load."""
    gpu = Gpu(nvml=load_fake_nvml(write_fake_nvml(tmp_path, power_w=200.0)), uuid="GPU-0")
    settings = EnergySettings(window_s=0.7, repeats=1, cooldown_s=0.0, settle_s=0.2)
    found = measure_energy(lambda: time.sleep(0.8), 1, NvmlPower(gpu), settings)
    assert found.images_per_s == pytest.approx(1 / 0.8, rel=0.05)


@pytest.mark.parametrize("kind", ["counter", "power"])
def test_energy_of_a_known_load(tmp_path, kind):
    missing = [] if kind == "counter" else ["nvmlDeviceGetTotalEnergyConsumption"]
    gpu = Gpu(
        nvml=load_fake_nvml(write_fake_nvml(tmp_path, power_w=200.0, tick_s=0.02, missing=missing)),
        uuid="GPU-0",
    )
    meter = gpu.meter()
    assert isinstance(meter, NvmlCounter if kind == "counter" else NvmlPower)
    found = measure_energy(
        lambda: time.sleep(0.004),
        8,
        meter,
        EnergySettings(window_s=1.0, repeats=2, cooldown_s=0.0, settle_s=0.1),
    )
    assert found.power_w == pytest.approx(200.0, rel=0.05)
    assert found.gross_j == pytest.approx(200.0 / found.images_per_s, rel=0.05)
    assert found.net_j == pytest.approx(
        0.0, abs=0.1 * found.gross_j
    )  # the same power when idle: nothing is left
    assert found.load == "one request after another"
    assert not found.valid
    assert "too short to measure: windows of 1 s, the sensor needs 10 s" in found.reasons[0]
    assert any("within 5 %" in limit for limit in found.limits)


class Known:
    """Draws 60 W and 300 W more while it works; the reading is the mean of the last second."""

    name, scope, counter, min_window_s, limits = "a meter", "a thing", False, 10.0, []

    def __init__(self) -> None:
        self.worked: list[tuple[float, float]] = []

    def work(self) -> None:
        start = time.perf_counter()
        time.sleep(0.01)
        self.worked.append((start, time.perf_counter()))

    def read(self) -> float:
        now = time.perf_counter()
        busy = sum(max(0.0, min(b, now) - max(a, now - 1.0)) for a, b in list(self.worked)[-200:])
        return 60.0 + 300.0 * min(busy, 1.0)


def test_idle_power_is_that_without_the_load_before_it():
    meter = Known()
    found = measure_energy(
        meter.work, 1, meter, EnergySettings(window_s=1.0, repeats=1, cooldown_s=0.0, settle_s=1.3)
    )
    assert found.idle_w == pytest.approx(60.0, rel=0.02)
    assert found.power_w == pytest.approx(360.0, rel=0.05)
    assert found.net_j / found.gross_j == pytest.approx(300.0 / 360.0, rel=0.03)


@pytest.mark.slow
def test_energy_at_a_rate_counts_the_idle_time_between():
    meter = Known()
    found = measure_energy(
        meter.work,
        1,
        meter,
        EnergySettings(window_s=1.5, repeats=1, cooldown_s=0.0, settle_s=1.2, rate=20.0),
    )
    assert found.load == "20 requests a second"
    assert found.images_per_s == pytest.approx(20.0, rel=0.1)
    assert found.power_w == pytest.approx(60.0 + 300.0 * 0.2, rel=0.1)


def test_two_meters_that_disagree_are_not_believed(tmp_path):
    gpu = Gpu(
        nvml=load_fake_nvml(write_fake_nvml(tmp_path, power_w=200.0, tick_s=0.02)), uuid="GPU-0"
    )

    class Other(Known):
        def read(self) -> float:
            return 260.0

    found = measure_energy(
        lambda: time.sleep(0.002),
        1,
        gpu.meter(),
        EnergySettings(window_s=0.5, repeats=1, settle_s=0.1),
        check=Other(),
    )
    assert re.search(
        r"NVML energy counter and a meter are (2[5-9]|3[0-5])% apart", "; ".join(found.reasons)
    )


def test_a_sensor_that_looks_part_of_the_time_needs_longer_windows(tmp_path):
    module = load_fake_nvml(write_fake_nvml(tmp_path))
    assert Gpu(nvml=module, uuid="GPU-0").meter().min_window_s == 10.0
    module.nvmlDeviceGetName = lambda handle: "NVIDIA H200"
    assert Gpu(nvml=module, uuid="GPU-0").meter().min_window_s == 20.0


def test_a_meter_that_dies_in_the_middle(tmp_path):
    gpu = Gpu(nvml=load_fake_nvml(write_fake_nvml(tmp_path, dies_after=20)), uuid="GPU-0")
    with pytest.raises(MeterError, match="fallen off the bus"):
        measure_energy(
            lambda: time.sleep(0.002),
            1,
            gpu.meter(),
            EnergySettings(window_s=0.5, repeats=1, settle_s=0.0),
        )


def test_a_counter_that_goes_backwards(tmp_path):
    gpu = Gpu(
        nvml=load_fake_nvml(write_fake_nvml(tmp_path, backwards_at=10, tick_s=0.01)), uuid="GPU-0"
    )
    with Recorder(gpu.meter()) as recorder:
        time.sleep(0.5)
    with pytest.raises(MeterError, match="went backwards"):
        mean_power(recorder.track, counter=True, start=0.0, end=1e12)
