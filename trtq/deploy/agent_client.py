"""The agent on a board: installed, called, and called again after the link broke."""

from __future__ import annotations

import contextlib
import json
import secrets
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential,
)

from trtq import agent as source
from trtq.agent import encode
from trtq.artifact import explain_os_error, sha256_bytes, sha256_file, write_atomic
from trtq.deploy.answers import decode, hint_words
from trtq.deploy.bootstrap import command
from trtq.deploy.devices import Device
from trtq.deploy.ssh import FAILED, Link
from trtq.deploy.stream import CALL_S, MIB, Limits, Stream, transfer_limits
from trtq.errors import BoardError, LinkError, SshError, last_line
from trtq.progress import Progress

AGENT = Path(source.__file__).resolve()
MOST_ARGUMENT = 60_000  # the kernel allows 128 KiB
MARK = source.MARK.encode()
PATIENCE_S = 600.0  # a board takes a minute or two to start again
WATCH_S = 20.0
JOB_S = 48 * 3600.0  # no build takes that long
MOST_LOG, MOST_LINES, MOST_LINE = 64 * MIB, 1_000_000, 4 * MIB  # of one job
MOST_FILE = 64 << 30
IDLE_TRIES = (
    20  # uploads in a row that bring nothing further, answers in a row that come before their time
)
BUSY_TRIES = 180  # of 20 s each
SIGNALS = range(128, 192)  # exit statuses of a shell whose program was killed
T = TypeVar("T")


