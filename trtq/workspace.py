"""The folder that a command works in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from trtq.artifact import (
    FileRecord,
    Record,
    ensure_writable_dir,
    ensure_writable_file,
    leftovers,
    locked,
    require_writable_dir,
    write_json,
)
from trtq.files import LOCK, STAGING
from trtq.progress import Clock, Notes, Progress


class Workspace:
    """An output folder whose record vouches for the files in it.

    Args:
        folder: is created with the first file in it, or with its lock.
        record: name of the record's file.
        progress: receives what happens.
        clock: running since the command began; default: a new one.

    Attributes:
        note: passes lines on and keeps them for the record.

    Raises:
        ArtifactError: the folder cannot be written to.
    """

    def __init__(
        self, folder: Path, record: str, progress: Progress, clock: Clock | None = None
    ) -> None:
        self.folder = require_writable_dir(folder)
        self.record, self.progress = record, progress
        self.note, self.clock = Notes(progress.note), clock or Clock()

    @classmethod
    def for_file(
        cls,
        path: Path,
        progress: Progress,
        *,
        inputs: Iterable[Path] = (),
        record: str | None = None,
        clock: Clock | None = None,
    ) -> Workspace:
        """Return the workspace of a command that writes one file.

        One file is replaced as a whole: it needs no lock.

        Args:
            path: of the file.
            progress: receives what happens.
            inputs: files that must not be overwritten.
            record: name of the record beside it; None where the file is the record.
            clock: running since the command began; default: a new one.

        Raises:
            ArtifactError: it cannot or must not be written.
        """
        ensure_writable_file(path, inputs=inputs)
        return cls(path.parent, record or path.name, progress, clock)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock; a second process waits."""
        ensure_writable_dir(self.folder)
        with locked(self.folder / LOCK, waiting=self.progress.note):
            yield

    def remove_leftovers(self, names: Iterable[str]) -> None:
        """Remove the temporary files of a run that was killed.

        Args:
            names: of the files that the command writes, without the record.
        """
        names = (*names, self.record)
        for folder in (self.folder, self.folder / STAGING):
            for left in leftovers(folder, names):
                left.unlink()

    def staging(self) -> Path:
        """Return the folder beside the results where new files are written."""
        return ensure_writable_dir(self.folder / STAGING)

    def publish(
        self, names: Iterable[str], record: Record, *, outdated: Iterable[str] = ()
    ) -> None:
        """Replace the folder's files by those of the staging folder.

        The old record is removed first and the new one is written last, so that a record always
        vouches for a whole set of files.

        Args:
            names: of the files in the staging folder.
            record: of all of them.
            outdated: names of files that would vouch for the old ones; they are removed.
        """
        staging = self.staging()
        write_json(staging / self.record, record)
        for name in (self.record, *outdated):
            (self.folder / name).unlink(missing_ok=True)
        for name in (*names, self.record):
            (staging / name).replace(self.folder / name)
        with contextlib.suppress(OSError):  # it holds files of another origin
            staging.rmdir()

    def save(self, record: Record) -> None:
        """Write the record; it replaces the old one.

        Raises:
            ArtifactError: it cannot be written.
        """
        write_json(ensure_writable_dir(self.folder) / self.record, record)


def file_records(paths: Iterable[Path]) -> dict[str, FileRecord]:
    """Return digest and size of files, by name without folder.

    Raises:
        OSError: one of them cannot be read.
    """
    return {path.name: FileRecord.of(path) for path in paths}
