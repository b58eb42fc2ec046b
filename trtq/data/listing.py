"""Contents of a folder or a zip: no name is lost, doubled or followed in circles silently."""

from __future__ import annotations

import os
import posixpath
import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar

from trtq.errors import DataError, reason, suggest

T = TypeVar("T")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
FOREIGN = "__MACOSX"  # what the Finder adds to a zip
DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(slots=True)
class Listing(Generic[T]):
    """Files and folders below a root.

    Attributes:
        files: by relative posix path, what reads them; hidden ones are not among them.
        folders: names on the first level, empty ones included.
        notes: lines that a user should read.
    """

    files: dict[str, T] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def note_names(self, name: str, hidden: Iterable[str]) -> None:
        """Add lines about hidden names and about names that differ only in case.

        Args:
            name: of the data.
            hidden: names that were left out.
        """
        left_out = sorted(hidden)
        if left_out:
            self.notes.append(
                f"{len(left_out)} hidden names in {name} are left out, such as {left_out[0]}"
            )
        first: dict[str, str] = {}
        for one in sorted(self.files):
            other = first.setdefault(same_name(one), one)
            if other != one:
                self.notes.append(
                    f"names in {name} differ only in case, such as {other} and {one}: both are used"
                )
                return


def same_name(text: str) -> str:
    """Return a name without case and Unicode composition, which some file systems ignore."""
    return unicodedata.normalize("NFC", text).casefold()


def is_image(path: str) -> bool:
    """Return whether a name ends like an image's."""
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def is_hidden(part: str) -> bool:
    """Return whether a file or folder is hidden, or the Finder's."""
    return part.startswith(".") or part == FOREIGN


def list_folder(name: str, root: Path) -> Listing[Path]:
    """Return what is below a folder; links to files and folders are followed, never in circles.

    Args:
        name: what the user calls it.
        root: the folder.

    Raises:
        DataError: a folder cannot be read, or a link leads nowhere.
    """
    listing = Listing[Path]()
    hidden: list[str] = []
    pending = [(root, frozenset({_inode(name, root)}))]
    while pending:
        folder, above = pending.pop()
        for entry in _entries(name, folder):
            text = _text(Path(entry.path).relative_to(root))
            is_folder = _is_folder(name, entry, text)
            if is_hidden(entry.name):
                hidden += [text] * _is_reported(text, is_folder=is_folder)
            elif not is_folder:
                if entry.is_file():
                    listing.files[text] = Path(entry.path)
            elif (inode := _inode(name, Path(entry.path))) in above:
                listing.notes.append(
                    f"{text} in {name} is a link to a folder above it and is left out"
                )
            else:
                if folder == root:
                    listing.folders.add(text)
                pending.append((Path(entry.path), above | {inode}))
    listing.note_names(name, hidden)
    return listing


def _is_reported(text: str, *, is_folder: bool) -> bool:
    """Return whether a user should know that a hidden name is left out: not of the Finder's."""
    path = PurePosixPath(text)
    if FOREIGN in path.parts:
        return False
    return is_folder or (is_image(text) and not path.name.startswith("._"))


def _text(path: Path) -> str:
    """Return a path as text for records: bytes that are not UTF-8 become escapes."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _entries(name: str, folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda e: e.name)
    except OSError as exc:
        raise DataError(f"Cannot read the folder {folder} of {name}", reason(exc)) from exc


def _is_folder(name: str, entry: os.DirEntry[str], text: str) -> bool:
    """Return whether an entry is a folder or a link to one.

    Raises:
        DataError: it is a visible link that leads nowhere.
    """
    if entry.is_symlink() and not is_hidden(entry.name) and not Path(entry.path).exists():
        raise DataError(
            f"{text} in {name} is a link that leads nowhere",
            f"its target is {Path(entry.path).readlink()}",
            "Remove the link or restore its target",
        )
    try:
        return entry.is_dir()
    except OSError:  # a hidden link in a circle
        return False


def _inode(name: str, folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as exc:
        raise DataError(f"Cannot read the folder {folder} of {name}", reason(exc)) from exc
    return status.st_dev, status.st_ino


def list_zip(
    name: str, path: Path, entries: Iterable[zipfile.ZipInfo], inner: str
) -> Listing[zipfile.ZipInfo]:
    """Return what is in a folder of a zip.

    Args:
        name: what the user calls it.
        path: of the zip.
        entries: of the zip.
        inner: the folder, empty for the whole.

    Raises:
        DataError: there is no such folder, or an entry is a link, has a name that leads out of the
            zip, or is there twice.
    """
    listing = Listing[zipfile.ZipInfo]()
    hidden: list[str] = []
    inner = posixpath.normpath(inner or ".")
    prefix = "" if inner == "." else f"{inner}/"
    named = [(_entry_name(name, entry), entry) for entry in entries]
    for path_in_zip, entry in named:
        text = path_in_zip.removeprefix(prefix)
        if path_in_zip in (inner, ".") or not path_in_zip.startswith(prefix):
            continue
        if any(map(is_hidden, PurePosixPath(text).parts)):
            hidden += [text] * _is_reported(text, is_folder=False)
        else:
            _add_entry(name, listing, text, entry)
    if prefix and not (listing.files or listing.folders):
        tops = {path_in_zip.split("/")[0] for path_in_zip, _ in named}
        raise DataError(f"There is no folder {inner!r} in {path}", hint=suggest(inner, tops))
    if any("\\" in entry.filename for _, entry in named):
        listing.notes.append(
            f"{name} has names with backslashes, as from Windows: they are read as folders"
        )
    listing.note_names(name, hidden)
    return listing


def _add_entry(
    name: str, listing: Listing[zipfile.ZipInfo], text: str, entry: zipfile.ZipInfo
) -> None:
    """Add an entry that is not hidden, and the folder of the first level that it is in."""
    is_folder = entry.filename.endswith(("/", "\\"))
    if is_folder or "/" in text:
        listing.folders.add(text.split("/", maxsplit=1)[0])
    if is_folder:
        return
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError(
            f"{text} in {name} is a link",
            "a zip keeps only its text",
            "Pack the files themselves (zip without -y)",
        )
    if text in listing.files:
        raise DataError(
            f"{name} holds {text} twice",
            "which of the two is meant is unknown",
            "Pack the zip again from its folder",
        )
    listing.files[text] = entry


def _entry_name(name: str, entry: zipfile.ZipInfo) -> str:
    """Return the posix path of an entry.

    Raises:
        DataError: the path leads out of the zip.
    """
    text = entry.filename.replace("\\", "/")
    parts = PurePosixPath(text).parts
    if text.startswith("/") or ".." in parts or DRIVE.match(text):
        raise DataError(
            f"{name} holds the name {entry.filename!r}",
            "it is absolute or leads out of the zip",
            "Pack the zip again from inside its folder",
        )
    return PurePosixPath(text).as_posix()
