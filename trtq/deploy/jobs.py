"""Work on a board: started once, found again, and started once more when the board lost it."""

from __future__ import annotations

import getpass
import shlex
import socket
from collections.abc import Callable, Mapping
from typing import Any

from trtq.deploy.agent_client import Agent
from trtq.deploy.answers import Result, hint_words
from trtq.deploy.devices import called
from trtq.errors import BoardError

MOST_RESTARTS = 2
BoardJob = Mapping[str, Any]  # title, steps, power mode, pinning: JSON that the agent reads


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
    """Return the result of a job and the lines that its programs wrote, whoever started it.

    A job whose process or board went away is started again, twice at most. It may be another
    workstation's: the same work has the same key.

    Args:
        agent: on the board.
        key: of the job: the same work has the same key.
        job: title, steps, power mode, pinning; see the agent.
        line: receives every line that its programs write.

    Raises:
        BoardError: it was lost again and again, or the board refused.
    """
    for attempt in range(MOST_RESTARTS + 1):
        try:
            again = bool(job.get("again")) and attempt == 0
            agent.ask("start", key=key, job={**job, "owner": owner(), "again": again})
            status = agent.follow(key, line)
        except KeyboardInterrupt:
            stop = shlex.join(["trtq", "device", "stop", called(agent.device), key[:8]])
            agent.told.note(
                f"{agent.device.name}: {job['title']} goes on there, and the same command finds "
                f"it again; to end it: {stop}"
            )
            raise
        if status["state"] == "done":
            return _checked(status.get("result"), agent, job), status["lines"]
        why = status.get("why", "somebody removed it")
        if attempt < MOST_RESTARTS:
            agent.told.note(
                f"{agent.device.name}: {job['title']} was lost: {why}; starting it again"
            )
    raise BoardError(
        f"{agent.device.name} lost {job['title']} {MOST_RESTARTS + 1} times",
        why,
        f"Look at its power supply and memory: trtq device probe {shlex.quote(agent.device.name)}",
    )


def advice(result: Result, agent: Agent) -> str:
    """Return what a person can do about a job that failed."""
    return hint_words(result["mend"], agent.device.name)


def _checked(result: Result | None, agent: Agent, job: BoardJob) -> Result:
    """Return a result that has what a good one has."""
    if result is None:
        raise BoardError(
            f"Cannot read the answer of {agent.device.name}",
            f"{job['title']} is done without a result",
        )
    if not result["ok"] and not result["steps"]:
        raise BoardError(
            f"{agent.device.name} cannot do {job['title']}", result["why"], advice(result, agent)
        )
    if result["ok"] and [s["name"] for s in result["steps"]] != [s["name"] for s in job["steps"]]:
        raise BoardError(
            f"Cannot read the answer of {agent.device.name}",
            f"{job['title']} has other steps than were asked for",
        )
    return result
