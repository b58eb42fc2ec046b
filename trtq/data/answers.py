"""Kinds of model outputs, and how the answers of two models compare.

Every verb uses this module for it.

Only scores of classes have predictions that can agree. Class indices, boxes, maps, embeddings and
angles are compared as numbers: signal to quantization noise and cosine for floats, equality for
integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from trtq.data.metrics import predictions, ratio_db, sqnr_words

Kind = Literal["classes", "pixels", "indices", "values"]
HAVE_PREDICTIONS = ("classes", "pixels")
ANSWER = "answer"  # metadata of an ONNX file: the kind of its first output
TASK = "task"  # metadata of an ONNX file: the task that it was quantized for
LEAST = float(np.finfo(np.float32).tiny)  # the signal of a reference that is 0 everywhere


def kind_of(shape: Sequence[Any], *, integer: bool, classes: int | None) -> Kind:
    """Return what an output is.

    Args:
        shape: of the output, batch first; a dynamic axis may be a text.
        integer: it holds integers or booleans.
        classes: how many classes the model is known to tell apart; None when that is not known.

    >>> kind_of(["batch", 10], integer=False, classes=10)
    'classes'
    >>> kind_of(["batch", 384], integer=False, classes=10)
    'values'
    """
    if integer:
        return "indices"
    if classes is None or classes < 2 or len(shape) not in (2, 4) or shape[1] != classes:
        return "values"
    return "classes" if len(shape) == 2 else "pixels"


def kind_in(metadata: Mapping[str, Any]) -> Kind | None:
    """Return what a file's metadata says of its first output, None where it says nothing.

    Args:
        metadata: of an ONNX file that trtq wrote.
    """
    answer = metadata.get(ANSWER)
    return next((k for k in get_args(Kind) if k == answer), None)


def kind_of_array(array: npt.NDArray[Any], known: Kind | None = None) -> Kind:
    """Return what an output is, as its file says it (``known``), where its type allows that.

    Args:
        array: the output, samples first.
        known: what the file says it is; None where it says nothing.

    Returns:
        ``indices`` for integers and booleans; ``classes`` or ``pixels`` only where ``known`` says
        so and axis 1 of [N, C] or [N, C, H, W] has two entries or more; else ``values``.
    """
    if array.dtype.kind in "iub":
        return "indices"
    return (
        known
        if known in HAVE_PREDICTIONS and array.ndim in (2, 4) and array.shape[1] > 1
        else "values"
    )


class OutputComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One output of a model against the same output of a reference.

    Attributes:
        name: of the output.
        kind: what it is; only ``classes`` and ``pixels`` have predictions.
        sqnr_db: reference over difference, dB; None without a difference, for integers, and where
            not comparable. A reference of zeros counts as the smallest normal float32.
        cosine: of all values, -1 to 1; None for integers, where either is zero, and where not
            comparable.
        agreement: equal predictions, percent; None where there are none.
        equal: equal integers, percent; None for floats.
        finite: both answers have the same shapes and no NaN or infinity.
        constant: the reference gave the same numbers for every image, of at least two; a class may
            well be the same for all.
    """

    name: str
    kind: Kind
    sqnr_db: float | None
    cosine: float | None
    agreement: float | None
    equal: float | None
    finite: bool = True
    constant: bool = False

    @property
    def exact(self) -> bool:
        """Whether nothing differs."""
        return self.finite and self.sqnr_db is None and self.equal in (None, 100.0)

    @property
    def words(self) -> str:
        """The figures as a person reads them."""
        if not self.finite:
            return "not comparable: shapes differ, or values are NaN or infinite"
        if self.equal is not None:
            return f"{percent_words(self.equal, 2)} of its integers equal"
        parts = (
            [f"agreement {percent_words(self.agreement, 2)}"] if self.agreement is not None else []
        )
        parts.append(
            sqnr_words(self.sqnr_db) if self.sqnr_db is None else f"SQNR {sqnr_words(self.sqnr_db)}"
        )
        if self.agreement is None and self.cosine is not None:
            parts.append(f"cosine {self.cosine:.6f}")
        return ", ".join(parts)


