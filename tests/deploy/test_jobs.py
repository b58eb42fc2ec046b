"""Jobs on a board: requests, locks, and what is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from tests.conftest import read, run_cli
from tests.support.boards import _agent, _until, needs_sshd, pooling, spec
from trtq.artifact import sha256_file
from trtq.commands.deploy import deploy
from trtq.deploy.agent_client import Agent
from trtq.deploy.answers import Done, JobAnswer, Listing, Meanwhile, Upload
from trtq.deploy.board import probe
from trtq.deploy.devices import find_device, remember_device
from trtq.deploy.jobs import BoardJob, JobStep, do
from trtq.errors import BoardError
from trtq.progress import Silent
from trtq.testing.link import ShapedLink

pytestmark = needs_sshd


def test_requests_of_any_size(orin):
    agent = Agent(find_device("orin"), Silent())
    value = {"layers": ["x" * 100] * 5000}
    agent.ask("manifest", Done, name="engines/big.json", value=value)
    assert read(orin.home / ".trtq/engines/big.json") == value
    agent.close()


def test_a_folder_that_is_somebodys_is_not_taken(orin, tmp_path):
    theirs = orin.home / "data"
    (theirs / "files").mkdir(parents=True)
    (theirs / "files/thesis.tex").write_text("years of work")
    orin._give_away()
    remember_device(msgspec.structs.replace(find_device("orin"), workdir="data"))
    done = run_cli("device", "clean", "orin", "--all")
    assert (
        "data is not empty, and trtq did not make it. Give trtq device add a --workdir of its own"
        in done.stderr
    )
    assert (theirs / "files/thesis.tex").is_file()


def test_an_upload_whose_link_went_without_a_word_makes_way(orin, tmp_path):
    """A pulled cable: the other end of the old upload still waits, and holds the file."""
    payload = tmp_path / "payload"
    payload.write_bytes(os.urandom(1_000_000))
    with ShapedLink(orin.port) as link:
        agent = _agent(link.port, orin)
        probe(agent)
        link.rate = 5e5
        threading.Timer(0.8, link.freeze).start()
        worker = threading.Thread(
            target=lambda: agent.upload(payload, "files/p.bin", sha256_file(payload))
        )
        worker.start()
        time.sleep(1.6)
        link.drop_frozen()  # what keep-alive does after a minute, on this side alone
        link.rate = None
        worker.join(40)
        assert not worker.is_alive()
        assert sha256_file(orin.home / ".trtq/files/p.bin") == sha256_file(payload)
        agent.close()


def test_a_job_can_be_ended(orin):
    agent = Agent(find_device("orin"), Silent())
    agent.ask(
        "start",
        JobAnswer,
        key="abcdef",
        job={
            "title": "a",
            "steps": [{"name": "s", "argv": ["sleep", "60"]}],
            "mode": "25W",
            "pin": True,
        },
    )
    _until(lambda: agent.ask("status", JobAnswer, key="abcdef").step == "s")
    board = probe(agent)
    assert (board.power_mode.name, board.clocks.pinned, board.meanwhile) == (
        "15W",
        False,
        Meanwhile("25W", True),
    )
    assert (
        "a job holds the power mode 25W, clocks pinned now; the mode above is restored after it"
        in board.lines
    )
    assert "it was stopped (trtq device stop)" in run_cli("device", "stop", "orin", "abc").stdout
    late = BoardJob(title="b", steps=[JobStep(name="s", argv=["sleep", "60"], limit_s=0.5)])
    result, lines = do(agent, "beef", late)
    assert (result.ok, result.steps[0].rc) == (False, 124)
    assert any("no end in 0 s: it was ended" in ln for ln in lines)
    agent.close()


def test_a_deployment_that_is_left_and_one_that_waits(orin, tmp_path):
    """Ctrl-C leaves the job on the board and says how to end it; who must wait is told for whom."""
    model = pooling(tmp_path / "m.onnx", "seconds:30")
    quick = ["--duration", "0.3", "--min-samples", "50", "--out"]
    # A shell's background jobs, pytest among them, ignore SIGINT.
    hears = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from trtq.cli "
        "import main; main()"
    )
    line = [sys.executable, "-c", hears, "deploy", "orin", str(model), *quick, str(tmp_path / "a")]
    left = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    agent = Agent(find_device("orin"), Silent())
    _until(lambda: any(j.state == "running" for j in agent.ask("list", Listing).jobs), 60)
    left.send_signal(signal.SIGINT)
    said = left.communicate(timeout=60)[1]
    key = re.search(
        r"continues on the board, and the same command finds it again; "
        r"to end it: trtq device stop orin (\w+)",
        said,
    )
    assert key is not None and left.returncode == 130, said
    other = [
        sys.executable,
        "-m",
        "trtq",
        "deploy",
        "orin",
        str(pooling(tmp_path / "n.onnx")),
        *quick,
        str(tmp_path / "b"),
    ]
    with subprocess.Popen(other, stderr=subprocess.PIPE, text=True) as waits:
        assert waits.stderr is not None
        assert any("orin: waiting for another job here (of " in ln for ln in waits.stderr)
        assert "it was stopped" in run_cli("device", "stop", "orin", key[1]).stdout
        waits.communicate(timeout=120)
    assert waits.returncode in (0, 3)
    agent.close()


def test_two_at_once_share_one_build(orin, tmp_path):
    model = pooling(tmp_path / "m.onnx", "seconds:1.5")
    line = [
        sys.executable,
        "-m",
        "trtq",
        "deploy",
        "orin",
        str(model),
        "--duration",
        "0.3",
        "--min-samples",
        "50",
        "--json",
        "--out",
    ]
    both = [
        subprocess.Popen(
            [*line, str(tmp_path / str(i))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    done = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], done
    records = [json.loads(d[0]) for d in done]
    assert records[0]["engine"] == records[1]["engine"]
    assert records[0]["manifest"]["engine_sha256"] == records[1]["manifest"]["engine_sha256"]
    agent = Agent(find_device("orin"), Silent())
    assert sum(j.title.startswith("the build") for j in agent.ask("list", Listing).jobs) == 1
    agent.close()


def test_one_job_at_a_time_on_a_board(orin):
    def reached(key: str, state: str) -> JobAnswer:
        until = time.monotonic() + 30.0
        while (now := agent.ask("status", JobAnswer, key=key)).state != state or not now.step:
            assert time.monotonic() < until, now
            time.sleep(0.1)
        return now

    agent, go = Agent(find_device("orin"), Silent()), orin.home / "go"  # the job is another user
    agent.ask("list", Listing)
    slow = {
        "title": "a",
        "owner": "her@desk",
        "steps": [{"name": "s", "argv": ["sh", "-c", f"while [ ! -e {go} ]; do sleep 0.1; done"]}],
    }
    agent.ask("start", JobAnswer, key="aa", job=slow)
    try:
        reached("aa", "running")
        agent.ask(
            "start",
            JobAnswer,
            key="bb",
            job={**slow, "title": "b", "steps": [{"name": "s", "argv": ["true"]}]},
        )
        assert "another job here (of her@desk)" in reached("bb", "waiting").step
    finally:
        go.touch()
    assert agent.follow("bb", lambda _: None)[0].result.ok
    agent.close()


def test_logs_clean_and_what_is_not_ours(orin, tmp_path):
    model = pooling(tmp_path / "m.onnx")
    deploy(spec(orin, model, tmp_path / "o", keep=True, fetch_engine=True))
    assert (
        sha256_file(tmp_path / "o/m.orin.engine")
        == read(tmp_path / "o/m.orin.engine.json")["engine_sha256"]
    )
    listed = run_cli("device", "logs", "orin").stdout
    key = next(ln.split()[1].rstrip(":") for ln in listed.splitlines() if "the build of" in ln)
    assert [" s ago" in ln for ln in listed.splitlines()] == [
        False,
        True,
        True,
    ]  # the engine; its build, then its measurement
    assert "the build of" in listed.splitlines()[1]
    assert "--saveEngine=" in run_cli("device", "logs", "orin", key[:6]).stdout
    assert "0 jobs on orin begin with zz" in run_cli("device", "logs", "orin", "zz").stderr
    stranger = orin.home / "mine.txt"
    stranger.write_text("x")
    assert "removed" in run_cli("device", "clean", "orin").stdout
    assert [p.name for p in (orin.home / ".trtq/files").iterdir()] == []
    assert len(list((orin.home / ".trtq/engines").glob("*.engine"))) == 1
    run_cli("device", "clean", "orin", "--all")
    assert list((orin.home / ".trtq/engines").iterdir()) == []
    assert stranger.read_text() == "x"
    assert run_cli("device", "list").stdout.startswith(f"orin: {orin.user}@127.0.0.1:{orin.port}")
    assert "is removed from the list" in run_cli("device", "remove", "orin").stdout


def test_a_file_outside_the_folder_is_refused(orin):
    agent = Agent(find_device("orin"), Silent())
    with pytest.raises(BoardError, match=r"\.\./x is outside of"):
        agent.ask("have", Upload, name="../x", size=1, sha256="0")
    with pytest.raises(BoardError, match="Cannot fetch no of orin|there is no"):
        agent.download("files/no", Path("/tmp/never"))
    agent.close()
