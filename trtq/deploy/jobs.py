"""Work on a board: started once, found again, and started once more when the board lost it."""

from __future__ import annotations

import getpass
import shlex
import socket
from collections.abc import Callable

import msgspec

from trtq.deploy.agent_client import Agent
from trtq.deploy.answers import JobAnswer, Result, hint_words
from trtq.deploy.devices import called
from trtq.errors import BoardError

MOST_RESTARTS = 2


class JobPower(msgspec.Struct, frozen=True):
    """Requests of a job to the board.

    The agent decides what must be set for it once the board is the job's own.

    Attributes:
        mode: power mode, None for the present one.
        pin: whether clocks are pinned.
    """

    mode: str | None
    pin: bool


class JobStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One program of a job.

    Attributes:
        fresh: files that are removed first; ``copies``: pairs of files that are copied first.
        makes: pairs of a file that it writes and the file that becomes of it.
        marks: texts in its output whose times are kept, by name.
        idle_s: how long the board rests before it, s.
        limit_s: when it is stopped, s.
    """

    name: str
    argv: list[str]
    fresh: list[str] = []
    copies: list[tuple[str, str]] = []
    makes: list[tuple[str, str]] = []
    marks: dict[str, str] = {}
    idle_s: float = 0.0
    limit_s: float | None = None


class BoardJob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Work for the agent.

    Attributes:
        again: do it even where it was done before.
        needs_bytes: room on the disk that it takes.
        rest_s: how long the board rests after the last step, s.
        sample_s: time between two readings of the sensors, s.
    """

    title: str
    steps: list[JobStep]
    power: JobPower | None = None
    again: bool = False
    needs_bytes: int = 0
    rest_s: float = 0.0
    sample_s: float | None = None

    def question(self, *, again: bool) -> dict[str, object]:
        """Return the job in the form of the agent."""
        plain: dict[str, object] = msgspec.to_builtins(self)
        power = msgspec.to_builtins(self.power) if self.power is not None else {}
        plain.pop("power", None)
        return {**plain, **power, "owner": owner(), "again": again}


def owner() -> str:
    """Return who asks, as another workstation is told."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def do(
    agent: Agent, key: str, job: BoardJob, *, line: Callable[[str], None] = lambda _: None
) -> tuple[Result, list[str]]:
    """Return the result of a job and the lines that its programs wrote, started by any workstation.

    A job whose process or board went away is started again, twice at most. It may be another
    workstation's: the same work has the same key.

    Args:
        agent: on the board.
        key: of the job, 2 to 64 lower-case letters and digits.
        job: what to do.
        line: receives every line that its programs write.

    Returns:
        the result, which may be one of a failed step, and the lines.

    Raises:
        BoardError: it was lost again and again, it could not begin, or the board refused.
        LinkError: the device did not answer; the job continues there.
    """
    for attempt in range(MOST_RESTARTS + 1):
        try:
            question = job.question(again=job.again and attempt == 0)
            agent.ask("start", JobAnswer, key=key, job=question)
            status, lines = agent.follow(key, line)
        except KeyboardInterrupt:
            stop = shlex.join(["trtq", "device", "stop", called(agent.device), key[:8]])
            agent.told.note(
                f"{agent.device.name}: {job.title} continues on the board, and the same "
                f"command finds it again; to end it: {stop}"
            )
            raise
        if status.state == "done":
            return _checked(status.result, agent, job), lines
        why = status.why or "somebody removed it"
        if attempt < MOST_RESTARTS:
            agent.told.note(f"{agent.device.name}: {job.title} was lost: {why}; starting it again")
    raise BoardError(
        f"{agent.device.name} lost {job.title} {MOST_RESTARTS + 1} times",
        why,
        f"Look at its power supply and memory: trtq device probe {shlex.quote(agent.device.name)}",
    )


def advice(result: Result, agent: Agent) -> str:
    """Return what a person can do about a job that failed."""
    return hint_words(result.mend, agent.device.name)


def _checked(result: Result | None, agent: Agent, job: BoardJob) -> Result:
    """Return a result that has what a good one has."""
    if result is None:
        raise BoardError(
            f"Cannot read the answer of {agent.device.name}",
            f"{job.title} is done without a result",
        )
    if not result.ok and not result.steps:
        raise BoardError(
            f"{agent.device.name} cannot do {job.title}", result.why, advice(result, agent)
        )
    if result.ok and [s.name for s in result.steps] != [s.name for s in job.steps]:
        raise BoardError(
            f"Cannot read the answer of {agent.device.name}",
            f"{job.title} has other steps than were asked for",
        )
    return result
