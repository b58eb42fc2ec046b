"""Recurrent layers: torch's LSTM, GRU and RNN as the ONNX ops of the same names.

A stack becomes one op for each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import fx

from trtq.export.writer import UnsupportedOpError, Writer

Array = npt.NDArray[Any]


def recurrent(
    kind: str, order: Sequence[int], *, states: int = 1, **attributes: Any
) -> Callable[..., Any]:
    """Return a writer for a stack of recurrent layers.

    Args:
        kind: the ONNX op.
        order: the index of each gate of the ONNX op among torch's gates.
        states: how many tensors carry the state: 2 for an LSTM.
        attributes: further ones of the ONNX op, lists once for each direction.
    """

    def write(
        w: Writer,
        n: fx.Node,
        x: fx.Node,
        start: Any,
        params: Sequence[fx.Node],
        biases: bool,
        layers: int,
        dropout: float,
        train: bool,
        both: bool,
        batch_first: bool,
    ) -> Any:
        directions, each = 1 + both, 4 if biases else 2
        if len(params) != layers * directions * each or (train and dropout):
            raise UnsupportedOpError("a recurrent layer with projections, or in training")
        starts = list(start) if states > 1 else [start]
        given = {k: v * directions if isinstance(v, list) else v for k, v in attributes.items()}
        value: Any = w.op("Transpose", x, perm=[1, 0, 2]) if batch_first else x
        ends: list[list[str]] = [[] for _ in starts]
        for layer in range(layers):
            first, last = layer * directions, (layer + 1) * directions
            arrays = [
                [w.array(p) for p in params[d * each : (d + 1) * each]] for d in range(first, last)
            ]
            hidden = int(arrays[0][1].shape[1])
            result = w.op(
                kind,
                value,
                *_parameters(arrays, order),
                None,
                *(w.op("Slice", s, [first], [last], [0]) for s in starts),
                outputs=1 + states,
                hidden_size=hidden,
                direction="bidirectional" if both else "forward",
                **given,
            )
            value = w.op(
                "Reshape",
                w.op("Transpose", result[0], perm=[0, 2, 1, 3]),
                [0, 0, directions * hidden],
            )
            for end, state in zip(ends, result[1:], strict=True):
                end.append(state)
        answer = w.op("Transpose", value, perm=[1, 0, 2]) if batch_first else value
        return [answer, *(e[0] if len(e) == 1 else w.op("Concat", *e, axis=0) for e in ends)]

    return write


def _parameters(arrays: list[list[Array]], order: Sequence[int]) -> list[Array]:
    """Return W, R and B of the ONNX op from torch's tensors of each direction.

    The shapes are W [D, G*H, I], R [D, G*H, H] and B [D, 2*G*H].
    """

    def gates(array: Array) -> Array:
        parts = np.split(array, len(order))
        return np.concatenate([parts[i] for i in order])

    zeros = np.zeros(arrays[0][0].shape[0], dtype=arrays[0][0].dtype)
    biases = [np.concatenate([gates(b) for b in (a[2:] or [zeros, zeros])]) for a in arrays]
    return [
        np.stack([gates(a[0]) for a in arrays]),
        np.stack([gates(a[1]) for a in arrays]),
        np.stack(biases),
    ]
