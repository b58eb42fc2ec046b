"""Several boards, and measurements on a board."""

from __future__ import annotations

import html
import json
import re
import shlex

import pytest

from tests.conftest import read, run_cli
from tests.support.boards import QUICK, introduce, needs_sshd, pooling, served
from tests.sweep.conftest import REFUSER
from trtq import CompareSpec, compare
from trtq.bench.gate import read_record
from trtq.cli import cli
from trtq.commands.fleet import fleet
from trtq.deploy.devices import parse_device, remember_device
from trtq.specs import FleetSpec

pytestmark = needs_sshd


def test_the_fleet(place, cnn_out, tmp_path):
    with served(place, "orin") as orin, served(place, "nano") as nano:
        introduce(orin, "orin")
        introduce(nano, "nano")
        model = pooling(tmp_path / "m.onnx")
        gone = parse_device("gone", "nobody@127.0.0.1:1")
        remember_device(gone)
        done = run_cli(
            "fleet",
            "deploy",
            str(model),
            "--devices",
            "orin,nano,gone",
            "--duration",
            "0.3",
            "--min-samples",
            "50",
            "--out",
            str(tmp_path / "f"),
        )
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert lines[0].split()[:3] == ["device", "board", "model"]
        assert sum("2.06" in ln for ln in lines) == 2
        assert "gone, m: Cannot reach gone" in done.stdout
        record = fleet(FleetSpec(devices="orin,nano", out=str(tmp_path / "g"), **QUICK))
        assert [(r.device, r.valid, r.batch) for r in record.rows] == [
            ("orin", True, 1),
            ("nano", True, 1),
        ]
        assert all(r.load_ms and r.memory_bytes for r in record.rows)
        assert all(
            re.fullmatch(r".* \([0-9a-f]{8}\)", r.model) for r in record.rows
        )  # of one model there may be several engines
        repeat = html.unescape(
            re.search(r"trtq fleet bench [^<]+", (tmp_path / "g/fleet.html").read_text())[0]
        )
        group = cli.get_command(None, "fleet")
        group.get_command(None, "bench").make_context("bench", shlex.split(repeat)[3:])
        assert "--bench-batch 1 " in repeat
        page = (tmp_path / "f/fleet.html").read_text()
        assert "2 devices, 1 model; 1 without a latency" in page and "Cannot reach gone" in page
        typed = f"{orin.user}@127.0.0.1:{orin.port}"
        with (
            pytest.MonkeyPatch.context() as patch
        ):  # an address that was never added, with what the user's configuration says
            (tmp_path / "home/.ssh").mkdir(parents=True)
            (tmp_path / "home/.ssh/config").write_text(
                f"Host 127.0.0.1\n  IdentityFile {orin.identity}\n"
            )
            patch.setenv("HOME", str(tmp_path / "home"))
            assert (
                fleet(
                    FleetSpec(model=(str(model),), devices=typed, out=str(tmp_path / "h"), **QUICK)
                )
                .rows[0]
                .latency_ms
            )


@pytest.mark.parametrize(
    ("code", "why"), [("1", "it is Sunday"), ("0", "left no .*orin/fleet.json: name an --out that")]
)
def test_a_device_that_a_worker_gives_nothing_of(tmp_path, code, why):
    own = tmp_path / "own.py"
    said = REFUSER.replace('"it is Sunday"', '"" if CODE == 0 else "it is Sunday"')
    own.write_text(said.replace("CODE", code))
    for name in ("orin", "nano"):
        remember_device(parse_device(name, "nobody@127.0.0.1:1"))
    record = fleet(FleetSpec(out=str(tmp_path / "f"), on=f"{own}:open_executor"))
    assert {r.device for r in record.rows} == {"orin", "nano"}
    assert len(record.failed) == 2
    assert any(re.search(why, f) for f in record.failed)


# What must not be taken for something else.


def test_bench_on_a_board(orin, tmp_path):
    model = pooling(tmp_path / "m.onnx")
    asked = [
        "bench",
        str(model),
        "--device",
        "ssh:orin",
        "--duration",
        "0.3",
        "--min-samples",
        "50",
    ]
    done = run_cli(*asked, "--out", str(tmp_path / "o"))
    assert done.returncode == 0, done.stderr
    assert "gpu 2.06" in done.stdout and "inference begins" in done.stdout
    # The record has a complete card, so it can be compared with another one.
    record = read_record(tmp_path / "o/bench.json")
    assert record.command.endswith(
        f"--device ssh:orin --duration 0.3 --min-samples 50 --out {tmp_path / 'o'}"
    )
    assert record.card.jetson.power_mode == record.rows[0].settings.power_mode
    other = read(tmp_path / "o/bench.json")
    other["rows"][0]["gpu"]["median"]["value"] *= 1.01
    other["rows"][0]["state"]["latency_ms"] *= 1.01
    (tmp_path / "other.json").write_text(json.dumps(other))
    found = compare(
        CompareSpec(file=(str(tmp_path / "o/bench.json"), str(tmp_path / "other.json")))
    )
    assert (
        found.valid
        and found.differences == []
        and "gpu" in found.notes[0]
        and "x 1.0100" in found.notes[0]
    )
    for more, named in (
        (["--percentiles", "50,99.9"], "percentiles"),
        (["--mode", "paced"], "mode"),
        (["--repeat", "2"], "repeat"),
    ):
        refused = run_cli(*asked, *more)
        assert refused.returncode == 2
        assert (
            f"Cannot measure with --{named} on ssh:orin: boards are measured with their own trtexec"
            in refused.stderr
        )
    assert (
        "engines are built on the board that runs them"
        in run_cli("bench", "x.engine", "--device", "ssh:orin").stderr
    )
