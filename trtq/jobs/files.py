"""The files of a store behind any fsspec URL, with errors that say what failed where."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from trtq.artifact import write_bytes
from trtq.errors import ArtifactError, MissingExtraError, TrtqError, UsageError, first_line, reason
from trtq.typed import json_as

T = TypeVar("T")
EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3")}  # package, and trtq's extra with it
ONCE = {"file", "s3", "gs"}  # file systems that create a file only where there is none
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}  # of file systems without them
PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


@dataclass(frozen=True, slots=True)
class Files:
    """A folder behind a URL.

    Attributes:
        url: as it was written.
        root: the folder as the file system names it.
        system: of fsspec; it keeps no listing, since others write, too.
    """

    url: str
    root: str
    system: Any

    @property
    def _protocols(self) -> set[str]:
        named = self.system.protocol
        return {named} if isinstance(named, str) else set(named)

    @property
    def local(self) -> bool:
        """Whether it is a folder of this machine."""
        return "file" in self._protocols

    @property
    def creates_once(self) -> bool:
        """Whether of two that create one file at the same time only one succeeds."""
        return bool(self._protocols & ONCE)

    def path(self, name: str) -> str:
        """Return the whole path of a name, as the file system takes it.

        Args:
            name: below the folder, with ``/`` between its parts; "" for the folder itself.
        """
        return posixpath.join(self.root, name)

    def names(self, folder: str = "") -> list[str]:
        """Return the names in a folder; none where there is no such folder.

        Args:
            folder: below the store's, "" for that.

        Returns:
            Names without a path, of files and of folders, sorted.

        Raises:
            ArtifactError: the store refuses, or cannot be reached.
        """
        with self.explained("list", folder):
            try:
                return sorted(
                    posixpath.basename(p.rstrip("/"))
                    for p in self.system.ls(self.path(folder), detail=False, refresh=True)
                    if p.rstrip("/") != self.path(folder).rstrip("/")
                )
            except (FileNotFoundError, NotADirectoryError):
                return []

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size of every file below a folder, by its path from there.

        Args:
            folder: below the store's.

        Returns:
            Bytes by path relative to ``folder``; {} where there is no such folder.

        Raises:
            ArtifactError: the store refuses, or cannot be reached.
        """
        above = self.path(folder).rstrip("/") + "/"
        with self.explained("list", folder):
            try:
                entries = self.system.find(above, detail=True)
            except FileNotFoundError:
                return {}
        return {p.removeprefix(above): int(e["size"] or 0) for p, e in entries.items()}

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None where there is none.

        Raises:
            ArtifactError: the store refuses, or cannot be reached.
        """
        with self.explained("read", name):
            try:
                return bytes(self.system.cat_file(self.path(name)))
            except FileNotFoundError:
                return None

    def read_as(self, name: str, kind: type[T]) -> T | None:
        """Return a JSON file as a type; None where there is none, or not a whole one.

        A file that another driver is writing has no whole content yet, so both count as no file.

        Args:
            name: below the folder.
            kind: a msgspec struct, or any type that msgspec knows.

        Raises:
            ArtifactError: the store refuses, or cannot be reached.
        """
        content = self.read(name)
        try:
            return None if content is None else json_as(content, kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def write(self, name: str, value: object) -> None:
        """Write a JSON file; a reader sees the old one or the new one.

        Args:
            name: below the folder; folders above it are created.
            value: a msgspec struct or plain values.

        Raises:
            ArtifactError: the store refuses, is full, or cannot be reached.
        """
        content = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
        with self.explained("write", name):
            if self.local:
                path = Path(self.path(name))
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, content)
            else:
                self.system.pipe_file(self.path(name), content)

    def create(self, name: str, value: object) -> bool:
        """Write a JSON file unless there is one, and return whether it was written.

        Where :attr:`creates_once` is True, one of several drivers that call it at once gets True.

        Args:
            name: below the folder; folders above it are created.
            value: a msgspec struct or plain values.

        Raises:
            ArtifactError: the store refuses, is full, or cannot be reached.
        """
        with self.explained("write", name):
            self._make_folder(name)
            content = msgspec.json.encode(value)
            try:
                if self.local:  # fsspec itself looks first and writes then
                    self._create_whole(Path(self.path(name)), content)
                else:
                    self.system.pipe_file(self.path(name), content, mode="create")
            except FileExistsError:
                return False
        return True

    def _create_whole(self, path: Path, content: bytes) -> None:
        """Create a file of this machine with all its content at once, so that no reader sees less.

        Raises:
            FileExistsError: there is one.
        """
        beside = Path(self.path(f".{secrets.token_hex(8)}"))
        try:
            beside.write_bytes(content)
            os.link(beside, path)
        except OSError as exc:
            if exc.errno not in NO_LINKS:
                raise
            with path.open("xb") as file:
                file.write(content)
        finally:
            beside.unlink(missing_ok=True)

    def put(self, source: Path, name: str) -> None:
        """Copy a file of this machine into the folder.

        Args:
            source: the file on this machine.
            name: below the folder; a file of that name is replaced.

        Raises:
            ArtifactError: the store refuses, is full, or cannot be reached.
        """
        with self.explained("write", name):
            self._make_folder(name)
            self.system.put_file(str(source), self.path(name))

    def get(self, name: str, target: Path) -> None:
        """Copy a file to this machine.

        Args:
            name: below the folder.
            target: file on this machine; folders above it are created, and an old file is replaced.

        Raises:
            ArtifactError: there is no such file, or the store cannot be reached.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.explained("read", name):
            self.system.get_file(self.path(name), str(target))

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it; what is not there is no error."""
        with self.explained("remove", name), contextlib.suppress(FileNotFoundError):
            self.system.rm(self.path(name), recursive=True)

    def _make_folder(self, name: str) -> None:
        if self.local:
            Path(self.path(name)).parent.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def explained(self, verb: str, name: str) -> Iterator[None]:
        """Turn what the file system raises into an error that names the store.

        Args:
            verb: what is done, such as ``read``.
            name: of the file, for the message; "" for the folder.

        Raises:
            ArtifactError: the store refuses, is full, or cannot be reached.
        """
        try:
            yield
        except TrtqError:
            raise
        except Exception as exc:  # each file system raises errors of its own kinds
            why = reason(exc) if isinstance(exc, OSError) else first_line(f"{exc}")
            raise ArtifactError(
                f"Cannot {verb} {name or 'the folder'} in the store {self.url}",
                why or type(exc).__name__,
                "Check the URL, the permissions and the space there; finished runs are kept",
            ) from exc


def open_files(url: str) -> Files:
    """Return the folder behind a URL or a path.

    Args:
        url: a path, or a URL of fsspec such as ``s3://BUCKET/FOLDER``; nothing is created there.

    Raises:
        MissingExtraError: a package for it is not installed.
        UsageError: no file system has that name.
    """
    import fsspec

    scheme = url.partition("://")[0] if "://" in url else "file"
    place = url if "://" in url else str(Path(url).absolute())
    try:
        system, root = fsspec.core.url_to_fs(
            place, use_listings_cache=False, skip_instance_cache=True
        )
    except ImportError as exc:
        package, extra = EXTRAS.get(scheme, (PACKAGES.get(scheme, ""), ""))
        hint = f"pip install 'trtq[{extra}]'" if extra else f"pip install {package}"
        raise MissingExtraError(
            f"Cannot open the store {url}",
            first_line(str(exc)),
            hint if package else f"Install the package of fsspec for {scheme}://",
        ) from exc
    except ValueError as exc:
        raise UsageError(
            f"Cannot open the store {url}",
            first_line(str(exc)),
            "Write a folder, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER",
        ) from exc
    return Files(url, root.rstrip("/"), system)
