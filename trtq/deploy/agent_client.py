"""The agent on a board: put there, asked, and asked again when the link was gone."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from trtq import agent as source
from trtq.artifact import explain_os_error, sha256_bytes, sha256_file, write_atomic
from trtq.deploy.devices import Device
from trtq.deploy.ssh import FAILED, Link
from trtq.errors import BoardError, LinkError, SshError
from trtq.progress import Progress

AGENT = Path(source.__file__).resolve()
PLACE = ".trtq/agent.py"  # in the home of the user there, whatever the work folder is
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
        for attempt in range(2):
            stale = False
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
                raise SshError(f"Cannot put the agent on {self.device.name}", "another one answers each time", f"Remove {PLACE} there")
            self.install()

    def _lines(self, verb: str, asked: dict[str, Any], stdin: IO[bytes] | None) -> Iterator[dict[str, Any]]:
        """Run the agent and yield its lines; what login scripts print has no mark."""
        command = f"python3 {PLACE} {verb} {base64.urlsafe_b64encode(json.dumps(asked).encode()).decode()}"
        self.sent += len(command)
        with tempfile.TemporaryFile() as errors:
            with self.link.popen(command, stdin=stdin if stdin is not None else subprocess.DEVNULL, stderr=errors) as process:
                assert process.stdout is not None
                heard = False
                try:
                    for raw in process.stdout:
                        self.received += len(raw)
                        if raw.startswith(MARK):
                            heard = True
                            yield _decode(raw, self.device.name)
                finally:
                    process.kill() if process.poll() is None else None
                code = process.wait()
            errors.seek(0)
            said = errors.read().decode("utf-8", "replace")
        if code == FAILED:
            raise self.link.explain(said)
        if not heard:
            if "python3: command not found" in said or "python3: not found" in said or code == 127:
                raise BoardError(f"There is no python3 on {self.device.name}", _end(said), "on the board: sudo apt-get install python3")
            if "agent.py" in said and ("No such file" in said or "can't open file" in said):
                yield {"event": "missing"}
                return
        if code < 0 or (code and not heard):
            raise LinkError(f"{self.device.name} stopped answering", _end(said) or f"exit status {code}")

    def install(self) -> None:
        """Put the agent on the device: beside, flushed, renamed.

        Raises:
            SshError: it cannot be written there.
        """
        beside = f"{PLACE}.{secrets.token_hex(8)}"
        command = f"sh -c 'umask 077; mkdir -p .trtq && cat > {beside} && sync && mv -f {beside} {PLACE} || {{ rm -f {beside}; exit 1; }}'"
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
            if done["state"] == "damaged":
                damaged += 1
                if damaged == 3:
                    raise BoardError(
                        f"Cannot send {path.name} to {self.device.name}", "what arrives has another SHA-256, three times",
                        "Look at its disk"
                    )  # fmt: skip

    def _send(self, path: Path, name: str, digest: str, size: int, offset: int) -> dict[str, Any]:
        """Let ssh read the file itself: nothing of ours stands between it and the link."""
        import threading

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
                return self._once("put", {"name": name, "size": size, "sha256": digest, "offset": offset}, stdin=handle)
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
        command = f"python3 {PLACE} get {base64.urlsafe_b64encode(json.dumps(asked).encode()).decode()}"
        with tempfile.TemporaryFile() as errors:
            with self.link.popen(command, stderr=errors) as process, part.open("ab") as out:
                assert process.stdout is not None
                head: dict[str, Any] | None = None
                for raw in process.stdout:
                    if raw.startswith(MARK):
                        answer = _decode(raw, self.device.name)
                        if answer["event"] == "refused":
                            raise BoardError(f"Cannot fetch {name} from {self.device.name}", answer["why"], answer["mend"])
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
        if head is None or got < head["size"]:
            raise LinkError(f"{self.device.name} stopped in the middle of {name}", _end(said) or "the connection ended")
        return str(head["sha256"])

    def follow(self, key: str, line: Callable[[str], None]) -> dict[str, Any]:
        """Wait for a job to end and pass on what it writes; return how it stands (``done``, ``lost`` or ``none``).

        The link may go meanwhile: the job does not, and this goes on behind the last line it heard.
        """
        offset, rest = 0, ""
        while True:

            def once() -> dict[str, Any]:
                nonlocal offset, rest
                last: dict[str, Any] = {}
                for answer in self._answers("wait", {"key": key, "offset": offset, "seconds": WATCH_S}):
                    if answer["event"] == "log":
                        offset = answer["offset"]
                        *whole, rest = (rest + answer["text"]).split("\n")
                        for text in whole:
                            line(text)
                        if answer["step"]:
                            self.told.status(str(answer["step"]))
                    else:
                        last = answer
                if not last:
                    raise LinkError(f"{self.device.name} stopped answering", "the connection ended")
                return last

            now = self._patiently(once)
            if now["state"] in ("done", "lost", "none"):
                return now

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
