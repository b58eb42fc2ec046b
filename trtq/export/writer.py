"""Writing ONNX node by node: names, constants and shapes that may hold an open batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx

from trtq.graph.dtypes import ONNX_TYPES


class UnsupportedOpError(Exception):
    """This graph holds something the table of ops does not write."""


class Writer:
    """An ONNX graph in the making.

    Args:
        opset: of the ``ai.onnx`` domain; the ops table chooses forms by it.
        int4: weights of 4 bits are stored as INT4.
        taken: names of inputs and outputs.

    Attributes:
        scope: the layer being written; the names of its nodes start with it.
        module: the module it comes from, kept in each node's metadata.
        values: what each FX node became: the name of a tensor, or a list of names.
        domains: opsets of domains other than ONNX's own.
        transposed: constants that are stored transposed, and their fake-quantize calls.
    """

    def __init__(self, opset: int, *, int4: bool = False, taken: Sequence[str] = ()) -> None:
        self.opset, self.int4 = opset, int4
        self.scope = self.module = self.quantizer = ""
        self.values: dict[fx.Node, Any] = {}
        self.transposed: set[fx.Node] = set()
        self.domains: dict[str, int] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._taken: Counter[str] = Counter(taken)

    def mark(self) -> tuple[int, int, int, Counter[str]]:
        """Return a place for :meth:`rewind`."""
        return len(self.nodes), len(self.initializers), len(self._constants), self._taken.copy()

    def rewind(self, mark: tuple[int, int, int, Counter[str]]) -> None:
        """Forget all that was written since :meth:`mark`."""
        nodes, initializers, constants, self._taken = mark
        del self.nodes[nodes:]
        for name in list(self.initializers)[initializers:]:
            del self.initializers[name]
        for key in list(self._constants)[constants:]:
            del self._constants[key]

    def op(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Append a node and return the name of its output.

        The node's name is ``SCOPE/KIND``, with a number where that is taken; its outputs are called
        ``NAME.out``, or ``NAME:0.out``, ``NAME:1.out`` and so on.

        Args:
            kind: ONNX op type.
            inputs: names, FX nodes, numpy arrays, lists of integers, or None for one that is left
                out.
            outputs: how many the node has.
            attributes: of the node; None leaves one out.

        Returns:
            A name, or a list of names when ``outputs`` is not 1.

        Raises:
            UnsupportedOpError: an FX node gives several tensors, or a list has something else than
                whole numbers.
        """
        base = f"{self.scope}/{kind}" if self.scope else kind
        name = self._unique(base)
        stems = [name if outputs == 1 else f"{name}:{i}" for i in range(outputs)]
        given = {k: v for k, v in attributes.items() if v is not None}
        node = helper.make_node(
            kind, [self.value(v) for v in inputs], [f"{m}.out" for m in stems], name=name, **given
        )
        for key, value in (("module", self.module), ("quantizer", self.quantizer)):
            if value:
                node.metadata_props.add(key=key, value=value)
        self.nodes.append(node)
        return node.output[0] if outputs == 1 else list(node.output)

    def value(self, given: Any) -> str:
        """Return the name of the tensor for ``given``."""
        if given is None:
            return ""
        if isinstance(given, str):
            return given
        if isinstance(given, fx.Node):
            name = self.values[given]
            if not isinstance(name, str):
                raise UnsupportedOpError(f"{given.target} gives several tensors where one is read")
            return name
        if isinstance(given, (list, tuple)):
            return self.sizes(given)
        return self.constant(np.asarray(given))

    def constant(self, array: npt.NDArray[Any], name: str | None = None) -> str:
        """Return the name of an initializer with these values.

        Args:
            array: of a dtype that ONNX has.
            name: wanted; a number is added where it is taken. None: an equal constant is shared.
        """
        if name is None:
            key = (str(array.dtype), array.shape, array.tobytes())
            if key not in self._constants:
                self._constants[key] = self.constant(array, f"constant_{len(self._constants)}")
            return self._constants[key]
        name = self._unique(name)
        self.initializers[name] = numpy_helper.from_array(
            np.ascontiguousarray(array).reshape(array.shape), name
        )
        return name

    def array(self, given: fx.Node) -> npt.NDArray[Any]:
        """Return the values of a constant as they are stored.

        Raises:
            UnsupportedOpError: the node is no constant.
        """
        initializer = self.initializers.get(self.value(given))
        if initializer is None:
            raise UnsupportedOpError(f"{given.name} is computed where a constant is read")
        return numpy_helper.to_array(initializer)

    def int4_constant(self, codes: npt.NDArray[Any], name: str) -> str:
        """Return the name of an INT4 initializer with these codes, -8 to 7."""
        name = self._unique(name)
        self.initializers[name] = helper.make_tensor(
            name, TensorProto.INT4, codes.shape, codes.astype(np.int8).flatten()
        )
        return name

    def codes_constant(self, values: npt.NDArray[Any], kind: str, name: str) -> str:
        """Return the name of an initializer of a type of ONNX that NumPy lacks.

        Args:
            values: that the type holds, but for rounding.
            kind: ``FLOAT4E2M1`` or ``FLOAT8E4M3FN``.
            name: for the initializer.
        """
        name, number = self._unique(name), TensorProto.DataType.Value(kind)
        dtype = helper.tensor_dtype_to_np_dtype(number)
        tensor = numpy_helper.from_array(values.astype(np.float32).astype(dtype), name)
        self.initializers[name] = tensor
        return name

    def fp8_zeros(self, shape: tuple[int, ...]) -> str:
        """Return the name of an E4M3 initializer of zeros."""
        name = f"fp8_zeros_{'x'.join(map(str, shape))}"
        if name not in self.initializers:
            count = int(np.prod(shape, dtype=np.int64))
            self.initializers[name] = helper.make_tensor(
                name, TensorProto.FLOAT8E4M3FN, shape, b"\0" * count, raw=True
            )
        return name

    def sizes(self, sizes: Sequence[Any]) -> str:
        """Return the name of an int64 vector of plain and symbolic integers.

        Args:
            sizes: whole numbers, or FX nodes of symbolic integers, each itself a vector of one.

        Raises:
            UnsupportedOpError: something else is among them.
        """
        if all(isinstance(s, int) for s in sizes):
            return self.constant(np.asarray(sizes, dtype=np.int64))
        other = next((s for s in sizes if not isinstance(s, (int, fx.Node))), None)
        if other is not None:
            raise UnsupportedOpError(f"{other!r} among whole numbers")
        return str(
            self.op(
                "Concat",
                *(self.value(s) if isinstance(s, fx.Node) else self.sizes([s]) for s in sizes),
                axis=0,
            )
        )

    def scalar(self, given: Any, like: fx.Node) -> str:
        """Return the name of a number as a scalar; a tensor is returned as it is.

        Args:
            given: a number, a tensor's node, or the node of a symbolic size, which is cast.
            like: whose dtype the scalar has.

        Raises:
            UnsupportedOpError: integers cannot hold the number.
        """
        if isinstance(given, fx.Node):
            value = given.meta.get("val")
            if isinstance(value, torch.SymInt):
                return str(self.op("Cast", given, to=ONNX_TYPES[like.meta["val"].dtype]))
            return self.value(given)
        dtype = like.meta["val"].dtype
        if isinstance(given, float) and not dtype.is_floating_point and not given.is_integer():
            raise UnsupportedOpError(f"{given} beside integers")
        try:
            scalar = torch.tensor(given, dtype=dtype)
        except RuntimeError as exc:  # beyond the type's range
            raise UnsupportedOpError(str(exc)) from exc
        return self.constant(scalar.numpy())

    def reduce(self, kind: str, x: Any, axes: Sequence[int] | None, *, keepdims: bool) -> str:
        """Append a reduction and return the name of its output.

        Its axes became an input in opset 18 (ReduceSum: 13).

        Args:
            kind: ONNX op type, such as ``ReduceMean``.
            x: as for :meth:`op`.
            axes: which are reduced, negative ones from the end; None or none: all.
            keepdims: reduced axes remain with size 1.
        """
        axes = None if axes is None else list(axes)
        if self.opset >= 18 or kind == "ReduceSum":
            return str(
                self.op(kind, x, axes, keepdims=int(keepdims))
                if axes
                else self.op(kind, x, keepdims=int(keepdims))
            )
        return str(self.op(kind, x, axes=axes or None, keepdims=int(keepdims)))

    def _unique(self, name: str) -> str:
        free = name
        while free in self._taken:
            free = f"{name}_{self._taken[name]}"
            self._taken[name] += 1
        self._taken[free] = 1
        return free
