"""A list of calls for any model format, and the kernels that an engine makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

WEIGHTED = ("conv", "linear", "matmul")
COUNTED = (*WEIGHTED, "einsum", "recurrent", "norm", "softmax")


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """One call, for one image.

    Attributes:
        name: as in every other record.
        kind: one of :data:`COUNTED`; ``pointwise``; ``alias`` (the same values under
            another shape); else what it is.
        macs: multiply-accumulates; a norm or a softmax has none by convention.
        weights: values of its weight, the bias not counted.
        reads: values it reads, by the name of the tensor; constants are not among them.
        writes: values it writes, by the name of the tensor.
        depthwise: every group of the convolution has one input channel: no tensor core multiplies
            it.
        weight_bits, input_bits: what the file stores; None where the graph does not say.
        fp8: those 8 bits are FP8.
        fp4: those 4 bits are FP4.
    """

    name: str
    kind: str
    macs: int = 0
    weights: int = 0
    reads: Mapping[str, int] = {}
    writes: Mapping[str, int] = {}
    depthwise: bool = False
    weight_bits: int | None = None
    input_bits: int | None = None
    fp8: bool = False
    fp4: bool | UnsetType = UNSET


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """One launch: an op with the pointwise ops that follow it, for one image.

    Attributes:
        name: of its first op.
        kind: of its first op.
        macs, weights, depthwise, weight_bits, input_bits, fp8, fp4: of its first op.
        reads: values it reads from tensors that other kernels made, or that come from outside.
        writes: values it writes that other kernels read, or that go outside.
    """

    name: str
    kind: str
    macs: int
    weights: int
    reads: int
    writes: int
    depthwise: bool = False
    weight_bits: int | None = None
    input_bits: int | None = None
    fp8: bool = False
    fp4: bool | UnsetType = UNSET


def floats_of(op: Op | Kernel) -> Literal["", "fp8", "fp4"]:
    """Return the kind of the codes that an op reads where they are floats."""
    return "fp8" if op.fp8 else "fp4" if op.fp4 is True else ""


def fuse(ops: Sequence[Op], outputs: Iterable[str]) -> list[Kernel]:
    """Group ops into kernels.

    A pointwise op joins the kernel that produces the last of its operands. Every other op starts a
    new kernel.

    TensorRT fuses activations, residual adds and scales in this way. Further fusions of a builder
    (attention in one kernel, two convolutions in one) are known from its plan only.

    Args:
        ops: in the order they run.
        outputs: tensors that leave the model.
    """
    groups = Groups.of(ops)
    leaving = {groups.root.get(t, t) for t in outputs}
    readers = groups.readers()
    return [
        _kernel(index, group, groups, readers, leaving)
        for index, group in enumerate(groups.members)
    ]


@dataclass(slots=True)
class Groups:
    """The ops of each kernel.

    Attributes:
        members: by kernel, in the order they run.
        root: of an alias: the tensor whose values it holds.
        made_by: the kernel that makes a tensor.
        sizes: values of every tensor that a kernel makes.
    """

    members: list[list[Op]] = field(default_factory=list)
    root: dict[str, str] = field(default_factory=dict)
    made_by: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, ops: Iterable[Op]) -> Groups:
        """Return the kernels of ops in the order they run."""
        groups = cls()
        for op in ops:
            groups.add(op)
        return groups

    def add(self, op: Op) -> None:
        """Put an op into the kernel that it joins, or into a new one.

        An alias is in no kernel: its result is another name of its operand.

        Args:
            op: the next in the order they run.
        """
        sources = [self.root.get(t, t) for t in op.reads]
        if op.kind == "alias":
            self.root.update(dict.fromkeys(op.writes, sources[0] if sources else ""))
            return
        makers = [self.made_by[t] for t in sources if t in self.made_by]
        joins = op.kind == "pointwise" and bool(makers)
        index = max(makers) if joins else len(self.members)
        if not joins:
            self.members.append([])
        self.members[index].append(op)
        self.made_by.update(dict.fromkeys(op.writes, index))
        self.sizes.update(op.writes)

    def readers(self) -> dict[str, set[int]]:
        """Return the kernels that read each tensor."""
        kernels_by_tensor: dict[str, set[int]] = {}
        for index, group in enumerate(self.members):
            for t in (t for op in group for t in op.reads):
                kernels_by_tensor.setdefault(self.root.get(t, t), set()).add(index)
        return kernels_by_tensor

    def read_by(self, index: int) -> int:
        """Return how many values a kernel reads from tensors that it does not make itself.

        Parts of one tensor, such as slices, add up to the whole tensor at most.

        Args:
            index: of the kernel, in ``members``.
        """
        parts: dict[str, dict[str, int]] = {}  # two slices of one tensor are two reads
        for op in self.members[index]:
            for t, values in op.reads.items():
                source = self.root.get(t, t)
                if self.made_by.get(source) != index:
                    parts.setdefault(source, {})[t] = values
        totals = {source: sum(by_name.values()) for source, by_name in parts.items()}
        return sum(min(total, self.sizes.get(source, total)) for source, total in totals.items())


def _kernel(
    index: int,
    group: Sequence[Op],
    groups: Groups,
    readers: Mapping[str, set[int]],
    leaving: set[str],
) -> Kernel:
    written = {
        t: values
        for op in group
        for t, values in op.writes.items()
        if t in leaving or readers.get(t, set()) - {index}
    }
    head = group[0]
    return Kernel(
        name=head.name,
        kind=head.kind,
        macs=head.macs,
        weights=head.weights,
        reads=groups.read_by(index),
        writes=sum(written.values()),
        depthwise=head.depthwise,
        weight_bits=head.weight_bits,
        input_bits=head.input_bits,
        fp8=head.fp8,
        fp4=head.fp4,
    )
