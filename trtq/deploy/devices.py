"""The boards a user has named: one JSON file in the user's configuration folder."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from trtq.artifact import decode_json, explain_os_error, locked, write_json
from trtq.errors import DeviceError, UsageError, reason, suggest
from trtq.paths import expand_home, path_variable, user_folder

# Characters of an address: nothing that ssh could read as an option or a shell for more than a
# word.
USER, HOST = r"[A-Za-z0-9_][\w.-]*", r"[A-Za-z0-9][\w.-]*|\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]"
ADDRESS = re.compile(rf"(?:(?P<user>{USER})@)?(?P<host>{HOST})(?::(?P<port>\d{{1,5}}))?")
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
WORKDIR = ".trtq"


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A board and the way to it.

    Attributes:
        name: what the user calls it.
        user, host, port: of its SSH server; what is empty or None is what the user's own SSH
            configuration says.
        identity: private key file, "" for what SSH finds.
        jump: host to go through, as for ``ssh -J``; "" for none.
        workdir: folder on the board that is ours.
    """

    name: str
    host: str
    user: str = ""
    port: int | None = None
    identity: str = ""
    jump: str = ""
    workdir: str = WORKDIR

    @property
    def add_command(self) -> list[str]:
        """The words that add it."""
        more = [
            ("--identity", self.identity),
            ("--jump", self.jump),
            ("--workdir", self.workdir if self.workdir != WORKDIR else ""),
        ]
        return [
            "trtq",
            "device",
            "add",
            self.name,
            self.place,
            *(w for option, value in more if value for w in (option, value)),
        ]

    @property
    def address(self) -> str:
        """As it was typed."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}" * bool(self.user) or host

    @property
    def place(self) -> str:
        """The address with its port."""
        return self.address + (f":{self.port}" if self.port is not None else "")


def parse_device(
    name: str, address: str, *, identity: str = "", jump: str = "", workdir: str = WORKDIR
) -> Device:
    """Return the device that an address names.

    Args:
        name: letters, digits, ``.``, ``_`` and ``-``.
        address: ``host``, ``user@host`` or ``user@host:port``; an IPv6 host is in brackets.
        identity: private key file; ``~`` is expanded. "" for what ssh finds.
        jump: hosts to go through, separated by commas; "" for none.
        workdir: folder on the board; relative to the user's home there.

    Raises:
        UsageError: a name, an address or a jump host that is none, or an identity file that is not
            there.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"Cannot call a device {name!r}",
            "a name has letters, digits, ., _ and -",
            "Call it like nano or lab-orin.local",
        )
    user, host, port = _parse_address(address)
    _require_jump_hosts(jump)
    if not _is_workdir(workdir):
        raise UsageError(
            f"Cannot use --workdir {workdir!r}",
            "expected a folder on the board",
            "Write it like /mnt/nvme/trtq",
        )
    return Device(
        name=name,
        host=host,
        user=user,
        port=port,
        identity=_identity_path(identity) if identity else "",
        jump=jump,
        workdir=workdir,
    )


def _parse_address(address: str) -> tuple[str, str, int | None]:
    """Return user, host and port of an address."""
    parts = ADDRESS.fullmatch(address)
    if parts is None:
        is_ipv6 = address.rpartition("@")[2].count(":") > 1
        raise UsageError(
            f"Cannot read the address {address!r}",
            "expected user@host or user@host:port",
            "Write an IPv6 address in brackets: jetson@[fe80::1%eth0]:22"
            if is_ipv6
            else "Write it like jetson@192.168.55.1",
        )
    port = int(parts["port"]) if parts["port"] else None
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"Cannot use port {port} of {address!r}", "a port is between 1 and 65535")
    return parts["user"] or "", parts["host"].strip("[]"), port


def _require_jump_hosts(jump: str) -> None:
    for hop in filter(None, jump.split(",")):
        if not ADDRESS.fullmatch(hop):
            raise UsageError(
                f"Cannot read the jump host {hop!r}",
                "expected user@host or user@host:port",
                "Write it like me@gateway:2222",
            )


def _identity_path(identity: str) -> str:
    """Return the absolute path of a private key; links remain, a certificate is beside the name."""
    path = os.path.abspath(expand_home(identity, "--identity"))  # noqa: PTH100
    if not Path(path).is_file():
        raise UsageError(f"Cannot use --identity {identity}", "there is no such file")
    if not path.isprintable() or "${" in path:
        raise UsageError(
            f"Cannot use --identity {identity}",
            "ssh expands what is in its name",
            "Give the key another name",
        )
    return path


