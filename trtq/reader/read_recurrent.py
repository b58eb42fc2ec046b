"""Recurrent layers as torch's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trtq.onnx_node import label_of
from trtq.reader.call import Call
from trtq.reader.values import UnreadError


@dataclass(frozen=True, slots=True)
class Form:
    """How one of the ONNX ops is read.

    Attributes:
        order: the index of each of torch's gates among those of the ONNX op.
        activations: of one direction, as ONNX names its defaults.
    """

    order: tuple[int, ...]
    activations: tuple[str, ...]


FORMS = {
    "LSTM": Form((0, 2, 3, 1), ("Sigmoid", "Tanh", "Tanh")),
    "GRU": Form((1, 0, 2), ("Sigmoid", "Tanh")),
    "RNN": Form((0,), ("Tanh",)),
}


def recurrent(call: Call) -> list[torch.Tensor]:
    """One layer, in one or both directions.

    The constants are cut and ordered when the graph is normalised: they depend on nothing else.
    """
    form = FORMS[call.node.op_type]
    kind = _require_plain(call, form)
    x = call.x(0)
    first = bool(call.get("layout", 0))
    x = x.transpose(0, 1) if first else x
    if not isinstance(x.shape[0], int):
        raise UnreadError("a recurrent layer over an open length")
    backward = call.get("direction", "forward") == "reverse"
    x = x.flip(0) if backward else x
    states = [_state(call, position, x, first) for position in _states(call)]
    _require_sizes(call, form, x, states)
    params = _parameters(call, form)
    both = call.get("direction", "forward") == "bidirectional"
    y, *finals = _run(kind, x, states, params, both)
    y = y.reshape(*y.shape[:2], 1 + both, -1)
    y = y.flip(0) if backward else y
    if first:
        finals = [f.transpose(0, 1) for f in finals]
        return [y.transpose(0, 1), *finals][: len(call.node.output)]
    return [y.transpose(1, 2), *finals][: len(call.node.output)]


def _require_plain(call: Call, form: Form) -> str:
    """Return the kind of torch's layer, for a node that computes what torch computes."""
    direction = call.get("direction", "forward")
    directions = 2 if direction == "bidirectional" else 1
    given = tuple(_text(a) for a in call.get("activations") or ())
    if call.has(4):
        raise UnreadError("sequences of several lengths")
    if call.get("clip") or call.get("input_forget") or call.has(7):
        raise UnreadError("clipping, peepholes or coupled gates")
    if call.node.op_type == "GRU" and not call.get("linear_before_reset", 0):
        raise UnreadError("a GRU that resets before its product")
    if call.node.op_type == "RNN" and given and set(given) == {"Relu"}:
        return "rnn_relu"
    if given and given != form.activations * directions:
        raise UnreadError(f"the activations {', '.join(given)}")
    return {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}[call.node.op_type]


def _text(given: bytes | str) -> str:
    return given.decode() if isinstance(given, bytes) else given


def _states(call: Call) -> Sequence[int]:
    return (5, 6) if call.node.op_type == "LSTM" else (5,)


def _state(call: Call, position: int, x: torch.Tensor, first: bool) -> torch.Tensor:
    given = call.optional(position)
    if given is not None:
        return given.transpose(0, 1) if first else given
    directions = call.x(1).shape[0]
    return x.new_zeros(directions, x.shape[1], call.x(2).shape[-1])


def _require_sizes(call: Call, form: Form, x: torch.Tensor, states: Sequence[torch.Tensor]) -> None:
    """Refuse sizes that do not fit each other: torch's function reads beyond them.

    Args:
        call: of the node.
        form: of its gates.
        x: [length, batch, features].
        states: [directions, batch, hidden].

    Raises:
        ValueError: names the operand.
    """
    directions, hidden = int(call.x(1).shape[0]), int(call.x(2).shape[-1])
    rows = hidden * len(form.order)
    expected = {
        "W": (call.x(1), (directions, rows, x.shape[2])),
        "R": (call.x(2), (directions, rows, hidden)),
        **({"B": (call.x(3), (directions, 2 * rows))} if call.has(3) else {}),
        **{f"state {k}": (s, (directions, x.shape[1], hidden)) for k, s in enumerate(states)},
    }
    for name, (tensor, sizes) in expected.items():
        if tuple(tensor.shape) != sizes:
            raise ValueError(
                f"{name} of {call.node.op_type} {label_of(call.node)} is {list(tensor.shape)}, "
                f"expected {list(sizes)}"
            )


def _parameters(call: Call, form: Form) -> list[torch.Tensor]:
    """Return torch's constants, direction by direction."""
    parameters: list[torch.Tensor] = []
    for d in range(call.x(1).shape[0]):
        parameters += [_gates(call.x(1)[d], form), _gates(call.x(2)[d], form)]
        if call.has(3):
            parameters += [_gates(half, form) for half in call.x(3)[d].chunk(2)]
    return parameters


def _gates(table: torch.Tensor, form: Form) -> torch.Tensor:
    parts = table.chunk(len(form.order))
    return parts[0] if len(parts) == 1 else torch.cat([parts[i] for i in form.order])


def _run(
    kind: str, x: torch.Tensor, states: list[torch.Tensor], params: list[torch.Tensor], both: bool
) -> list[torch.Tensor]:
    biases = len(params) == 4 * (1 + both)
    rest = (params, biases, 1, 0.0, False, both, False)
    if kind == "lstm":
        return list(torch.lstm(x, tuple(states), *rest))
    function = {"gru": torch.gru, "rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu}[kind]
    return list(function(x, states[0], *rest))
