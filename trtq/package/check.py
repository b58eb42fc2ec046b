"""Whether a package is what its record says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trtq.artifact import read_record, sha256_file
from trtq.errors import ArtifactError
from trtq.files import LOCK, PACKAGE_JSON, STAGING
from trtq.records.package import PackageRecord


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A package beside its record.

    Attributes:
        record: of the package.
        altered, missing, extra: paths below the package.
    """

    record: PackageRecord
    altered: list[str]
    missing: list[str]
    extra: list[str]

    @property
    def whole(self) -> bool:
        """Whether every file is there, as it was written, and no other."""
        return not (self.altered or self.missing or self.extra)

    @property
    def lines(self) -> list[str]:
        """Defects, a file a line."""
        kinds = {"altered": self.altered, "missing": self.missing, "extra": self.extra}
        return [f"{kind}: {name}" for kind, names in kinds.items() for name in names]


def read_package(folder: Path) -> PackageRecord:
    """Return the record of a package.

    Raises:
        ArtifactError: there is none, it is damaged, or names files outside the folder.
    """
    if not folder.is_dir():
        why = "it is not a folder" if folder.exists() else "there is no such folder"
        raise ArtifactError(f"Cannot check {folder}", why, "Give the --out of trtq package")
    path = folder / PACKAGE_JSON
    if not path.exists():
        raise ArtifactError(
            f"Cannot check {folder}", f"it has no {PACKAGE_JSON}", "Give the --out of trtq package"
        )
    record = read_record(path, PackageRecord, kind="package record")
    outside = next((n for n in record.files if not _is_inside(n)), None)
    if record.verb != "package" or outside is not None:
        why = f"it is of trtq {record.verb}" if outside is None else f"it names {outside!r}"
        raise ArtifactError(f"Cannot use the package record {path}", why, "Package it again")
    return record


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def check_package(folder: Path) -> Checked:
    """Compare every file of a package with its record.

    Args:
        folder: of the package; files that are being written into its staging folder do not count.

    Raises:
        ArtifactError: there is no record, or it is damaged.
    """
    record = read_package(folder)
    present = {n: folder / n for n in record.files if (folder / n).is_file()}
    own = {PACKAGE_JSON, LOCK, *record.files}
    inside = (p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    names = [p.relative_to(folder).as_posix() for p in inside]
    # Files of a killed run belong to no package.
    names = [n for n in names if not n.startswith(f"{STAGING}/")]
    return Checked(
        record=record,
        altered=[n for n, p in present.items() if sha256_file(p) != record.files[n].sha256],
        missing=[n for n in record.files if n not in present],
        extra=sorted(n for n in names if n not in own),
    )
