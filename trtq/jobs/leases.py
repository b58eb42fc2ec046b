"""Leases of drivers: which driver works on a run, and whether it is alive."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trtq.errors import TrtqError
from trtq.jobs.files import Files

RENEWALS = 4  # in the time of one lease


class Driver(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep that is running, as ``drivers/ID.json`` in a store.

    Attributes:
        id: random.
        lease: seconds without a renewal after which it counts as dead.
        beat: counts renewals.
        host: name of its machine, for messages.
        place: what a process id is unique in: a boot of a machine, and a namespace.
        pid: of its process; began: when that was started, in ticks of the machine.
    """

    id: str
    lease: float
    host: str
    place: str
    pid: int
    began: str
    beat: int = 0


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A run that a driver works on, as ``runs/KEY/claim.N.json``.

    Attributes:
        driver: its id.
    """

    driver: str


def this_driver(lease: float) -> Driver:
    """Return this process as a driver with a new id.

    Args:
        lease: seconds without a renewal after which others consider it dead.
    """
    return Driver(
        id=secrets.token_hex(8),
        lease=lease,
        host=socket.gethostname(),
        place=_place(),
        pid=os.getpid(),
        began=_began(os.getpid()),
    )


def _place() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _began(pid: int) -> str:
    """Return when a process was started, "" for none, or where that cannot be read."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] == "Z" else after_name[19]


@dataclass(slots=True)
class _Seen:
    """When a driver's file was last seen to change, by this process's clock."""

    beat: int
    at: float


class Leases:
    """The drivers of a store, as one of them sees them.

    No clock of another machine counts: a driver is dead when its file did not change for the time
    of its lease while this process looked, when it has no file, or when its process on this machine
    is gone.

    Args:
        files: of the store.
        own: this driver.
    """

    def __init__(self, files: Files, own: Driver) -> None:
        self.files, self.own = files, own
        self._seen: dict[str, _Seen] = {}

    def is_new(self, file: str) -> bool:
        """Whether a file that says nothing may still be written, as the claim of a killed driver.

        It is new for the time of a lease after it was first looked at.

        Args:
            file: its name in the store.
        """
        seen = self._seen.setdefault(file, _Seen(0, time.monotonic()))
        return time.monotonic() - seen.at < self.own.lease

    def is_alive(self, driver: str) -> bool:
        """Whether a driver renews its lease.

        A driver on another machine counts as alive when it is looked at for the first time, and
        from then on until its file has not changed for the time of its lease.

        Args:
            driver: its id.

        Raises:
            ArtifactError: the store cannot be reached.
        """
        if driver == self.own.id:
            return True
        record = self.files.read_as(_file(driver), Driver)
        if record is None:
            return False
        if record.place == self.own.place and record.began:
            return _began(record.pid) == record.began
        now, seen = time.monotonic(), self._seen.get(driver)
        if seen is None or seen.beat != record.beat:
            self._seen[driver] = _Seen(record.beat, now)
            return True
        return now - seen.at < record.lease

    @contextlib.contextmanager
    def held(self, note: Callable[[str], None]) -> Iterator[None]:
        """Renew this driver's lease inside the context, in a thread.

        Args:
            note: receives a line when it cannot be renewed.

        Raises:
            ArtifactError: the store cannot be written to.
        """
        self.files.write(_file(self.own.id), self.own)  # shows that the store can be written to
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(ended, note), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(TrtqError):  # it expires
                self.files.remove(_file(self.own.id))

    def _renew(self, ended: threading.Event, note: Callable[[str], None]) -> None:
        beat = 0
        while not ended.wait(self.own.lease / RENEWALS):
            beat += 1
            try:
                self.files.write(_file(self.own.id), msgspec.structs.replace(self.own, beat=beat))
            except TrtqError as exc:
                note(f"the lease was not renewed, other drivers may take runs over: {exc}")


def _file(driver: str) -> str:
    return f"drivers/{driver}.json"
