"""The system's OpenSSH: one multiplexed connection a device, never a prompt, host keys always checked."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import IO

import msgspec

from trtq.artifact import digest_of, locked, write_bytes
from trtq.deploy.devices import Device, config_folder
from trtq.errors import HostKeyError, LinkError, MissingExtraError, SshError, TrtqError

FAILED = 255  # ssh's own exit status: the link, never the command
KEY_TIMEOUT_S = 60


def require_ssh() -> str:
    """Return the path of OpenSSH's client.

    Raises:
        MissingExtraError: there is none.
    """
    path = shutil.which("ssh")
    if path is None:
        raise MissingExtraError(
            "There is no ssh here", "trtq goes to boards with the system's OpenSSH", "sudo apt-get install openssh-client"
        )
    return path


def _socket_folder() -> Path:
    """Return a short folder of this user alone: the path of a socket must stay below 104 bytes."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    if len(str(base)) > 40:
        base = Path("/tmp")  # noqa: S108 - checked below
    folder = base / f"trtq-ssh-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
        raise SshError(f"Cannot keep SSH connections in {folder}", "the folder is not this user's alone", f"Remove {folder}")
    return folder


def known_hosts() -> Path:
    """Return the file of the host keys that were accepted through trtq."""
    return config_folder() / "known_hosts"


