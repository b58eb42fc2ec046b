"""A list of calls for any model format, and the kernels that an engine makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

WEIGHTED = ("conv", "linear", "matmul")
COUNTED = (*WEIGHTED, "norm", "softmax")


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """One call, for one image.

    Attributes:
        name: as in every other record.
        kind: conv, linear, matmul, norm, softmax; ``pointwise``; ``alias`` (the same values under
            another shape); else what it is.
        macs: multiply-accumulates; a norm or a softmax has none by convention.
        weights: values of its weight, the bias not counted.
        reads: values it reads, by the name of the tensor; constants are not among them.
        writes: values it writes, by the name of the tensor.
        depthwise: every group of the convolution has one input channel: no tensor core multiplies
            it.
        weight_bits, input_bits: what the file stores; None where the graph does not say.
        fp8: those 8 bits are FP8.
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


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """One launch: an op with the pointwise ops that follow it, for one image.

    Attributes:
        name: of its first op.
        kind: of its first op.
        macs, weights, depthwise, weight_bits, input_bits, fp8: of its first op.
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
    root: dict[str, str] = {}
    made_by: dict[str, int] = {}
    members: list[list[Op]] = []
    for op in ops:
        sources = [root.get(t, t) for t in op.reads]
        if op.kind == "alias":
            root.update(dict.fromkeys(op.writes, sources[0] if sources else ""))
            continue
        makers = [made_by[t] for t in sources if t in made_by]
        if op.kind == "pointwise" and makers:
            index = max(makers)
            members[index].append(op)
        else:
            index = len(members)
            members.append([op])
        made_by.update(dict.fromkeys(op.writes, index))
    sizes = {t: v for group in members for op in group for t, v in op.writes.items()}
    leaving = {root.get(t, t) for t in outputs}
    readers: dict[str, set[int]] = {}
    for index, group in enumerate(members):
        for op in group:
            for t in op.reads:
                readers.setdefault(root.get(t, t), set()).add(index)
    return [
        _kernel(index, group, root, made_by, sizes, readers, leaving)
        for index, group in enumerate(members)
    ]


def _kernel(
    index: int,
    group: Sequence[Op],
    root: Mapping[str, str],
    made_by: Mapping[str, int],
    sizes: Mapping[str, int],
    readers: Mapping[str, set[int]],
    leaving: set[str],
) -> Kernel:
    parts: dict[
        str, dict[str, int]
    ] = {}  # two slices of one tensor are two reads, the same tensor twice is one
    for op in group:
        for t, values in op.reads.items():
            source = root.get(t, t)
            if made_by.get(source) != index:
                parts.setdefault(source, {})[t] = values
    read = {
        source: min(sum(by_name.values()), sizes.get(source, sum(by_name.values())))
        for source, by_name in parts.items()
    }
    written = {
        t: v
        for op in group
        for t, v in op.writes.items()
        if t in leaving or readers.get(t, set()) - {index}
    }
    head = group[0]
    return Kernel(
        name=head.name,
        kind=head.kind,
        macs=head.macs,
        weights=head.weights,
        reads=sum(read.values()),
        writes=sum(written.values()),
        depthwise=head.depthwise,
        weight_bits=head.weight_bits,
        input_bits=head.input_bits,
        fp8=head.fp8,
    )
