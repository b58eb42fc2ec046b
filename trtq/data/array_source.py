"""Images in memory: CIFAR-10's binary files, and scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from trtq.data.decode import Geometry
from trtq.data.source import Source
from trtq.errors import DataError, MissingExtraError


class ArraySource(Source):
    """Images in memory: uint8, shape [N, H, W] or [N, H, W, 3].

    Args:
        name: of the data.
        images: uint8, as above.
        labels: class index of each image.
        classes: names in index order.
    """

    def __init__(
        self, name: str, images: np.ndarray, labels: Sequence[int], classes: list[str]
    ) -> None:
        super().__init__(name)
        self.images, self.indexed = images, True
        self.ids = [f"{i:05d}" for i in range(len(images))]
        self.labels, self.classes = [int(v) for v in labels], classes

    def read(self, index: int) -> bytes:  # noqa: D102
        return bytes(self.images[index].tobytes())

    def image(self, index: int) -> Image.Image:  # noqa: D102
        return Image.fromarray(self.images[index])

    def geometry(self, index: int) -> Geometry:  # noqa: D102
        height, width = self.images[index].shape[:2]
        return Geometry(1, int(width), int(height))


CIFAR10_CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
CIFAR10_RECORD = 1 + 3 * 32 * 32


def open_cifar10(name: str, root: Path) -> Source:
    """Open CIFAR-10's binary version: records of one label byte and 3072 pixel bytes.

    The format is that of https://www.cs.toronto.edu/~kriz/cifar.html.

    Args:
        name: what the data were asked for by.
        root: folder with ``data_batch_*.bin`` and ``test_batch.bin``, or with
            ``cifar-10-batches-bin``; the files that are there are joined in this order.

    Raises:
        DataError: missing, cut off, or a label above 9.
    """
    if not root.is_dir():
        raise DataError(f"Cannot read {name}", f"there is no folder {root}")
    inner = root / "cifar-10-batches-bin"
    root = inner if inner.is_dir() else root
    files = sorted(root.glob("data_batch_*.bin")) + sorted(root.glob("test_batch.bin"))
    if not files:
        hint = (
            "Take CIFAR-10's binary version (cifar-10-binary.tar.gz), or a folder of class folders"
        )
        why = "there is no data_batch_*.bin or test_batch.bin"
        if (root / "data_batch_1").exists() or (root / "cifar-10-batches-py").is_dir():
            why += "; the Python version found there is pickle, which trtq does not read"
        raise DataError(f"Cannot read {name}", why, hint)
    raw = np.concatenate([np.fromfile(f, dtype=np.uint8) for f in files])
    if raw.size % CIFAR10_RECORD:
        raise DataError(
            f"Cannot read {name}",
            f"the files hold {raw.size} bytes, not a multiple of {CIFAR10_RECORD}",
            "Download them again",
        )
    records = raw.reshape(-1, CIFAR10_RECORD)
    if records.size and int(records[:, 0].max()) >= len(CIFAR10_CLASSES):
        raise DataError(
            f"Cannot read {name}",
            f"a label is {records[:, 0].max()}, CIFAR-10 has {len(CIFAR10_CLASSES)} classes",
        )
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return ArraySource(name, np.ascontiguousarray(images), records[:, 0].tolist(), CIFAR10_CLASSES)


def open_digits() -> Source:
    """Open scikit-learn's 1,797 handwritten digits of 8x8 pixels.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as exc:
        raise MissingExtraError(
            "The data 'digits' needs scikit-learn", hint="Install it: pip install scikit-learn"
        ) from exc
    bunch = load_digits()
    pixels = (bunch.images * (255.0 / 16.0)).round().astype(np.uint8)
    return ArraySource("digits", pixels, bunch.target.tolist(), [str(d) for d in range(10)])
