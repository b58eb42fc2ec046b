"""The table of data adapters: from the text of ``--data`` to samples.

A row is a word before a colon, a suffix or a kind of folder, and the function of one file that
opens it. A name without a row is an extension: ``file.py:factory``, ``module:factory``, entry
point.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from trtq import extensions
from trtq.data.listing import is_hidden, is_image
from trtq.data.opened import Data, OpenData, Request
from trtq.errors import DataError, UsageError
from trtq.paths import expand_home

ARRAYS = (".npy", ".npz")


class Adapter(NamedTuple):
    """One way of writing data.

    Attributes:
        name: of the adapter.
        forms: how it is written, for the documentation.
        summary: what it opens.
        opens: ``module:function`` that takes a :class:`Request` and returns :class:`Data`.
        words: texts that begin with one and a colon, or are one, are for this adapter.
        suffixes: of files that are for this adapter.
    """

    name: str
    forms: str
    summary: str
    opens: str
    words: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()


IMAGES = Adapter(
    "images",
    "FOLDER, FILE.zip, FILE.zip/FOLDER, images:FOLDER, cifar10:DIR, digits",
    "images, in class folders or not; images:FOLDER also takes [H, W, C] arrays in .npy files",
    "trtq.data.image_files:open_images",
    words=("images", "cifar10", "digits"),
    suffixes=(".zip",),
)
ARRAY_FILES = Adapter(
    "arrays",
    "FOLDER of .npz or .npy, FILE.npz, FILE.npy",
    "tensors as the model takes them: one sample a file, or one file with samples first",
    "trtq.data.arrays:open_arrays",
    suffixes=ARRAYS,
)
FACTORY = Adapter(
    "factory",
    "file.py:factory, module:factory, NAME of an entry point",
    "what a function of your own returns: a Dataset, a DataLoader or an iterable",
    "trtq.data.factory:open_factory",
)
ADAPTERS = (
    IMAGES,
    ARRAY_FILES,
    FACTORY,
    Adapter(
        "text",
        "FILE.txt with --tokenizer FILE",
        "one text a line, for text models",
        "trtq.data.text_lines:open_text",
        suffixes=(".txt",),
    ),
    Adapter(
        "coco",
        "coco:FOLDER, coco:FILE.zip, coco:FILE.json",
        "images with boxes, masks and keypoints in COCO's form",
        "trtq.data.coco:open_coco",
        words=("coco",),
    ),
    Adapter(
        "yolo",
        "yolo:data.yaml, yolo:data.yaml/SPLIT",
        "images with boxes, masks (polygons) and keypoints (kpt_shape) in YOLO's form",
        "trtq.data.yolo:open_yolo",
        words=("yolo",),
    ),
    Adapter(
        "voc",
        "voc:FOLDER, voc:FILE.zip, voc:FOLDER/SPLIT",
        "images with boxes in PASCAL VOC's form: one .xml file an image",
        "trtq.data.voc:open_voc",
        words=("voc",),
    ),
    Adapter(
        "random",
        "random, random:N",
        "random numbers of the right types and shapes: never a calibration",
        "trtq.data.random_inputs:open_random",
        words=("random",),
    ),
)


def open_data(request: Request) -> Data:
    """Return the data behind a text, checked as far as that needs no model.

    Args:
        request: what was asked for; its ``text`` names the data.

    Raises:
        DataError: missing, empty, damaged or ambiguous.
        UsageError: an option that is for other data.
    """
    adapter = find_adapter(request.text)
    _require_used(request, adapter)
    module, _, function = adapter.opens.partition(":")
    opens: OpenData = getattr(importlib.import_module(module), function)
    return opens(request)


def find_adapter(text: str) -> Adapter:
    """Return the row of the table that a text is for.

    A word of the table before a colon decides first, then a folder's content, then a name that
    extensions know, then the suffix of the file; images are for everything else.

    Args:
        text: as ``--data`` has it; the path in it need not exist.

    Raises:
        DataError: images and arrays are side by side in a folder.
    """
    word = text.partition(":")[0]
    for adapter in ADAPTERS:
        if word in adapter.words:
            return adapter
    path = Path(expand_home(text, "--data"))
    if path.is_dir():
        return _of_folder(text, path)
    if not path.exists() and extensions.is_known("data", text):
        return FACTORY
    suffix = path.suffix.lower()
    return next((a for a in ADAPTERS if suffix in a.suffixes), IMAGES)


def _of_folder(text: str, folder: Path) -> Adapter:
    """Return the row for a folder: that of the first file with a suffix that one knows.

    Raises:
        DataError: images and arrays are side by side.
    """
    for names in _files(folder):
        arrays = [n for n in names if Path(n).suffix.lower() in ARRAYS]
        images = [n for n in names if is_image(n)]
        if arrays and images:
            raise DataError(
                f"{text} has images beside arrays",
                f"such as {images[0]} and {arrays[0]}",
                f"Sort them into two folders, or give images:{text} if the arrays are images",
            )
        if arrays or images:
            return ARRAY_FILES if arrays else IMAGES
    return IMAGES


def _files(folder: Path) -> Iterator[list[str]]:
    """Yield the names of visible files, folder by folder."""
    for _, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(f for f in folders if not is_hidden(f))
        yield sorted(n for n in names if not is_hidden(n))


def _require_used(request: Request, adapter: Adapter) -> None:
    """Refuse options that have no effect on the data of an adapter."""
    of_images = {"class_index": request.class_index, "masks": request.masks}
    given = {} if adapter is IMAGES else of_images
    wrong = [n for n, value in given.items() if value is not None]
    if wrong:
        raise UsageError(
            f"{' and '.join(wrong)} are for images",
            f"{request.text} is opened as {adapter.name}",
            "Leave them out",
        )
    if request.tokenizer is not None and adapter.name not in ("text", "factory"):
        raise UsageError(
            "--tokenizer is for texts",
            f"{request.text} is opened as {adapter.name}",
            "Give a .txt file with one text a line, or leave --tokenizer out",
        )


def fingerprint(
    text: str,
    class_index: str | None = None,
    note: Callable[[str], None] | None = None,
    *,
    tokenizer: str | None = None,
) -> str | None:
    """Return what tells the content of data from that of others; None if it cannot be listed.

    Args:
        text: any form of the table.
        class_index: the order of classes, for images.
        note: receives a line when digests of unchanged images were taken from the cache.
        tokenizer: file of the tokenizer, for texts.

    Raises:
        DataError: a file cannot be read.
    """
    try:
        data = open_data(Request(text=text, class_index=class_index, tokenizer=tokenizer))
    except DataError:
        return None
    identity, source = data.identity(), data.source
    if note is not None and source is not None and source.cached_digests:
        note(
            f"{source.cached_digests} of {len(source)} image digests of {text} come from the "
            "cache: inode, size and times of the files are unchanged"
        )
    return identity
