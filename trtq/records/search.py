"""The tries of ``trtq search``, and its choice."""

from __future__ import annotations

import msgspec

from trtq.artifact import Environment, Record


class Try(msgspec.Struct, frozen=True, kw_only=True):
    """One allocation that became a file and was measured.

    Attributes:
        label: for figures.
        model: of which candidate.
        candidate: its number, from 0 on.
        folder: where it is, below the search's folder.
        widths: layers by width.
        methods: quantization methods that were applied.
        costs: predicted, by budget name.
        accuracy: the score, such as top-1 or mAP in percent; agreement where there are no labels.
        change: points against the reference; below 0 it is worse.
        agreement: with the model's own float file, percent; None where there is no such score.
        sqnr_db: of the outputs.
        within: every budget holds.
        accurate: the accuracy holds.
        onnx_bytes: of the exported file.
    """

    label: str
    model: str
    candidate: int
    folder: str
    widths: dict[str, int]
    methods: list[str]
    costs: dict[str, float]
    accuracy: float
    change: float
    agreement: float | None
    sqnr_db: float | None
    within: bool
    accurate: bool
    onnx_bytes: int


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """A limit, and the value of the chosen model.

    Attributes:
        name: of the budget, ``accuracy``, or the name of the score.
        allowed, got: as a person reads them.
        met: whether it holds.
        needed: where it does not hold: what would have to be allowed, as far as that was found.
    """

    name: str
    allowed: str
    got: str
    met: bool
    needed: str | None


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """The float model that shares and accuracy refer to.

    Attributes:
        accuracy: in ``unit``, and ``measure``: what it is.
        costs: by budget name.
        unit: unset for percent.
    """

    model: str
    accuracy: float
    measure: str
    costs: dict[str, float]
    unit: str | msgspec.UnsetType = msgspec.UNSET


def unit_of(reference: Reference) -> str:
    """Return the unit of the accuracies of a search."""
    return "%" if reference.unit is msgspec.UNSET else reference.unit


class SearchRecord(Record, frozen=True, kw_only=True):
    """The tries of ``trtq search``, and its choice.

    Attributes:
        reference: the float model that shares and accuracy refer to: name, accuracy in percent,
            what accuracy is, its costs.
        images: how many accuracy was measured on; the choice was made on these very images.
        constraints: one by one.
        met: all of them hold.
        tries: in order.
        chosen: label of the try whose files are in the folder; ``qdq_sha256`` is that of its model.
        notes: what a user must know.
    """

    reference: Reference
    images: int
    constraints: list[Constraint]
    met: bool
    tries: list[Try]
    chosen: str
    qdq_sha256: str
    notes: list[str]
    seconds: float
    environment: Environment

    def __post_init__(self) -> None:
        if not any(t.label == self.chosen for t in self.tries):
            raise ValueError(f"no try is called {self.chosen!r}")

    @property
    def best(self) -> Try:
        """The try that was chosen."""
        return next(t for t in self.tries if t.label == self.chosen)

    @property
    def summary(self) -> str:
        """One line for a person."""
        got = self.best
        state = "every constraint holds" if self.met else "NOT every constraint holds"
        widths = ", ".join(f"{n} at {w}" for w, n in got.widths.items())
        score = score_words(self.reference, got.accuracy, got.change)
        measured = f"on {self.images} images; {len(self.tries)} files measured"
        return f"{state}: {self.chosen} ({widths}), {score} {measured}"


def score_words(reference: Reference, accuracy: float, change: float) -> str:
    """Return a score against the reference's as a person reads it.

    Args:
        reference: names the measure and its unit.
        accuracy: in that unit.
        change: in points.

    >>> score_words(Reference(model="m", accuracy=71.0, measure="top-1", costs={}), 70.5, -0.5)
    'top-1 70.50 % (-0.50 points)'
    """
    unit = unit_of(reference)
    value = f"{reference.measure} {accuracy:.2f}{f' {unit}' if unit else ''}"
    return f"{value} ({change:+.2f} points)"


class FrontierPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One measured file of a search.

    Attributes:
        label: of its try.
        model: of which candidate.
        accuracy: in the unit of the frontier.
        change: points against the reference; below 0 it is worse.
        widths: layers by width.
        methods: quantization methods that were applied.
        costs: by axis, in the axis's unit.
        dominated: by axis: another point is at least as good on both counts, and better on one.
    """

    label: str
    model: str = ""
    accuracy: float
    change: float = 0.0
    widths: dict[str, int] = {}
    methods: list[str] = []
    costs: dict[str, float]
    dominated: dict[str, bool]


class LossAt(msgspec.Struct, frozen=True):
    """The loss of an allocation beside its cost.

    Attributes:
        cost: in the unit of the axis.
        loss: by the metric; None where it is not known.
    """

    cost: float
    loss: float | None


class Predicted(msgspec.Struct, frozen=True, kw_only=True):
    """Loss against one cost, as the metric predicts it.

    Attributes:
        axis: name of the cost.
        metric: of the losses.
        at: cost and loss of the chosen allocation.
        front: cost and loss of the allocations that no other dominates.
    """

    axis: str
    metric: str
    at: LossAt
    front: list[LossAt]


class Frontier(msgspec.Struct, frozen=True, kw_only=True):
    """Measured accuracy against every cost; written as frontier.json.

    Attributes:
        measure: what accuracy is.
        unit: of accuracy.
        units: of each axis.
        limits: budgets by axis.
        chosen: label of the chosen point.
        points: one for each try, in order.
        predicted: what the metric says of size against loss.
    """

    measure: str
    unit: str = "%"
    units: dict[str, str]
    limits: dict[str, float]
    chosen: str
    points: list[FrontierPoint]
    predicted: Predicted

    @property
    def score(self) -> str:
        """The name of the accuracy, with its unit."""
        return f"{self.measure}, {self.unit}" if self.unit else self.measure
