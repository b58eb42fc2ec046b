"""Boards that cannot do what is asked."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from tests.conftest import read, run_cli
from tests.support.boards import introduce, needs_sshd, pooling, served, spec
from trtq.artifact import sha256_file
from trtq.commands.deploy import deploy
from trtq.deploy.devices import find_device, remember_device
from trtq.errors import BoardError, BuilderMemoryError, EngineError, UsageError

pytestmark = needs_sshd


def test_no_sudo(place, tmp_path):
    with served(place, "xavier", sudo=False) as board:
        introduce(board, "xavier")
        model = pooling(tmp_path / "m.onnx")
        with pytest.raises(
            BoardError,
            match=r"Cannot set the power mode or the clocks of Jetson-AGX: sudo asks for a "
            r"password there.*visudo",
        ):
            deploy(spec(board, model, tmp_path / "o", power_mode="MODE_15W"))
        record = deploy(spec(board, model, tmp_path / "o"))  # all the rest works
        assert record.rows[0].settings.clocks == "not pinned"
        assert any("not pinned" in n for n in record.rows[0].notes)
        assert (board.root / "var/lib/nvpmodel/changes").read_text() == ""


def test_power_modes_that_cannot_be(orin, tmp_path):
    model = pooling(tmp_path / "m.onnx")
    with pytest.raises(
        UsageError, match=r"has no power mode MAXN: it has 15W, 25W, MAXN_SUPER, 7W"
    ):
        deploy(spec(orin, model, tmp_path / "o", power_mode="MAXN"))
    conf = orin.root / "etc/nvpmodel.conf"
    conf.write_text(conf.read_text() + "NEEDS_REBOOT 7W\n")
    with pytest.raises(
        BoardError,
        match=r"cannot set the power mode 7W: it needs a restart of the board.*sudo nvpmodel -m 3",
    ):
        deploy(spec(orin, model, tmp_path / "o", power_mode="7W", lock_clocks=True))
    assert (orin.root / f"sys/class/devfreq/{orin.kind.gpu}/min_freq").read_text() == "114750000"


def test_throttling_makes_it_not_valid(orin, tmp_path):
    alert = orin.root / "sys/class/thermal/cooling_device0/cur_state"
    busy = json.loads((orin.root / "busy.json").read_text())
    (orin.root / "busy.json").write_text(
        json.dumps({**busy, str(alert.relative_to(orin.root)): "3"})
    )
    done = run_cli(
        "deploy",
        "orin",
        str(pooling(tmp_path / "m.onnx")),
        "--duration",
        "0.5",
        "--min-samples",
        "50",
        "--out",
        str(tmp_path / "o"),
    )
    assert done.returncode == 3
    assert "NOT VALID: the board throttled during the run (gpu-throttle-alert 3" in done.stdout


def test_pain_26_a_build_that_is_killed_for_memory_is_tried_with_less(orin, tmp_path):
    record = deploy(spec(orin, pooling(tmp_path / "m.onnx", "memory:300"), tmp_path / "o"))
    assert [a.workspace for a in record.manifest.attempts] == [1024, 512]
    assert record.manifest.workspace == 256
    with pytest.raises(
        BuilderMemoryError,
        match=r"tried workspaces of 1024 MiB, 512 MiB, .*64 MiB.*(close what uses CUDA|add swap)",
    ):
        deploy(spec(orin, pooling(tmp_path / "n.onnx", "memory:10"), tmp_path / "p"))


def test_pain_27_int8_on_a_nano(place, cnn_out, tmp_path):
    """Pairs of another toolkit's file are taken out, and a note says so."""
    with served(place, "nano") as nano:
        introduce(nano, "nano")
        from trtq.commands.quantize import quantize
        from trtq.specs import QuantizeSpec

        old = read(cnn_out / "quantize.json")["spec"]
        fields = {
            k: v
            for k, v in old.items()
            if k in QuantizeSpec.__struct_fields__ and v not in (None, [], {})
        }
        quantize(QuantizeSpec.make({**fields, "opset": 13, "out": str(tmp_path / "q")}))
        shutil.copy(tmp_path / "q/model.qdq.onnx", tmp_path / "foreign.onnx")
        record = deploy(spec(nano, tmp_path / "foreign.onnx", tmp_path / "o"))
        assert record.manifest.fallback.startswith(
            "Jetson Nano (compute capability 5.3) has no INT8 arithmetic: FP16 of the same model"
        )


def test_the_builder_refuses(orin, tmp_path):
    with pytest.raises(
        EngineError,
        match=r"trtexec on orin cannot build the engine for Jetson Orin Nano: .*While parsing "
        r"node number 0",
    ):
        deploy(spec(orin, pooling(tmp_path / "m.onnx", "refuse-me"), tmp_path / "o"))
    assert list((orin.home / ".trtq/engines").glob("*.engine")) == []


