"""Sweeps on this machine: the same as runs one after another, killed and gone on with."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from pathlib import Path

import msgspec
import pytest

from tests.conftest import read, run_cli
from tests.support.processes import start
from tests.sweep.conftest import REFUSER
from trtq.artifact import read_record
from trtq.quant.encodings import Encodings
from trtq.records.sweep import SweepRecord
from trtq.specs import SweepSpec
from trtq.sweep.command import sweep
from trtq.sweep.measured import changed_input

BITS = '"quantize.bits" = ["w8a8", "w4a8"]'
THREE = '"quantize.bits" = ["w8a8", "w4a8", "w4a4"]\n"quantize.calibrator" = ["max"]'
EVALUATE = "[evaluate]\nheld_out = false"


def record_of(folder: Path) -> SweepRecord:
    return read_record(folder / "sweep.json", SweepRecord)


def states(folder: Path) -> list[str]:
    return [r.state for r in record_of(folder).rows]


def files_of(folder: Path, number: int = 0) -> Path:
    """Return the folder of a finished run."""
    record = record_of(folder)
    return Path(record.store) / record.rows[number].files


def wait_for(condition, seconds: float = 120.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return value


def runs_of(folder: Path) -> list[int]:
    """Return the processes that run a recipe below a folder."""
    own = list[int]()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            words = file.read_bytes().decode(errors="replace").split("\0")
            if words[1:4] == ["-m", "trtq", "run"] and words[4].startswith(f"{folder}/"):
                own.append(int(file.parent.name))
    return own


@pytest.mark.slow
def test_a_sweep_is_its_runs_one_after_another(write_sweep, tmp_path):
    path, out = write_sweep(THREE, more=EVALUATE), tmp_path / "out"
    dry = run_cli("sweep", str(path), "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "3 runs, 0 of them in the store" in dry.stdout
    assert "00002  waiting           bits=w4a8 calibrator=max; would run" in dry.stdout
    assert not out.exists()
    done = run_cli("sweep", str(path), "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "3 runs: 3 done" in done.stdout
    assert re.search(r"0000[1-3]  done +[\d.]+ s  bits=w8a8 calibrator=max; top-1 ", done.stderr)
    record = record_of(out)
    for number, row in enumerate(record.rows):
        recipe = out / "recipes" / f"{row.name}.toml"
        text = re.sub(r"^out = .*", f'out = "{tmp_path}/plain/{row.name}"', recipe.read_text())
        (tmp_path / "plain.toml").write_text(text)
        assert run_cli("run", str(tmp_path / "plain.toml")).returncode == 0
        plain, kept = tmp_path / "plain" / row.name, files_of(out, number)
        one, two = (Encodings.load(f / "encodings.safetensors").digest() for f in (plain, kept))
        assert one == two
        ours, theirs = (read(f / "evaluate.json") for f in (plain, kept))
        for name in ("top1", "agreement", "sqnr_db", "outputs"):
            assert ours[name] == theirs[name]
        assert row.measured.score("top-1").value == ours["top1"]
        assert row.measured.sizes["model.qdq.onnx"] == (plain / "model.qdq.onnx").stat().st_size
    sizes = [r.measured.sizes["weights"] for r in record.rows]
    assert sizes[0] > sizes[1] == sizes[2]
    assert not list((out / "runs").iterdir())  # what is in the store is not kept twice
    look_at_the_page(out)
    reuse(path, out, tmp_path)


def look_at_the_page(out: Path) -> None:
    page = (out / "sweep.html").read_text()
    assert "Accuracy against size" in page
    assert "no engine was built" in page
    assert "<option>w4a8</option>" in page
    assert page.count('<tr><th scope="row">0000') == 3
    assert "trtq sweep" in page[page.index("Repeat it") :]
    for tag in ("<script src", "<link", "<img", "url(http"):
        assert tag not in page  # nothing is fetched


def reuse(path: Path, out: Path, tmp_path: Path) -> None:
    """What is in the store is not done again, whoever did it."""
    first = record_of(out)
    again = run_cli("sweep", str(path), "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["rows"] == msgspec.to_builtins(record_of(out).rows)
    assert states(out) == ["reused"] * 3
    assert [r.measured for r in record_of(out).rows] == [r.measured for r in first.rows]
    other = tmp_path / "other.toml"
    other.write_text(path.read_text().replace('"w4a4"', '"w2a8"'))
    dry = run_cli(
        "sweep", str(other), "--store", str(out / "store"), "--dry-run", "--out", str(out / "new")
    )
    assert "3 runs, 2 of them in the store" in dry.stdout
    (files_of(out, 1) / "model.qdq.onnx").unlink()
    dry = run_cli("sweep", str(path), "--dry-run")
    assert "00002  waiting           bits=w4a8 calibrator=max; would run" in dry.stdout
    read_something_else(out)
    (tmp_path / "own.py").write_text(REFUSER.replace("CODE", "1"))
    own = ("--on", f"{tmp_path}/own.py:open_executor", "--out", str(tmp_path / "again"))
    store = ("--store", str(out / "store"))
    assert run_cli("sweep", str(path), *own, *store, "--no-resume").returncode == 1
    assert states(tmp_path / "again") == ["failed"] * 3
    assert not list(out.glob("store/runs/*/done.json"))


def read_something_else(out: Path) -> None:
    folder = files_of(out)
    parts = read(folder / ".trtq-stages/quantize.json")["parts"]
    assert changed_input(folder, {"quantize": parts}) == ""
    other = {"quantize": {**parts, "images": "0", "model": "1"}}
    text = changed_input(folder, other)
    assert text == "model and images of quantize changed while the sweep ran"
    assert changed_input(folder, {"finetune": {}}) == "the record of its stage finetune is missing"


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_its_run_only(write_sweep, tmp_path):
    path, out = write_sweep(BITS), tmp_path / "out"
    driver = start("sweep", str(path), "--workers", "1")
    first = wait_for(lambda: runs_of(out))
    os.kill(first[0], signal.SIGKILL)
    text, _ = driver.communicate()
    assert driver.returncode == 1
    assert "2 runs: 1 done, 1 failed" in text
    assert "failed: 00001 (bits=w8a8): it was ended by SIGKILL; the system may have run" in text
    assert states(out) == ["failed", "done"]
    again = run_cli("sweep", str(path))
    assert again.returncode == 0, again.stderr
    assert states(out) == ["done", "reused"]


@pytest.mark.slow
def test_a_driver_that_is_killed_is_gone_on_with(write_sweep, tmp_path):
    more = '[sweep]\nleave_out = ["model.fp32.*"]'
    path, out = write_sweep(BITS, more=more), tmp_path / "out"
    driver = start("sweep", str(path), "--workers", "1")
    done = wait_for(lambda: list(out.glob("store/runs/*/done.json")))
    wait_for(lambda: runs_of(out))
    driver.kill()
    before = done[0].read_bytes()
    again = run_cli("sweep", str(path), "--workers", "1")
    assert again.returncode == 0, again.stderr
    assert states(out) == ["reused", "done"]
    assert done[0].read_bytes() == before
    assert not (files_of(out, 1) / "model.fp32.onnx").exists()
    assert "the store does not get model.fp32.* of new runs" in record_of(out).notes[0]
    log = (files_of(out, 1) / "run.log").read_text()
    assert log.count("quantize: ran (") == 1  # by the killed driver's process, which went on
    assert not list(out.glob("store/runs/*/claim.*"))


@pytest.mark.slow
def test_two_drivers_on_one_store_do_each_run_once(write_sweep, tmp_path):
    vary = '"quantize.seed" = [0, 1]'
    paths = [write_sweep(vary, folder=tmp_path / n) for n in ("one", "two")]
    store = ("--store", str(tmp_path / "store"), "--workers", "1")
    other = start("sweep", str(paths[0]), *store)
    done = run_cli("sweep", str(paths[1]), *store)
    assert done.returncode == 0, done.stderr
    other.communicate()
    assert other.returncode == 0
    both = [record_of(p.parent / "out") for p in paths]
    assert [r.key for r in both[0].rows] == [r.key for r in both[1].rows]
    by_run = [{a.state, b.state} for a, b in zip(both[0].rows, both[1].rows, strict=True)]
    assert by_run == [{"done", "reused"}] * 2
    assert [a.files for a in both[0].rows] == [b.files for b in both[1].rows]
    assert not list((tmp_path / "store/drivers").iterdir())


@pytest.mark.slow
def test_an_interrupt_ends_the_runs_and_gives_their_claims_up(write_sweep, tmp_path):
    path, out = write_sweep(BITS), tmp_path / "out"
    driver = start("sweep", str(path), "--workers", "1")
    wait_for(lambda: runs_of(out))
    os.kill(driver.process.pid, signal.SIGINT)
    _, errors = driver.communicate()
    assert driver.returncode == 130
    assert "interrupted" in errors
    assert runs_of(out) == []
    assert states(out) == ["waiting", "waiting"]
    assert record_of(out).rows[0].reason == "the sweep was interrupted"
    assert not list(out.glob("store/runs/*/claim.*"))
    assert not list((out / "store/drivers").iterdir())


@pytest.mark.slow
def test_no_executor_is_opened_where_all_runs_are_in_the_store(write_sweep, tmp_path):
    path, out = str(write_sweep('"quantize.bits" = ["w8a8"]')), tmp_path / "out"
    assert sweep(SweepSpec(recipe=path, workers=1)).rows[0].state == "done"
    (tmp_path / "own.py").write_text(
        "def open_executor(settings, progress):\n    raise OSError('no cluster')\n"
    )
    again = sweep(SweepSpec(recipe=path, on=f"{tmp_path}/own.py:open_executor"))
    assert [r.state for r in again.rows] == states(out) == ["reused"]
    assert again.workers == 0


def test_equal_runs_are_done_once(write_sweep, tmp_path):
    same = '"quantize.batch_size" = [2, 4]\n"quantize.bits" = ["w9a9"]'
    path = write_sweep(same.replace("w9a9", "w8a8"), more='high_precision = ["no such layer"]')
    done = run_cli("sweep", str(path), "--workers", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    rows = record_of(tmp_path / "out").rows
    assert rows[0].key == rows[1].key
    assert "no such layer" in rows[0].reason
    assert rows[1].reason == "the same run as 00001"


def test_a_run_that_cannot_end_well_stops_before_anything_is_written(write_sweep, tmp_path):
    path = write_sweep('"quantize.bits" = ["w8a8", "w9a9"]')
    done = run_cli("sweep", str(path))
    assert done.returncode == 2
    assert "Cannot sweep: run 00002 (bits=w9a9): " in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_store_that_others_own_stops_before_the_first_run(write_sweep, tmp_path):
    path, out = write_sweep(BITS), tmp_path / "out"
    (out / "store").mkdir(parents=True)
    (out / "store/store.json").write_text(
        '{"schema": 1, "kind": "trtq sweep store", "project": "cars"}'
    )
    done = run_cli("sweep", str(path))
    assert done.returncode == 2
    assert "it is of the project 'cars', [sweep] names ''" in done.stderr
    assert not (out / "runs").exists()


def test_help_says_what_a_sweep_is():
    text = run_cli("sweep", "--help").stdout
    for option in ("--on", "--workers", "--store", "--resume", "--dry-run", "--address", "--json"):
        assert option in text
    assert "trtq sweep needs RECIPE" in run_cli("sweep").stderr
