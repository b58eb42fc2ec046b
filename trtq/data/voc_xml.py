"""One annotation file in PASCAL VOC's form, read without anything that XML can do beyond it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

MAX_BYTES = 2**20
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, kw_only=True)
class VocObject:
    """One object of a picture.

    Attributes:
        name: of its class.
        corners: left, top, right and bottom as they are written.
        difficult: whether it need not be found.
    """

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True, kw_only=True)
class VocFile:
    """One annotation file.

    Attributes:
        filename: of the picture, as the file has it; "" without one.
        size: width and height of the picture; None where they are not known.
        objects: what is in it.
    """

    filename: str
    size: tuple[int, int] | None
    objects: Sequence[VocObject]


def read_voc(content: bytes) -> VocFile:
    """Return an annotation file.

    Args:
        content: of the file, at most 1 MiB; a document type in it is refused.

    Raises:
        ValueError: a person reads why it is none.
    """
    root = _parse(content)
    if root.tag != "annotation":
        raise ValueError(f"it begins with <{root.tag}>, expected <annotation>")
    return VocFile(
        filename=(root.findtext("filename") or "").strip(),
        size=_size(root),
        objects=[_object(o) for o in root.findall("object")],
    )


def _parse(content: bytes) -> Element:
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has {len(content)} bytes, the limit is {MAX_BYTES}")
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except expat.ExpatError as exc:
        raise ValueError(f"it is not XML ({exc})") from exc
    root: Element = builder.close()
    return root


def _refuse(*declared: object) -> None:
    """Refuse a document type: its entities could be other files, or grow without end.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"it declares a document type {declared[0]!r}, which annotations do not need")


def _size(root: Element) -> tuple[int, int] | None:
    """Return width and height; tools that do not know them leave them out, or write 0."""
    texts = [root.findtext(f"size/{side}") for side in ("width", "height")]
    sides = [_number(text, "size") for text in texts if text]
    if len(sides) < 2 or min(sides) < 1:
        return None
    return int(sides[0]), int(sides[1])


def _object(element: Element) -> VocObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    texts = [element.findtext(f"bndbox/{corner}") for corner in CORNERS]
    if not all(texts):
        raise ValueError(f"the {name} has no bndbox with {', '.join(CORNERS)}")
    left, top, right, bottom = (_number(text or "", f"the box of {name}") for text in texts)
    return VocObject(
        name=name,
        corners=(left, top, right, bottom),
        difficult=(element.findtext("difficult") or "0").strip() not in ("0", "false", "False"),
    )


def _number(text: str, owner: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{owner} has {text.strip()[:20]!r}, expected a number")
    return value
