"""Temporary folders and files that go away."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from trtq.errors import ArtifactError, reason


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Create a folder for temporary files and remove it at the end.

    Args:
        name: in the folder's name, such as ``build`` for ``trtq-build-...``.

    Raises:
        ArtifactError: there is no folder for temporary files that can be written to.
    """
    try:
        place = Path(tempfile.gettempdir()) / f"trtq-{name}-{secrets.token_hex(6)}"
    except OSError as exc:
        raise _no_scratch(exc, "folder") from exc
    try:  # the name is known before the folder is there: a signal in between leaves nothing behind
        try:
            place.mkdir(mode=0o700)
        except OSError as exc:
            raise _no_scratch(exc, "folder") from exc
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def scratch_file() -> IO[str]:
    """Return a new temporary text file without a name; it is gone when it is closed.

    Raises:
        ArtifactError: there is no folder for temporary files that can be written to.
    """
    try:
        return tempfile.TemporaryFile("w+", errors="replace")
    except OSError as exc:
        raise _no_scratch(exc, "file") from exc


def _no_scratch(exc: OSError, what: str) -> ArtifactError:
    why = (
        "no folder for temporary files can be written to"
        if isinstance(exc, FileNotFoundError)
        else reason(exc)
    )
    mend = "Set TMPDIR to a folder that exists, can be written to and has space"
    return ArtifactError(f"Cannot make a temporary {what}", why, mend)
