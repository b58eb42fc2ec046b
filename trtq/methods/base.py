"""Description of a method: a name, where it runs, when it acts, and one function on a context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import torch
from torch import fx

from trtq import ops
from trtq.errors import UsageError, suggest
from trtq.graph.feed import Feed
from trtq.graph.naming import node_name
from trtq.graph.nodes import get_constant, operands, set_constant_
from trtq.quant.encodings import Encodings
from trtq.quant.placement import Placement, Quantizer
from trtq.quant.simulate import insert_fake_quantize
from trtq.tasks.distances import relative_error

Label = Literal["engine", "folded", "ops", "simulated"]
Value = str | int | float | bool
Report: TypeAlias = dict[str, Any]  # what a method did, as the record has it


def in_order(got: Feed, wanted: Feed) -> torch.Tensor:
    """Return the squared error over the square of what is wanted, summed over outputs, [N].

    Args:
        got: outputs, samples first.
        wanted: the same of the float model.
    """
    ours, theirs = ({str(i): t for i, t in enumerate(side)} for side in (got, wanted))
    return relative_error(ours, theirs)


@dataclass(slots=True, kw_only=True)
class MethodContext:
    """Context of a method.

    Attributes:
        graph: captured; :meth:`fold` changes its constants.
        placement: its quantizers.
        images: call it with a number to get batches of at most that many calibration images,
            a tensor an input.
        dynamic_batch: False when the graph takes one image at a time.
        encodings: what calibration gave; without entries for methods that act before it.
        folded: constants that :meth:`fold` changed, by name.
        note: tell the user a line that is also written to the record.
        begin: announce (what, how many steps).
        advance: a number of steps is done.
        resume: folder for what a long method must not lose; None keeps nothing.
        time_budget_s: seconds that a method which learns may take; None without a limit.
        divergence: how far the outputs of each sample are from the float model's, [N], both in the
            order of the model.
    """

    graph: fx.GraphModule
    placement: Placement
    images: Callable[[int], Iterator[Feed]]
    note: Callable[[str], None]
    begin: Callable[[str, int], None]
    advance: Callable[[int], None]
    dynamic_batch: bool = True
    resume: Path | None = None
    time_budget_s: float | None = None
    divergence: Callable[[Feed, Feed], torch.Tensor] = in_order
    encodings: Encodings = field(default_factory=lambda: Encodings(amax={}, formats={}))
    folded: dict[str, torch.Tensor] = field(default_factory=dict)

    def fold(self, node: fx.Node, value: torch.Tensor) -> None:
        """Replace a constant as one part of a change that leaves the model's function as it is.

        Args:
            node: the constant's ``get_attr`` node.
            value: float32, of the same shape.
        """
        set_constant_(self.graph, node, value)
        self.folded[str(node.target)] = value

    def constant(self, node: fx.Node) -> torch.Tensor:
        """Return the tensor of a constant of the graph.

        Args:
            node: its ``get_attr`` node.
        """
        value = get_constant(self.graph, node)
        assert value is not None, node.target
        return value

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Make every reader of ``old``, quantizers included, read ``new`` instead.

        Args:
            old: remains in the graph.
            new: may itself read ``old``.
        """
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        for q in self.placement.quantizers:
            if q.source is old:
                q.source = new

    def simulated(self) -> fx.GraphModule:
        """Return a copy of the graph with fake-quantize calls for the current encodings."""
        return insert_fake_quantize(self.graph, self.placement, self.encodings)

    def layers(self) -> list[tuple[fx.Node, Quantizer]]:
        """Return each conv and linear with its active weight quantizer, in graph order.

        A layer without one is left out.
        """
        weights = {q.consumer: q for q in self.placement.active if q.role == "weight"}
        return [(n, weights[n]) for n in self.graph.graph.nodes if n in weights]


class NoArguments(msgspec.Struct, frozen=True):
    """Arguments of a method without any."""


NO_ARGUMENTS = NoArguments()


def _always_fits(_: MethodContext) -> str | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A quantization method.

    Attributes:
        name: as on the command line.
        summary: one line for ``trtq methods``.
        label: ``engine`` TensorRT has the kernel, ``folded`` costs nothing at run time, ``ops``
            runs as extra float ops, ``simulated`` has no kernel anywhere.
        stage: ``before`` calibration (changes constants, exactly, or the placement or ops, with a
            label that says so), or ``after`` it (changes encodings).
        source: the paper, and the equation.
        arguments: with their defaults: a frozen struct of texts, numbers and booleans.
        run: does it; returns the entry of the record.
        not_applicable_reason: why it does not fit this model, None when it does.
        excludes: methods that it cannot be combined with.
        exact: it changes the graph and must not change its function; the outputs are compared.
        finish: what a method that acts before calibration still does to the encodings after it.
    """

    name: str
    summary: str
    label: Label
    stage: Literal["before", "after"]
    source: str
    run: Callable[[MethodContext, Any], Report]
    arguments: msgspec.Struct = NO_ARGUMENTS
    not_applicable_reason: Callable[[MethodContext], str | None] = _always_fits
    excludes: tuple[str, ...] = ()
    exact: bool = False
    finish: Callable[[MethodContext, Any], None] | None = None

    def values(self, given: Mapping[str, Value]) -> msgspec.Struct:
        """Return the arguments with ``given`` ones in them, converted to their defaults' types.

        Args:
            given: by the name of the argument; texts are converted, so "false" is False.

        Raises:
            UsageError: an unknown argument, or one of another type.
        """
        kinds = {k: type(v) for k, v in msgspec.structs.asdict(self.arguments).items()}
        for key in given:
            if key not in kinds:
                raise UsageError(
                    f"The method {self.name} has no argument {key!r}", hint=suggest(key, kinds)
                )
        values = {k: self._converted(k, v, kinds[k]) for k, v in given.items()}
        return msgspec.structs.replace(self.arguments, **values)

    def _converted(self, key: str, value: Value, kind: type) -> Value:
        """Return a value as its argument's type: the text "false" is False."""
        if kind is str:
            return str(value)
        try:
            converted: Value = msgspec.convert(value, kind, strict=False)
        except msgspec.ValidationError as exc:
            raise UsageError(
                f"Cannot use {self.name}.{key}={value}", f"expected {kind.__name__}"
            ) from exc
        return converted


Need = tuple[Callable[[MethodContext], object], str]  # what must hold, and why it does not fit
BATCHES: Need = (
    lambda context: context.dynamic_batch,
    "the model takes one image at a time, and it needs batches",
)  # of methods that run many images at once


def needs(*conditions: Need) -> Callable[[MethodContext], str | None]:
    """Return a method's ``not_applicable_reason``: that of the first condition that fails."""
    return lambda context: next((why for holds, why in conditions if not holds(context)), None)


def weight_and_bias(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """Return the constants of a conv or a linear.

    Returns:
        The nodes of the weight and of the bias; None for a bias that is missing or computed.
    """
    given = operands(node)
    bias = given[2] if len(given) > 2 else None
    return given[1], bias if get_constant(graph, bias) is not None else None


def channel_axis(node: fx.Node) -> int:
    """Return the axis of a weighted op's output (and input) that has channels.

    It is 1 for a convolution and -1 for a linear.
    """
    row = ops.of(node)
    assert row.weighted, node_name(node)
    return row.channels
