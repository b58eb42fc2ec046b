"""The section of a report about a task's answers: a curve, classes, and pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from trtq.files import PICTURES
from trtq.records.evaluate import EvaluateRecord, PictureRow
from trtq.report.figures import precision_figure

PAGE_BYTES = 4_000_000  # of the pictures of one page, as files


class Picture(NamedTuple):
    """One picture of the contact sheet, as part of the page.

    Attributes:
        sample: its id.
        words: its scores, and the difference by which pictures are ordered.
        data: a ``data:`` URL.
        width, height: pixels.
    """

    sample: str
    words: str
    data: str
    width: int
    height: int


class ClassRow(NamedTuple):
    """One class of the table.

    Attributes:
        name: of the class.
        scores: of the float model, where they are known, and of the quantized one; None for a class
            that is nowhere.
    """

    name: str
    scores: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers on the page.

    Attributes:
        measure: the score of the classes, with its unit.
        curve: recall and precision, as SVG; "" without them.
        classes: those that the score counts.
        reference_classes: their first score is the float model's.
        pictures: of the samples where the two models differ most.
        left_out: why pictures of the record are not here, "" for none.
    """

    measure: str
    curve: str = ""
    classes: list[ClassRow] = field(default_factory=list)
    reference_classes: bool = False
    pictures: list[Picture] = field(default_factory=list)
    left_out: str = ""


def answers_of(e: EvaluateRecord | None, folder: Path, width: str) -> Answers | None:
    """Return what a page shows of the answers; None where the record has nothing of them.

    Args:
        e: the evaluation of a run.
        folder: of the record; its pictures are in a folder below it.
        width: what to call the quantized model.
    """
    if e is None:
        return None
    own, _ = next(iter(e.scores.values()), (None, None))
    measure = "score" if own is None else f"{own.name}, {own.unit}" if own.unit else own.name
    pictures, left_out = _pictures(e.pictures or [], folder / PICTURES)
    answers = Answers(
        measure=measure,
        reference_classes=bool(e.reference_by_class),
        curve=precision_figure(_curves(e, width)) if e.curve else "",
        classes=list(_classes(e)),
        pictures=pictures,
        left_out=left_out,
    )
    shown = answers.curve or answers.classes or answers.pictures or answers.left_out
    return answers if shown else None


def _curves(e: EvaluateRecord, width: str) -> dict[str, list[tuple[float, float]]]:
    curves = {"FP32": e.reference_curve or [], width: e.curve or []}
    return {name: points for name, points in curves.items() if points}


def _classes(e: EvaluateRecord) -> Iterator[ClassRow]:
    names, own = e.class_names or [], e.by_class or e.iou or []
    sides = [side for side in (e.reference_by_class, own) if side]
    for i, scores in enumerate(zip_longest(*sides)):
        yield ClassRow(names[i] if i < len(names) else f"class {i}", scores)


def _pictures(rows: list[PictureRow], folder: Path) -> tuple[list[Picture], str]:
    """Return the pictures that are there and fit the page, and why others are not here."""
    present_rows = [row for row in rows if _is_below(folder, row.file)]
    pictures, total, damaged = list[Picture](), 0, 0
    for row in present_rows:
        total += (folder / row.file).stat().st_size
        if total > PAGE_BYTES:
            break
        picture = _picture(row, folder / row.file)
        if picture is None:
            damaged += 1
        else:
            pictures.append(picture)
    missing, large = len(rows) - len(present_rows), len(present_rows) - len(pictures) - damaged
    reasons = [
        f"{missing} of {len(rows)} pictures are not in {folder.name}/." if missing else "",
        f"{damaged} of {len(rows)} files in {folder.name}/ are no pictures." if damaged else "",
        f"{large} more are in {folder.name}/: the page would be too large." if large else "",
    ]
    return pictures, " ".join(filter(None, reasons))


def _picture(row: PictureRow, path: Path) -> Picture | None:
    """Return a picture as part of the page; None where the file is none."""
    try:
        with Image.open(path) as image:
            size = image.size
        data = base64.b64encode(path.read_bytes()).decode()
    except (OSError, Image.DecompressionBombError):
        return None
    return Picture(row.sample, row.words, f"data:image/jpeg;base64,{data}", *size)


def _is_below(folder: Path, name: str) -> bool:
    """Whether a record's picture is a file of its own folder."""
    return Path(name).name == name and (folder / name).is_file()
