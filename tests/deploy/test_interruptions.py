"""Cut links, reboots, and killed agents."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.boards import Heard, _agent, _until, introduce, needs_sshd, pooling, spec
from trtq.artifact import sha256_file
from trtq.commands.deploy import deploy
from trtq.deploy.board import probe
from trtq.deploy.jobs import BoardJob, JobStep, do
from trtq.testing.board import StandInBoard
from trtq.testing.link import ShapedLink

pytestmark = needs_sshd


@pytest.mark.parametrize(
    "seed", [pytest.param(i, marks=pytest.mark.slow) if i >= 2 else i for i in range(20)]
)
def test_the_link_is_cut_at_some_moment(tmp_path, seed, one_orin):
    """Cut the link once during the upload, once during the build and once during the fetch.

    Nothing is lost, and what arrives is right.
    """
    draw, board, cuts = random.Random(seed), one_orin, []
    with ShapedLink(board.port) as link:
        agent = _agent(link.port, board)
        payload = tmp_path / "payload"
        payload.write_bytes(random.Random(seed).randbytes(2_000_000))
        digest = sha256_file(payload)
        probe(agent)

        def cut_soon() -> None:
            cuts.append(threading.Timer(draw.uniform(0.0, 0.9), link.cut))
            cuts[-1].start()

        link.rate = 3e6
        cut_soon()
        path = agent.upload(payload, f"files/{seed}.bin", digest)
        cuts[-1].join()
        step = JobStep(
            name="build",
            argv=[
                "sh",
                "-c",
                f"for i in 1 2 3 4 5 6; do echo line $i; sleep 0.1; done; cp {path} {path}.new",
            ],
            makes=[(f"{path}.new", f"{path}.out")],
        )
        cut_soon()
        result, lines = do(agent, f"{seed:032x}", BoardJob(title="t", steps=[step]))
        cuts[-1].join()
        cut_soon()
        back = agent.download(
            f"files/{seed}.bin.out",
            tmp_path / "back",
            digest=result.steps[0].files[f"{path}.out"].sha256,
        )
        cuts[-1].join()
        assert sha256_file(back) == digest
        assert [ln for ln in lines if ln.startswith("line")] == [f"line {i}" for i in range(1, 7)]
        assert result.ok
        agent.close()


@pytest.fixture(scope="module")
def one_orin(place: Path) -> Iterator[StandInBoard]:
    """One board for many tests that leave it as it was."""

    board = StandInBoard(Path(tempfile.mkdtemp(dir=place, prefix="orin-")), "orin")
    with board.serving():
        yield board
    shutil.rmtree(board.folder, ignore_errors=True)


def test_an_upload_goes_on_where_it_was_cut(orin, tmp_path):
    with ShapedLink(orin.port) as link:
        agent = _agent(link.port, orin)
        payload = tmp_path / "payload"
        payload.write_bytes(os.urandom(4_000_000))
        probe(agent)
        link.rate = 4e6
        cutter = threading.Timer(0.7, link.cut)
        cutter.start()
        before = link.sent
        agent.upload(payload, "files/p.bin", sha256_file(payload))
        assert any("continues where it stopped" in n for n in agent.told.notes)
        assert link.sent - before < 1.35 * 4_000_000  # what had arrived was not sent again
        assert sha256_file(orin.home / ".trtq/files/p.bin") == sha256_file(payload)
        agent.close()


def _while_building(board: StandInBoard, tmp_path: Path) -> tuple[threading.Thread, list, Heard]:
    """A deployment in another mode with pinned clocks, its builder at work."""
    asked = spec(
        board,
        pooling(tmp_path / "m.onnx", "seconds:2"),
        tmp_path / "o",
        power_mode="25W",
        lock_clocks=True,
    )
    done, heard = [], Heard()
    worker = threading.Thread(target=lambda: done.append(deploy(asked, heard)))
    worker.start()
    _until(lambda: board.processes("saveEngine"))
    return worker, done, heard


def test_a_reboot_in_the_middle_of_a_build(orin, tmp_path):
    worker, done, heard = _while_building(orin, tmp_path)
    orin.reboot()
    worker.join(90)
    assert done and done[0].built
    assert any(
        "was lost: the board was restarted during the run; starting it again" in n
        for n in heard.notes
    )
    assert (
        (orin.root / "var/lib/nvpmodel/status").read_text().startswith("pmode:0000")
    )  # of before the first try
    assert (orin.root / f"sys/class/devfreq/{orin.kind.gpu}/min_freq").read_text() == "114750000"


def test_an_agent_that_is_killed_takes_its_build_along_and_sets_all_back(orin, tmp_path):
    worker, done, heard = _while_building(orin, tmp_path)
    status, clock = (
        orin.root / "var/lib/nvpmodel/status",
        orin.root / f"sys/class/devfreq/{orin.kind.gpu}/min_freq",
    )
    assert status.read_text().startswith("pmode:0001")
    assert clock.read_text() == "921600000"
    victim = next(
        p
        for p in orin.processes("agent.py")
        if b"work" in Path(f"/proc/{p}/cmdline").read_bytes() and _parent_of(p, orin)
    )
    os.kill(victim, signal.SIGKILL)
    _until(lambda: not [p for p in orin.processes("saveEngine") if _parent(p) in (1, victim)])
    worker.join(90)
    assert done and done[0].built
    assert any("its process was killed" in n for n in heard.notes)
    assert status.read_text().startswith("pmode:0000")
    assert clock.read_text() == "114750000"


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _parent_of(pid: int, board: StandInBoard) -> bool:
    """Whether it is the worker: the parent of the build."""
    return any(_parent(p) == pid for p in board.processes("saveEngine"))


@pytest.mark.slow
def test_a_slow_link(orin, tmp_path):
    with ShapedLink(orin.port, rate=1e6 / 8) as link:  # 1 Mbit/s
        introduce(orin, "orin", port=link.port)
        record = deploy(spec(orin, pooling(tmp_path / "m.onnx", weights=200_000), tmp_path / "o"))
        assert record.valid
