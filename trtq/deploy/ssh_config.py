"""ssh's settings for boards, and the private folder where its sockets are."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from trtq.artifact import sha256_bytes, write_bytes
from trtq.deploy.devices import config_folder
from trtq.errors import MissingExtraError, SshError
from trtq.paths import home_folder, login_folder

# A socket's path has 108 bytes: ssh takes 17 of them while it binds, and 41 are those of a jump
# host's socket.
MOST_FOLDER = 48
# Nothing that ssh, or a shell that ssh starts, could read as more than a path.
PLAIN = re.compile(r"/[\w./+@=-]*", re.ASCII)
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
            "trtq connects to boards with the system's OpenSSH",
            "sudo apt-get install openssh-client",
        )
    return path


def socket_folder() -> tuple[Path, str]:
    """Return a short private folder for sockets and for ssh's configuration.

    It belongs to this user alone.

    Returns:
        the folder, and why it is not below XDG_RUNTIME_DIR; "" where it is, or the variable is not
        set.

    Raises:
        SshError: there is none.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    bases = [runtime, tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]  # noqa: S108
    refused: list[str] = []
    for base in dict.fromkeys(filter(None, bases)):
        folder = Path(base) / f"trtq-ssh-{os.getuid()}"
        why = _unfit(folder)
        if why is None:
            return folder, refused[0] if refused and runtime else ""
        refused.append(f"{folder}: {why}")
    raise SshError(
        "Cannot keep SSH connections anywhere",
        "; ".join(refused),
        "Set XDG_RUNTIME_DIR to a folder of your own with a short path: mkdir -m 700 /tmp/mine, "
        "export XDG_RUNTIME_DIR=/tmp/mine",
    )


def _unfit(folder: Path) -> str | None:
    """Return why sockets cannot be in ``folder``, or None where they can.

    The folder is made where it is missing.
    """
    if not PLAIN.fullmatch(str(folder)) or len(os.fsencode(folder)) > MOST_FOLDER:
        return (
            f"its path has more than {MOST_FOLDER} bytes, is relative, or has characters that "
            "ssh expands"
        )
    try:
        if not _is_protected(folder.parent.stat()):
            return "others can put another folder in its place"
        folder.mkdir(mode=0o700, exist_ok=True)
        if not _is_private(folder.lstat()):
            return "it is not this user's alone"
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".trial-"):
            return None
    except OSError as exc:
        return (exc.strerror or str(exc)).lower()


def _is_protected(base: os.stat_result) -> bool:
    """Return whether nobody else can replace what is in a folder."""
    writable = base.st_mode & 0o022 and not base.st_mode & stat.S_ISVTX
    return base.st_uid in (0, os.getuid()) and not writable


def _is_private(status: os.stat_result) -> bool:
    """Return whether a path is a folder of this user alone."""
    own = status.st_uid == os.getuid() and not status.st_mode & 0o077
    return own and stat.S_ISDIR(status.st_mode)


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


def write_config(folder: Path) -> Path:
    """Write the ssh settings that come before the user's own, and return their file.

    The user's own settings then fill in the rest. Jump hosts get the same file.

    The first value that OpenSSH reads counts, so the user's files can bring back neither prompts
    nor unchecked host keys. All other settings are the user's, including ``IgnoreUnknown`` and
    ``UserKnownHostsFile``; host keys that were accepted through trtq are read in addition. The
    file's path needs no quotes, because ssh itself puts it into a shell's command line for jump
    hosts.

    Args:
        folder: as :func:`socket_folder` returns it; the name of the file has a digest of its
            content.

    Raises:
        ArtifactError: it cannot be written.
    """
    home = home_folder()
    hosts = [known_hosts()]
    mine: list[str] = []
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