def percent_words(value: float, digits: int = 1) -> str:
    """Return a share in percent, never rounded up to all of it.

    Args:
        value: 0 to 100.
        digits: behind the point.

    >>> percent_words(99.97), percent_words(100.0)
    ('99.9 %', '100.0 %')
    """
    shown = min(value, 100.0 - 10.0**-digits) if value < 100.0 else value
    return f"{shown:.{digits}f} %"


@dataclass(slots=True)
class Tally:
    """Sums over batches of one output against its reference.

    Attributes:
        name, kind: of the output.
        known: what the file says it is.
        rows: samples seen.
        same, compared: equal decisions (classes or integers), and all of them.
        signal, noise, power, dot: sums over all values, float64, of reference squared, difference
            squared, answer squared and reference times answer.
        finite: no batch had other shapes, NaN or infinity.
        varies: a reference differed from the first one.
        first: the first sample's reference.
    """

    name: str
    known: Kind | None = None
    kind: Kind = "values"
    rows: int = 0
    same: int = 0
    compared: int = 0
    signal: float = 0.0
    noise: float = 0.0
    power: float = 0.0
    dot: float = 0.0
    finite: bool = True
    varies: bool = False
    first: npt.NDArray[Any] | None = field(default=None, repr=False)

    def add(self, reference: npt.NDArray[Any], answer: npt.NDArray[Any]) -> None:
        """Count one batch, both of the same shape, images first.

        Args:
            reference: any shape and type, images first.
            answer: of the same shape; another one makes the output not comparable.
        """
        self.kind = kind_of_array(reference, self.known)
        self._note_variation(reference)
        same_shape = reference.shape == answer.shape
        if not same_shape or not (np.isfinite(reference).all() and np.isfinite(answer).all()):
            self.finite = False
            return
        if self.kind == "indices":
            self._count(reference == answer)
            return
        if self.kind in HAVE_PREDICTIONS:
            self._count(predictions(reference) == predictions(answer))
        wanted = reference.astype(np.float64)
        actual = answer.astype(np.float64)
        self.signal += float(np.sum(np.square(wanted)))
        self.noise += float(np.sum(np.square(wanted - actual)))
        self.power += float(np.sum(np.square(actual)))
        self.dot += float(np.sum(wanted * actual))

    def _note_variation(self, reference: npt.NDArray[Any]) -> None:
        """Count the images, and note whether any answer differs from the first one."""
        if not reference.ndim:
            self.rows += 1
            self.varies = True
            return
        self.rows += len(reference)
        if self.first is None and len(reference):
            self.first = reference[0].copy()
        alike = self.first is not None and reference.shape[1:] == self.first.shape
        self.varies = self.varies or not alike or bool((reference != self.first).any())

    def _count(self, same: npt.NDArray[np.bool_]) -> None:
        self.same += int(same.sum())
        self.compared += same.size

    @property
    def result(self) -> OutputComparison:
        """Result of all batches."""
        share: float | None = None
        if self.compared and self.finite:
            share = round(100.0 * self.same / self.compared, 6)
        sqnr = ratio_db(self.signal or LEAST, self.noise)
        length = math.sqrt(self.signal * self.power)
        numbers = self.finite and self.kind != "indices"
        return OutputComparison(
            name=self.name,
            kind=self.kind,
            sqnr_db=round(sqnr, 3) if numbers and math.isfinite(sqnr) else None,
            cosine=round(self.dot / length, 9) if numbers and length > 0.0 else None,
            agreement=share if self.kind in HAVE_PREDICTIONS else None,
            equal=share if self.kind == "indices" else None,
            finite=self.finite,
            constant=self.rows > 1 and not self.varies and self.kind != "indices",
        )


def compare_answers(
    name: str, reference: npt.NDArray[Any], answer: npt.NDArray[Any], known: Kind | None = None
) -> OutputComparison:
    """Return how one output compares with the reference's over all images.

    Args:
        name: of the output.
        reference: of all images, images first.
        answer: of the same shape.
        known: what its file says the output is.
    """
    tally = Tally(name, known)
    tally.add(reference, answer)
    return tally.result
