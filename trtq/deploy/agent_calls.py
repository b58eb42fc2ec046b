"""Calls of the agent on a board, and calls again after the link broke."""

from __future__ import annotations

import contextlib
import json
import secrets
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential,
)

from trtq import agent as source
from trtq.agent import encode
from trtq.artifact import sha256_bytes
from trtq.deploy.answers import (
    Answer,
    Beat,
    Broken,
    Hello,
    Installed,
    Refusal,
    Stale,
    decode,
    hint_words,
)
from trtq.deploy.bootstrap import command
from trtq.deploy.devices import Device
from trtq.deploy.ssh import Link
from trtq.deploy.ssh_errors import FAILED
from trtq.deploy.stream import Limits, Stream
from trtq.errors import BoardError, LinkError, SshError, TrtqError, last_line
from trtq.progress import Progress

AGENT = Path(source.__file__).resolve()
MOST_ARGUMENT = 60_000  # the kernel allows 128 KiB
MARK = source.MARK.encode()
PATIENCE_S = 600.0  # a board takes a minute or two to start again
GOOD_ENDS = (0, 1, source.STALE)
NO_PROGRAM = (126, 127)
SIGNALS = range(128, 192)  # exit statuses of a shell whose program was killed
T = TypeVar("T")
A = TypeVar("A", bound=Answer)
Question = Mapping[str, object]  # JSON that the agent reads


