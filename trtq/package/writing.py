"""Write a package as a whole: its record vouches for all files, or is not there."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection
from pathlib import Path

from trtq.artifact import FileRecord, ensure_writable_dir, explain_os_error, write_bytes
from trtq.errors import ArtifactError, listed
from trtq.files import LOCK, PACKAGE_JSON, STAGING
from trtq.package.check import check_package
from trtq.package.consumer import Files
from trtq.records.package import PackageRecord
from trtq.workspace import Workspace

OWN = (LOCK, STAGING)
SHOWN = 3


def require_free(folder: Path) -> list[str]:
    """Return the files of the package that a new one replaces; none in an empty folder.

    Raises:
        ArtifactError: the folder has files that are not of a package, or were changed since.
    """
    if not folder.is_dir() or all(p.name in OWN for p in folder.iterdir()):
        return []
    what = f"Cannot package into {folder}"
    if not (folder / PACKAGE_JSON).is_file():
        why = f"it has files, and no {PACKAGE_JSON}"
        raise ArtifactError(what, why, "Choose another --out, or remove the folder")
    checked = check_package(folder)
    if checked.altered or checked.extra:
        changed = listed([*checked.altered, *checked.extra], SHOWN)
        why = f"it has a package and files that were changed or added since: {changed}"
        raise ArtifactError(what, why, "Choose another --out, or remove the folder")
    return list(checked.record.files)


def stage(work: Workspace, files: Files) -> dict[str, FileRecord]:
    """Write the files beside their places, and return their digests.

    Args:
        work: the workspace of the package.
        files: by path below the package; what an earlier run left beside them is removed.

    Returns:
        size and SHA-256 by the same paths.

    Raises:
        ArtifactError: a file cannot be written.
    """
    shutil.rmtree(work.folder / STAGING, ignore_errors=True)  # of a run that was killed
    staging = work.staging()
    for name, data in files.items():
        ensure_writable_dir((staging / name).parent)
        write_bytes(staging / name, data)
    return {name: FileRecord.of(staging / name) for name in files}


def publish(work: Workspace, record: PackageRecord, old: Collection[str]) -> None:
    """Put the staged files in the place of those of an older package; the record comes last.

    A process that is killed in between leaves a folder without a record, which no check takes for a
    package.

    Args:
        work: the workspace, with staged files.
        record: of the new package.
        old: files of the older package, as :func:`require_free` returned them.

    Raises:
        ArtifactError: an old file cannot be removed.
    """
    (work.folder / PACKAGE_JSON).unlink(missing_ok=True)
    try:
        _remove(work.folder, old)
    except OSError as exc:
        raise explain_os_error(exc, work.folder) from exc
    work.publish(dict.fromkeys(Path(n).parts[0] for n in record.files), record)


def _remove(folder: Path, names: Collection[str]) -> None:
    """Remove files and the folders that become empty."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    above = {p for name in names for p in Path(name).parents if p.parts}
    for place in sorted(above, key=lambda p: len(p.parts), reverse=True):
        with contextlib.suppress(FileNotFoundError):
            (folder / place).rmdir()
