"""Image sources: a folder, a zip, a folder inside a zip, CIFAR-10's binary files, scikit-learn's digits."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
from PIL import Image, UnidentifiedImageError

from trtq.artifact import decode_json, digest_of
from trtq.errors import DataError, MissingExtraError, reason, suggest

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


class Source(ABC):
    """A list of images, some with labels.

    Attributes:
        name: the text it was asked for by.
        ids: one text per image, stable between runs.
        labels: class index per image, or None when the source has no classes.
        classes: class names in index order.
        ignored: names of files that are not images.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.ids: list[str] = []
        self.labels: list[int] | None = None
        self.classes: list[str] = []
        self.ignored: list[str] = []

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return what identifies the content of image ``index``: its file's bytes or its raw pixels."""

    def image(self, index: int) -> Image.Image:
        """Return image ``index``, decoded.

        Raises:
            DataError: it is damaged.
        """
        try:
            image = Image.open(io.BytesIO(self.read(index)))
            image.load()
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
            raise DataError(
                f"Cannot decode the image {self.ids[index]} of {self.name}", str(exc), "Remove it or replace it, then run again"
            ) from exc
        return image

    def __len__(self) -> int:
        return len(self.ids)

    def content(self, index: int) -> str:
        """Return 16 hex digits of the SHA-256 of image ``index``: the same image is known again in another folder or zip."""
        return hashlib.sha256(self.read(index)).hexdigest()[:16]

    def digest(self, indices: Sequence[int]) -> str:
        """Return a SHA-256 over the ids and the contents of the images ``indices``, in order."""
        total = hashlib.sha256()
        for i in indices:
            total.update(self.ids[i].encode() + b"\0" + hashlib.sha256(self.read(i)).digest())
        return total.hexdigest()

    def identity(self) -> list[object]:
        """Return what tells two sources apart without reading every image: names, labels, and the content of 64 images."""
        return [digest_of(self.ids), digest_of(self.labels), self.digest(range(0, len(self), max(1, len(self) // 64)))]

    def sample(self, count: int, seed: int) -> list[int]:
        """Return ``count`` indices drawn without replacement, repeatable, fewer when there are fewer images."""
        return [int(i) for i in np.random.default_rng(seed).permutation(len(self))[:count]]


def spread(count: int, limit: int | None) -> list[int]:
    """Return at most ``limit`` of ``count`` positions, evenly over them, so that in a sorted list every class keeps its share."""
    picks = np.arange(count) if limit is None or limit >= count else np.linspace(0, count - 1, limit).round().astype(int)
    return [int(i) for i in picks]


def _arrange(source: Source, files: Sequence[str], class_index: Path | None) -> None:
    """Fill ids, labels and classes from relative posix paths: folders on the first level are classes."""
    files = [f for f in files if not any(p.startswith(".") or p == "__MACOSX" for p in PurePosixPath(f).parts)]
    images = sorted(f for f in files if PurePosixPath(f).suffix.lower() in SUFFIXES)
    source.ignored = sorted(set(files) - set(images))
    if not images:
        other = f"; it has {len(source.ignored)} other files, such as {source.ignored[0]}" if source.ignored else ""
        raise DataError(f"There are no images in {source.name}", f"looked for {', '.join(sorted(SUFFIXES))}{other}")
    folders = sorted({PurePosixPath(f).parts[0] for f in images if len(PurePosixPath(f).parts) > 1})
    loose = [f for f in images if len(PurePosixPath(f).parts) == 1]
    if folders and {f.lower() for f in folders} <= SPLITS and not loose:
        raise DataError(
            f"{source.name} is not one set of images but several",
            f"it holds only {', '.join(folders)}",
            "Choose one: " + " or ".join(f"{source.name.rstrip('/')}/{f}" for f in folders),
        )
    if len(folders) == 1 and not loose and any(len(PurePosixPath(f).parts) > 2 for f in images):
        raise DataError(
            f"{source.name} holds one folder that holds folders",
            f"{folders[0]} would be the only class",
            f"Use {source.name.rstrip('/')}/{folders[0]}",
        )
    source.ids = images
    if not folders:
        if class_index is not None:
            raise DataError(
                f"{source.name} has no class folders", "--class-index was given", "Leave --class-index out, or sort the images into folders"
            )
        return
    if loose:
        raise DataError(
            f"{source.name} mixes class folders with images outside of them", f"{loose[0]} and {len(loose) - 1} more lie beside the folders"
        )
    source.classes = _class_order(folders, class_index)
    position = {name: i for i, name in enumerate(source.classes)}
    source.labels = [position[PurePosixPath(f).parts[0]] for f in images]


def _class_order(folders: list[str], class_index: Path | None) -> list[str]:
    if class_index is None:
        return folders
    try:
        order = decode_json(class_index.read_bytes(), list[str])
    except (OSError, msgspec.MsgspecError) as exc:
        raise DataError(f"Cannot use the class index {class_index}", f"{reason(exc)}; expected a JSON list of folder names") from exc
    unknown = [f for f in folders if f not in set(order)]
    if unknown:
        raise DataError(
            f"The class index {class_index} does not name the folder {unknown[0]!r}",
            f"{len(unknown)} of {len(folders)} folders are missing from its {len(order)} names",
            suggest(unknown[0], order),
        )
    return order


class FolderSource(Source):
    """A folder of class folders, or of images."""

    def __init__(self, name: str, root: Path, class_index: Path | None) -> None:
        super().__init__(name)
        self.root = root
        files = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")]
        if not files:
            raise DataError(f"There are no images in {name}", "the folder is empty")
        _arrange(self, files, class_index)

    def read(self, index: int) -> bytes:  # noqa: D102
        try:
            return (self.root / self.ids[index]).read_bytes()
        except OSError as exc:
            raise DataError(f"Cannot read {self.ids[index]} in {self.name}", exc.strerror or str(exc)) from exc


class ZipSource(Source):
    """The same inside a zip file, read without unpacking."""

    def __init__(self, name: str, path: Path, inner: str, class_index: Path | None) -> None:
        super().__init__(name)
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as exc:
            raise DataError(f"Cannot read {path}", f"not a whole zip file ({exc})") from exc
        self.prefix = f"{inner.strip('/')}/" if inner.strip("/") else ""
        names = [n for n in self.zip.namelist() if not n.endswith("/") and n.startswith(self.prefix)]
        if not names:
            tops = sorted({n.split("/")[0] for n in self.zip.namelist()})
            raise DataError(f"There is no folder {inner!r} in {path}", mend=suggest(inner, tops))
        _arrange(self, [n.removeprefix(self.prefix) for n in names], class_index)

    def read(self, index: int) -> bytes:  # noqa: D102
        try:
            return self.zip.read(self.prefix + self.ids[index])
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as exc:
            raise DataError(f"Cannot read {self.ids[index]} in {self.name}", str(exc)) from exc


class ArraySource(Source):
    """Images in memory: uint8, shape [N, H, W] or [N, H, W, 3]."""

    def __init__(self, name: str, images: np.ndarray, labels: Sequence[int], classes: list[str]) -> None:
        super().__init__(name)
        self.images = images
        self.ids = [f"{i:05d}" for i in range(len(images))]
        self.labels, self.classes = [int(v) for v in labels], classes

    def read(self, index: int) -> bytes:  # noqa: D102
        return bytes(self.images[index].tobytes())

    def image(self, index: int) -> Image.Image:  # noqa: D102
        return Image.fromarray(self.images[index])


CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR10_RECORD = 1 + 3 * 32 * 32


def _open_cifar10(name: str, root: Path) -> Source:
    """CIFAR-10's binary version: records of one label byte and 3072 pixel bytes (https://www.cs.toronto.edu/~kriz/cifar.html)."""
    if not root.is_dir():
        raise DataError(f"Cannot read {name}", f"there is no folder {root}")
    inner = root / "cifar-10-batches-bin"
    root = inner if inner.is_dir() else root
    files = sorted(root.glob("data_batch_*.bin")) + sorted(root.glob("test_batch.bin"))
    if not files:
        mend = "Take CIFAR-10's binary version (cifar-10-binary.tar.gz), or a folder of class folders"
        why = "there is no data_batch_*.bin or test_batch.bin"
        if (root / "data_batch_1").exists() or (root / "cifar-10-batches-py").is_dir():
            why += "; the Python version found there is pickle, which trtq does not read"
        raise DataError(f"Cannot read {name}", why, mend)
    raw = np.concatenate([np.fromfile(f, dtype=np.uint8) for f in files])
    if raw.size % CIFAR10_RECORD:
        raise DataError(
            f"Cannot read {name}", f"the files hold {raw.size} bytes, not a multiple of {CIFAR10_RECORD}", "Download them again"
        )
    records = raw.reshape(-1, CIFAR10_RECORD)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return ArraySource(name, np.ascontiguousarray(images), records[:, 0].tolist(), CIFAR10_CLASSES)


def _open_digits() -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError as exc:
        raise MissingExtraError("The data 'digits' needs scikit-learn", mend="Install it: pip install scikit-learn") from exc
    bunch = load_digits()
    pixels = (bunch.images * (255.0 / 16.0)).round().astype(np.uint8)
    return ArraySource("digits", pixels, bunch.target.tolist(), [str(d) for d in range(10)])


def open_source(data: str, class_index: Path | None = None) -> Source:
    """Return the images behind ``data``.

    Args:
        data: a folder of class folders, a folder of images, a ``.zip`` of either, a folder inside one
            (``cifar10.zip/train``), ``cifar10:DIR`` or ``digits``.
        class_index: a JSON list of folder names in class order; without it, folder names in sorted order.

    Raises:
        DataError: missing, empty, damaged, or only train/val/test folders (with the paths to choose from).
    """
    if data == "digits":
        return _open_digits()
    if data.startswith("cifar10:"):
        return _open_cifar10(data, Path(data.removeprefix("cifar10:")).expanduser())
    path = Path(data).expanduser()
    if path.is_dir():
        return FolderSource(data, path, class_index)
    for candidate in (path, *path.parents):
        if candidate.suffix.lower() == ".zip" and candidate.is_file():
            inner = path.relative_to(candidate).as_posix()
            return ZipSource(data, candidate, "" if inner == "." else inner, class_index)
    if path.is_file():
        raise DataError(f"Cannot read images from {data}", "it is a file, and neither a folder nor a .zip")
    near = suggest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
    raise DataError(f"Cannot read images from {data}", "there is no such folder or .zip", near if "Did you" in near else "")


def describe(source: Source) -> dict[str, object]:
    """Return what a record says about a source."""
    return {
        "source": source.name,
        "images": len(source),
        "classes": len(source.classes) or None,
        "ignored_files": len(source.ignored),
        "ids_digest": digest_of(source.ids),
    }
