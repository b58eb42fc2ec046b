"""Answers of boards, damaged in a thousand ways.

Each quickly ends in an error of trtq's own or in a right answer.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest

from tests.support.boards import pooling
from trtq.bench.record import BenchRow, RowSettings
from trtq.commands.deploy import deploy
from trtq.deploy import agent_client, measure, stream
from trtq.deploy.agent_client import Agent
from trtq.deploy.answers import EngineAnswer, Listing
from trtq.deploy.board import Board, probe
from trtq.deploy.devices import Device
from trtq.deploy.jobs import JobPower
from trtq.deploy.ledger import board_manifest
from trtq.deploy.record import fleet_rows
from trtq.deploy.ssh import Link
from trtq.engine.manifest import EngineManifest
from trtq.errors import TrtqError
from trtq.progress import Silent
from trtq.specs import DeploySpec
from trtq.testing.board import StandInBoard

MARK = b"@trtq "
QUICK = {"WARMUP_MS": 200, "LOADS": 1, "IDLE_S": 0.3}
DEVICE = Device(name="bad", host="192.0.2.1")
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1 << 62,
    1 << 70,
    1.5,
    1e308,
    -1e308,
    "",
    "x",
    "x" * 5000,
    "\x1b[2J",
    "../../x",
    "a/b",
    "\ud800",
    [],
    {},
    [[[]]],
    {"a": 1},
    "NaN",
    [None] * 1000,
    "1" * 64,
]


class Recorder:
    """Runs what ssh would run over there on this machine, and keeps what it answers."""

    def __init__(self, board: StandInBoard) -> None:
        self.board, self.answers = board, dict[str, Path]()
        self.folder = Path(tempfile.mkdtemp(dir=board.folder))

    def popen(self, line: list[str], stdin: IO[bytes] | int) -> subprocess.Popen[bytes]:
        name = call_of(line)
        path = self.folder / f"{len(list(self.folder.iterdir()))}.bin"
        self.answers[name] = path
        env = {**os.environ, "HOME": str(self.board.home), "TRTQ_ROOT": str(self.board.root)}
        script = f"set -o pipefail; {{ {line[-1]}; }} | tee {shlex.quote(str(path))}"
        return subprocess.Popen(
            ["bash", "-c", script],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=self.board.home,
            env=env,
            start_new_session=True,
        )


def call_of(line: list[str]) -> str:
    """Return what a command line asks for: the verb, and for a file the end of its name."""
    verb, text = line[-1].split()[-2:]
    if verb == "get":
        return f"get {json.loads(base64.urlsafe_b64decode(text))['name'].rpartition('/')[2]}"
    return verb


@pytest.fixture(scope="module")
def conversation() -> Iterator[tuple[dict[str, bytes], Path]]:
    """What a board answered to a deployment: by what was asked, the last answer to each."""
    folder = Path(tempfile.mkdtemp(prefix="trtq-fuzz-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTQ_CONFIG", str(folder / "config"))
        patch.setenv("TRTQ_HISTORY", str(folder / "history.sqlite"))
        board = StandInBoard(folder / "board", "orin")
        recorder = Recorder(board)
        patch.setattr(Link, "popen", lambda _, line, stdin: recorder.popen(line, stdin))
        for constant, value in QUICK.items():
            patch.setattr(measure, constant, value)
        asked = DeploySpec(
            device="me@192.0.2.1",
            model=str(pooling(folder / "m.onnx")),
            out=str(folder / "o"),
            duration=0.3,
            min_samples=50,
            reconnect_timeout=0.0,
        )
        assert deploy(asked).built
        assert not deploy(asked).built
        with Agent(DEVICE, Silent()) as agent:
            agent.ask("list", Listing)
    yield {k: p.read_bytes() for k, p in recorder.answers.items()}, folder
    shutil.rmtree(folder, ignore_errors=True)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Return bytes with some changed, cut out, doubled or put in."""
    at, length = draw.randrange(len(data)), draw.choice([1, 1, 2, 7, 40])
    piece = data[at : at + length]
    way = draw.randrange(5)
    new = [
        bytes(draw.randrange(256) for _ in piece),
        b"",
        piece * 3,
        piece + bytes([draw.randrange(256)]),
        None,
    ][way]
    return data[:at] if new is None else data[:at] + new + data[at + length :]


def restructured(value: Any, draw: random.Random) -> Any:
    """Return a JSON value with one of its parts replaced, left out or renamed."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        rest = {k: v for k, v in value.items() if k != key}
        way = draw.random()
        if way < 0.15:
            return rest
        if way < 0.25:
            return {**rest, draw.choice(["x", "../x", "", "event"]): value[key]}
        return {**value, key: restructured(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return (
            [*value[:at], restructured(value[at], draw), *value[at + 1 :]]
            if draw.random() < 0.8
            else value * 2
        )
    return draw.choice(ODD)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Return an answer with one damage."""
    if draw.random() < 0.4:
        return damaged(data, draw)
    head, _, body = data.partition(b"\n" + MARK)
    lines = data.split(b"\n")
    marked = [i for i, line in enumerate(lines) if line.startswith(MARK + b"{")]
    if b'"event": "file"' in data:  # the bytes of a file, with a digest that fits
        return _other_file(data, draw)
    at = draw.choice(marked)
    lines[at] = MARK + json.dumps(restructured(json.loads(lines[at][len(MARK) :]), draw)).encode()
    assert head or body
    return b"\n".join(lines)


