"""Recurrent layers: torch's LSTM, GRU and RNN as the ONNX ops of the same names.

A stack becomes one op for each layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import fx

from trtq import ops
from trtq.export.writer import UnsupportedOpError, Writer

Array = npt.NDArray[Any]


class _Stack(NamedTuple):
    """The arguments of ATen's recurrent ops behind the first two."""

    params: Sequence[fx.Node]
    biases: bool
    layers: int
    dropout: float
    train: bool
    both: bool
    batch_first: bool

    @property
    def directions(self) -> int:
        return 1 + self.both

    @property
    def tensors(self) -> int:
        """How many tensors one direction of one layer has."""
        return 4 if self.biases else 2

    def require_plain(self) -> None:
        complete = len(self.params) == self.layers * self.directions * self.tensors
        if not complete or (self.train and self.dropout):
            raise UnsupportedOpError("a recurrent layer with projections, or in training")

    def arrays(self, w: Writer, layer: int) -> list[list[Array]]:
        """Return the constants of each direction of a layer."""
        places = range(layer * self.directions, (layer + 1) * self.directions)
        each = self.tensors
        return [[w.array(p) for p in self.params[d * each : (d + 1) * each]] for d in places]


@dataclass(frozen=True, slots=True)
class _Form:
    """How one of the ONNX ops is written.

    Attributes:
        order: the index of each gate of the ONNX op among torch's gates.
        states: how many tensors carry the state: 2 for an LSTM.
        attributes: further ones of the ONNX op; lists once for each direction.
    """

    order: Sequence[int]
    states: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, w: Writer, n: fx.Node, x: fx.Node, start: Any, *given: Any) -> Any:
        """Write a stack of recurrent layers."""
        stack = _Stack(*given)
        stack.require_plain()
        starts = list(start) if self.states > 1 else [start]
        value: Any = w.op("Transpose", x, perm=[1, 0, 2]) if stack.batch_first else x
        ends: list[list[str]] = []
        for layer in range(stack.layers):
            value, *states = self._layer(w, n, value, starts, stack, layer)
            ends.append(states)
        answer = w.op("Transpose", value, perm=[1, 0, 2]) if stack.batch_first else value
        joined = [
            s[0] if len(s) == 1 else w.op("Concat", *s, axis=0) for s in zip(*ends, strict=True)
        ]
        return [answer, *joined]

    def _layer(
        self, w: Writer, n: fx.Node, x: Any, starts: list[Any], stack: _Stack, layer: int
    ) -> list[str]:
        """Write one layer and return its result and its last states."""
        arrays, count = stack.arrays(w, layer), stack.directions
        hidden = int(arrays[0][1].shape[1])
        each = {k: v * count if isinstance(v, list) else v for k, v in self.attributes.items()}
        first, last = layer * count, (layer + 1) * count
        result, *states = w.op(
            ops.of(n).onnx_type,
            x,
            *_parameters(arrays, self.order),
            None,
            *(w.op("Slice", s, [first], [last], [0]) for s in starts),
            outputs=1 + self.states,
            hidden_size=hidden,
            direction="bidirectional" if stack.both else "forward",
            **each,
        )
        joined = w.op("Transpose", result, perm=[0, 2, 1, 3])
        return [w.op("Reshape", joined, [0, 0, count * hidden]), *states]


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


lstm = _Form((0, 3, 1, 2), states=2)
gru = _Form((1, 0, 2), attributes={"linear_before_reset": 1})
rnn_tanh = _Form((0,), attributes={"activations": ["Tanh"]})
rnn_relu = _Form((0,), attributes={"activations": ["Relu"]})
