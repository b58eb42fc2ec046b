"""Which quantized layers are better left in FP16: the choice over a whole model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from trtq.cost.devices import Device
from trtq.engine.int8_model import Int8Model
from trtq.engine.plan_kernels import PlanKernel
from trtq.engine.regions import Piece, Quantized, Region, Side, kind_of

Key = tuple[str, str, str, int]
LEAST = 0.001  # of the model's time: a smaller gain does not move a region to FP16


class Costs(Protocol):
    """The time of a model for every choice of layers in FP16."""

    @property
    def quantized(self) -> Quantized:
        """The layers."""

    @property
    def sets(self) -> Sequence[tuple[str, ...]]:
        """The layers of each region."""

    def ms(self, in_float: frozenset[str]) -> float:
        """Return the time of a call, ms.

        Args:
            in_float: labels of the quantized layers that compute in FP16; the others compute in
                codes.
        """

    def sides(self, names: Sequence[str], in_float: frozenset[str]) -> tuple[Side, Side]:
        """Return a region in INT8 and in FP16, the other layers as chosen.

        Args:
            names: layers of the region, one of ``sets``.
            in_float: layers of the whole model that compute in FP16.
        """


@dataclass(slots=True)
class GraphCosts:
    """Predicted times over the kernels that a builder should make.

    Args:
        model: the kernels.
        device: of the hardware table.
    """

    model: Int8Model
    device: Device
    sets: list[tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.sets = self.model.sets()

    @property
    def quantized(self) -> Quantized:
        """The layers."""
        return self.model.quantized

    def ms(self, in_float: frozenset[str]) -> float:
        """Return the time of a call when some layers compute in FP16."""
        return sum(k.time(self.device).ms for k in self.model.kernels(in_float))

    def sides(self, names: Sequence[str], in_float: frozenset[str]) -> tuple[Side, Side]:
        """Return the kernels that differ when a region changes its precision."""
        first, second = (
            {_key(k): k for k in self.model.kernels(choice)}
            for choice in (in_float.difference(names), in_float.union(names))
        )
        return self._side(first, second), self._side(second, first)

    def _side(
        self,
        kernels: Mapping[Key, PlanKernel],
        others: Mapping[Key, PlanKernel],
    ) -> Side:
        own = (k for key, k in kernels.items() if key not in others)
        return Side.of(list(priced(own, self.device)))


def _key(kernel: PlanKernel) -> Key:
    return kernel.name, kernel.kind, kernel.precision, kernel.bits


def priced(kernels: Iterable[PlanKernel], device: Device) -> Iterator[Piece]:
    """Yield kernels with the times that the roofline predicts and the MB (10^6) they move."""
    for kernel in kernels:
        yield Piece(
            name=kernel.name,
            ms=kernel.time(device).ms,
            nodes=kernel.layers,
            megabytes=kernel.bits / 8e6,
        )


@dataclass(slots=True)
class EngineCosts:
    """Times of the regions of two engines, with predicted conversions between them.

    Args:
        regions: INT8 and FP16 of each region, by its layers.
        model: knows the conversions that a choice needs.
        device: they are predicted for.
    """

    regions: Mapping[tuple[str, ...], tuple[Side, Side]]
    model: Int8Model
    device: Device
    sets: list[tuple[str, ...]] = field(init=False)
    known: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.sets = list(self.regions)
        self.known = frozenset(k.name for k in self.model.conversions(frozenset()))

    @property
    def quantized(self) -> Quantized:
        """The layers."""
        return self.model.quantized

    def ms(self, in_float: frozenset[str]) -> float:
        """Return the time of a call when some layers compute in FP16."""
        chosen = sum(
            fp16.ms if in_float.issuperset(names) else int8.ms
            for names, (int8, fp16) in self.regions.items()
        )
        new = (k for k in self.model.conversions(in_float) if k.name not in self.known)
        return chosen + sum(k.time(self.device).ms for k in new)

    def sides(self, names: Sequence[str], in_float: frozenset[str]) -> tuple[Side, Side]:
        """Return a region in INT8 and in FP16, as the engines have it."""
        del in_float  # engines exist for all layers in INT8 and for all in FP16
        return self.regions[tuple(names)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The regions of a model, and its time three ways.

    Attributes:
        regions: those first in which FP16 saves most.
        int8_ms, fp16_ms, chosen_ms: of a call: every region in INT8, every one in FP16, as chosen.
    """

    regions: list[Region]
    int8_ms: float
    fp16_ms: float
    chosen_ms: float


def choose(costs: Costs) -> Choice:
    """Return which regions are better left in FP16.

    The choice starts from all regions in INT8 and from all in FP16 and moves one region at a time
    as long as that saves :data:`LEAST` of the INT8 time; the faster of the two results is taken.
    All layers remain in INT8 where it saves less than that.

    Args:
        costs: predicted over a graph or measured of two engines.
    """
    every = frozenset(n for names in costs.sets for n in names)
    nothing: frozenset[str] = frozenset()
    int8, fp16 = costs.ms(nothing), costs.ms(every)
    least = LEAST * int8
    ends = [_descend(costs, start, least) for start in (nothing, every)]
    chosen, ms = min(ends, key=lambda end: (end[1], len(end[0])))
    if ms > int8 - least:
        chosen, ms = nothing, int8
    regions = [_region(costs, names, chosen) for names in costs.sets]
    return Choice(
        regions=sorted(regions, key=lambda r: -r.saved_ms),
        int8_ms=int8,
        fp16_ms=fp16,
        chosen_ms=ms,
    )


def _descend(costs: Costs, start: frozenset[str], least: float) -> tuple[frozenset[str], float]:
    """Return the choice that no single region improves by ``least`` ms, and its time.

    A region returns to INT8 where that costs nothing.
    """
    now, ms, moved = start, costs.ms(start), True
    while moved:
        moved = False
        for names in costs.sets:
            other = now.symmetric_difference(names)
            took = costs.ms(other)
            if took < ms - least or (other < now and took <= ms):
                now, ms, moved = other, took, True
    return now, ms


def _region(costs: Costs, names: Sequence[str], chosen: frozenset[str]) -> Region:
    int8, fp16 = costs.sides(names, chosen)
    return Region(
        layers=list(names),
        kind=kind_of(costs.quantized, names),
        int8=int8,
        fp16=fp16,
        saved_ms=costs.ms(chosen.difference(names)) - costs.ms(chosen.union(names)),
        loses=chosen.issuperset(names),
    )
