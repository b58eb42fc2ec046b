"""``trtq device``."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
import msgspec

from trtq.artifact import size_words
from trtq.cli.completing import offer
from trtq.cli.display import ConsoleProgress, print_json
from trtq.terminal import say

if TYPE_CHECKING:
    from trtq.deploy.agent_client import Agent

OWN_KEY = "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"


@click.group("device")
def command() -> None:
    """Manage the boards that trtq builds and measures on, over the system's SSH.

    \b
    Examples:
      trtq device add nano jetson@192.168.55.1
      trtq device probe nano
    """


@command.command("add")
@click.argument("name")
@click.argument("address", metavar="USER@HOST[:PORT]")
@click.option(
    "--identity",
    default="",
    help="Private key file; default: what your SSH configuration and agent offer.",
)
@click.option("--jump", default="", help="Host to go through, as for ssh -J.")
@click.option(
    "--workdir",
    default="",
    help="Folder on the board for models and engines.  [default: .trtq in the home]",
)
@click.option(
    "--accept-key",
    default="",
    metavar="SHA256:...",
    help="Accept a new host key with this fingerprint, without asking.",
)
def add(name: str, address: str, identity: str, jump: str, workdir: str, accept_key: str) -> None:
    """Add a board under a name.

    A new host key is shown and must be accepted once. A changed host key is an error.

    \b
    Examples:
      trtq device add nano jetson@192.168.55.1
      trtq device add orin ubuntu@orin.lab:2222 --jump gateway --identity ~/.ssh/orin
    """
    from trtq.deploy.devices import WORKDIR, parse_device, remember_device

    device = parse_device(name, address, identity=identity, jump=jump, workdir=workdir or WORKDIR)
    from trtq.deploy.agent_client import Agent
    from trtq.deploy.board import probe

    with ConsoleProgress() as progress, Agent(device, progress) as agent:
        _meet(agent, accept_key)
        board = probe(agent)
    remember_device(device)
    for line in (f"{name} is added.", *board.lines):
        say(line)


@contextmanager
def _reached(name: str, *, quiet: bool = False) -> Iterator[Agent]:
    """Yield the agent on a named board, for one command."""
    from trtq.deploy.agent_client import Agent
    from trtq.deploy.devices import find_device

    with ConsoleProgress(quiet=quiet) as progress, Agent(find_device(name), progress) as agent:
        yield agent


def _meet(agent: Agent, accept_key: str) -> None:
    """Ask the user to accept a new host key."""
    from trtq.errors import HostKeyError

    link = agent.link
    try:
        link.run("true")
        return
    except HostKeyError as exc:
        new = "has not been accepted" in exc.reason and "the host key of this host" in exc.reason
        if not new:
            raise
    lines, shown = link.offered_key()
    device = agent.device
    say(
        f"{device.name} ({device.address}) shows a host key that has not been seen before:",
        err=True,
    )
    for line in shown:
        say(f"  {line}", err=True)
    _require_accepted(device.name, shown, accept_key)
    link.accept(lines)
    link.run("true")


def _require_accepted(name: str, shown: list[str], accept_key: str) -> None:
    """Raise unless the user takes the host key for the board's own.

    Raises:
        HostKeyError: it has another fingerprint, or was not accepted.
    """
    from trtq.errors import HostKeyError

    if accept_key:
        wanted = f"SHA256:{accept_key.removeprefix('SHA256:')}"
        if not any(wanted in line.split() for line in shown):
            raise HostKeyError(
                f"Cannot accept the host key of {name}",
                f"none of them has the fingerprint {wanted}",
                f"Compare it with the board's own: {OWN_KEY}",
            )
    elif not sys.stdin.isatty():
        fingerprint = shown[0].split()[1] if shown else "SHA256:..."
        raise HostKeyError(
            f"The host key of {name} must be accepted once",
            "there is no terminal to ask on",
            f"Compare it with the board's own ({OWN_KEY}), then add --accept-key {fingerprint}",
        )
    elif not click.confirm("Is it the board's own, and shall it be accepted?", err=True):
        raise HostKeyError(f"{name} was not added", "its host key was not accepted")


def _key(agent: Agent, start: str) -> str:
    """Return the only job whose key starts with these letters."""
    from trtq.deploy.answers import Listing
    from trtq.errors import UsageError

    jobs = agent.ask("list", Listing).jobs
    fitting = [j.key for j in jobs if j.key.startswith(start)]
    if len(fitting) != 1:
        name = agent.device.name
        raise UsageError(
            f"{len(fitting)} jobs on {name} begin with {start}",
            hint=f"See trtq device logs {shlex.quote(name)}",
        )
    return fitting[0]


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def list_(as_json: bool) -> None:
    """List the boards that were added.

    \b
    Examples:
      trtq device list
      trtq device list --json
    """
    from trtq.deploy.devices import known_devices

    devices = known_devices()
    if as_json:
        print_json({n: msgspec.to_builtins(d) for n, d in devices.items()})
        return
    if not devices:
        say("none yet: trtq device add NAME user@host")
    for name, device in devices.items():
        say(
            f"{name}: {device.place}{f', through {device.jump}' if device.jump else ''}, "
            f"{device.workdir}"
        )


@command.command("remove")
@click.argument("name", shell_complete=offer("board"))
def remove(name: str) -> None:
    """Forget a board; nothing on it changes.

    \b
    Examples:
      trtq device remove nano
      trtq device remove 'old nano'
    """
    from trtq.deploy.devices import forget_device

    forget_device(name)
    say(f"{name} is removed from the list of devices; files on the board are kept")


@command.command("probe")
@click.argument("name", shell_complete=offer("board"))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def probe_(name: str, as_json: bool) -> None:
    """Show board, software, power modes, rails, memory and disk.

    Missing parts are listed with the command that fixes them.

    \b
    Examples:
      trtq device probe orin
      trtq device probe orin --json
    """
    from trtq.deploy.board import probe

    with _reached(name, quiet=as_json) as agent:
        board = probe(agent)
    if as_json:
        print_json(board)
    else:
        for line in board.lines:
            say(line)


@command.command("shell")
@click.argument("name", shell_complete=offer("board"))
def shell(name: str) -> int:
    """Open a shell on a board, over the connection that trtq uses.

    \b
    Examples:
      trtq device shell orin
      trtq device shell nano
    """
    from trtq.deploy.devices import find_device
    from trtq.deploy.ssh import Link

    link = Link(find_device(name))
    return subprocess.run(
        link.line(None, "-t", "-o", "RequestTTY=auto", "-o", "ControlPath=none"), check=False
    ).returncode


@command.command("logs")
@click.argument("name", shell_complete=offer("board"))
@click.argument("key", required=False)
def logs(name: str, key: str | None) -> None:
    """List the engines and the jobs on a board, the newest last.

    With KEY (or its first letters), show the output of that job.

    \b
    Examples:
      trtq device logs orin
      trtq device logs orin 3f2a
    """
    from trtq.deploy.answers import Listing, Logs

    with _reached(name) as agent:
        listing = agent.ask("list", Listing)
        if key is None:
            for entry in listing.engines:
                say(f"engine {entry.file}: {size_words(entry.bytes)}, {entry.model}")
            for job in listing.jobs:
                why = f" ({job.why})" if job.why else ""
                say(
                    f"job {job.key}: {job.title}, {_ago(job.age_s)}, "
                    f"{job.state}{why}, of {job.owner or 'nobody'}"
                )
            if not listing.engines and not listing.jobs:
                say("nothing there yet")
            return
        log = agent.ask("logs", Logs, key=_key(agent, key))
        if log.left_out:
            say(f"(the first {size_words(log.left_out)} are left out)", err=True)
        say(log.text, lines=True, end="")


@command.command("stop")
@click.argument("name", shell_complete=offer("board"))
@click.argument("key")
def stop(name: str, key: str) -> None:
    """End the job KEY (or its first letters) on a board and restore the settings it changed.

    \b
    Examples:
      trtq device stop orin 3f2a
      trtq device stop nano b07c51
    """
    from trtq.deploy.answers import JobAnswer

    with _reached(name) as agent:
        job = agent.ask("stop", JobAnswer, key=_key(agent, key))
    why = job.result.why if job.result is not None else job.why
    say(f"{name}: {job.state}{f': {why}' if why else ''}")


@command.command("clean")
@click.argument("name", shell_complete=offer("board"))
@click.option("--all", "everything", is_flag=True, help="The engines, too.")
def clean(name: str, everything: bool) -> None:
    """Remove uploads and ended jobs from a board.

    Only files inside the folder that trtq made there are removed.

    \b
    Examples:
      trtq device clean orin
      trtq device clean orin --all
    """
    from trtq.deploy.answers import Cleaned

    with _reached(name) as agent:
        removal = agent.ask("clean", Cleaned, everything=everything)
    kept = (
        f"; {len(removal.kept)} jobs are still running, so files and engines are kept"
        if removal.kept
        else ""
    )
    say(f"{name}: {size_words(removal.bytes)} removed{kept}")