class Agent:
    """A device's agent, as seen from here.

    Calls that only ask are repeated when the link breaks.

    Args:
        device: which one.
        told: hears what happens to the link, and how far transfers are.
        patience_s: how long to wait for a device that went away.
    """

    def __init__(self, device: Device, told: Progress, *, patience_s: float = PATIENCE_S) -> None:
        self.device, self.told, self.patience_s = device, told, patience_s
        self.link = Link(device)
        if self.link.note:
            told.note(self.link.note)
        self.code = AGENT.read_bytes()
        self.digest = sha256_bytes(self.code)
        self.place = f"{device.workdir}/agents/{self.digest[:16]}"
        self.token = secrets.token_hex(8)  # an upload of ours makes way for the next of ours
        self.sent, self.received = 0, 0
        self._reached = False

    def ask(self, verb: str, **asked: Any) -> dict[str, Any]:
        """Return the agent's last answer.

        Raises:
            BoardError: the board refuses, with its reason.
            LinkError: the device stayed away.
        """
        return self._patiently(lambda: self._once(verb, asked))

    def _patiently(self, action: Callable[[], T]) -> T:
        """Repeat an action until the link holds.

        Only a device that has answered before is waited for.
        """

        def gone(state: RetryCallState) -> None:
            why = state.outcome.exception() if state.outcome is not None else None
            self.told.note(f"{self.device.name}: {getattr(why, 'why', why)}; trying again")
            self.link.close(stale=True)

        first = Retrying(
            stop=stop_after_delay(self.patience_s if self._reached else 0.0),
            wait=wait_exponential(multiplier=0.3, max=10.0),
            retry=retry_if_exception_type(LinkError),
            before_sleep=gone,
            reraise=True,
        )
        return first(action)

    def _once(
        self,
        verb: str,
        asked: dict[str, Any],
        *,
        stdin: IO[bytes] | None = None,
        limits: Limits | None = None,
    ) -> dict[str, Any]:
        answers = list(self._answers(verb, asked, stdin, limits))
        if not answers:
            raise SshError(
                f"{self.device.name} did not answer {verb}", "the agent ended without a word"
            )
        return answers[-1]

    def _answers(
        self,
        verb: str,
        asked: dict[str, Any],
        stdin: IO[bytes] | None = None,
        limits: Limits | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield the agent's answers after its hello.

        Install the agent first where it is missing or another one is there.
        """
        start = stdin.tell() if stdin is not None else 0
        for attempt in range(2):
            stale = False
            if stdin is not None:
                stdin.seek(start)
            for answer in self._lines(verb, self._known(asked), stdin, limits):
                stale = self._is_stale(verb, answer)
                if stale:
                    break
                if answer["event"] != "hello":
                    yield answer
            if not stale:
                return
            if attempt:
                why = (
                    f"{self.place} is not this user's alone there, or another agent answers "
                    "from it each time"
                )
                raise SshError(
                    f"Cannot put the agent on {self.device.name}",
                    why,
                    f"Remove {shlex.quote(self.place)} there",
                )
            self.install()

    def _known(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return a question with what every question says."""
        return {**asked, "agent": self.digest, "home": self.device.workdir}

    def _is_stale(self, verb: str, answer: dict[str, Any]) -> bool:
        """Return whether the agent must be put there; raise what the board refuses."""
        name = self.device.name
        if answer["event"] in ("stale", "missing"):
            return True
        if answer["event"] == "broken":
            why, python = (
                bytes.fromhex(answer[k]).decode("utf-8", "replace")[:900] for k in ("why", "python")
            )
            raise BoardError(
                f"The agent does not start on {name}",
                f"{why} ({python})",
                "Repair that Python (on the board: sudo apt-get install --reinstall python3), "
                "or let another one come first in the PATH of a login without a terminal",
            )
        self._reached = True
        if answer["event"] == "refused":
            raise BoardError(
                f"{name} refuses to {verb}", answer["why"], hint_words(answer["mend"], name)
            )
        return False

    def _lines(
        self, verb: str, asked: dict[str, Any], stdin: IO[bytes] | None, limits: Limits | None
    ) -> Iterator[dict[str, Any]]:
        """Run the agent and yield its answers; what login scripts print has no mark."""
        text = encode(asked)
        with contextlib.ExitStack() as stack:
            if len(text) > MOST_ARGUMENT:
                assert stdin is None
                stdin = stack.enter_context(tempfile.TemporaryFile())
                stdin.write(json.dumps(asked).encode())
                self.sent += stdin.tell()
                stdin.seek(0)
                text = "-"
            how = "install" if verb == "install" else "run"
            line = command(how, self.digest[:16], self.device.workdir, f"{verb} {text}")
            self.sent += len(line)
            stream = stack.enter_context(self._open(line, stdin, limits))
            heard = False
            for answer in self._marked(stream):
                heard = True
                if answer["event"] != "beat":
                    yield answer
            self._require_end(stream, heard)

    @contextlib.contextmanager
    def _open(self, line: str, stdin: IO[bytes] | None, limits: Limits | None) -> Iterator[Stream]:
        with self.link.open(
            line, stdin=stdin if stdin is not None else subprocess.DEVNULL, limits=limits
        ) as stream:
            try:
                yield stream
            finally:
                self.received += stream.received

    def _marked(self, stream: Stream) -> Iterator[dict[str, Any]]:
        for raw in stream.lines():
            if raw.startswith(MARK):
                yield decode(raw[len(MARK) :], self.device.name)

    def _require_end(self, stream: Stream, heard: bool) -> None:
        """Raise what the end of a call means, where it is not the end of a good one.

        Raises:
            LinkError: the link broke, or the agent was killed.
            BoardError: there is no Python there, or the agent fails.
        """
        code, name, said = stream.end(), self.device.name, last_line(stream.errors)
        if code == FAILED and (stream.own or not heard):
            raise self.link.explain(stream.own, stream.errors)
        if heard and code in (0, 1, source.STALE):
            return
        if code in (126, 127) and not heard:
            raise BoardError(
                f"There is no python3 on {name}",
                said or f"exit status {code}",
                "on the board: sudo apt-get install python3",
            )
        if heard or code <= 0 or code in SIGNALS or self._reached:
            raise LinkError(f"{name} stopped answering", said or f"exit status {code}")
        why = (
            f"python3 there ends with status {code}: {said}"
            if said
            else f"python3 there ends with status {code} without a word"
        )
        raise BoardError(
            f"The agent does not start on {name}",
            why,
            f"Look at it: trtq device shell {shlex.quote(name)}",
        )

    def install(self) -> None:
        """Install the agent in the device's work folder.

        The agent checks the folder itself before it writes.

        Raises:
            BoardError: the folder is not this user's alone, or cannot be written.
            SshError: the agent does not arrive whole.
        """
        with tempfile.TemporaryFile() as handle:
            handle.write(self.code)

            def put() -> dict[str, Any]:
                handle.seek(0)
                answers = [
                    a
                    for a in self._lines("install", self._known({}), handle, None)
                    if not self._is_stale("take the agent", a)
                ]
                if not answers or not answers[-1].get("whole"):
                    raise LinkError(
                        f"Cannot put the agent on {self.device.name}", "it does not arrive whole"
                    )
                return answers[-1]

            self._patiently(put)
        self.sent += len(self.code)

    def upload(self, path: Path, name: str, digest: str) -> str:
        """Send a file into the work folder unless it is there, and return its path there.

        A cut upload continues where it stopped.

        Raises:
            BoardError: no room there, another upload of it does not end, or what arrives is
                damaged.
            LinkError: nothing arrives, however often it is tried.
        """
        size, most = path.stat().st_size, 0
        tries = {"damaged": 0, "busy": 0, "cut": 0}
        while True:
            there = self.ask("have", name=name, size=size, sha256=digest)
            if there["state"] == "stored":
                return _path_of(there, self.device.name)
            offset = min(int(there["have"]), size)
            if offset > most:
                most, tries["cut"] = offset, 0
            why = "nothing further arrives"
            try:
                done = self._send(path, name, digest, size, offset)
            except LinkError as exc:
                self.told.note(
                    f"{self.device.name}: {exc.reason}; the upload goes on where it stopped"
                )
                self.link.close(stale=True)
                time.sleep(0.3)
                done, why = {"state": "cut"}, exc.reason
            if done["state"] == "stored":
                return _path_of(done, self.device.name)
            self._count_try(path, done["state"], tries, why)

    def _count_try(self, path: Path, state: str, tries: dict[str, int], why: str) -> None:
        """Give up an upload that was tried often enough."""
        name = self.device.name
        tries[state] = tries.get(state, 0) + 1
        if state == "busy":
            self.told.note(f"{name}: somebody else sends the same file; waiting for it")
            time.sleep(0.3)
            if tries[state] == BUSY_TRIES:
                raise BoardError(
                    f"Cannot send {path.name} to {name}",
                    "another upload of the same file does not end",
                    "Try again later",
                )
        elif state == "damaged" and tries[state] == 3:
            raise BoardError(
                f"Cannot send {path.name} to {name}",
                "what arrives has another SHA-256, three times",
                "Look at its disk",
            )
        elif tries[state] == IDLE_TRIES:
            raise LinkError(
                f"Cannot send {path.name} to {name}",
                f"{why}, {IDLE_TRIES} times in a row",
                "Look at the link, or at its disk",
            )

    def _send(self, path: Path, name: str, digest: str, size: int, offset: int) -> dict[str, Any]:
        """Let ssh read the file itself: nothing of ours is between it and the link."""
        self.told.begin(f"Sending {path.name} to {self.device.name}, kB", (size - offset) // 1000)
        over = threading.Event()
        with path.open("rb", buffering=0) as handle:
            handle.seek(offset)

            def follow() -> None:
                shown = offset
                while not over.wait(0.2):
                    now = handle.tell()  # ssh shares the position
                    if now // 1000 > shown // 1000:
                        self.told.advance(now // 1000 - shown // 1000)
                        shown = now

            watcher = threading.Thread(target=follow, daemon=True)
            watcher.start()
            try:
                return self._once(
                    "put",
                    {
                        "name": name,
                        "size": size,
                        "sha256": digest,
                        "offset": offset,
                        "token": self.token,
                    },
                    stdin=handle,
                    limits=transfer_limits(size - offset),
                )
            finally:
                over.set()
                watcher.join()
                self.sent += max(handle.tell() - offset, 0)

    def download(
        self, name: str, to: Path, *, digest: str | None = None, most: int = MOST_FILE
    ) -> Path:
        """Fetch a file of the work folder.

        A file that is here already is not fetched again; a cut download continues where it stopped.

        Args:
            name: of the file in the work folder.
            to: the file to write; nothing else is written.
            digest: the required one.
            most: the largest size allowed, bytes.

        Raises:
            BoardError: there is none, or it is larger than ``most``.
            SshError: what arrived is not what was sent.
        """
        if digest is not None and to.is_file() and sha256_file(to) == digest:
            return to
        part = to.with_name(f".{to.name}.part")
        part.unlink(missing_ok=True)
        try:
            wanted = self._patiently(lambda: self._receive(name, part, most))
            got = sha256_file(part)
        except BaseException as exc:
            part.unlink(missing_ok=True)
            if isinstance(exc, OSError):
                raise explain_os_error(exc, to) from exc
            raise
        if got != wanted or (digest is not None and wanted != digest):
            part.unlink()
            raise SshError(
                f"{name} of {self.device.name} did not arrive whole",
                "its SHA-256 is another one",
                "Run the same command again",
            )
        write_atomic(to, lambda beside: _move(part, beside))
        return to

    def _receive(self, name: str, part: Path, most: int) -> str:
        """Fetch from where ``part`` ends; return the digest that the whole should have."""
        offset, device = part.stat().st_size if part.exists() else 0, self.device.name
        line = command(
            "run",
            self.digest[:16],
            self.device.workdir,
            f"get {encode(self._known({'name': name, 'offset': offset}))}",
        )
        self.sent += len(line)
        with self._open(line, None, None) as stream:
            head = next(
                (
                    a
                    for a in self._marked(stream)
                    if self._is_stale(f"give {name}", a) or a["event"] == "file"
                ),
                None,
            )
            if head is None:
                self._require_end(stream, heard=False)
                raise LinkError(f"{device} stopped in the middle of {name}", "the connection ended")
            if head["event"] == "file":
                got = self._take(stream, part, offset, head["size"], name, most)
                if got == head["size"]:
                    return str(head["sha256"])
                said = last_line(stream.errors)
                if stream.end() == FAILED and stream.own:
                    raise self.link.explain(stream.own, stream.errors)
                raise LinkError(
                    f"{device} stopped in the middle of {name}", said or "the connection ended"
                )
        self.install()  # somebody changed or removed it
        raise LinkError(f"{device} stopped in the middle of {name}", "its agent was another one")

    def _take(
        self, stream: Stream, part: Path, offset: int, size: int, name: str, most: int
    ) -> int:
        """Append incoming data to ``part``, never more than announced; return its new size."""
        if size > most:
            raise BoardError(
                f"Cannot fetch {name} from {self.device.name}",
                f"it announces {size} bytes, at most {most} are expected",
                f"trtq device clean {shlex.quote(self.device.name)}, then run the same command "
                "again",
            )
        stream.limits = transfer_limits(size)
        with part.open("ab") as out:
            while offset < size and (block := stream.block()):
                block = block[: size - offset]
                out.write(block)
                offset += len(block)
        return offset

    def follow(self, key: str, line: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """Wait for a job to end and pass on its output; return its status and ``lines``.

        The status is ``done``, ``lost`` or ``none``.

        The link may break while the job continues; this resumes behind the last line received.
        If somebody starts the job again in that time, only the lines of its last run are kept.

        Raises:
            BoardError: it writes without end, or never ends.
        """
        heard, began, early = _Heard(self.device.name, self.told, line), time.monotonic(), 0
        while True:
            asked_at = time.monotonic()
            now = self._patiently(lambda: self._watch(key, heard))
            if now["state"] in ("done", "lost", "none"):
                return {**now, "lines": heard.all_lines}
            early = early + 1 if time.monotonic() - asked_at < WATCH_S / 2 else 0
            if early == IDLE_TRIES or time.monotonic() - began > JOB_S:
                why = (
                    f"no end in {JOB_S / 3600:.0f} h"
                    if early < IDLE_TRIES
                    else f"it answers {IDLE_TRIES} times in a row before its time"
                )
                stop = f"trtq device stop {shlex.quote(self.device.name)} {key[:8]}"
                raise BoardError(
                    f"Cannot follow the job {key[:8]} on {self.device.name}", why, stop
                )

    def _watch(self, key: str, heard: _Heard) -> dict[str, Any]:
        """Ask for a job's status once, for a while."""
        asked = {"key": key, "offset": heard.offset, "seconds": WATCH_S, "run": heard.run}
        last: dict[str, Any] | None = None
        for answer in self._answers("wait", asked, limits=Limits(call_s=WATCH_S + CALL_S / 2)):
            if answer["event"] == "log":
                heard.take(answer)
            else:
                last = answer
        if last is None:
            raise LinkError(f"{self.device.name} stopped answering", "the connection ended")
        return last

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self.link.close()


def _move(part: Path, beside: Path) -> None:
    part.replace(beside)


def _path_of(answer: dict[str, Any], name: str) -> str:
    if "path" not in answer:
        raise BoardError(
            f"Cannot read the answer of {name}", "it does not say where the upload lies"
        )
    return str(answer["path"])


class _Heard:
    """What was heard of a job so far."""

    def __init__(self, name: str, told: Progress, line: Callable[[str], None]) -> None:
        self.name, self.told, self.line = name, told, line
        self.offset, self.run, self.lines, self.size = 0, None, list[str](), 0
        self._rest, self._waits = "", ""

    @property
    def all_lines(self) -> list[str]:
        """The lines, with a last one that has no end."""
        return [*self.lines, self._rest] if self._rest else self.lines

    def take(self, answer: dict[str, Any]) -> None:
        """Keep a piece of the log and pass its whole lines on."""
        if answer["run"] != self.run:
            self.run, self._rest, self.size = answer["run"], "", 0
            self.lines.clear()
        self.offset = answer["offset"]
        self.size += len(answer["text"])
        if self.size > MOST_LOG:
            raise BoardError(
                f"{self.name} sends too much", f"a job's log of more than {MOST_LOG // MIB} MiB"
            )
        *whole, self._rest = (self._rest + answer["text"]).split("\n")
        if len(self.lines) + len(whole) > MOST_LINES or len(self._rest) > MOST_LINE:
            raise BoardError(
                f"{self.name} sends too much",
                f"a job's log of more than {MOST_LINES} lines, or a line without end",
            )
        for text in whole:
            self.lines.append(text)
            self.line(text)
        step = str(answer["step"] or "")[:200]
        if step.startswith("waiting") and step != self._waits:
            self.told.note(f"{self.name}: {step}")
        self._waits = step
        if step:
            self.told.status(step)
