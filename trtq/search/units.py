"""Pieces of finished work in one JSON file, so that an interrupted analysis goes on where it was."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from trtq.artifact import digest_of, write_json

EVERY_S = 5.0


class Units:
    """Numbers by the name of the piece of work they come from.

    Args:
        folder: None keeps nothing on disk.
        key: everything the numbers depend on.
    """

    def __init__(self, folder: Path | None, key: object) -> None:
        self.key = digest_of(key)
        self.path = folder / f"analysis-{self.key[:32]}.json" if folder else None
        self.done: dict[str, list[float]] = self._read()
        self.found = len(self.done)
        self.saved = time.monotonic()

    def _read(self) -> dict[str, list[float]]:
        if self.path is None or not self.path.is_file():
            return {}
        try:
            held = msgspec.json.decode(self.path.read_bytes(), type=dict[str, object])
            return msgspec.convert(held["units"], dict[str, list[float]]) if held.get("key") == self.key else {}
        except (OSError, KeyError, msgspec.MsgspecError):
            return {}  # torn: the work is done again

    def get(self, name: str) -> list[float] | None:
        """Return the numbers of a piece that is done, None for one that is not."""
        return self.done.get(name)

    def put(self, name: str, values: list[float]) -> None:
        """Keep the numbers of a piece; they reach the disk every few seconds and with :meth:`flush`."""
        self.done[name] = values
        if time.monotonic() - self.saved >= EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write what is done."""
        if self.path is not None:
            write_json(self.path, {"key": self.key, "units": self.done})
            self.saved = time.monotonic()
