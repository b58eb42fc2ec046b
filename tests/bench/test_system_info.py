"""What is recorded about the machine, and what makes a run invalid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.conftest import read
from trtq.bench import system_info as cards
from trtq.bench.clocks import locked_clocks
from trtq.bench.machine_card import Card, JetsonCard, incomplete
from trtq.bench.meters.nvml import Gpu
from trtq.bench.system_info import Watch, take_card
from trtq.testing.nvml import load_fake_nvml, write_fake_nvml

# ---- the machine -------------------------------------------------------------------------------


def test_a_card_of_a_gpu_is_complete_also_where_the_board_is_silent(tmp_path):
    gpu = Gpu(
        nvml=load_fake_nvml(write_fake_nvml(tmp_path, missing=["nvmlDeviceGetEnforcedPowerLimit"])),
        uuid="GPU-0",
    )
    card = take_card("cuda:0", gpu=gpu)
    assert card.gpu.power_limit_w is None
    assert card.missing["power_limit_w"] == "this board does not report it"
    assert incomplete(card) == []
    assert incomplete(replace(card, gpu=None, missing={})) != []
    assert incomplete(Card()) == ["kind"]


def test_a_card_of_a_jetson(tmp_path, monkeypatch):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R35 (release), REVISION: 4.1\nmore\n")
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("Jetson-AGX\0")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvpmodel").write_text("#!/bin/sh\necho 'NV Power Mode: MAXN'\n")
    (tools / "nvpmodel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    card = take_card("cuda:0", root=tmp_path)
    assert card.kind == "jetson"
    l4t = "# R35 (release), REVISION: 4.1"
    assert card.jetson == JetsonCard(model="Jetson-AGX", l4t=l4t, power_mode="NV Power Mode: MAXN")
    assert "may need root" in card.missing["clocks"]
    assert incomplete(card) == []


def watched(tmp_path: Path, before: dict, after: dict) -> list[str]:
    held = write_fake_nvml(tmp_path, **before)
    watch = Watch("cuda:0", Gpu(nvml=load_fake_nvml(held), uuid="GPU-0"))
    held.write_text(json.dumps({**json.loads(held.read_text()), **after}))
    watch.look()
    watch.look()
    return watch.reasons()


def test_what_makes_a_run_not_valid(tmp_path):
    assert watched(tmp_path, {}, {}) == []
    assert watched(
        tmp_path, {"throttled_ns": {"269": 5}}, {"throttled_ns": {"269": 2_000_000_005}}
    ) == ["the GPU was slowed down for 2.00 s: software thermal limit"]
    assert watched(tmp_path, {}, {"reasons": 0x4 | 0x1}) == [
        "the GPU is being slowed down: power cap"
    ]
    assert watched(tmp_path, {}, {"processes": [os.getpid(), 4242]}) == [
        "1 other processes on the GPU"
    ]
    assert (
        watched(tmp_path, {}, {"processes": [4242]}) == []
    )  # in a container this process has another number there
    assert watched(tmp_path, {}, {"processes": [4242, 4243]}) == ["1 other processes on the GPU"]


def test_what_cannot_be_watched_is_said(tmp_path):
    missing = ["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetClockInfo"]
    gpu = Gpu(nvml=load_fake_nvml(write_fake_nvml(tmp_path, missing=missing)), uuid="GPU-0")
    watch = Watch("cuda:0", gpu)
    found = watch.unwatched()
    assert found["watching the SM clock"] == "this board does not report it"
    assert "watching the clock event reasons" in found
    assert "watching the power cap" in found
    assert take_card("cuda:0", gpu=gpu).missing["SM clock"] == "this board does not report it"


def test_clocks_that_move_and_a_machine_that_sleeps(tmp_path, monkeypatch):
    held = write_fake_nvml(tmp_path)
    watch = Watch("cuda:0", Gpu(nvml=load_fake_nvml(held), uuid="GPU-0"))
    for clock in (1980, 1500):
        held.write_text(json.dumps({**json.loads(held.read_text()), "clock": clock}))
        watch.between()
    watch.look()  # idle again: whatever the clock is now
    assert watch.reasons() == ["the SM clock moved between 1500 and 1980 MHz"]
    slept = iter([0.0, 30.0])
    monkeypatch.setattr(cards, "_slept", lambda: next(slept))
    watch = Watch("cpu")
    watch.look()
    assert watch.reasons()[0] == "the machine slept 30.0 s in the middle"


def test_work_of_others_is_noticed(tmp_path):
    (tmp_path / "proc").mkdir()
    stat = tmp_path / "proc/stat"
    stat.write_text("cpu  1000 0 0 9000 0 0 0 0 0 0\n")
    watch = Watch("cpu", root=tmp_path)
    watch.states[0] = watch.states[0]._replace(at=watch.states[0].at - 10.0)
    stat.write_text("cpu  2000 0 0 10000 0 0 0 0 0 0\n")
    watch.look()
    assert watch.others() == pytest.approx(0.5, abs=0.02)
    assert watch.reasons() == ["other processes used 50% of the CPU"]


def test_clocks_come_back_even_after_a_kill(tmp_path, monkeypatch):
    held = write_fake_nvml(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    gpu = Gpu(nvml=load_fake_nvml(held), uuid="GPU-0")
    with locked_clocks(gpu) as said:
        assert said == "locked at 1980 MHz"
        assert read(held)["locked"] == [1980, 1980]
    assert read(held)["locked"] is None
    code = (
        "import time\nfrom trtq.bench.clocks import locked_clocks\nfrom trtq.bench.meters.nvml "
        "import Gpu\n"
        "with locked_clocks(Gpu(uuid='GPU-0')) as said:\n    print(said, flush=True)\n    "
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "locked at 1980 MHz\n"
        assert read(held)["locked"] == [1980, 1980]
        os.killpg(process.pid, signal.SIGHUP)  # a closed terminal; the guardian is not in the group
        process.wait()
    until = time.monotonic() + 20
    while read(held)["locked"] is not None and time.monotonic() < until:
        time.sleep(0.05)
    assert read(held)["locked"] is None


def test_clocks_without_permission_stay_floating(tmp_path, monkeypatch):
    held = write_fake_nvml(tmp_path, denied=["nvmlDeviceSetGpuLockedClocks"])
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with locked_clocks(Gpu(nvml=load_fake_nvml(held), uuid="GPU-0")) as said:
        assert said == "floating: that needs root"
