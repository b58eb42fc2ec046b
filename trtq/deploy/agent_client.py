"""The agent on a board: put there, asked, and asked again when the link was gone."""

from __future__ import annotations

import json
import secrets
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from trtq import agent as source
from trtq.agent import encode
from trtq.artifact import explain_os_error, sha256_bytes, sha256_file, write_atomic
from trtq.deploy.devices import Device
from trtq.deploy.ssh import FAILED, Link
from trtq.errors import BoardError, LinkError, SshError
from trtq.progress import Progress

AGENT = Path(source.__file__).resolve()
# In the home of the user there, whatever the work folder is; one folder below it for each copy, named by its digest.
FOLDER = ".trtq/agents"
MOST_ARGUMENT = 60_000  # the kernel allows 128 KiB
# Imported, so that Python keeps its byte code: a Nano compiles for half a second. No quotes but these, and nothing for any shell to expand.
RUN = "python3 -c 'import sys; sys.path.insert(0, \"{0}\"); import agent; sys.exit(agent.main(sys.argv[1:]))'"
MARK = source.MARK.encode()
PATIENCE_S = 600.0  # a board takes a minute or two to start again
WATCH_S = 20.0
T = TypeVar("T")


class Agent:
    """What runs on a device, as seen from here. Everything that only asks is asked again when the link breaks.

    Args:
        device: which one.
        told: hears what happens to the link, and how far transfers are.
        patience_s: how long to wait for a device that went away.
    """

    def __init__(self, device: Device, told: Progress, *, patience_s: float = PATIENCE_S) -> None:
        self.device, self.told, self.patience_s = device, told, patience_s
        self.link = Link(device)
        self.code = AGENT.read_bytes()
        self.digest = sha256_bytes(self.code)
        self.place = f"{FOLDER}/{self.digest[:16]}"
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
        """Do something until the link holds; only a device that has answered before is waited for."""

        def gone(state: RetryCallState) -> None:
            why = state.outcome.exception() if state.outcome is not None else None
            self.told.note(f"{self.device.name}: {getattr(why, 'why', why)}; trying again")
            self.link.close(stale=True)

        first = Retrying(
            stop=stop_after_delay(self.patience_s if self._reached else 0.0), wait=wait_exponential(multiplier=0.3, max=10.0),
            retry=retry_if_exception_type(LinkError), before_sleep=gone, reraise=True,
        )  # fmt: skip
        return first(action)

    def _once(self, verb: str, asked: dict[str, Any], *, stdin: IO[bytes] | None = None) -> dict[str, Any]:
        answers = list(self._answers(verb, asked, stdin))
        if not answers:
            raise SshError(f"{self.device.name} did not answer {verb}", "the agent ended without a word")
        return answers[-1]

    def _answers(self, verb: str, asked: dict[str, Any], stdin: IO[bytes] | None = None) -> Iterator[dict[str, Any]]:
        """Yield what the agent answers after its hello; put it there where it is missing or another one."""
        start = stdin.tell() if stdin is not None else 0
        for attempt in range(2):
            stale = False
            if stdin is not None:
                stdin.seek(start)
            for answer in self._lines(verb, {**asked, "agent": self.digest, "home": self.device.workdir}, stdin):
                if answer["event"] in ("stale", "missing"):
                    stale = True
                    break
                self._reached = True
                if answer["event"] == "refused":
                    raise BoardError(
                        f"{self.device.name} refuses to {verb}", answer["why"], answer["mend"].replace("NAME", self.device.name)
                    )
                if answer["event"] != "hello":
                    yield answer
            if not stale:
                return
            if attempt:
                raise SshError(f"Cannot put the agent on {self.device.name}", "another one answers each time", f"Remove {self.place} there")
            self.install()

    def _lines(self, verb: str, asked: dict[str, Any], stdin: IO[bytes] | None) -> Iterator[dict[str, Any]]:
        """Run the agent and yield its lines; what login scripts print has no mark."""
        text = encode(asked)
        with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as large:
            if len(text) > MOST_ARGUMENT:
                assert stdin is None
                large.write(json.dumps(asked).encode())
                large.seek(0)
                text, stdin = "-", large
                self.sent += len(json.dumps(asked))
            command = f"{RUN.format(self.place)} {verb} {text}"
            self.sent += len(command)
            with self.link.popen(command, stdin=stdin if stdin is not None else subprocess.DEVNULL, stderr=errors) as process:
                assert process.stdout is not None
                heard, over = False, False
                try:
                    for raw in process.stdout:
                        self.received += len(raw)
                        if raw.startswith(MARK):
                            heard = True
                            yield _decode(raw, self.device.name)
                    over = True
                finally:
                    if not over:  # whoever listens has heard enough
                        process.kill()
                code = process.wait()
            errors.seek(0)
            said = errors.read().decode("utf-8", "replace")
        if code == FAILED:
            raise self.link.explain(said)
        if not heard:
            if "python3: command not found" in said or "python3: not found" in said or code == 127:
                raise BoardError(f"There is no python3 on {self.device.name}", _end(said), "on the board: sudo apt-get install python3")
            if "No module named" in said and "agent" in said:
                yield {"event": "missing"}
                return
        if code < 0 or (code and not heard):
            raise LinkError(f"{self.device.name} stopped answering", _end(said) or f"exit status {code}")

    def install(self) -> None:
        """Put the agent on the device: beside, flushed, renamed.

        Raises:
            SshError: it cannot be written there.
        """
        path = f"{self.place}/agent.py"
        beside = f"{path}.{secrets.token_hex(8)}"
        write = f"umask 077; mkdir -p {self.place} && cat > {beside} && sync && mv -f {beside} {path} && rm -rf {self.place}/__pycache__"
        command = f"sh -c '{write} || {{ rm -f {beside}; exit 1; }}'"
        try:
            self._patiently(lambda: self.link.run(command, data=self.code))
        except LinkError:
            raise
        except SshError as exc:
            raise SshError(f"Cannot put the agent on {self.device.name}", exc.why, exc.mend) from exc
        self.sent += len(self.code)

    def upload(self, path: Path, name: str, digest: str) -> str:
        """Send a file into the work folder unless it is there; go on where a cut upload stopped; return its path there.

        Raises:
            BoardError: no room there, or another upload of it is under way.
        """
        size = path.stat().st_size
        damaged = 0
        while True:
            there = self.ask("have", name=name, size=size, sha256=digest)
            if there["state"] == "stored":
                return str(there["path"])
            try:
                done = self._send(path, name, digest, size, int(there["have"]))
            except LinkError as exc:
                self.told.note(f"{self.device.name}: {exc.why}; the upload goes on where it stopped")
                self.link.close(stale=True)
                time.sleep(0.3)
                continue
            if done["state"] == "stored":
                return str(done["path"])
            if done["state"] == "busy":
                self.told.note(f"{self.device.name}: somebody else sends the same file; waiting for it")
            if done["state"] == "damaged":
                damaged += 1
                if damaged == 3:
                    raise BoardError(
                        f"Cannot send {path.name} to {self.device.name}", "what arrives has another SHA-256, three times",
                        "Look at its disk"
                    )  # fmt: skip

    def _send(self, path: Path, name: str, digest: str, size: int, offset: int) -> dict[str, Any]:
        """Let ssh read the file itself: nothing of ours stands between it and the link."""
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
                    "put", {"name": name, "size": size, "sha256": digest, "offset": offset, "token": self.token}, stdin=handle
                )
            finally:
                over.set()
                watcher.join()
                self.sent += max(handle.tell() - offset, 0)

    def download(self, name: str, to: Path, *, digest: str | None = None) -> Path:
        """Fetch a file of the work folder; one that is here already is not fetched again, a cut one goes on where it stopped.

        Raises:
            BoardError: there is none.
            SshError: what arrived is not what was sent.
        """
        if digest is not None and to.is_file() and sha256_file(to) == digest:
            return to
        part = to.with_name(f".{to.name}.part")
        part.unlink(missing_ok=True)
        try:
            wanted = self._patiently(lambda: self._receive(name, part))
        except OSError as exc:
            part.unlink(missing_ok=True)
            raise explain_os_error(exc, to) from exc
        if sha256_file(part) != wanted or (digest is not None and wanted != digest):
            part.unlink()
            raise SshError(f"{name} of {self.device.name} did not arrive whole", "its SHA-256 is another one", "Run the same command again")
        write_atomic(to, lambda beside: _move(part, beside))
        return to

    def _receive(self, name: str, part: Path) -> str:
        """Fetch from where ``part`` ends; return the digest that the whole should have."""
        offset = part.stat().st_size if part.exists() else 0
        asked = {"name": name, "offset": offset, "agent": self.digest, "home": self.device.workdir}
        command = f"{RUN.format(self.place)} get {encode(asked)}"
        with tempfile.TemporaryFile() as errors:
            with self.link.popen(command, stderr=errors) as process, part.open("ab") as out:
                assert process.stdout is not None
                head: dict[str, Any] | None = None
                for raw in process.stdout:
                    if raw.startswith(MARK):
                        answer = _decode(raw, self.device.name)
                        if answer["event"] == "refused":
                            raise BoardError(f"Cannot fetch {name} from {self.device.name}", answer["why"], answer["mend"])
                        if answer["event"] == "stale":
                            break
                        if answer["event"] == "file":
                            head = answer
                            break
                got = offset
                while head is not None and (block := process.stdout.read(1 << 20)):
                    out.write(block)
                    got += len(block)
                    self.received += len(block)
                code = process.wait()
            errors.seek(0)
            said = errors.read().decode("utf-8", "replace")
        if code == FAILED:
            raise self.link.explain(said)
        if head is None:
            self.install()  # somebody changed or removed it
        if head is None or got < head["size"]:
            raise LinkError(f"{self.device.name} stopped in the middle of {name}", _end(said) or "the connection ended")
        return str(head["sha256"])

    def follow(self, key: str, line: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """Wait for a job to end and pass on what it writes; return how it stands (``done``, ``lost`` or ``none``), and its ``lines``.

        The link may go meanwhile: the job does not, and this goes on behind the last line it heard. Of a job that somebody started again
        meanwhile only the lines of its last run are kept.
        """
        offset, rest, run, waits = 0, "", None, ""
        lines: list[str] = []
        while True:

            def once() -> dict[str, Any]:
                nonlocal offset, rest, run, waits
                last: dict[str, Any] = {}
                for answer in self._answers("wait", {"key": key, "offset": offset, "seconds": WATCH_S, "run": run}):
                    if answer["event"] == "log":
                        if answer["run"] != run:
                            run, rest = answer["run"], ""
                            lines.clear()
                        offset = answer["offset"]
                        *whole, rest = (rest + answer["text"]).split("\n")
                        for text in whole:
                            lines.append(text)
                            line(text)
                        step = str(answer["step"] or "")
                        if step.startswith("waiting") and step != waits:
                            self.told.note(f"{self.device.name}: {step}")
                        waits = step
                        if step:
                            self.told.status(step)
                    else:
                        last = answer
                if not last:
                    raise LinkError(f"{self.device.name} stopped answering", "the connection ended")
                return last

            now = self._patiently(once)
            if now["state"] in ("done", "lost", "none"):
                return {**now, "lines": [*lines, rest] if rest else lines}

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self.link.close()


def _move(part: Path, beside: Path) -> None:
    part.replace(beside)


def _decode(raw: bytes, name: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(raw[len(MARK) :])
    except ValueError as exc:
        raise LinkError(f"{name} stopped in the middle of a line", "the connection ended") from exc
    return value


def _end(said: str) -> str:
    lines = said.strip().splitlines()
    return lines[-1] if lines else ""
