"""Row of the table of operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Role = Literal["input", "weight", "lhs", "rhs", "residual", "output"]
Cost = Literal[
    "conv",
    "linear",
    "matmul",
    "einsum",
    "recurrent",
    "norm",
    "softmax",
    "pointwise",
    "alias",
    "",
]
Trait = Literal[
    "activation",  # follows a layer, element by element
    "homogeneous",  # f(c x) = c f(x) for every c > 0, channel by channel
    "attention",  # may be between the matmuls of an attention and its softmax
    "reorder",  # holds all values of its operand, in another order or shape
    "shape_only",  # computes nothing: values of its operand, all or some of them
    "moves",  # TensorRT computes a layer behind it in INT8 though the Q/DQ pair is in front of it
    "moves_codes",  # may be between the two halves of a Q/DQ pair
    "no_op",  # in inference
    "may_alias",  # its result may share the memory of its operand, though its schema is silent
    "selects",  # rounding decides the order of its results where two values are nearly equal
    "random",  # its result is no function of its operands
]
WEIGHTED = ("conv", "conv_transpose", "linear")
ANY_ORDER: tuple[Trait, ...] = ("reorder", "shape_only", "moves", "moves_codes")


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand that can be quantized.

    Attributes:
        index: its position; -1 for the shortcut of a residual add, whichever it is.
        role: what it is to the operator.
        axis: the axis that may have a scale per channel, None for one scale.
    """

    index: int
    role: Role
    axis: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operator.

    Attributes:
        name: unique in the table.
        kind: the family, such as ``conv``, ``linear``, ``matmul``, ``norm``; the name where the
            operator is alone in its family.
        aten: forms in ATen, ``name.overload``; other namespaces are spelled out
            (``torchvision.nms.default``, ``operator.getitem``).
        onnx: op types in ONNX. A type belongs to one row.
        cost: what it counts as: ``pointwise`` joins the kernel before it, ``alias`` has no kernel;
            empty for a kernel that is not counted.
        traits: what else is true of it.
        operands: those that can be quantized.
        float_reason: why TensorRT computes it in float in all cases; empty where it does not.
        affine: positions of the operands that multiply and shift its result channel by channel.
        channels: the axis of its channels, 1 or -1.
        write: the function that writes it as ONNX: ``family.function`` of
            ``trtq.export.write_FAMILY``, or a full dotted path; empty where torch's exporter does.
        writes: the ONNX op type it is written as, where that belongs to another row.
        read: the function that reads its ONNX op types: ``family.function`` of
            ``trtq.reader.read_FAMILY``, or a full dotted path; empty where ONNX Runtime computes
            them.
        attributes: of the written ONNX op, in the order of the ATen arguments behind the first,
            with ATen's defaults.
        becomes: (position of a flag, name of the row that it is where the flag is set).
    """

    name: str
    kind: str
    aten: tuple[str, ...] = ()
    onnx: tuple[str, ...] = ()
    cost: Cost = ""
    traits: frozenset[Trait] = frozenset()
    operands: tuple[Operand, ...] = ()
    float_reason: str = ""
    affine: tuple[int, ...] = ()
    channels: int = 1
    write: str = ""
    writes: str = ""
    read: str = ""
    attributes: Mapping[str, float] = field(default_factory=dict)
    becomes: tuple[int, str] | None = None

    @property
    def weighted(self) -> bool:
        """Whether it is a convolution or a linear."""
        return self.kind in WEIGHTED

    @property
    def onnx_type(self) -> str:
        """The ONNX op type it is written as."""
        return self.writes or self.onnx[0]


def op(name: str, aten: str = "", onnx: str = "", *, traits: str = "", **fields: Any) -> Op:
    """Return a row; forms, op types and traits are words in a text.

    Args:
        name: unique in the table.
        aten: forms in ATen, separated by spaces.
        onnx: op types in ONNX, separated by spaces.
        traits: separated by spaces; ``reorder`` brings those of :data:`ANY_ORDER` with it.
        fields: of :class:`Op`. The kind is the name unless given, the cost that of the kind where
            there is one.

    Raises:
        ValueError: an unknown trait.

    >>> op("elu", "elu.default", "Elu", cost="pointwise").kind
    'elu'
    """
    kind = fields.pop("kind", name)
    fields.setdefault("cost", kind if kind in get_args(Cost) else "")
    words = {*traits.split()}
    if "reorder" in words:
        words |= {*ANY_ORDER}
    unknown = words - {*get_args(Trait)}
    if unknown:
        raise ValueError(f"the row {name} has unknown traits: {', '.join(sorted(unknown))}")
    return Op(
        name=name,
        kind=kind,
        aten=tuple(aten.split()),
        onnx=tuple(onnx.split()),
        traits=frozenset(t for t in get_args(Trait) if t in words),
        **fields,
    )


def pointwise(name: str, aten: str = "", onnx: str = "", **fields: Any) -> Op:
    """Return the row of an operator that computes each value from those at its place.

    Args:
        name: unique in the table.
        aten: forms in ATen; with any it is written as one ONNX op of one operand.
        onnx: op types in ONNX; with any it is read as one op of one operand.
        fields: of :func:`op`, in place of these defaults.
    """
    defaults = {"cost": "pointwise", "write": "elementwise.unary" if aten else ""}
    defaults["read"] = "elementwise.unary" if onnx else ""
    return op(name, aten, onnx, **{**defaults, **fields})