class AgentCalls:
    """Questions to a device's agent.

    Calls that only ask are repeated when the link breaks.

    Args:
        device: which one.
        progress: hears what happens to the link, and how far transfers are.
        patience_s: how long to wait for a device that went away.

    Attributes:
        sent, received: bytes over the link.
        place: folder of the agent on the device; its name has the agent's digest.
    """

    def __init__(
        self, device: Device, progress: Progress, *, patience_s: float = PATIENCE_S
    ) -> None:
        self.device, self.told, self.patience_s = device, progress, patience_s
        self.link = Link(device)
        if self.link.note:
            progress.note(self.link.note)
        self.code = AGENT.read_bytes()
        self.digest = sha256_bytes(self.code)
        self.place = f"{device.workdir}/agents/{self.digest[:16]}"
        self.token = secrets.token_hex(8)  # an upload of ours makes way for the next of ours
        self.sent, self.received = 0, 0
        self._reached = False

    def ask(self, verb: str, kind: type[A], **question: object) -> A:
        """Return the agent's last answer, which is of one kind.

        The agent is installed first where it is missing.

        Args:
            verb: one of the agent's ``VERBS``.
            kind: of the answer.
            question: arguments of the verb, values of JSON.

        Raises:
            BoardError: the board refuses, with its reason, or gives another answer.
            LinkError: the device did not answer.
            SshError: the agent cannot be installed.
        """
        return self._patiently(lambda: self._once(verb, kind, question))

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
        kind: type[A],
        question: Question,
        *,
        stdin: IO[bytes] | None = None,
        limits: Limits | None = None,
    ) -> A:
        """Return the last answer to a question that is asked once.

        Args:
            verb: one of the agent's ``VERBS``.
            kind: of the answer.
            question: arguments of the verb.
            stdin: a file that the agent reads, from its present position.
            limits: of the answers; None for the usual ones.
        """
        answers = list(self._answers(verb, question, stdin, limits))
        if not answers:
            raise SshError(
                f"{self.device.name} did not answer {verb}", "the agent ended without a message"
            )
        return self._of_kind(answers[-1], kind, verb)

    def _of_kind(self, answer: Answer, kind: type[A], verb: str) -> A:
        """Return an answer of one kind; raise where the board gives another."""
        if isinstance(answer, kind):
            return answer
        name = self.device.name
        raise BoardError(
            f"Cannot read the answer of {name}",
            f"it answers {verb} with {type(answer).__name__}, expected {kind.__name__}",
            f"Is it the board you mean? Look at it: trtq device shell {shlex.quote(name)}",
        )

    def _answers(
        self,
        verb: str,
        question: Question,
        stdin: IO[bytes] | None = None,
        limits: Limits | None = None,
    ) -> Iterator[Answer]:
        """Yield the agent's answers after its hello.

        Install the agent first where it is missing or another one is there.
        """
        start = stdin.tell() if stdin is not None else 0
        for attempt in range(2):
            stale = False
            if stdin is not None:
                stdin.seek(start)
            for answer in self._lines(verb, self._known(question), stdin, limits):
                stale = self._is_stale(verb, answer)
                if stale:
                    break
                if not isinstance(answer, Hello):
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

    def _known(self, question: Question) -> Question:
        """Return a question with what every question says."""
        return {**question, "agent": self.digest, "home": self.device.workdir}

    def _is_stale(self, verb: str, answer: Answer) -> bool:
        """Return whether the agent must be put there; raise what the board refuses."""
        name = self.device.name
        if isinstance(answer, Stale):
            return True
        if isinstance(answer, Broken):
            texts = (bytes.fromhex(t) for t in (answer.why, answer.python))
            why, python = (text.decode("utf-8", "replace")[:900] for text in texts)
            raise BoardError(
                f"The agent does not start on {name}",
                f"{why} ({python})",
                "Repair that Python (on the board: sudo apt-get install --reinstall python3), "
                "or let another one come first in the PATH of a login without a terminal",
            )
        self._reached = True
        if isinstance(answer, Refusal):
            raise BoardError(f"{name} refuses to {verb}", answer.why, hint_words(answer.mend, name))
        return False

    def _lines(
        self, verb: str, question: Question, stdin: IO[bytes] | None, limits: Limits | None
    ) -> Iterator[Answer]:
        """Run the agent and yield its answers; what login scripts print has no mark."""
        text = encode(question)
        with contextlib.ExitStack() as stack:
            if len(text) > MOST_ARGUMENT:
                assert stdin is None
                stdin = stack.enter_context(tempfile.TemporaryFile())
                stdin.write(json.dumps(question).encode())
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
                if not isinstance(answer, Beat):
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

    def _marked(self, stream: Stream) -> Iterator[Answer]:
        for raw in stream.lines():
            if raw.startswith(MARK):
                yield decode(raw[len(MARK) :], self.device.name)

    def _require_end(self, stream: Stream, heard: bool) -> None:
        """Raise what the end of a call means, where it is not the end of a good one.

        Raises:
            LinkError: the link broke, or the agent was killed.
            BoardError: there is no Python there, or the agent fails.
        """
        code = stream.end()
        if code == FAILED and (stream.own or not heard):
            raise self.link.explain(stream.own, stream.errors)
        if not heard or code not in GOOD_ENDS:
            raise self._end_error(code, last_line(stream.errors), heard)

    def _end_error(self, code: int, output: str, heard: bool) -> TrtqError:
        """Return what the exit status of a call means that did not end well."""
        name = self.device.name
        if code in NO_PROGRAM and not heard:
            return BoardError(
                f"There is no python3 on {name}",
                output or f"exit status {code}",
                "on the board: sudo apt-get install python3",
            )
        if heard or code <= 0 or code in SIGNALS or self._reached:
            return LinkError(f"{name} stopped answering", output or f"exit status {code}")
        words = f": {output}" if output else " without a message"
        return BoardError(
            f"The agent does not start on {name}",
            f"python3 there ends with status {code}{words}",
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

            def put() -> None:
                handle.seek(0)
                answers = [
                    a
                    for a in self._lines("install", self._known({}), handle, None)
                    if not self._is_stale("take the agent", a)
                ]
                last = answers[-1] if answers else None
                if not isinstance(last, Installed) or not last.whole:
                    raise LinkError(
                        f"Cannot put the agent on {self.device.name}", "it does not arrive whole"
                    )

            self._patiently(put)
        self.sent += len(self.code)

    def close(self) -> None:
        """End the connection."""
        self.link.close()