def _config() -> Path:
    """Write the settings that come before the user's own, which then fill in the rest; jump hosts get the same file.

    The first value that OpenSSH reads counts, so neither prompts nor unchecked host keys can come back from the user's files.
    """
    folder = config_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    home = Path.home() / ".ssh"
    lines = [
        "Host *", "  BatchMode yes", "  ConnectTimeout 10", "  ServerAliveInterval 15", "  ServerAliveCountMax 4", "  TCPKeepAlive yes",
        "  StrictHostKeyChecking yes", "  UpdateHostKeys no", f'  UserKnownHostsFile "{home / "known_hosts"}" "{known_hosts()}"',
        "  ControlMaster auto", f"  ControlPath {_socket_folder()}/%C", "  ControlPersist 60", "  ForwardAgent no", "  ForwardX11 no",
        "  RequestTTY no", "  PermitLocalCommand no",
        "  ClearAllForwardings yes", "  IgnoreUnknown RemoteCommand", "  RemoteCommand none",
        "  LogLevel ERROR", "  Compression no",
        f'Include "{home / "config"}"', "Include /etc/ssh/ssh_config",
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    path = folder / "ssh_config"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_bytes(path, text.encode())
    return path


class Link:
    """The way to one device.

    Args:
        device: where.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.ssh, self.config = require_ssh(), _config()
        # By everything that leads there: older clients tell neither jump hosts nor identities apart by themselves.
        self.socket = _socket_folder() / digest_of(msgspec.to_builtins(device))[:16]

    def line(self, command: str | None, *options: str) -> list[str]:
        """Return the command line of ssh; ``command`` is one of trtq's own fixed texts, never what a user typed."""
        device = self.device
        line = [self.ssh, "-F", str(self.config), *options, "-o", f"ControlPath={self.socket}"]
        if device.jump:  # behind other gateways the same address is another board
            line += ["-o", f"HostKeyAlias=trtq-{device.name}"]
        line += ["-p", str(device.port)] if device.port is not None else []
        line += ["-i", device.identity, "-o", "IdentitiesOnly=yes"] if device.identity else []
        line += ["-J", device.jump] if device.jump else []
        line += ["-l", device.user] if device.user else []
        return [*line, "--", device.host, *([command] if command is not None else [])]

    def popen(self, command: str, *, stdin: IO[bytes] | int = subprocess.DEVNULL, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a command on the device."""
        return subprocess.Popen(self.line(command), stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True)

    def run(self, command: str, *, data: bytes | None = None, limit_s: float = 120.0) -> bytes:
        """Run a command on the device and return its standard output.

        Raises:
            LinkError: the device cannot be reached now.
            SshError: it cannot be reached as things are, or the command failed.
        """
        try:
            done = subprocess.run(
                self.line(command), input=data, stdin=subprocess.DEVNULL if data is None else None, capture_output=True, check=False,
                timeout=limit_s, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as exc:
            raise LinkError(f"{self.device.name} does not answer", f"no answer in {limit_s:g} s") from exc
        said = done.stderr.decode("utf-8", "replace")
        if done.returncode == FAILED:
            raise self.explain(said)
        if done.returncode:
            raise SshError(f"{self.device.name} fails at a command of trtq", _last(said) or f"exit status {done.returncode}", _room(said))
        return done.stdout

    def explain(self, said: str) -> TrtqError:
        """Return the error that OpenSSH's words mean."""
        device, add = self.device, shlex.join(self.device.add_command)
        where = f"Cannot reach {self.device.name} ({self.device.address})"
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said or ("Host key for" in said and "has changed" in said):
            entry = re.search(r"Offending \S+ key in (\S+?):(\d+)", said)
            place = f"{entry[1]}, line {entry[2]}" if entry else "the list of known hosts"
            host = f"trtq-{device.name}" if device.jump else device.host if device.port in (None, 22) else f"[{device.host}]:{device.port}"
            return HostKeyError(
                where, f"its host key is not the one in {place}: the board was flashed anew, or this is another machine",
                "If you know why, remove the old key (ssh-keygen -R "
                f"'{host}'{f' -f {entry[1]}' if entry else ''}), then: {add}",
            )  # fmt: skip
        if "Host key verification failed" in said or "host key is known for" in said:
            unknown = re.search(r"host key is known for (\S+)", said)
            other = bool(device.jump) and unknown is not None and unknown[1].strip("[]").split("]")[0].lower() not in self._names()
            named = unknown[1] if unknown is not None else ""
            mend = f"Log in to {named} once with ssh and accept its key" if other else f"Look at its key and accept it: {add}"
            return HostKeyError(
                where, f"the host key of {unknown[1] if other and unknown else 'this host'} has not been accepted yet", mend
            )
        if "Permission denied" in said or "Too many authentication failures" in said:
            ways = re.search(r"\(([\w,-]+)\)", said)
            user = f"{device.user}@{device.host}" if device.user else device.host
            key = f"-i {device.identity} " if device.identity else ""
            return SshError(
                where, f"it refuses the login{f' (it offers {ways[1]})' if ways else ''}; trtq never asks for passwords",
                f"Give it your key: ssh-copy-id {key}{f'-p {device.port} ' if device.port else ''}{user}; or name another with --identity",
            )  # fmt: skip
        if "Could not resolve hostname" in said or "Name or service not known" in said:
            return LinkError(
                where, "its name is not known in this network", f"Use its address: trtq device add {device.name} user@192.168.x.y"
            )
        if "UNPROTECTED PRIVATE KEY" in said or "bad permissions" in said:
            return SshError(where, "the private key can be read by others", f"chmod 600 {device.identity or '~/.ssh/id_*'}")
        refused = re.search(r"connect to host (\S+) port (\d+): Connection refused", said)
        if refused:
            return LinkError(
                where,
                f"nothing listens on port {refused[2]} of {refused[1]}",
                "Is sshd running on the board (sudo systemctl start ssh), and is this its port?",
            )
        # All else passes: a cut connection leaves whatever the board happened to write last.
        return LinkError(where, _last(said) or "the connection ended", "Is the board on, and in this network?")

    def _names(self) -> set[str]:
        """Return what OpenSSH may call the device: what was typed, what the user's configuration makes of it, and its alias."""
        done = subprocess.run(self.line(None, "-G"), stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True)
        resolved = re.search(r"^hostname (\S+)$", done.stdout, re.MULTILINE)
        return {self.device.host.lower(), f"trtq-{self.device.name}".lower(), *([resolved[1].lower()] if resolved else [])}

    def offered_key(self) -> tuple[str, list[str]]:
        """Return the host keys that the device shows, as lines of known_hosts, and their fingerprints.

        Raises:
            LinkError, SshError: it cannot be reached.
        """
        with tempfile.TemporaryDirectory(prefix="trtq-key-") as folder:
            path = Path(folder) / "known_hosts"
            done = self._run(
                self.line(
                    "true", "-o", "StrictHostKeyChecking=accept-new", "-o", f"UserKnownHostsFile={path}", "-o", "HashKnownHosts=no",
                    "-o", "ControlPath=none", "-o", "GlobalKnownHostsFile=none",
                )
            )  # fmt: skip
            if not path.is_file():
                raise self.explain(done.stderr)
            shown = self._run(["ssh-keygen", "-lf", str(path)])
            prints = [ln.strip() for ln in shown.stdout.splitlines()]
            if shown.returncode or not prints:
                why = f"ssh-keygen shows no fingerprint: {_last(shown.stderr)}"
                raise SshError(f"Cannot show the host key of {self.device.name}", why, "sudo apt-get install openssh-client")
            return path.read_text(), prints

    def _run(self, line: list[str]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                line, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=KEY_TIMEOUT_S, text=True, errors="replace"
            )
        except subprocess.TimeoutExpired as exc:
            why = f"{line[0]} did not answer within {exc.timeout:g} s"
            raise LinkError(f"Cannot reach {self.device.name}", why, "Is the board on?") from exc

    def accept(self, lines: str) -> None:
        """Keep host keys that the user has accepted."""
        path = known_hosts()
        with locked(path.with_name(f"{path.name}.lock")):  # two boards may be added at once
            before = path.read_text() if path.is_file() else ""
            fresh = [ln for ln in lines.splitlines() if ln not in before.splitlines()]
            write_bytes(path, (before + "".join(f"{ln}\n" for ln in fresh)).encode())

    def close(self, *, stale: bool = False) -> None:
        """Let the multiplexed connection end with its last command; a ``stale`` one, which would answer for the host, ends at once."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # cleaning up must not hide what went before
            subprocess.run(
                self.line(None, "-O", "exit" if stale else "stop"), stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=20
            )


def _last(said: str) -> str:
    lines = [ln.strip() for ln in said.strip().splitlines() if ln.strip()]
    return lines[-1].rstrip(".") if lines else ""


def _room(said: str) -> str:
    return "Free some space on the board's disk" if "No space left" in said or "quota" in said.lower() else ""
