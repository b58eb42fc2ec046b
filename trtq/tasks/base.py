"""Interface of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import msgspec
import numpy.typing as npt
from PIL import Image

from trtq.data.answers import Kind
from trtq.errors import UsageError
from trtq.tasks.facts import Facts

if TYPE_CHECKING:
    import torch

    from trtq.data.image_place import ImagePlace

TIED = 1e-9  # scores that differ by less are equal
Outputs = Mapping[str, npt.NDArray[Any]]
Tensors: TypeAlias = "Mapping[str, torch.Tensor]"
Places: TypeAlias = "Sequence[ImagePlace] | None"


class Figure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One score.

    Attributes:
        name: such as ``top-1``.
        value: in ``unit``; None where nothing could be counted.
        unit: such as ``%``.
        better: whether a higher or a lower value is better.
    """

    name: str
    value: float | None
    unit: str = "%"
    better: str = "higher"

    @property
    def words(self) -> str:
        """The score as a person reads it."""
        return f"{self.name} {self.amount}"

    @property
    def amount(self) -> str:
        """The value with its unit; ``n/a`` without a value."""
        if self.value is None:
            return "n/a"
        return f"{self.value:.2f} {self.unit}" if self.unit else f"{self.value:.4g}"

    @property
    def perfect(self) -> float:
        """The value that a model has against itself."""
        if self.better == "lower":
            return 0.0
        return 100.0 if self.unit == "%" else 1.0

    def gain(self, value: float) -> float:
        """Return how far the score is above a value; below 0 it is worse.

        Args:
            value: in the same unit.
        """
        assert self.value is not None
        return self.value - value if self.better == "higher" else value - self.value

    def reaches(self, value: float) -> bool:
        """Whether the score is as good as a value, or better.

        Args:
            value: in the same unit; differences below 1e-9 are none.
        """
        return self.gain(value) >= -TIED


def with_fields(
    figures: Iterable[Figure] | msgspec.UnsetType, fields: Mapping[str, float | None]
) -> list[Figure]:
    """Return the scores of a record: those of its task, then those that have fields of their own.

    Args:
        figures: of the task.
        fields: values in percent by the name of the score; None for what was not counted.
    """
    known = (Figure(name=n, value=v) for n, v in fields.items() if v is not None)
    return [*(figures or ()), *known]


class Score(Protocol):
    """Counts over batches."""

    def add(self, answer: Any, targets: Any) -> None:
        """Count one batch: what the task decoded, and targets, one a sample.

        Args:
            answer: of the task's ``decode``.
            targets: array, samples first; boxes and texts as objects; None without targets.
        """

    @property
    def figures(self) -> list[Figure]:
        """Scores of all batches, the figure that models are compared by first.

        Empty without targets.
        """


@runtime_checkable
class HasCurve(Protocol):
    """Counts with a precision-recall curve."""

    def curve(self) -> list[tuple[float, float]]:
        """Return recall and precision, 0 to 1."""


class Task(ABC):
    """Meaning of the outputs of a model.

    Attributes:
        name: as it is asked for.
        kind: of the first output; None where it is only numbers.
        takes_targets: whether answers can be right or wrong.
        finds_boxes: whether answers are places on the image, which a head computes from maps.
    """

    name: str
    kind: Kind | None = None
    takes_targets: bool = True
    finds_boxes: bool = False

    @property
    def label(self) -> str:
        """The task as a person reads it, with what it reads answers by."""
        return self.name

    def with_argument(self, argument: str) -> Task:
        """Return the task as the text behind its name and a colon says.

        Args:
            argument: what is behind the colon.

        Raises:
            UsageError: it takes none, or has no such choice.
        """
        raise UsageError(
            f"Cannot use the task {self.name}:{argument}",
            f"{self.name} takes nothing behind a colon",
            f"--task {self.name}",
        )

    def bound(self, facts: Facts) -> Task:
        """Return the task for one model.

        Args:
            facts: what is known of the model.

        Raises:
            UsageError: the model lacks the outputs, or they can be read in two ways.
        """
        del facts
        return self

    def decode(self, outputs: Outputs, places: Places) -> Any:
        """Return the answers of a batch, samples first: by default the first output.

        Args:
            outputs: of the model by name, samples first.
            places: where each image is in the input; None for samples that are no images.
        """
        del places
        return next(iter(outputs.values()))

    @abstractmethod
    def score(self, *, ignore: int) -> Score:
        """Return new counts.

        Args:
            ignore: the target value that is not counted.
        """

    def agreement(self) -> Score | None:
        """Return new counts of a model's answers against another's, which needs no labels.

        Its ``add`` takes the answers, then the other's. None where outputs are compared as numbers
        only.
        """
        return None

    def divergence(self, outputs: Tensors, reference: Tensors) -> torch.Tensor:
        """Return how far the outputs of each sample are from a reference's, float [N]; 0 is equal.

        By default the squared error over the square of the reference, summed over all outputs.

        Args:
            outputs: of a model by name, tensors with samples first.
            reference: the same of another model, whose answers are right.
        """
        from trtq.tasks.distances import relative_error

        return relative_error(outputs, reference)

    def loss(self, outputs: Tensors, reference: Tensors) -> torch.Tensor:
        """Return what training without labels makes small, one number with a gradient.

        By default the mean of :meth:`divergence` over the samples.

        Args:
            outputs: of the model that learns, by name, tensors with samples first.
            reference: of the float model.
        """
        return self.divergence(outputs, reference).mean()

    def mismatch(self, answer: Any, targets: npt.NDArray[Any]) -> str:
        """Return why targets cannot be compared with answers of these shapes, "" when they can.

        Args:
            answer: of a batch, as decoded.
            targets: of the same batch; boxes and texts as objects.
        """
        del answer, targets
        return ""

    def remark(self, answer: Any, targets: npt.NDArray[Any]) -> str:
        """Return what a user should know of how answers meet these targets, "" for nothing.

        Args:
            answer: of a batch, as decoded.
            targets: of the same batch, which :meth:`mismatch` accepts.
        """
        del answer, targets
        return ""

    def difference(self, answer: Any, other: Any) -> float:
        """Return how much the answers of two models to one sample differ; 0 is not at all.

        It orders the samples that are shown.

        Args:
            answer: of the model to one sample, as decoded.
            other: of the reference.
        """
        del answer, other
        return 0.0

    def draw(self, image: Image.Image, answer: Any) -> Image.Image | None:
        """Return a picture of one sample's answer on its original image; None for no picture.

        Args:
            image: the upright original; as the model sees it unless :attr:`finds_boxes`.
            answer: to one sample, as decoded.
        """
        del image, answer
        return None
