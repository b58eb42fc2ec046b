"""The kernels that a builder would make of a Q/DQ file, for the roofline, without an engine.

Fusions were read from plans of TensorRT for RTX 1.7 and from the documentation of TensorRT. The
whole model is priced for each choice of layers that remain in FP16, since a layer in FP16 between
two in INT8 needs kernels that convert.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import onnx

from trtq import ops
from trtq.cost.onnx_file import list_onnx_ops
from trtq.cost.ops import WEIGHTED, Groups, Op
from trtq.disjoint import Sets
from trtq.engine.plan_kernels import PlanKernel
from trtq.engine.regions import ATTENTION, Quantized, partners, read_quantized
from trtq.onnx_node import label_of

# Bits that an INT8 matmul of TensorRT for RTX writes before its epilogue, and its padding of
# the channels of a depthwise convolution: plans of 1.7 were read.
ACCUMULATOR, ACCUMULATOR_LINEAR = 32, 16
DEPTHWISE_PAD = 4
FUSES = ("pointwise", "norm", "softmax")  # kernels into which both fuse a QuantizeLinear
MOVES_CODES = ops.onnx_types(trait="moves_codes")
HALF, CODE, FLOAT = 16, 8, 32
HOW = {
    True: "An INT8 product and its epilogue are two kernels, as in plans of TensorRT for RTX 1.7",
    False: "An INT8 product, its epilogue and the QuantizeLinear behind it are one kernel, as "
    "TensorRT documents",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """One kernel of the FP16 model.

    Attributes:
        label: of its first node.
        layers: quantized layers in it: none, one, or the two products of an attention.
        kind: of its first op.
        members: its ops.
        reads: values that it reads, by tensor, and by whom.
        writes: values that it writes for others, by tensor.
        product: values of its product.
        macs, weights: of its products, for one sample.
        moves: it moves codes where all its readers read codes: TensorRT moves a QuantizeLinear
            before it.
    """

    label: str
    layers: tuple[str, ...]
    kind: str
    members: tuple[Op, ...]
    reads: Mapping[str, int]
    writes: Mapping[str, int]
    product: int
    macs: int
    weights: int
    depthwise: bool
    moves: bool

    @property
    def multiplies(self) -> bool:
        """Whether it is a convolution or a product."""
        return self.kind in (*WEIGHTED, ATTENTION)


@dataclass(slots=True)
class Int8Model:
    """The kernels of a Q/DQ file for every choice of layers in FP16.

    Args:
        model: the Q/DQ file.
        path: for errors.
        sizes: of its inputs by name; without them only the batch may be open.
        batch: samples in a call.
        apart: an INT8 product and its epilogue are two kernels.
    """

    model: onnx.ModelProto
    path: str
    sizes: Mapping[str, Sequence[int]]
    batch: int
    apart: bool
    quantized: Quantized = field(init=False)
    groups: list[_Group] = field(init=False)
    root: Mapping[str, str] = field(init=False)
    outside: Mapping[str, int] = field(init=False)
    leaving: frozenset[str] = field(init=False)
    label: Mapping[str, str] = field(init=False)
    types: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.quantized = read_quantized(self.model)
        plain = self.quantized.plain
        self.label = {o: label_of(n) for n in plain.graph.node for o in n.output}
        self.types = {o: n.op_type for n in plain.graph.node for o in n.output}
        fused = Groups.of(list_onnx_ops(plain, self.path, self.sizes))
        self.root = fused.root
        self.leaving = frozenset(self._root(o.name) for o in plain.graph.output)
        self.groups = self._groups(fused)
        internal_tensors = {t for g in self.groups for t in g.writes}
        self.outside = {
            t: v for g in self.groups for t, v in g.reads.items() if t not in internal_tensors
        }

    def _root(self, tensor: str) -> str:
        return self.root.get(tensor, tensor)

    def _label(self, op: Op) -> str:
        return next((self.label[t] for t in op.writes if t in self.label), op.name)

    def _groups(self, fused: Groups) -> list[_Group]:
        """Return the kernels of the FP16 model, an attention as one."""
        readers = fused.readers()
        joined = Sets()
        for index, group in enumerate(fused.members):
            for before, after in _attentions(index, group, fused, readers):
                joined.join([str(before), str(index), str(after)])
        at: dict[str, list[int]] = {}
        for index in range(len(fused.members)):
            at.setdefault(joined.find(str(index)), []).append(index)
        return [self._group(indices, fused, readers) for indices in at.values()]

    def _group(
        self, indices: Sequence[int], fused: Groups, readers: Mapping[str, Set[int]]
    ) -> _Group:
        members = tuple(op for i in indices for op in fused.members[i])
        own = set(indices)
        products = [op for op in members if op.kind in WEIGHTED]
        written = {
            t: v
            for op in members
            for t, v in op.writes.items()
            if t in self.leaving or readers.get(t, set()) - own
        }
        reads = {
            self._root(t): v
            for op in members
            for t, v in op.reads.items()
            if fused.made_by.get(self._root(t)) not in own
        }
        labels = [self._label(op) for op in products]
        return _Group(
            label=self._label(members[0]),
            layers=tuple(n for n in labels if n in self.quantized.layers),
            kind=ATTENTION if len(products) > 1 else members[0].kind,
            members=members,
            reads=reads,
            writes=written,
            product=sum(members[0].writes.values()),
            macs=sum(op.macs for op in products),
            weights=sum(op.weights for op in products),
            depthwise=members[0].depthwise,
            moves=not self.apart and self._op_type(members[0]) in MOVES_CODES and len(members) == 1,
        )

    def _op_type(self, op: Op) -> str:
        return next((self.types[t] for t in op.writes if t in self.types), "")

    def sets(self) -> list[tuple[str, ...]]:
        """Return the quantized layers that are decided together."""
        sets = partners(self.quantized)
        for group in self.groups:
            sets.join(group.layers)
        return [tuple(names) for names in sets.groups(self.quantized.layers)]

    def riders(self, in_float: frozenset[str]) -> list[str]:
        """Return the labels of nodes beside layers in FP16 that read codes in the same kernel.

        They must lose their pairs, too, as the add behind a convolution does.
        """
        labels = [
            self._label(op)
            for group in self.groups
            if in_float.intersection(group.layers)
            for op in group.members
        ]
        return [n for n in labels if n in self.quantized.reads and n not in self.quantized.layers]

    def kernels(self, in_float: frozenset[str]) -> list[PlanKernel]:
        """Return the kernels when some of the quantized layers compute in FP16."""
        return list(_Choice(self, in_float).kernels())

    def conversions(self, in_float: frozenset[str]) -> list[PlanKernel]:
        """Return the kernels that only quantize a tensor, for a choice of layers in FP16."""
        return list(_Choice(self, in_float).conversions())


def _attentions(
    index: int, group: Sequence[Op], fused: Groups, readers: Mapping[str, Set[int]]
) -> Iterator[tuple[int, int]]:
    """Return the products of activations before and behind a softmax."""
    if group[0].kind != "softmax":
        return
    before = {fused.made_by.get(fused.root.get(t, t)) for op in group for t in op.reads}
    behind = {i for op in group for t in op.writes for i in readers.get(t, ()) if i != index}
    for i in before - {None, index}:
        for j in behind:
            heads = [fused.members[k][0].kind for k in (i, j) if k is not None]
            if i is not None and heads == ["matmul", "matmul"]:
                yield i, j


class _Choice:
    """The kernels of one choice of layers in FP16."""

    def __init__(self, model: Int8Model, in_float: frozenset[str]) -> None:
        self.model = model
        self.int8 = {
            id(g): bool(g.layers) and not in_float.intersection(g.layers) for g in model.groups
        }
        self.codes: dict[str, bool] = {}  # read as codes; True: by depthwise convolutions alone
        self.floats = set(model.leaving)
        self.moving: set[int] = set()  # kernels that move quantized values
        for group in reversed(model.groups):
            self._note(group)

    def _coded(self, group: _Group, op: Op) -> set[str]:
        """Return the tensors that an op reads as codes."""
        if not self.int8[id(group)] and group.layers:
            return set()
        model = self.model
        names = model.quantized.reads.get(model._label(op), ())
        return {model._root(t) for t in names}

    def _note(self, group: _Group) -> None:
        """Note how a kernel reads its tensors; the kernels that read its results came before."""
        moves = group.moves and all(t in self.codes and t not in self.floats for t in group.writes)
        self.moving.update([id(group)] if moves else [])
        for op in group.members:
            coded = {self.model._root(t) for t in op.reads} if moves else self._coded(group, op)
            for tensor in op.reads:
                root = self.model._root(tensor)
                if root in coded:
                    padded = group.depthwise and self.int8[id(group)] and self.model.apart
                    self.codes[root] = self.codes.get(root, True) and padded
                else:
                    self.floats.add(root)

    def kernels(self) -> Iterator[PlanKernel]:
        """Return every kernel."""
        for group in self.model.groups:
            yield from self._quantized(group) if self.int8[id(group)] else self._plain(group)
        yield from self.conversions()

    def conversions(self) -> Iterator[PlanKernel]:
        """Return each QuantizeLinear that is a kernel of its own."""
        for tensor, values in self.model.outside.items():
            if tensor in self.codes:
                yield self._convert(tensor, values, FLOAT)
        for group in self.model.groups:
            if not self._fuses(group):
                for tensor, values in group.writes.items():
                    if tensor in self.codes:
                        yield self._convert(tensor, values, HALF)

    def _fuses(self, group: _Group) -> bool:
        """Whether a kernel also writes the codes of its results."""
        if id(group) in self.moving:
            return True
        if not self.int8[id(group)]:
            generated = self.model.apart and "Pool" not in group.kind
            return not group.multiplies and (group.kind in FUSES or generated)
        split = self.model.apart and group.kind != ATTENTION
        return split or not any(t in self.codes and t in self.floats for t in group.writes)

    def _quantized(self, group: _Group) -> Iterator[PlanKernel]:
        """Return the kernels of a product in INT8."""
        own = self._coded(group, group.members[0])
        if group.kind == ATTENTION:
            own = own.union(*(self._coded(group, op) for op in group.members))
        split = self.model.apart and group.kind != ATTENTION
        codes = self.model.quantized.formats[group.layers[0]]
        first = {t: v for t, v in group.reads.items() if t in own}
        rest = {t: v for t, v in group.reads.items() if t not in own}
        bits = group.weights * CODE + self._bits(first, own)
        if split:
            stored = ACCUMULATOR if group.kind == "conv" else ACCUMULATOR_LINEAR
            accumulator_bits = group.product * stored
            yield self._kernel(group, codes, bits + accumulator_bits)
            bits, kind = accumulator_bits, "function"
        else:
            kind = group.kind
        epilogue = set().union(*(self._coded(group, op) for op in group.members[1:]))
        bits += self._bits(rest, epilogue)
        bits += self._written(group)
        kernel = self._kernel(group, codes, bits)
        yield PlanKernel(
            name=f"{group.label} epilogue" if split else kernel.name,
            kind=kind,
            precision="fp16" if split else kernel.precision,
            macs=0 if split else kernel.macs,
            bits=kernel.bits,
            written=0,
            depthwise=kernel.depthwise,
            unknown=False,
            layers=kernel.layers,
        )

    def _plain(self, group: _Group) -> Iterator[PlanKernel]:
        """Return the kernels of what computes in FP16."""
        coded = set().union(*(self._coded(group, op) for op in group.members))
        if id(group) in self.moving:
            coded = set(group.reads)
        bits = group.weights * HALF + self._bits(group.reads, coded) + self._written(group)
        yield self._kernel(group, "fp16", bits)

    def _bits(self, reads: Mapping[str, int], coded: Set[str]) -> int:
        return sum(v * (self._code(t) if t in coded else HALF) for t, v in reads.items())

    def _code(self, tensor: str) -> int:
        return CODE * (DEPTHWISE_PAD if self.codes.get(tensor) else 1)

    def _written(self, group: _Group) -> int:
        """Return the bits that a kernel writes."""
        if not self._fuses(group):
            return HALF * sum(group.writes.values())
        return sum(v * self._stored(t) for t, v in group.writes.items())

    def _stored(self, tensor: str) -> int:
        """Return the bits of each value of a tensor whose codes are written with it."""
        codes = self._code(tensor) if tensor in self.codes else 0
        return codes + (HALF if tensor in self.floats or not codes else 0)

    def _kernel(self, group: _Group, precision: str, bits: int) -> PlanKernel:
        return PlanKernel(
            name=group.label,
            kind="matmul" if group.kind == ATTENTION else group.kind,
            precision=precision,
            macs=group.macs * self.model.batch,
            bits=bits * self.model.batch,
            written=0,
            depthwise=group.depthwise,
            unknown=False,
            layers=group.layers,
        )

    def _convert(self, tensor: str, values: int, bits: int) -> PlanKernel:
        """Return a QuantizeLinear that is a kernel of its own."""
        return PlanKernel(
            name=f"{tensor} to codes",
            kind="pointwise",
            precision="fp16",
            macs=0,
            bits=values * (bits + self._code(tensor)) * self.model.batch,
            written=0,
            depthwise=False,
            unknown=False,
        )
