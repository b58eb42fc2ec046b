"""What goes into a model and what comes out: names, types and shapes."""

from __future__ import annotations

import msgspec
import torch
from torch import fx

from trtq.graph.nodes import operands

INPUT = "input"
OUTPUT = "output"
BATCH = "batch"


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One named input or output.

    Attributes:
        name: as in the ONNX file.
        dtype: such as ``float32``.
        shape: sizes; an open one is a text such as ``batch``.
        layout: what the axes are, such as ``NCHW``; "" where that is not known.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    layout: str = ""

    @property
    def words(self) -> str:
        """The tensor as a person reads it: ``input float32 [batch, 3, 224, 224]``."""
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs and outputs of a model.

    Attributes:
        inputs, outputs: in the order of the graph.
        ranges: smallest and largest value of each open size; None is without a limit.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: dict[str, tuple[int, int | None]] = {}

    @property
    def input(self) -> TensorSpec:
        """The input of a model that has one."""
        (only,) = self.inputs
        return only


def signature_of(graph: fx.GraphModule, example: torch.Tensor, *, dynamic: bool) -> Signature:
    """Return the signature of a captured graph.

    Args:
        graph: takes one tensor and returns one.
        example: one batch of its input, float32 [N, C, H, W].
        dynamic: the first axis of input and output is open.
    """
    (result,) = operands(graph.graph.output_node())[0]
    value = result.meta["val"]
    sizes = [int(d) if isinstance(d, int) else str(d) for d in value.shape]
    given = [int(d) for d in example.shape]
    layout = "NCHW" if example.ndim == 4 else ""
    return Signature(
        inputs=(_spec(INPUT, example.dtype, given, dynamic=dynamic, layout=layout),),
        outputs=(_spec(OUTPUT, value.dtype, sizes, dynamic=dynamic),),
        ranges={BATCH: (1, None)} if dynamic else {},
    )


def _spec(
    name: str,
    dtype: torch.dtype,
    sizes: list[int] | list[int | str],
    *,
    dynamic: bool,
    layout: str = "",
) -> TensorSpec:
    shape: list[int | str] = list(sizes)
    if dynamic and shape:
        shape[0] = BATCH
    return TensorSpec(
        name=name,
        dtype=str(dtype).removeprefix("torch."),
        shape=tuple(shape),
        layout=layout,
    )