def _is_workdir(workdir: str) -> bool:
    plain = workdir.isprintable() and not workdir.startswith("-")
    return plain and 0 < len(workdir) <= 1024


def config_folder() -> Path:
    """Return the folder of devices and accepted host keys.

    It is ``$TRTQ_CONFIG``, or else trtq/ in the user's configuration folder.

    Raises:
        UsageError: nothing says where that is.
    """
    variable = path_variable("TRTQ_CONFIG")
    if variable is not None:
        return Path(variable).absolute()
    base = user_folder("XDG_CONFIG_HOME", ".config")
    if base is None:
        raise UsageError(
            "Cannot tell where devices are kept",
            "this user has no home",
            "Name a folder: export TRTQ_CONFIG=/path/to/folder",
        )
    return base / "trtq"


def writable_config() -> Path:
    """Return the same folder, made where it is missing.

    Raises:
        ArtifactError: it cannot be made.
    """
    folder = config_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise explain_os_error(exc, folder, option="folder with TRTQ_CONFIG") from exc
    return folder


def slug(text: str) -> str:
    """Return a device's name as a file name.

    >>> slug("me@[fe80::1]:22")
    'me--fe80--1--22'
    """
    return re.sub(r"[^\w.-]", "-", text)


def known_devices() -> dict[str, Device]:
    """Return the devices by name.

    Raises:
        DeviceError: the file is damaged.
    """
    path = config_folder() / "devices.json"
    hint = "Correct the file, or move it away and add them again"
    try:
        devices = decode_json(path.read_bytes(), dict[str, Device])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as exc:
        raise DeviceError(f"Cannot read the devices in {path}", reason(exc), hint) from exc
    for name, device in devices.items():
        if device.name != name or not _has_form(device):
            raise DeviceError(
                f"Cannot read the devices in {path}",
                f"the entry {name[:80]!r} is none that trtq device add writes",
                hint,
            )
    return devices


def _has_form(device: Device) -> bool:
    """Whether a device is in the form of those that ``parse_device`` returns."""
    fits = NAME.fullmatch(device.name) is not None and ADDRESS.fullmatch(device.place) is not None
    jumps = all(ADDRESS.fullmatch(hop) for hop in filter(None, device.jump.split(",")))
    return fits and jumps and device.workdir.isprintable() and bool(device.workdir)


@contextlib.contextmanager
def _changing() -> Iterator[dict[str, Device]]:
    folder = writable_config()
    with locked(folder / ".devices.lock"):
        devices = known_devices()
        yield devices
        write_json(folder / "devices.json", devices)


def remember_device(device: Device) -> None:
    """Add a device, or replace the one of its name.

    Raises:
        DeviceError: the file of devices is damaged.
        ArtifactError: it cannot be written.
    """
    with _changing() as devices:
        devices[device.name] = device


def forget_device(name: str) -> None:
    """Remove a device; nothing on the board changes.

    Raises:
        UsageError: there is none of that name.
        DeviceError: the file of devices is damaged.
        ArtifactError: it cannot be written.
    """
    find_device(name, addresses=False)
    with _changing() as devices:
        devices.pop(name, None)


def called(device: Device) -> str:
    """Return what names a device on a command line.

    This is its name, or the address of a device that was never added.
    """
    return device.name if device.name in known_devices() else device.place


def find_device(name: str, *, addresses: bool = True) -> Device:
    """Return the device called ``name``.

    Args:
        name: of a device that was added, or an address.
        addresses: whether ``user@host`` and host names with a dot work without being added; such a
            device has its address, with ``-`` for other characters, as its name.

    Raises:
        UsageError: there is none (the nearest are suggested).
        DeviceError: the file of devices is damaged.
    """
    devices = known_devices()
    if name in devices:
        return devices[name]
    first, _, rest = name.partition("@")
    if first in devices and re.fullmatch(r"\d+(\.\d+){0,2}", rest):
        raise UsageError(
            f"Unknown device {name!r}",
            f"{first} is one, and it builds with the TensorRT it has",
            f"Write {first}",
        )
    if addresses and ADDRESS.fullmatch(name) and re.search(r"[@.:]", name):
        return parse_device(slug(name).lstrip(".-_")[:64], name)
    hint = (
        suggest(name, devices)
        if devices
        else f"Add it: trtq device add {name if NAME.fullmatch(name) else 'NAME'} user@host"
    )
    raise UsageError(
        f"Unknown device {name!r}", "" if devices else "no device has been added yet", hint
    )
