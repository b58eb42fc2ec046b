"""Detect what a file is from its first bytes, regardless of its name.

This recognizes files that were given by mistake in place of the intended one.
"""

from __future__ import annotations

from typing import NamedTuple

HEAD = 1024  # bytes that every rule here can decide on


class Content(NamedTuple):
    """Kind of a file by its first bytes.

    Attributes:
        kind: in one word, for readers that know more about it.
        what: for a message.
        mend: the fix for any intended kind of file, "" when it depends on the kind.
    """

    kind: str
    what: str
    mend: str = ""


_UNPACK = "Unpack it first: "
_STARTS = (
    (
        0,
        b"version https://git-lfs",
        Content(
            "lfs", "it is a Git LFS pointer, not the file itself", "Fetch the file: git lfs pull"
        ),
    ),
    (0, b"\x93NUMPY", Content("npy", "it is a single NumPy array (.npy)")),
    (0, b"\x89HDF", Content("hdf5", "it is an HDF5 file, as Keras writes it")),
    (0, b"GGUF", Content("gguf", "it is a GGUF file with weights of llama.cpp")),
    (0, b"\x1f\x8b", Content("gzip", "it is a gzip archive", f"{_UNPACK}tar xf or gunzip")),
    (0, b"BZh", Content("bzip2", "it is a bzip2 archive", f"{_UNPACK}tar xf or bunzip2")),
    (0, b"\xfd7zXZ", Content("xz", "it is an xz archive", f"{_UNPACK}tar xf or unxz")),
    (0, b"\x28\xb5\x2f\xfd", Content("zstd", "it is a zstd archive", f"{_UNPACK}unzstd")),
    (0, b"7z\xbc\xaf", Content("7z", "it is a 7z archive", f"{_UNPACK}7z x")),
    (0, b"Rar!", Content("rar", "it is a RAR archive", f"{_UNPACK}unrar x")),
    (257, b"ustar", Content("tar", "it is a tar archive", f"{_UNPACK}tar xf")),
    (0, b"%PDF", Content("pdf", "it is a PDF document")),
    (0, b"\x89PNG", Content("png", "it is a PNG image")),
    (0, b"\xff\xd8\xff", Content("jpeg", "it is a JPEG image")),
    (0, b"\x7fELF", Content("elf", "it is a compiled program or library")),
    (0, b"ftrt", Content("engine", "it is a TensorRT engine")),
    (0, b"ptrt", Content("engine", "it is a TensorRT engine")),
    (4, b"ORTM", Content("ort", "it is a file of ONNX Runtime's own format (.ort)")),
    (4, b"TFL3", Content("tflite", "it is a TensorFlow Lite model")),
)
_EMPTY = Content("empty", "the file is empty", "Copy or download it again")
_PAGE = Content(
    "html",
    "it is a web page (HTML)",
    "Download the file itself, not the page about it (GitHub: the raw link; Hugging Face: "
    "/resolve/, not /blob/), or log in first",
)
_TAGS = (b"<!doctype html", b"<html", b"<head", b"<body")


def content_of(head: bytes) -> Content | None:
    """Return what a file is, or None when its first bytes do not tell.

    Zip archives and pickles are not recognized: their readers look further into them.

    Args:
        head: the first ``HEAD`` bytes, or all of a smaller file.

    >>> content_of(b"{}").what, content_of(b"<HTML>").kind, content_of(bytes(9))
    ('it is a JSON file', 'html', None)
    """
    if not head:
        return _EMPTY
    known = next((c for at, magic, c in _STARTS if head.startswith(magic, at)), None)
    return known or _text(head)


def _text(head: bytes) -> Content | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(_TAGS) or (start.startswith(b"<") and b"<html" in start):
        return _PAGE
    if not _is_text(head):
        return None
    if start.startswith(b"<"):
        return Content("xml", "it is an XML file")
    return (
        Content("json", "it is a JSON file")
        if start.startswith((b"{", b"["))
        else Content("text", "it is a text file")
    )


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        if exc.start < len(head) - 4:  # not only the last character cut in two
            return False
        text = head[: exc.start].decode("utf-8-sig")
    return all(c.isprintable() or c in "\r\n\t\f" for c in text)
