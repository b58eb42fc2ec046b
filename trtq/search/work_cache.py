"""Pieces of finished work in JSON files.

An interrupted analysis continues where it was, and several processes share one.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from trtq.artifact import decode_json, digest_of, write_json
from trtq.workers import Workers

EVERY_S = 5.0


class _File(msgspec.Struct):
    """The stored units."""

    key: str
    units: dict[str, list[float]]


class WorkCache:
    """Numbers by the name of the piece of work they come from.

    Damaged files, and those of another key, count as none.

    Args:
        folder: of the files ``analysis-*.json``; None keeps nothing on disk.
        key: JSON-like; everything the numbers depend on.
        workers: with several processes each keeps a file of its own, and reads those of all.

    Attributes:
        done: what this process did.
        others: what other processes did.
        found: pieces that were on disk at the start.
    """

    def __init__(self, folder: Path | None, key: object, workers: Workers | None = None) -> None:
        self.key = digest_of(key)
        self.workers = workers or Workers()
        self.folder = folder
        self.stem = f"analysis-{self.key[:32]}"
        suffix = f".{self.workers.rank}" if self.workers.world > 1 else ""
        self.path = folder / f"{self.stem}{suffix}.json" if folder else None
        self.done: dict[str, list[float]] = {}
        self.others: dict[str, list[float]] = {}
        self.read()
        self.found = len(self.done) + len(self.others)
        self.saved = time.monotonic()

    def read(self) -> None:
        """Read what this process and every other has done."""
        for path in sorted(self.folder.glob(f"{self.stem}*.json")) if self.folder else ():
            (self.done if path == self.path else self.others).update(self._one(path))

    def _one(self, path: Path) -> dict[str, list[float]]:
        try:
            content = decode_json(path.read_bytes(), _File)
        except (OSError, msgspec.MsgspecError):
            return {}  # torn: the work is done again
        return content.units if content.key == self.key else {}

    def get(self, name: str) -> list[float] | None:
        """Return the numbers of a piece that is done, None for one that is not."""
        return self.done.get(name, self.others.get(name))

    def is_mine(self, name: str) -> bool:
        """Whether this process does the piece; every piece belongs to one of them."""
        return zlib.crc32(name.encode()) % self.workers.world == self.workers.rank

    def compute(
        self, name: str, work: Callable[[], list[float]], count: int = 1
    ) -> list[float] | None:
        """Return the numbers of a piece, and do it where it is not done.

        Args:
            name: of the piece; it decides which process does it.
            work: does it.
            count: how many numbers it has; a kept piece with another count is done again.

        Returns:
            None for a piece that another process does.
        """
        values = self.get(name)
        if values is not None and len(values) == count:
            return values
        if not self.is_mine(name):
            return None
        values = work()
        self.put(name, values)
        return values

    def put(self, name: str, values: list[float]) -> None:
        """Keep the numbers of a piece.

        They reach the disk every few seconds and with :meth:`flush`.
        """
        self.done[name] = values
        if time.monotonic() - self.saved >= EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write what is done."""
        if self.path is not None:
            write_json(self.path, _File(key=self.key, units=self.done))
            self.saved = time.monotonic()

    def collect(self, waiting: Callable[[str], None] | None = None) -> None:
        """Wait for the other processes and take over what they did.

        From here on every piece that is left belongs to this process.

        Args:
            waiting: receives a line about the processes that this one waits for.

        Raises:
            UsageError: the other processes cannot be reached.
            TrtqError: one of them ended early.
        """
        self.flush()
        with self.workers.joined(waiting=waiting):
            self.workers.wait()
        self.read()
        self.workers = Workers()