def test_no_trtexec(orin, tmp_path):
    (orin.root / "usr/src/tensorrt/bin/trtexec").unlink()
    found = run_cli("device", "probe", "orin")
    assert (
        "missing: neither trtexec nor TensorRT's Python module: nothing can be built here; on "
        "the board: sudo apt-get install" in found.stdout
    )
    with pytest.raises(
        BoardError,
        match=r"Cannot build on orin: it has neither trtexec nor TensorRT's Python "
        r"module.*apt-get install",
    ):
        deploy(spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o"))
    assert not list(
        (orin.home / ".trtq/files").glob("*.onnx")
    )  # it was known before anything was sent


def test_a_machine_that_is_no_jetson(orin, tmp_path):
    (orin.root / "proc/device-tree/compatible").write_text("acme,board")
    (orin.root / "proc/device-tree/model").write_text("Acme One\0")
    with pytest.raises(
        BoardError,
        match=r"Acme One cannot be deployed to: it is no Jetson that trtq knows \(acme,board\)",
    ):
        deploy(spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o"))


def test_a_jetpack_that_is_too_old(place, tmp_path):
    with served(place, "nano") as nano:
        introduce(nano, "nano")
        trtexec = nano.root / "usr/src/tensorrt/bin/trtexec"
        trtexec.write_text(
            '#!/bin/sh\necho "&&&& RUNNING TensorRT.trtexec [TensorRT v7103] # trtexec"\n'
        )
        with pytest.raises(
            BoardError,
            match=r"it has TensorRT 7.1 \(JetPack 4.6.1\), trtq knows it from 8.0 on.*Flash "
            r"JetPack 4.6",
        ):
            deploy(spec(nano, pooling(tmp_path / "m.onnx"), tmp_path / "o"))


def test_a_clock_of_1970(orin, tmp_path):
    (orin.folder / "python").mkdir(exist_ok=True)
    (orin.folder / "python/sitecustomize.py").write_text("import time\ntime.time = lambda: 400.0\n")
    found = run_cli("device", "probe", "orin")
    assert "missing: the clock shows 1970: only time differences are used" in found.stdout
    assert deploy(spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o")).valid


def test_disk_full_there(orin, tmp_path):
    small = orin.folder / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k,mode=777", "tmpfs", str(small)],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip("cannot mount a small tmpfs here")
    try:
        device = find_device("orin")
        remember_device(msgspec.structs.replace(device, workdir=str(small / "w")))
        model = pooling(tmp_path / "m.onnx", weights=2_000_000)
        with pytest.raises(
            BoardError,
            match=r"orin refuses to put: .*needs \d+ MB, 0 are free. Free some space.*trtq device "
            r"clean orin",
        ):
            deploy(spec(orin, model, tmp_path / "o"))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_disk_full_there_in_the_middle_of_a_build(orin, tmp_path):
    """There was room for the model, and none for the engine.

    With more room the same command continues.
    """
    small = orin.folder / "small"
    small.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=80m,mode=777", "tmpfs", str(small)]
    if subprocess.run(line, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small tmpfs here")
    try:
        remember_device(msgspec.structs.replace(find_device("orin"), workdir=str(small / "w")))
        asked = spec(
            orin, pooling(tmp_path / "m.onnx", "megabytes:100"), tmp_path / "o", power_mode="25W"
        )
        said = (
            r"Saving engine to file failed.*ended with status 1, and the disk is full. Free "
            r"some space.*trtq device clean orin"
        )
        with pytest.raises(EngineError, match=said):
            deploy(asked)
        assert list((small / "w/engines").iterdir()) == []  # half an engine is none
        assert (orin.root / "var/lib/nvpmodel/status").read_text().startswith("pmode:0000")
        subprocess.run([*line[:3], "-o", "remount,size=200m", "tmpfs", str(small)], check=True)
        record = deploy(asked)
        assert record.built and record.valid
        assert sha256_file(Path(record.engine)) == record.manifest.engine_sha256
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.slow
def test_disk_full_here(orin, small_disk, tmp_path):
    from trtq.errors import ArtifactError

    with pytest.raises(ArtifactError, match="Free some space on the disk that holds"):
        deploy(spec(orin, pooling(tmp_path / "m.onnx"), small_disk / "o", min_samples=20000))


def test_a_trtexec_that_does_not_start(orin, cnn_out, tmp_path):
    """Such a trtexec counts as none.

    The engine is built through Python, latency is n/a, and earlier figures of the same engine are
    kept; INT8 on a DLA is refused.
    """
    if not orin.add_tensorrt():
        pytest.skip("no C compiler for the stand-in of CUDA's runtime library")
    model = pooling(tmp_path / "m.onnx")
    first = deploy(spec(orin, model, tmp_path / "o"))
    trtexec = orin.root / "usr/src/tensorrt/bin/trtexec"
    trtexec.write_text("#!/bin/sh\necho 'error while loading shared libraries' >&2\nexit 127\n")
    again = deploy(spec(orin, model, tmp_path / "o"))
    assert (again.built, again.measured, again.rows) == (False, False, first.rows)
    assert "latency n/a: there is no trtexec" in again.summary
    other = deploy(spec(orin, pooling(tmp_path / "n.onnx", "another"), tmp_path / "p"))
    assert (other.manifest.builder.backend, other.rows) == ("tensorrt", [])
    (orin.root / "proc/device-tree/model").write_text("NVIDIA Jetson AGX Orin Developer Kit\0")
    qdq = Path(shutil.copytree(cnn_out, tmp_path / "q")) / "model.qdq.onnx"
    with pytest.raises(
        BoardError,
        match=r"Cannot build INT8 for the DLA of .*there is no trtexec to read the calibration "
        r"cache",
    ):
        deploy(spec(orin, qdq, tmp_path / "d", dla=0))


def test_a_board_without_a_dla(orin, tmp_path):
    with pytest.raises(
        EngineError,
        match="Cannot build with --dla for Jetson Orin Nano: it has no DLA. Leave --dla out",
    ):
        deploy(spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o", dla=0))
