"""The system's OpenSSH, without prompts and with host keys always checked.

Each device has one multiplexed connection.

ssh writes its own messages to a separate log file (``-E``): what a board writes to standard error
is never taken for them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from trtq.artifact import digest_of, locked, sha256_bytes, write_bytes
from trtq.deploy.devices import Device, config_folder, writable_config
from trtq.deploy.stream import MIB, Limits, Stream
from trtq.errors import (
    DeviceError,
    HostKeyError,
    LinkError,
    MissingExtraError,
    SshError,
    TrtqError,
    last_line,
)
from trtq.paths import home_folder, login_folder

FAILED = 255  # ssh's own exit status: the link, never the command
ASIDE = Limits(line_bytes=MIB, total_bytes=MIB, error_bytes=MIB, silence_s=60.0, call_s=60.0)
# a socket's path has 108 bytes: ssh takes 17 of them while it binds, and 41 are those of a jump
# host's socket
MOST_FOLDER = 48
PLAIN = re.compile(
    r"/[\w./+@=-]*", re.ASCII
)  # nothing that ssh, or a shell that ssh starts, could read as more than a path
GLOBAL_HOSTS = (Path("/etc/ssh/ssh_known_hosts"), Path("/etc/ssh/ssh_known_hosts2"))


def require_ssh() -> str:
    """Return the path of OpenSSH's client.

    Raises:
        MissingExtraError: there is none.
    """
    path = shutil.which("ssh")
    if path is None:
        raise MissingExtraError(
            "There is no ssh here",
            "trtq goes to boards with the system's OpenSSH",
            "sudo apt-get install openssh-client",
        )
    return path


def _socket_folder() -> tuple[Path, str]:
    """Return a short private folder, and why it is not below XDG_RUNTIME_DIR.

    The folder is for sockets and for ssh's configuration. It belongs to this user alone.

    Raises:
        SshError: there is none.
    """
    refused = list[str]()
    bases = [
        os.environ.get("XDG_RUNTIME_DIR"),
        tempfile.gettempdir(),
        "/tmp",  # noqa: S108
        "/var/tmp",  # noqa: S108
        "/dev/shm",  # noqa: S108
    ]
    for base in dict.fromkeys(bases):
        folder = Path(base or "") / f"trtq-ssh-{os.getuid()}"
        why = _unfit(folder) if base else None
        if base and why is None:
            return folder, refused[0] if refused and os.environ.get("XDG_RUNTIME_DIR") else ""
        refused += [f"{folder}: {why}"] if why else []
    raise SshError(
        "Cannot keep SSH connections anywhere",
        "; ".join(refused),
        "Set XDG_RUNTIME_DIR to a folder of your own with a short path: mkdir -m 700 /tmp/mine, "
        "export XDG_RUNTIME_DIR=/tmp/mine",
    )


def _unfit(folder: Path) -> str | None:
    """Return why sockets cannot lie in ``folder``, or None where they can.

    The folder is made where it is missing.
    """
    if not PLAIN.fullmatch(str(folder)) or len(os.fsencode(folder)) > MOST_FOLDER:
        return (
            f"its path has more than {MOST_FOLDER} bytes, is relative, or has characters that "
            "ssh expands"
        )
    try:
        base = folder.parent.stat()
        if base.st_uid not in (0, os.getuid()) or (
            base.st_mode & 0o022 and not base.st_mode & stat.S_ISVTX
        ):
            return "others can put another folder in its place"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
            return "it is not this user's alone"
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".trial-"):
            return None
    except OSError as exc:
        return (exc.strerror or str(exc)).lower()


def known_hosts() -> Path:
    """Return the file of the host keys that were accepted through trtq."""
    return config_folder() / "known_hosts"


def quoted(path: Path | str) -> str:
    r"""Return a path as an argument in ssh's configuration; ``%`` is not touched.

    >>> quoted('/home/me/my "keys"')
    '"/home/me/my \\"keys\\""'
    """
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _config(folder: Path) -> Path:
    """Write the ssh settings that come before the user's own.

    The user's own settings then fill in the rest. Jump hosts get the same file.

    The first value that OpenSSH reads counts, so the user's files can bring back neither prompts
    nor unchecked host keys. All other settings are the user's, including ``IgnoreUnknown`` and
    ``UserKnownHostsFile``; host keys that were accepted through trtq are read in addition. The
    file's path needs no quotes, because ssh itself puts it into a shell's command line for jump
    hosts.
    """
    home = home_folder()
    hosts, mine = [known_hosts()], list[str]()
    if home is not None:
        if home != login_folder():  # ssh looks there alone
            hosts.append(home / ".ssh/known_hosts")
        mine = [f"Include {_plain(home / '.ssh/config', folder)}"]
    known = " ".join(quoted(p) for p in (*hosts, *GLOBAL_HOSTS))
    lines = [
        "Host *",
        "  BatchMode yes",
        "  ConnectTimeout 10",
        "  ServerAliveInterval 15",
        "  ServerAliveCountMax 4",
        "  TCPKeepAlive yes",
        "  StrictHostKeyChecking yes",
        "  UpdateHostKeys no",
        f"  GlobalKnownHostsFile {known}",
        "  ControlMaster auto",
        f"  ControlPath {folder}/%C",
        "  ControlPersist 60",
        "  ForwardAgent no",
        "  ForwardX11 no",
        "  RequestTTY no",
        "  PermitLocalCommand no",
        "  ClearAllForwardings yes",
        "  RemoteCommand none",
        "  LogLevel ERROR",
        "  Compression no",
        *mine,
        "Include /etc/ssh/ssh_config",
    ]
    data = ("\n".join(lines) + "\n").encode()
    path = folder / f"config-{sha256_bytes(data)[:16]}"
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)
    return path


def _plain(path: Path, folder: Path) -> Path:
    """Return ``path``, or a link to it in ``folder`` where ssh would interpret its characters."""
    if PLAIN.fullmatch(str(path)):
        return path
    link = folder / f"link-{sha256_bytes(os.fsencode(path))[:16]}"
    with contextlib.suppress(FileExistsError):
        link.symlink_to(path)
    return link


class Link:
    """The way to one device.

    Args:
        device: where.

    Attributes:
        note: what a user should know about this machine's side of it, "" for nothing.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.ssh, (self.folder, passed_over) = require_ssh(), _socket_folder()
        self.note = (
            f"SSH connections are kept in {self.folder}: XDG_RUNTIME_DIR cannot be used "
            f"({passed_over})"
            if passed_over
            else ""
        )
        self.config = _config(self.folder)
        # By everything that leads there: older clients tell neither jump hosts nor identities apart
        # by themselves.
        self.socket = self.folder / digest_of(msgspec.to_builtins(device))[:16]

    def line(self, command: str | None, *options: str) -> list[str]:
        """Return the command line of ssh.

        ``command`` is one of trtq's own fixed texts, never what a user typed.
        """
        device = self.device
        line = [self.ssh, "-F", str(self.config), *options, "-o", f"ControlPath={self.socket}"]
        if device.jump:  # behind other gateways the same address is another board
            line += ["-o", f"HostKeyAlias=trtq-{device.name}"]
        line += ["-p", str(device.port)] if device.port is not None else []
        if device.identity:  # "-i" takes a name as it is and expands it later all the same
            line += [
                "-o",
                f"IdentityFile={quoted(device.identity.replace('%', '%%'))}",
                "-o",
                "IdentitiesOnly=yes",
            ]
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

        The output is read within ``limits``, and the command ends with the block.
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
            said = b"".join(iter(stream.block, b""))
            code = stream.end()
            if code == FAILED:
                raise self.explain(stream.own, stream.errors)
            if code:
                raise SshError(
                    f"{self.device.name} fails at a command of trtq",
                    last_line(stream.errors) or f"exit status {code}",
                )
        return said

    def explain(self, own: str, errors: str = "") -> TrtqError:
        """Return the error that OpenSSH's own words mean.

        Args:
            own: what this machine's ssh said.
            errors: standard error of the device, shown but never taken for ssh's words.
        """
        words = _own_words(own)
        if any(JUMP_FAILED.fullmatch(ln) for ln in words) and self._has_proxy():
            words = [*self._words_of_proxy(), *words]
        said = "\n".join(words)
        for meaning in (self._host_key, self._login, self._network):
            found = meaning(said)
            if found is not None:
                return found
        # All else passes: a cut connection leaves whatever the board happened to write last.
        wrote = last_line(errors)
        ended = (
            f"the connection ended; the board wrote: {wrote}" if wrote else "the connection ended"
        )
        return LinkError(
            self._where,
            words[-1][:400] if words else ended,
            "Is the board on, and in this network?",
        )

    @property
    def _where(self) -> str:
        return f"Cannot reach {self.device.name} ({self.device.address})"

    def _host_key(self, said: str) -> TrtqError | None:
        """Return what is wrong with the host key."""
        device, add = self.device, shlex.join(self.device.add_command)
        if re.search(
            r"^@ +WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! +@$|^Host key for .+ has "
            r"changed and ",
            said,
            re.MULTILINE,
        ):
            entry = re.search(r"^Offending \S+ key in (.+):(\d+)$", said, re.MULTILINE)
            place = f"{entry[1]}, line {entry[2]}" if entry else "the list of known hosts"
            host = (
                f"trtq-{device.name}"
                if device.jump
                else device.host
                if device.port in (None, 22)
                else f"[{device.host}]:{device.port}"
            )
            remove = shlex.join(["ssh-keygen", "-R", host, *(["-f", entry[1]] if entry else [])])
            return HostKeyError(
                self._where,
                f"its host key is not the one in {place}: the board was flashed anew, or this "
                "is another machine",
                f"If you know why, remove the old key ({remove}), then: {add}",
            )
        if not re.search(
            r"^Host key verification failed\.$|host key is known for \S+ and you have requested",
            said,
            re.MULTILINE,
        ):
            return None
        unknown = re.search(r"host key is known for (\S+)", said)
        other = (
            bool(device.jump)
            and unknown is not None
            and unknown[1].strip("[]").split("]")[0].lower() not in self._names()
        )
        named = shlex.quote(unknown[1]) if unknown is not None else ""
        mend = (
            f"Log in to {named} once with ssh and accept its key"
            if other
            else f"Look at its key and accept it: {add}"
        )
        return HostKeyError(
            self._where,
            f"the host key of {unknown[1] if other and unknown else 'this host'} has not been "
            "accepted yet",
            mend,
        )

    def _login(self, said: str) -> TrtqError | None:
        """Return why the login fails."""
        device = self.device
        if re.search(
            r"^@ +WARNING: UNPROTECTED PRIVATE KEY FILE! +@$|: bad permissions$", said, re.MULTILINE
        ):
            named = re.search(r"^Load key \"(.+)\": bad permissions$", said, re.MULTILINE)
            key = device.identity or (named[1] if named else "")
            mend = shlex.join(["chmod", "600", key]) if key else "chmod 600 ~/.ssh/id_*"
            return SshError(self._where, "the private key can be read by others", mend)
        denied = re.search(r"^\S+: Permission denied \(([\w,-]+)\)\.$", said, re.MULTILINE)
        many = r"^Received disconnect from \S+ port \d+:\d+: Too many authentication failures"
        if not denied and not re.search(many, said, re.MULTILINE):
            return None
        locked_key = self._locked_key()
        if locked_key is not None:
            return SshError(
                self._where,
                f"the board knows the key {locked_key}, but it has a passphrase and no agent "
                "has it; trtq never asks for one",
                f"Unlock it once: {shlex.join(['ssh-add', locked_key])} (without an agent, "
                "before it: eval $(ssh-agent))",
            )
        copy = [
            "ssh-copy-id",
            *(["-i", device.identity] if device.identity else []),
            *(["-p", str(device.port)] if device.port else []),
        ]
        user = f"{device.user}@{device.host}" if device.user else device.host
        ways = f" (it offers {denied[1]})" if denied else ""
        return SshError(
            self._where,
            f"it refuses the login{ways}; trtq never asks for passwords",
            f"Give it your key: {shlex.join([*copy, user])}; or name another with --identity",
        )

    def _network(self, said: str) -> TrtqError | None:
        """Return what keeps the network from the device."""
        if re.search(r"Could not resolve hostname|Name or service not known", said):
            mend = (
                f"Use its address: trtq device add {shlex.quote(self.device.name)} user@192.168.x.y"
            )
            return LinkError(self._where, "its name is not known in this network", mend)
        refused = re.search(
            r"^ssh: connect to host (\S+) port (\d+): Connection refused$", said, re.MULTILINE
        )
        if refused:
            return LinkError(
                self._where,
                f"nothing listens on port {refused[2]} of {refused[1]}",
                "Is sshd running on the board (sudo systemctl start ssh), and is this its port?",
            )
        if re.search(
            r"^.+: line \d+: Bad configuration option: |terminating, \d+ bad configuration "
            r"options$",
            said,
            re.MULTILINE,
        ):
            return SshError(
                self._where,
                f"ssh cannot read its configuration: {said.splitlines()[0][:300]}",
                "Correct that line",
            )
        return None

    def _locked_key(self) -> str | None:
        """Return the private key that the board would take and that nothing here can open.

        The result is None where there is none.
        """
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="log-") as log:
            options = (
                "-E",
                log.name,
                "-o",
                "LogLevel=DEBUG1",
                "-o",
                "ControlPath=none",
                "-o",
                "ConnectTimeout=5",
            )
            with contextlib.suppress(DeviceError):
                self._run(self.line("true", *options))
            said = Path(log.name).read_text(encoding="utf-8", errors="replace")
        if re.search(r"^debug1: Authenticated to |^Authenticated to ", said, re.MULTILINE):
            return None
        accepted = re.findall(
            r"^debug1: Server accepts key: (.+) \S+ SHA256:\S+(?: explicit| agent)*$",
            said,
            re.MULTILINE,
        )
        tried = re.findall(
            r"^debug1: Trying private key: (.+)$", said, re.MULTILINE
        )  # without its public half nothing can be offered
        return next(
            (k for k in (*accepted, *tried) if Path(k).is_file() and self._has_passphrase(k)), None
        )

    def _has_passphrase(self, key: str) -> bool:
        """Whether a private key needs a passphrase.

        ``ssh-keygen`` says which of its failures it is.
        """
        done = self._run(["ssh-keygen", "-y", "-P", "", "-f", key])
        return done.returncode != 0 and "incorrect passphrase" in done.stderr

    def _has_proxy(self) -> bool:
        """Whether another program, such as the ssh of a jump host, leads to the device."""
        return (
            re.search(
                r"^proxy(?:jump|command) (?!none$)",
                self._run(self.line(None, "-G")).stdout,
                re.MULTILINE,
            )
            is not None
        )

    def _words_of_proxy(self) -> list[str]:
        """Return the messages of a jump host's ssh.

        A kept connection discards them, so this connects once without one.

        Nothing else writes to standard error until the device itself is reached.
        """
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="log-") as log:
            alone = (
                "-E",
                log.name,
                "-o",
                "ControlPath=none",
                "-o",
                "ControlMaster=no",
                "-o",
                "ControlPersist=no",
            )
            done = self._run(self.line("true", *alone))
            own = _own_words(Path(log.name).read_text(encoding="utf-8", errors="replace"))
        reached = done.returncode != FAILED or not any(JUMP_FAILED.fullmatch(ln) for ln in own)
        return [] if reached else _own_words(done.stderr)

    def _names(self) -> set[str]:
        """Return the names that OpenSSH may use for the device.

        They are what was typed, what the user's configuration makes of it, and the device's alias.
        """
        resolved = re.search(
            r"^hostname (\S+)$", self._run(self.line(None, "-G")).stdout, re.MULTILINE
        )
        return {
            self.device.host.lower(),
            f"trtq-{self.device.name}".lower(),
            *([resolved[1].lower()] if resolved else []),
        }

    def offered_key(self) -> tuple[str, list[str]]:
        """Return the host keys that the device shows, and their fingerprints.

        The keys are lines of known_hosts.

        Raises:
            LinkError, SshError: it cannot be reached.
        """
        with tempfile.TemporaryDirectory(prefix="trtq-key-") as folder:
            path = Path(folder) / "known_hosts"
            log = Path(folder) / "log"
            done = self._run(
                self.line(
                    "true",
                    "-o",
                    "StrictHostKeyChecking=accept-new",
                    "-o",
                    f"UserKnownHostsFile={quoted(str(path).replace('%', '%%'))}",
                    "-o",
                    "HashKnownHosts=no",
                    "-o",
                    "ControlPath=none",
                    "-o",
                    "GlobalKnownHostsFile=none",
                    "-E",
                    str(log),
                    "-o",
                    # the key comes before the login, and nothing runs there
                    "PreferredAuthentications=none",
                )
            )
            if not path.is_file():
                raise self.explain(
                    log.read_text(encoding="utf-8", errors="replace") if log.is_file() else "",
                    done.stderr,
                )
            shown = self._run(["ssh-keygen", "-lf", str(path)])
            prints = [ln.strip() for ln in shown.stdout.splitlines()]
            if shown.returncode or not prints:
                why = f"ssh-keygen shows no fingerprint: {last_line(shown.stderr)}"
                raise SshError(
                    f"Cannot show the host key of {self.device.name}",
                    why,
                    "sudo apt-get install openssh-client",
                )
            return path.read_text(), prints

    def _run(self, line: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a program of this machine that may reach the device; what it prints is limited."""
        stream = Stream(
            self.popen(line, subprocess.DEVNULL), self.device.name, ASIDE, Path(os.devnull)
        )
        try:
            said = b"".join(iter(stream.block, b"")).decode("utf-8", "replace")
            return subprocess.CompletedProcess(line, stream.end(), said, stream.errors)
        finally:
            stream.close()

    def accept(self, lines: str) -> None:
        """Keep host keys that the user has accepted."""
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


# Lines of ssh's own log which say that no session came about because the way there, another ssh,
# failed.
JUMP_FAILED = re.compile(
    r"Connection closed by UNKNOWN port 65535|kex_exchange_identification: "
    r".+|ssh_exchange_identification: .+|banner exchange: .+"
)


def _own_words(text: str) -> list[str]:
    """Return ssh's lines up to the first that carries words of the other side.

    Such words could hold anything.
    """
    words: list[str] = []
    for line in text.splitlines():
        if line.strip():
            words.append(line.rstrip())
        if line.startswith("Received disconnect from "):
            break
    return words
