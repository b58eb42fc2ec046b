"""Image sources: folders, zips, folders inside zips."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from trtq.artifact import Stamp, digest_of, stamp_of
from trtq.data.bands import decode_array, decode_bands, require_channels
from trtq.data.classes import Arrangement, Forms, arrange
from trtq.data.decode import MAX_BYTES, Decoded, Geometry, UndecodableError, decode, read_geometry
from trtq.data.digests import DigestCache
from trtq.data.listing import list_folder, list_zip
from trtq.errors import DataError, reason, suggest

# Raise it when the same bytes give other pixels, decoded or resized: results are computed again.
PIXELS = 3
Note = Callable[[str], None]
ARRAY_SUFFIX = ".npy"
MAX_ANNOTATIONS = 4 * 2**30  # bytes of one file, unpacked: those of large sets have more than 1 GiB
IMAGES = "images:"


class Source(ABC):
    """A list of images, some with labels.

    Args:
        name: the text it was asked for by.
        note: receives lines that a user should read.

    Attributes:
        name: the text it was asked for by.
        ids: one text per image, stable between runs.
        labels: class index per image, or None when the source has no classes.
        classes: class names in index order.
        ignored: names of files that are not images.
        annotations: digest of the objects in the images, where the adapter knows them, else "".
        indexed: whether the order of classes was stated, by a class index or by the format.
        notes: what a user should know about the files; :attr:`note` has received them.
        note: receives further lines while images are decoded, one for each kind.
    """

    def __init__(self, name: str, note: Note | None = None) -> None:
        self.name = name
        self.ids: list[str] = []
        self.labels: list[int] | None = None
        self.classes: list[str] = []
        self.ignored: list[str] = []
        self.annotations = ""
        self.indexed = False
        self.notes: list[str] = []
        self.note = note
        self._changed: dict[str, set[int]] = {}
        self._digests: dict[int, str] = {}
        self.cached_digests = 0

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return what identifies the content of image ``index``: its file or its raw pixels."""

    def stamp(self, index: int) -> Stamp | None:
        """Return what changes whenever the file of image ``index`` does; None without a file."""
        del index
        return None

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` as upright 8-bit pixels, mode L or RGB.

        Raises:
            DataError: it is damaged, or its samples have no known range.
        """
        try:
            decoded = self._decode(self.read(index))
        except UndecodableError as exc:
            raise self._undecodable(index, exc) from exc
        for kind, fact in decoded.facts.items():
            self._count(kind, index, fact)
        return decoded.image

    def is_array(self, index: int) -> bool:
        """Whether image ``index`` is a NumPy array in a file."""
        return self.ids[index].lower().endswith(ARRAY_SUFFIX)

    def bands(self, index: int, channels: int) -> npt.NDArray[np.generic]:
        """Return image ``index`` as all its channels, [H, W, C] of values 0 to 255.

        Alpha and the pages of a file are channels; integers are uint8, other values float32.

        Raises:
            DataError: it is damaged, or has another number of channels.
        """
        try:
            data = self.read(index)
            decoded = decode_array(data) if self.is_array(index) else decode_bands(data)
            require_channels(decoded, channels)
        except UndecodableError as exc:
            raise self._undecodable(index, exc) from exc
        for kind, fact in decoded.facts.items():
            self._count(kind, index, fact)
        return decoded.pixels

    def geometry(self, index: int) -> Geometry:
        """Return how image ``index`` is stored.

        Raises:
            DataError: it is damaged.
        """
        try:
            return read_geometry(self.read(index))
        except UndecodableError as exc:
            raise self._undecodable(index, exc) from exc

    def _decode(self, data: bytes) -> Decoded:
        return decode(data)

    def _undecodable(self, index: int, exc: UndecodableError) -> DataError:
        return DataError(
            f"Cannot decode the image {self.ids[index]} of {self.name}",
            str(exc),
            "Remove it or replace it, then run again",
        )

    def _count(self, kind: str, index: int, fact: str) -> None:
        first = kind not in self._changed
        self._changed.setdefault(kind, set()).add(index)
        if first:
            self.tell(
                f"{self.ids[index]} of {self.name}: {fact}; further such images are treated alike"
            )

    def tell(self, line: str) -> None:
        """Keep a line for the record and pass it to the user."""
        self.notes.append(line)
        if self.note is not None:
            self.note(line)

    def tell_once(self, line: str) -> None:
        """Tell a line that nobody has been told yet."""
        if line not in self.notes:
            self.tell(line)

    def changed(self) -> dict[str, int]:
        """Return how many of the decoded images were changed, by kind: ``turned``, ``alpha`` ..."""
        return {kind: len(seen) for kind, seen in sorted(self._changed.items())}

    def __len__(self) -> int:
        return len(self.ids)

    def contents(self, indices: Sequence[int]) -> list[str]:
        """Return the SHA-256 of the bytes of images, 64 hex digits each.

        Digests of large sets are kept beside inode, size and times of their files, and used again
        while those are unchanged.
        """
        missing = [i for i in dict.fromkeys(indices) if i not in self._digests]
        if missing:
            self._digests.update(self._hash(missing))
        return [self._digests[i] for i in indices]

    def _hash(self, indices: Sequence[int]) -> dict[int, str]:
        stamps = {i: self.stamp(i) for i in indices}  # taken before the files are read
        size = sum(s.size for s in stamps.values() if s is not None)
        cache = DigestCache(place_of(self.name), size)
        digests: dict[int, str] = {}
        for i, stamp in stamps.items():
            known = cache.get(self.ids[i], stamp)
            self.cached_digests += known is not None
            digests[i] = known or hashlib.sha256(self.read(i)).hexdigest()
            cache.put(self.ids[i], stamp, digests[i])
        cache.save()
        return digests

    def short_contents(self, indices: Sequence[int]) -> list[str]:
        """Return the first 16 hex digits of :meth:`contents`, by which records name images."""
        return [digest[:16] for digest in self.contents(indices)]

    def digest(self, indices: Sequence[int]) -> str:
        """Return a SHA-256 over ids and contents of images, in order, and over :data:`PIXELS`."""
        total = hashlib.sha256(f"pixels {PIXELS}\0".encode())
        for i, content in zip(indices, self.contents(indices), strict=True):
            total.update(self.ids[i].encode() + b"\0" + bytes.fromhex(content))
        return total.hexdigest()

    def identity(self) -> str:
        """Return what tells two sets apart: names, classes, labels, the content of every image."""
        content = [self.classes, self.labels, self.digest(range(len(self)))]
        return digest_of([*content, self.annotations] if self.annotations else content)

    def sample(self, count: int, seed: int) -> list[int]:
        """Return ``count`` indices drawn without replacement, repeatable, or all if fewer.

        Args:
            count: how many.
            seed: of the draw.
        """
        return [int(i) for i in np.random.default_rng(seed).permutation(len(self))[:count]]


def spread(count: int, limit: int | None) -> list[int]:
    """Return at most ``limit`` of ``count`` positions, evenly: every class keeps its share.

    Args:
        count: how many there are.
        limit: how many to take; None for all.

    >>> spread(5, 3)
    [0, 2, 4]
    """
    picks = (
        np.arange(count)
        if limit is None or limit >= count
        else np.linspace(0, count - 1, limit).round().astype(int)
    )
    return [int(i) for i in picks]


def shared_images(one: Source, other: Source) -> list[int]:
    """Return the positions in ``one`` of images whose content is in ``other``, under any name.

    Args:
        one: the set whose positions are returned.
        other: the set it is compared with.
    """
    known = set(other.contents(range(len(other))))
    return [i for i, content in enumerate(one.contents(range(len(one)))) if content in known]


class FileSource(Source):
    """Images in files, listed and given classes by their folders."""

    @abstractmethod
    def read_other(self, name: str) -> bytes:
        """Return the content of a file that is no image, such as annotations.

        Args:
            name: one of :attr:`ignored`.

        Raises:
            DataError: it cannot be read, or is larger than 4 GiB.
        """

    def _take(self, arranged: Arrangement, notes: Sequence[str]) -> None:
        self.ids, self.labels, self.classes = arranged.ids, arranged.labels, arranged.classes
        self.ignored, self.indexed = arranged.ignored, arranged.indexed
        for line in (*notes, *arranged.notes):
            self.tell(line)

    def _require_size(self, name: str, size: int, limit: int) -> None:
        if size > limit:
            raise DataError(
                f"Cannot read {name} in {self.name}",
                f"it has {size} bytes, the limit is {limit}",
                "Remove it, or make it smaller",
            )


class FolderSource(FileSource):
    """A folder of class folders, or of images."""

    def __init__(
        self,
        name: str,
        root: Path,
        class_index: Path | None,
        note: Note | None = None,
        *,
        forms: Forms = "classes",
    ) -> None:
        super().__init__(name, note)
        self.root = root
        listing = list_folder(name, root)
        images = arrange(name, list(listing.files), listing.folders, class_index, forms=forms)
        self._take(images, listing.notes)
        self.paths = [listing.files[i] for i in self.ids]
        self.others = {n: listing.files[n] for n in self.ignored}

    def read_other(self, name: str) -> bytes:  # noqa: D102
        try:
            with self.others[name].open("rb") as handle:
                self._require_size(name, os.fstat(handle.fileno()).st_size, MAX_ANNOTATIONS)
                return handle.read()
        except OSError as exc:
            raise DataError(f"Cannot read {name} in {self.name}", reason(exc)) from exc

    def read(self, index: int) -> bytes:  # noqa: D102
        try:
            with self.paths[index].open("rb") as handle:
                size = os.fstat(handle.fileno()).st_size
                self._require_size(self.ids[index], size, MAX_BYTES)
                return handle.read()
        except OSError as exc:
            raise DataError(f"Cannot read {self.ids[index]} in {self.name}", reason(exc)) from exc

    def stamp(self, index: int) -> Stamp:  # noqa: D102
        try:
            return stamp_of(self.paths[index])
        except OSError as exc:
            raise DataError(f"Cannot read {self.ids[index]} in {self.name}", reason(exc)) from exc


class FileList(FolderSource):
    """Images of a list of files, wherever they are."""

    def __init__(self, name: str, paths: Sequence[Path], note: Note | None = None) -> None:
        Source.__init__(self, name, note)
        self.paths = [p.absolute() for p in paths]
        root = os.path.commonpath([p.parent for p in self.paths])
        self.ids = [p.relative_to(root).as_posix() for p in self.paths]
        self.others = {}


class ZipSource(FileSource):
    """The same inside a zip file, read without unpacking."""

    def __init__(
        self,
        name: str,
        path: Path,
        inner: str,
        class_index: Path | None,
        note: Note | None = None,
        *,
        forms: Forms = "classes",
    ) -> None:
        super().__init__(name, note)
        self.path = path
        try:
            self.zip = zipfile.ZipFile(path)
        except (
            zipfile.BadZipFile,
            OSError,
            UnicodeDecodeError,
            ValueError,
            NotImplementedError,
        ) as exc:
            raise DataError(f"Cannot read {path}", f"not a whole zip file ({exc})") from exc
        listing = list_zip(name, path, self.zip.infolist(), inner)
        images = arrange(name, list(listing.files), listing.folders, class_index, forms=forms)
        self._take(images, listing.notes)
        self.entries = [listing.files[i] for i in self.ids]
        self.others = {n: listing.files[n] for n in self.ignored}

    def read(self, index: int) -> bytes:  # noqa: D102
        return self._read(self.entries[index], self.ids[index], MAX_BYTES)

    def read_other(self, name: str) -> bytes:  # noqa: D102
        return self._read(self.others[name], name, MAX_ANNOTATIONS)

    def _read(self, entry: zipfile.ZipInfo, name: str, limit: int) -> bytes:
        self._require_size(name, entry.file_size, limit)
        try:
            with self.zip.open(entry) as handle:
                # The size that a zip announces may differ from its unpacked size.
                data = handle.read(limit + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            OSError,
            EOFError,
            RuntimeError,
            NotImplementedError,
            ValueError,
        ) as exc:
            raise DataError(f"Cannot read {name} in {self.name}", str(exc)) from exc
        self._require_size(name, len(data), limit)
        return data

    def stamp(self, index: int) -> Stamp:  # noqa: D102
        try:
            return stamp_of(self.path)._replace(size=self.entries[index].file_size)
        except OSError as exc:
            raise DataError(f"Cannot read {self.path}", reason(exc)) from exc


def _user_path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as exc:  # no such user, or none has a home
        raise DataError(
            f"Cannot read images from {text}",
            f"the home folder is unknown ({exc})",
            "Write the whole path",
        ) from exc


def place_of(data: str) -> str:
    """Return where the images behind ``data`` are, the same text for every spelling of the path.

    Args:
        data: as for :func:`open_source`.
    """
    kind = next((k for k in ("cifar10:", IMAGES) if data.startswith(k)), "")
    path = data.removeprefix(kind)
    return data if data == "digits" else f"{kind}{_user_path(path).resolve()}"


def open_source(
    data: str,
    class_index: str | Path | None = None,
    note: Note | None = None,
    *,
    forms: Forms = "classes",
) -> Source:
    """Return the images behind ``data``.

    Args:
        data: a folder of class folders, a folder of images, a ``.zip`` of either, a folder inside
            one (``cifar10.zip/train``), ``cifar10:DIR`` or ``digits``; behind ``images:`` a folder
            or a zip can also have arrays [H, W, C] in .npy files.
        class_index: a JSON list of folder names in class order, or ``text`` or ``numeric`` for
            sorted names; without it, folder names in text order.
        note: receives lines about the files that a user should read, also while decoding.
        forms: what the files and folders are, as for :func:`~trtq.data.classes.arrange`.

    Raises:
        DataError: missing, empty, damaged, or only train/val/test folders (with their paths).
    """
    from trtq.data.array_source import open_cifar10, open_digits

    if data == "digits":
        return open_digits()
    if data.startswith("cifar10:"):
        return open_cifar10(data, _user_path(data.removeprefix("cifar10:")))
    if data.startswith(IMAGES):
        forms = "arrays"
    path = _user_path(data.removeprefix(IMAGES))
    index = Path(class_index) if class_index else None
    if path.is_dir():
        return FolderSource(data, path, index, note, forms=forms)
    for candidate in (path, *path.parents):
        if candidate.suffix.lower() == ".zip" and candidate.is_file():
            inner = path.relative_to(candidate).as_posix()
            inner = "" if inner == "." else inner
            return ZipSource(data, candidate, inner, index, note, forms=forms)
    raise _no_source(data, path)


def _no_source(data: str, path: Path) -> DataError:
    title = f"Cannot read images from {data}"
    if path.is_file():
        return DataError(title, "it is a file, and neither a folder nor a .zip")
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = suggest(path.name, siblings)
    return DataError(title, "there is no such folder or .zip", hint if "Did you" in hint else "")


def describe(source: Source) -> dict[str, object]:
    """Return what a record says about a source.

    Args:
        source: the images, after they were decoded.

    Returns:
        Plain values by name: ``source``, ``images``, ``classes`` and ``class_names`` (None
        without), ``ignored_files``, ``ids_digest``, ``changed`` (counts by kind),
        ``cached_digests``.
    """
    return {
        "source": source.name,
        "images": len(source),
        "classes": len(source.classes) or None,
        "class_names": source.classes or None,
        "ignored_files": len(source.ignored),
        "ids_digest": digest_of(source.ids),
        "changed": source.changed(),
        "cached_digests": source.cached_digests,
    }
