"""Which outputs of a captured graph are kept."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn
from torch.utils._pytree import tree_structure

from trtq.errors import CaptureError, suggest
from trtq.graph.flat import PREFIX
from trtq.graph.signature import results


def choose_(graph: fx.GraphModule, names: Sequence[str], outputs: Sequence[str]) -> tuple[str, ...]:
    """Let a graph give the outputs that were asked for, and return their names.

    Args:
        graph: traced; what serves other outputs alone is removed.
        names: of all its outputs, in order.
        outputs: names to keep, in the order that is wanted; none: all of them.

    Raises:
        CaptureError: there is no such output, one is asked for twice, or weights serve the others
            only and would be lost.
    """
    missing = [n for n in outputs if n not in names]
    if missing:
        raise CaptureError(
            f"The model has no output {missing[0]}",
            f"its outputs are {', '.join(names)}",
            suggest(missing[0], names),
        )
    twice = next((n for i, n in enumerate(outputs) if n in outputs[:i]), None)
    if twice is not None:
        raise CaptureError(f"The output {twice} is asked for twice", hint="Name each output once")
    if not outputs or tuple(outputs) == tuple(names):
        return tuple(names)
    before = {str(n.target) for n in graph.graph.nodes if n.op == "get_attr" and n.users}
    by_name = dict(zip(names, results(graph), strict=True))
    kept = tuple(by_name[n] for n in outputs)
    graph.graph.output_node().args = (kept,)
    codegen = graph.graph._codegen
    assert isinstance(codegen, fx.graph._PyTreeCodeGen)
    form = tree_structure(0 if len(kept) == 1 else (0,) * len(kept))
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=form)
    graph.graph.eliminate_dead_code()
    lost = before - {str(n.target) for n in graph.graph.nodes if n.op == "get_attr" and n.users}
    weights = sorted(n for n in lost if isinstance(_parameter(graph, n), nn.Parameter))
    if weights:
        shown = ", ".join(w.removeprefix(PREFIX) for w in weights[:3])
        raise CaptureError(
            f"Only the outputs {', '.join(outputs)} of {', '.join(names)} were asked for",
            f"{len(weights)} weights serve the others alone and would be lost: {shown}",
            "Keep those outputs, or give a model without these weights",
        )
    graph.recompile()
    return tuple(outputs)


def _parameter(graph: fx.GraphModule, name: str) -> object:
    value: object = graph
    for part in name.split("."):
        value = getattr(value, part, None)
    return value
