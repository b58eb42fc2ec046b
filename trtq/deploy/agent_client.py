"""The agent on a board: files to and from it, and jobs that are followed."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path

from trtq.agent import encode
from trtq.artifact import explain_os_error, sha256_file, write_atomic
from trtq.deploy.agent_calls import AgentCalls
from trtq.deploy.answers import Answer, File, JobAnswer, Log, Upload
from trtq.deploy.bootstrap import command
from trtq.deploy.ssh_errors import FAILED
from trtq.deploy.stream import CALL_S, MIB, Limits, Stream, transfer_limits
from trtq.errors import BoardError, LinkError, SshError, last_line
from trtq.progress import Progress

WATCH_S = 20.0
JOB_S = 48 * 3600.0  # no build takes that long
# Limit for one job.
MOST_LOG = 64 * MIB
MOST_LINES = 1_000_000
MOST_LINE = 4 * MIB
MOST_FILE = 64 << 30
# Consecutive uploads without progress, consecutive answers that come before their time.
IDLE_TRIES = 20
BUSY_TRIES = 180  # of 20 s each


class Agent(AgentCalls):
    """A device's agent, as seen from here."""

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def upload(self, path: Path, name: str, digest: str) -> str:
        """Send a file into the work folder unless it is there, and return its path there.

        A cut upload continues where it stopped.

        Args:
            path: of the file here.
            name: of it in the work folder, such as ``files/DIGEST.onnx``.
            digest: SHA-256 of the file.

        Raises:
            BoardError: no room there, another upload of it does not end, or what arrives is damaged
                three times.
            LinkError: nothing further arrives, 20 times in a row.
        """
        size = path.stat().st_size
        furthest = 0
        tries = {"damaged": 0, "busy": 0, "cut": 0}
        while True:
            stored = self.ask("have", Upload, name=name, size=size, sha256=digest)
            if stored.state == "stored":
                return _path_of(stored, self.device.name)
            offset = min(stored.have, size)
            if offset > furthest:
                furthest = offset
                tries["cut"] = 0
            why = "nothing further arrives"
            try:
                answer = self._send(path, name, digest, size, offset)
                state = answer.state
            except LinkError as exc:
                self.told.note(
                    f"{self.device.name}: {exc.reason}; the upload continues where it stopped"
                )
                self.link.close(stale=True)
                time.sleep(0.3)
                state = "cut"
                why = exc.reason
            if state == "stored":
                return _path_of(answer, self.device.name)
            self._count_try(path, state, tries, why)

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

    def _send(self, path: Path, name: str, digest: str, size: int, offset: int) -> Upload:
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
                file = {"name": name, "size": size, "sha256": digest, "offset": offset}
                return self._once(
                    "put",
                    Upload,
                    {**file, "token": self.token},
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
        """Fetch a file of the work folder, and return ``to``.

        A file that is here already is not fetched again; a cut download continues where it stopped.

        Args:
            name: of the file in the work folder.
            to: the file to write; nothing else is written.
            digest: the required SHA-256; None takes what the board announces.
            most: the largest size allowed, bytes.

        Raises:
            BoardError: there is none, or it is larger than ``most``.
            SshError: what arrived is not what was sent.
            ArtifactError: ``to`` cannot be written.
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
        offset = part.stat().st_size if part.exists() else 0
        question = encode(self._known({"name": name, "offset": offset}))
        line = command("run", self.digest[:16], self.device.workdir, f"get {question}")
        self.sent += len(line)
        stopped = f"{self.device.name} stopped in the middle of {name}"
        with self._open(line, None, None) as stream:
            head = self._head_of(stream, name)
            if head is None:
                self._require_end(stream, heard=False)
                raise LinkError(stopped, "the connection ended")
            if isinstance(head, File):
                size = self._take(stream, part, offset, head.size, name, most)
                if size == head.size:
                    return head.sha256
                output = last_line(stream.errors)
                if stream.end() == FAILED and stream.own:
                    raise self.link.explain(stream.own, stream.errors)
                raise LinkError(stopped, output or "the connection ended")
        self.install()  # somebody changed or removed it
        raise LinkError(stopped, "its agent was another one")

    def _head_of(self, stream: Stream, name: str) -> Answer | None:
        """Return the answer before a file's content, or that the agent must be installed."""
        for answer in self._marked(stream):
            if self._is_stale(f"give {name}", answer) or isinstance(answer, File):
                return answer
        return None

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

    def follow(
        self, key: str, line: Callable[[str], None] = lambda _: None
    ) -> tuple[JobAnswer, list[str]]:
        """Wait for a job to end and pass on its output.

        The link may break while the job continues; this resumes behind the last line received. If
        somebody starts the job again in that time, only the lines of its last run are kept.

        Args:
            key: of the job.
            line: receives every whole line, without its end, also those of runs that are not kept.

        Returns:
            the status, ``done``, ``lost`` or ``none``, and the lines of the job's programs.

        Raises:
            BoardError: it writes more than 64 MiB or a million lines, or has no end in 48 h.
            LinkError: the device did not answer.
        """
        log = _JobLog(self.device.name, self.told, line)
        began = time.monotonic()
        early = 0
        while True:
            asked_at = time.monotonic()
            status = self._patiently(lambda: self._watch(key, log))
            if status.state in ("done", "lost", "none"):
                return status, log.all_lines
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

    def _watch(self, key: str, log: _JobLog) -> JobAnswer:
        """Ask for a job's status once, for a while."""
        question = {"key": key, "offset": log.offset, "seconds": WATCH_S, "run": log.run}
        last: Answer | None = None
        for answer in self._answers("wait", question, limits=Limits(call_s=WATCH_S + CALL_S / 2)):
            if isinstance(answer, Log):
                log.take(answer)
            else:
                last = answer
        if last is None:
            raise LinkError(f"{self.device.name} stopped answering", "the connection ended")
        return self._of_kind(last, JobAnswer, "wait")


def _move(part: Path, beside: Path) -> None:
    part.replace(beside)


def _path_of(answer: Upload, name: str) -> str:
    if answer.path is None:
        raise BoardError(
            f"Cannot read the answer of {name}", "it does not name the path of the upload"
        )
    return answer.path


class _JobLog:
    """Output of a job so far."""

    def __init__(self, name: str, progress: Progress, line: Callable[[str], None]) -> None:
        self.name = name
        self.told = progress
        self.line = line
        self.offset = 0
        self.run: object = None
        self.lines: list[str] = []
        self.size = 0
        self._rest = ""
        self._waits = ""

    @property
    def all_lines(self) -> list[str]:
        """The lines, with a last one that has no end."""
        return [*self.lines, self._rest] if self._rest else self.lines

    def take(self, answer: Log) -> None:
        """Keep a piece of the log and pass its whole lines on."""
        if answer.run != self.run:
            self.run = answer.run
            self._rest = ""
            self.size = 0
            self.lines.clear()
        self.offset = answer.offset
        self.size += len(answer.text)
        if self.size > MOST_LOG:
            raise BoardError(
                f"{self.name} sends too much", f"a job's log of more than {MOST_LOG // MIB} MiB"
            )
        *whole, self._rest = (self._rest + answer.text).split("\n")
        if len(self.lines) + len(whole) > MOST_LINES or len(self._rest) > MOST_LINE:
            raise BoardError(
                f"{self.name} sends too much",
                f"a job's log of more than {MOST_LINES} lines, or a line without end",
            )
        for text in whole:
            self.lines.append(text)
            self.line(text)
        step = (answer.step or "")[:200]
        if step.startswith("waiting") and step != self._waits:
            self.told.note(f"{self.name}: {step}")
        self._waits = step
        if step:
            self.told.status(step)
