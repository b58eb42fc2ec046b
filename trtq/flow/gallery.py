"""Pictures of the samples on which two models differ most, side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy.typing as npt
from PIL import Image, ImageDraw

from trtq.artifact import ensure_writable_dir, write_bytes
from trtq.data.image_place import ImagePlace
from trtq.data.samples import Batch, Samples
from trtq.layouts import pixels_of
from trtq.records.evaluate import PictureRow
from trtq.tasks import Figure, Score, Task

MOST = 8
WIDTH = 640  # pixels of one side at most
CAPTION = 18  # height of the line above a picture
PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    "<title>Where two models differ most</title>"
    "<style>body{font:16px sans-serif;margin:2em}img{max-width:100%}</style>"
    "<main><h1>Where two models differ most</h1>\n"
)


class View(NamedTuple):
    """An image as the model sees it.

    Attributes:
        place: where the image is in the input.
        size: width and height of the input, pixels.
    """

    place: ImagePlace
    size: tuple[int, int]


class Shown(NamedTuple):
    """One sample on which two models differ.

    Attributes:
        difference: of the task, above 0.
        sample: id.
        answer: of the model, as the task decodes a batch of this one sample.
        reference: of the other model.
        targets: of the same batch; None without targets.
        seen: what the model sees of the image; None for samples that are no images.
    """

    difference: float
    sample: str
    answer: Any
    reference: Any
    targets: npt.NDArray[Any] | None
    seen: View | None


@dataclass
class Gallery:
    """Keeps the samples on which a model differs most from its reference.

    Attributes:
        samples: the images.
        most: how many are kept.
        kept: so far, the largest difference first.
    """

    samples: Samples
    most: int = MOST
    kept: list[Shown] = field(default_factory=list)

    def add(
        self,
        task: Task,
        batch: Batch,
        answers: Sequence[Any],
        targets: npt.NDArray[Any] | None = None,
    ) -> None:
        """Look at one batch: what the model and its reference answered.

        Args:
            task: orders and draws the answers.
            batch: the samples.
            answers: of the model and of its reference, samples first.
            targets: what is right; None where nobody knows.
        """
        new = []
        for i, (name, view) in enumerate(zip(batch.ids, _views(batch), strict=True)):
            own, other = (side[i : i + 1] for side in answers)
            wanted = None if targets is None else targets[i : i + 1]
            new.append(Shown(task.difference(own[0], other[0]), name, own, other, wanted, view))
        self.kept = sorted(
            [*self.kept, *(s for s in new if s.difference > 0.0)], key=lambda s: -s.difference
        )[: self.most]

    def save(self, task: Task, folder: Path) -> list[PictureRow]:
        """Write one picture a sample, the reference's answer left, and return what was written.

        Args:
            task: draws the answers.
            folder: made where there are pictures; ``01.jpg`` and on, and ``index.html``.

        Raises:
            ArtifactError: the folder cannot be written.
        """
        rows = []
        for i, shown in enumerate(self.kept):
            image = self.samples.original(shown.sample)
            sides = [] if image is None else _sides(task, image, shown)
            if not sides:
                continue
            name = f"{i + 1:02d}.jpg"
            write_bytes(ensure_writable_dir(folder) / name, _as_jpeg(beside(sides)))
            rows.append(
                PictureRow(
                    file=name,
                    sample=shown.sample,
                    difference=round(shown.difference, 4),
                    **_scores(task, shown, self.samples.ignore),
                )
            )
        if rows:
            page = "".join(_figure(row) for row in rows)
            write_bytes(folder / "index.html", f"{PAGE}{page}".encode())
        return rows


class _Scores(TypedDict, total=False):
    score: Figure
    reference_score: Figure
    agreement: Figure


def _scores(task: Task, shown: Shown, ignore: int) -> _Scores:
    """Return the first score of one sample, of both models and of the two against each other."""
    scores = _Scores()
    sides = shown.answer, shown.reference
    own, other = (_counted(task.score(ignore=ignore), side, shown.targets) for side in sides)
    if own is not None and other is not None:
        scores |= _Scores(score=own, reference_score=other)
    alike = _counted(task.agreement(), *sides)
    return scores if alike is None else scores | _Scores(agreement=alike)


def _counted(score: Score | None, answer: Any, targets: Any) -> Figure | None:
    """Return the first figure of one sample; None where there is nothing to count."""
    if score is None or targets is None:
        return None
    score.add(answer, targets)
    return next((f for f in score.figures if f.value is not None), None)


def _figure(row: PictureRow) -> str:
    caption = f"{html.escape(row.sample)}: {html.escape(row.words)}"
    image = f'<img src="{row.file}" alt="{html.escape(row.sample)}, both answers">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>\n"


def _views(batch: Batch) -> list[View | None]:
    if batch.places is None:
        return [None] * len(batch)
    height, width = pixels_of(batch.input.shape)
    return [View(place, (int(width), int(height))) for place in batch.places]


def visible(image: Image.Image, view: View) -> Image.Image:
    """Return an image as a model's input shows it: resized, cut and with black borders.

    Args:
        image: the upright original.
        view: where it is in the input.

    Returns:
        RGB of the size of the input.
    """
    (scale_x, scale_y), (left, top) = view.place.scale, view.place.offset
    back = (1.0 / scale_x, 0.0, -left / scale_x, 0.0, 1.0 / scale_y, -top / scale_y)
    return image.convert("RGB").transform(
        view.size, Image.Transform.AFFINE, back, resample=Image.Resampling.BILINEAR
    )


def _sides(task: Task, image: Image.Image, shown: Shown) -> list[tuple[str, Image.Image]]:
    if shown.seen is not None and not task.finds_boxes:
        image = visible(image, shown.seen)
    answers = {"reference": shown.reference, "model": shown.answer}
    drawn = [(name, task.draw(image, answer[0])) for name, answer in answers.items()]
    return [(name, picture) for name, picture in drawn if picture is not None]


def beside(sides: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Return pictures of one size side by side, each under its name.

    Args:
        sides: name and picture, all scaled to the size of the first, at most 640 pixels wide.
    """
    first = sides[0][1]
    ratio = min(1.0, WIDTH / first.width)
    size = (max(1, round(first.width * ratio)), max(1, round(first.height * ratio)))
    sheet = Image.new("RGB", (size[0] * len(sides), size[1] + CAPTION), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (name, picture) in enumerate(sides):
        sheet.paste(picture.convert("RGB").resize(size), (i * size[0], CAPTION))
        pen.text((i * size[0] + 4, 2), name, fill="black")
    return sheet


def _as_jpeg(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
