"""The system's OpenSSH, without prompts and with host keys always checked.

Each device has one multiplexed connection.

ssh writes its own messages to a separate log file (``-E``): what a board writes to standard error
is never mistaken for them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from trtq.artifact import digest_of, locked, write_bytes
from trtq.deploy.devices import Device, writable_config
from trtq.deploy.ssh_config import (
    known_hosts,
    quoted,
    require_ssh,
    socket_folder,
    write_config,
)
from trtq.deploy.ssh_errors import FAILED, Diagnosis, settings
from trtq.deploy.stream import MIB, Limits, Stream
from trtq.errors import SshError, TrtqError, last_line

ASIDE = Limits(line_bytes=MIB, total_bytes=MIB, error_bytes=MIB, silence_s=60.0, call_s=60.0)


class Link:
    """The way to one device.

    Args:
        device: where.

    Attributes:
        note: what a user should know about this machine's side of it, "" for nothing.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.ssh = require_ssh()
        self.folder, unused = socket_folder()
        self.note = ""
        if unused:
            self.note = (
                f"SSH connections are kept in {self.folder}: XDG_RUNTIME_DIR cannot be used "
                f"({unused})"
            )
        self.config = write_config(self.folder)
        # By everything that leads there: older clients tell neither jump hosts nor identities apart
        # by themselves.
        self.socket = self.folder / digest_of(msgspec.to_builtins(device))[:16]

    def line(self, command: str | None, *options: str) -> list[str]:
        """Return the command line of ssh.

        Args:
            command: to run on the device: one of trtq's own fixed texts, never what a user typed;
                None for none.
            options: of ssh; the first value of a setting counts, so they come before the device's
                own.
        """
        device = self.device
        line = [self.ssh, "-F", str(self.config), *options]
        line += settings(f"ControlPath={self.socket}")
        if device.jump:  # behind other gateways the same address is another board
            line += settings(f"HostKeyAlias=trtq-{device.name}")
        line += ["-p", str(device.port)] if device.port is not None else []
        if device.identity:  # "-i" takes a name as it is and expands it later all the same
            identity = quoted(device.identity.replace("%", "%%"))
            line += settings(f"IdentityFile={identity}", "IdentitiesOnly=yes")
        line += ["-J", device.jump] if device.jump else []
        line += ["-l", device.user] if device.user else []
        return [*line, "--", device.host, *([command] if command is not None else [])]

    @contextlib.contextmanager
    def open(
        self,
        command: str,
        *,
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        limits: Limits | None = None,
    ) -> Iterator[Stream]:
        """Run a command on the device and yield its output.

        The command ends with the block.

        Args:
            command: one of trtq's own fixed texts.
            stdin: what the command reads; nothing by default.
            limits: of the output; None for the usual ones.
        """
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="log-") as log:
            process = self.popen(self.line(command, "-E", log.name), stdin)
            stream = Stream(process, self.device.name, limits or Limits(), Path(log.name))
            try:
                yield stream
            finally:
                stream.close()

    def popen(self, line: list[str], stdin: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """Start ssh."""
        return subprocess.Popen(
            line,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )

    def run(self, command: str) -> bytes:
        """Run a command on the device and return its standard output.

        Raises:
            LinkError: the device cannot be reached now.
            SshError: it cannot be reached as things are, or the command failed.
        """
        with self.open(command) as stream:
            output = b"".join(iter(stream.block, b""))
            code = stream.end()
            if code == FAILED:
                raise self.explain(stream.own, stream.errors)
            if code:
                raise SshError(
                    f"{self.device.name} fails at a command of trtq",
                    last_line(stream.errors) or f"exit status {code}",
                )
        return output

    def explain(self, own: str, errors: str = "") -> TrtqError:
        """Return the error that OpenSSH's own words mean; see :meth:`Diagnosis.explain`."""
        return Diagnosis(self).explain(own, errors)

    def offered_key(self) -> tuple[str, list[str]]:
        """Return the host keys that the device shows, and their fingerprints.

        Returns:
            lines of known_hosts as one text; a line of ``ssh-keygen -l`` for each key.

        Raises:
            LinkError, SshError: it cannot be reached.
        """
        with tempfile.TemporaryDirectory(prefix="trtq-key-") as folder:
            path = Path(folder) / "known_hosts"
            log = Path(folder) / "log"
            options = settings(
                "StrictHostKeyChecking=accept-new",
                f"UserKnownHostsFile={quoted(str(path).replace('%', '%%'))}",
                "HashKnownHosts=no",
                "ControlPath=none",
                "GlobalKnownHostsFile=none",
                # The key comes before the login, and nothing runs there.
                "PreferredAuthentications=none",
            )
            login = self.run_here(self.line("true", *options, "-E", str(log)))
            if not path.is_file():
                raise self.explain(
                    log.read_text(encoding="utf-8", errors="replace") if log.is_file() else "",
                    login.stderr,
                )
            shown = self.run_here(["ssh-keygen", "-lf", str(path)])
            prints = [ln.strip() for ln in shown.stdout.splitlines()]
            if shown.returncode or not prints:
                why = f"ssh-keygen shows no fingerprint: {last_line(shown.stderr)}"
                raise SshError(
                    f"Cannot show the host key of {self.device.name}",
                    why,
                    "sudo apt-get install openssh-client",
                )
            return path.read_text(), prints

    def run_here(self, line: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a program of this machine that may reach the device; what it prints is limited.

        Args:
            line: the program and its arguments; no shell reads them.

        Raises:
            BoardError: it prints more than 1 MiB.
            LinkError: it prints nothing for 60 s, or does not end in that time.
        """
        stream = Stream(
            self.popen(line, subprocess.DEVNULL), self.device.name, ASIDE, Path(os.devnull)
        )
        try:
            output = b"".join(iter(stream.block, b"")).decode("utf-8", "replace")
            return subprocess.CompletedProcess(line, stream.end(), output, stream.errors)
        finally:
            stream.close()

    def accept(self, lines: str) -> None:
        """Keep host keys that the user has accepted, each once.

        Args:
            lines: of known_hosts.

        Raises:
            ArtifactError: the file cannot be written.
        """
        path = writable_config() / known_hosts().name
        with locked(path.with_name(f"{path.name}.lock")):  # two boards may be added at once
            before = (
                path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else ""
            )
            fresh = [ln for ln in lines.splitlines() if ln not in before.splitlines()]
            write_bytes(
                path,
                (before + "".join(f"{ln}\n" for ln in fresh)).encode("utf-8", "surrogateescape"),
            )

    def close(self, *, stale: bool = False) -> None:
        """Let the multiplexed connection end with its last command.

        A ``stale`` connection, which would answer for the host, ends at once.
        """
        # Cleaning up must not hide an earlier error.
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                self.line(None, "-O", "exit" if stale else "stop"),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=20,
            )
