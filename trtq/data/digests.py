"""Digests of files that were read before, kept for as long as the files are unchanged."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import msgspec

from trtq.artifact import Stamp, sha256_bytes, write_bytes
from trtq.errors import ArtifactError
from trtq.paths import user_folder

SCHEMA = 1
WORTH_BYTES = 16 * 2**20  # smaller sets are read in full every time
SETTLED_NS = (
    2_000_000_000  # a file that changed this recently may change again within one tick of its times
)


class _File(msgspec.Struct, frozen=True, kw_only=True):
    """The file of a cache: (stamp, SHA-256) by name."""

    schema: int
    place: str
    digests: dict[str, tuple[Stamp, str]]


class DigestCache:
    """Digests of the files of one place, in the user's cache folder.

    A reader sees a whole file or none; of two writers the last wins, and both are right.

    Args:
        place: where the files are, the same text for every spelling of the path.
        size: bytes that would be read without a cache; small sets do without one.
    """

    def __init__(self, place: str, size: int) -> None:
        folder = cache_folder() if size >= WORTH_BYTES else None
        self.path = (
            folder / f"{sha256_bytes(place.encode('utf-8', 'surrogateescape'))[:32]}.msgpack"
            if folder
            else None
        )
        self.place, self.now, self.added = (
            os.fsencode(place).decode("utf-8", "backslashreplace"),
            time.time_ns(),
            False,
        )
        self.known: dict[str, tuple[Stamp, str]] = {}
        with contextlib.suppress(
            OSError, msgspec.MsgspecError
        ):  # none yet, or damaged: everything is read
            content = (
                msgspec.msgpack.decode(self.path.read_bytes(), type=_File) if self.path else None
            )
            if content is not None and (content.schema, content.place) == (SCHEMA, self.place):
                self.known = content.digests

    def get(self, name: str, stamp: Stamp | None) -> str | None:
        """Return the digest of a file whose stamp is unchanged, else None.

        Args:
            name: of the file in its place.
            stamp: inode, size and times of the file as it is now; None without a file.
        """
        known = self.known.get(name)
        return known[1] if known is not None and known[0] == stamp else None

    def put(self, name: str, stamp: Stamp | None, digest: str) -> None:
        """Keep a digest of a file whose stamp was taken before it was read.

        Args:
            name: of the file in its place.
            stamp: as for :meth:`get`; files that changed within the last two seconds are not kept.
            digest: SHA-256, 64 hex digits.
        """
        if (
            stamp is not None
            and self.now - stamp.ctime_ns > SETTLED_NS
            and self.known.get(name) != (stamp, digest)
        ):
            self.known[name], self.added = (stamp, digest), True

    def save(self) -> None:
        """Write what was added; a folder that cannot be written keeps nothing."""
        if self.path is None or not self.added:
            return
        with contextlib.suppress(OSError, ArtifactError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(
                self.path,
                msgspec.msgpack.encode(_File(schema=SCHEMA, place=self.place, digests=self.known)),
            )


def cache_folder() -> Path | None:
    """Return ``$XDG_CACHE_HOME/trtq/digests``; None for a user without a home."""
    base = user_folder("XDG_CACHE_HOME", ".cache")
    return None if base is None else base / "trtq/digests"
