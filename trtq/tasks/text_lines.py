"""Lines of text read by a recogniser with CTC: scores of characters [N, T, C] at T places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from trtq.tasks.base import Figure, Outputs, Places, Score
from trtq.tasks.edit_distance import edit_distance
from trtq.tasks.facts import Facts
from trtq.tasks.maps import caption
from trtq.tasks.one_output import OneOutput

CHARACTERS = "character"  # metadata of PaddleOCR's files: one character a line
RUINED = -1  # a place whose scores are NaN or infinite
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
Line = str | tuple[int, ...]


class LineScore:
    """Counts of characters that must be changed, against lines of text.

    Args:
        ignore: the index that fills targets up.
        prefix: before the names of the figures.
    """

    def __init__(self, ignore: int, prefix: str = "") -> None:
        self.ignore, self.prefix = ignore, prefix
        self.lines = self.equal = self.wrong = self.characters = 0

    def add(self, answer: Sequence[Line], targets: Sequence[Any] | None) -> None:
        """Count one batch: lines, and the right ones: texts, or indices of characters.

        Args:
            answer: a text or a tuple of class indices for each sample.
            targets: of the same kind; rows of indices may be filled up with :attr:`ignore`. None
                counts nothing.
        """
        for own, target in zip(answer, targets, strict=True) if targets is not None else ():
            wanted = self._line(target)
            self.lines += 1
            self.equal += own == wanted
            self.wrong += edit_distance(own, wanted)
            self.characters += len(wanted)

    def _line(self, target: Any) -> Line:
        if isinstance(target, str | tuple):
            return target
        return tuple(int(i) for i in target if i != self.ignore)

    @property
    def figures(self) -> list[Figure]:
        """Character accuracy, and the share of lines without an error, percent.

        The first is 1 minus the changed characters over the right ones, at least 0; None where
        every right line is empty.
        """
        if not self.lines:
            return []
        share: float | None = None
        if self.characters:
            share = round(100.0 * max(0.0, 1.0 - self.wrong / self.characters), 4)
        lines = round(100.0 * self.equal / self.lines, 4)
        return [
            Figure(name=f"{self.prefix}character accuracy", value=share),
            Figure(name=f"{self.prefix}equal lines", value=lines),
        ]


@dataclass(frozen=True, kw_only=True)
class TextLines(OneOutput):
    """Lines of text; behind the colon ``blank-last``: the last class is CTC's blank.

    Attributes:
        characters: of the classes behind the blank; empty where nobody says them: lines are then
            indices of classes.
    """

    name = "text-lines"
    form = "scores of characters, [N, T, C]"
    ranks = (3,)
    words = ("blank-last",)
    characters: tuple[str, ...] = ()

    def bound(self, facts: Facts) -> TextLines:
        """Return the task with the output and the characters of a model.

        Args:
            facts: shapes of the outputs in order, and the metadata with the characters.

        Raises:
            UsageError: no output fits, or several.
        """
        task = super().bound(facts)
        count = facts.outputs[task.output][2]
        known = facts.metadata.get(CHARACTERS, "").split("\n")
        rows = known if known[0] else []
        rows = rows[:-1] if rows and not rows[-1] else rows  # a last line that ends
        missing = count - 1 - len(rows) if isinstance(count, int) else -1
        if not rows or missing not in (0, 1):
            return task
        return replace(task, characters=(*rows, *[" "] * missing))  # PaddleOCR adds the space

    def decode(self, outputs: Outputs, places: Places) -> list[Line]:
        """Return the line of each sample: the best class of each place, without repeats and blanks.

        Args:
            outputs: of the model by name; scores are [N, T, C].
            places: not used.

        Returns:
            Texts where the characters are known, else tuples of class indices. A place whose scores
            are NaN or infinite is U+FFFD, or -1.

        Raises:
            UsageError: the output is missing.
        """
        scores = super().decode(outputs, places)
        blank = scores.shape[2] - 1 if self.has_word("blank-last") else 0
        best = np.where(np.isfinite(scores).all(axis=2), scores.argmax(axis=2), RUINED)
        return [self._text(_collapsed(line, blank), blank) for line in best]

    def _text(self, line: tuple[int, ...], blank: int) -> Line:
        if not self.characters:
            return line
        offset = 1 if blank == 0 else 0
        return "".join(UNKNOWN if i == RUINED else self.characters[i - offset] for i in line)

    def score(self, *, ignore: int) -> Score:  # noqa: D102
        return LineScore(ignore)

    def agreement(self) -> Score:  # noqa: D102
        return LineScore(0, "agreement ")

    def mismatch(self, answer: Any, targets: npt.NDArray[Any]) -> str:  # noqa: D102
        del answer
        texts = targets.dtype == np.object_ and all(isinstance(t, str) for t in targets)
        if texts and not self.characters:
            return (
                "its targets are texts, and the file does not say its characters (metadata "
                f"{CHARACTERS!r}); give indices of classes"
            )
        indices = targets.ndim == 2 and targets.dtype.kind in "iu"
        if indices and self.characters:
            return "its targets are indices, expected texts: the file says its characters"
        if texts or indices:
            return ""
        what = "no texts" if targets.dtype == np.object_ else str(targets.dtype)
        return f"its targets are {what} {list(targets.shape)}, expected texts"

    def difference(self, answer: Line, other: Line) -> float:
        """Return how many characters differ."""
        return float(edit_distance(answer, other))

    def draw(self, image: Image.Image, answer: Line) -> Image.Image:  # noqa: D102
        below = Image.new("RGB", (image.width, image.height + 16))
        below.paste(image.convert("RGB"))
        return caption(below, answer if isinstance(answer, str) else " ".join(map(str, answer)))


def _collapsed(line: npt.NDArray[np.int64], blank: int) -> tuple[int, ...]:
    first = np.append(True, line[1:] != line[:-1]) if line.size else np.zeros(0, dtype=np.bool_)
    return tuple(int(i) for i in line[first & (line != blank)])