def _other_file(data: bytes, draw: random.Random) -> bytes:
    start = data.index(b"\n", data.index(b'"event": "file"')) + 1
    content = json.loads(gzip.decompress(data[start:]))
    packed = gzip.compress(json.dumps(restructured(content, draw)).encode())
    answer = {"event": "file", "size": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}
    return data[: data.index(MARK)] + MARK + json.dumps(answer).encode() + b"\n" + packed


def use(answers: dict[str, bytes], folder: Path) -> None:
    """Do with the answers what the verbs do."""
    with Agent(DEVICE, Silent(), patience_s=0.0) as agent:
        board: Board = probe(agent)
        assert board.lines and board.target and board.card(RowSettings(power_mode="x", clocks="y"))
        msgspec.json.encode([board, board.workspace])
        for entry in agent.ask("list", Listing).engines:
            assert "/" not in entry.file
        answer = agent.ask("engine", EngineAnswer, name="engines/x.engine")
        if answer.manifest is None:
            return
        manifest: EngineManifest = board_manifest(answer.manifest, "bad")
        assert manifest.summary
        options = DeploySpec(device="bad", model="m.onnx", duration=0.3, min_samples=50)
        rows: list[BenchRow] = measure.measure(
            agent, board, manifest, "/x.engine", options, JobPower(None, False), folder, "n"
        )
        table = fleet_rows("bad", board.name, "m", manifest, rows)
        assert [r.summary for r in rows]
        msgspec.json.decode(msgspec.json.encode(rows), type=list[BenchRow])
        msgspec.json.encode(table)


def replay(answers: dict[str, bytes], folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Have ``Link`` send recorded answers."""
    for i, data in enumerate(answers.values()):
        (folder / f"{i}.bin").write_bytes(data)
    places = {name: folder / f"{i}.bin" for i, name in enumerate(answers)}

    def popen(_: Link, line: list[str], stdin: IO[bytes] | int) -> subprocess.Popen[bytes]:
        place = (
            places.get(call_of(line), "/dev/null")
            if line[-1].startswith("python3")
            else "/dev/null"
        )
        return subprocess.Popen(
            ["cat", str(place)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )

    for constant, value in QUICK.items():
        patch.setattr(measure, constant, value)
    patch.setattr(Link, "popen", popen)
    patch.setattr(Link, "close", lambda _, *, stale=False: None)
    patch.setattr(agent_client, "IDLE_TRIES", 2)
    patch.setattr(stream, "SILENCE_S", 5.0)


def fuzz(
    conversation: tuple[dict[str, bytes], Path],
    seeds: range,
    tmp_path: Path,
    patch: pytest.MonkeyPatch,
) -> tuple[int, int]:
    """Return how many damaged conversations ended well and how many in an error of trtq's own."""
    answers, ended = conversation[0], [0, 0]
    patch.setenv("TRTQ_CONFIG", str(tmp_path / "config"))
    used = ["probe", "list", "engine", "start", "wait", "get times.json.gz", "get watch.json.gz"]
    assert set(used) <= answers.keys(), answers.keys()
    for seed in seeds:
        draw = random.Random(seed)
        which = draw.choice(used)
        case = {**answers, which: mutated(answers[which], draw)}
        out = tmp_path / f"out{seed}"
        out.mkdir()
        (tmp_path / "sent").mkdir(exist_ok=True)
        replay(case, tmp_path / "sent", patch)
        began = time.monotonic()
        try:
            use(case, out)
            ended[0] += 1
        except TrtqError as exc:
            ended[1] += 1
            assert len(str(exc)) < 6000, (seed, which)
        except Exception as exc:
            raise AssertionError(f"seed {seed}, {which}: {type(exc).__name__}: {exc}") from exc
        assert time.monotonic() - began < 20.0, (seed, which)
        assert {p.name for p in out.iterdir()} <= {"times.b1.json.gz", "readings.b1.json.gz"}, (
            seed,
            which,
        )
        shutil.rmtree(out)
    assert {p.name for p in tmp_path.iterdir()} <= {"config", "sent"}
    return ended[0], ended[1]


def test_a_few_damaged_answers(conversation, tmp_path, monkeypatch):
    answers = conversation[0]
    (tmp_path / "sent").mkdir()
    (tmp_path / "whole").mkdir()
    monkeypatch.setenv("TRTQ_CONFIG", str(tmp_path / "config"))
    replay(answers, tmp_path / "sent", monkeypatch)
    use(answers, tmp_path / "whole")  # what was recorded is right as it is
    shutil.rmtree(tmp_path / "whole")
    assert sum(fuzz(conversation, range(40), tmp_path, monkeypatch)) == 40


@pytest.mark.slow
def test_many_damaged_answers(conversation, tmp_path, monkeypatch):
    well, refused = fuzz(conversation, range(1000, 1500), tmp_path, monkeypatch)
    assert well + refused == 500 and refused > 100


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-m", "slow"]))
