"""The heads of a model: the layers behind which there is no other one, and what follows them.

Before the heads of a DETR-like model there is its decoder: the layers that work on queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx

from trtq import ops
from trtq.graph.naming import is_softmax
from trtq.graph.nodes import operands

MAP_AXES = 4  # samples, channels, height, width
ROWS_OF = ("linear", "matmul", "add")  # what works on rows: queries, tokens


def last_layers(graph: fx.Graph) -> list[fx.Node]:
    """Return the weighted layers that no other one follows, in graph order.

    The mean of a distribution (YOLO's DFL: a softmax, then a convolution to one channel) is
    arithmetic, no layer.
    """
    behind: set[fx.Node] = set()  # nodes that a weighted layer follows
    last = []
    for node in reversed(graph.nodes):
        follows = any(user in behind for user in node.users)
        if ops.of(node).weighted and not is_mean(node):
            if not follows:
                last.append(node)
            follows = True
        if follows:
            behind.add(node)
    return last[::-1]


def is_mean(node: fx.Node) -> bool:
    """Whether a convolution is the mean of a distribution: one channel of a softmax."""
    if ops.kind(node) == "linear" or node.meta["val"].shape[1] != 1:
        return False
    source = operands(node)[0]
    while "shape_only" in ops.of(source).traits:
        source = operands(source)[0]
    return is_softmax(source)


def head_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Return the last layers and everything behind them: what turns their values into answers."""
    return _with_users(last_layers(graph))


def decoder_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Return the layers of a decoder, its heads included: those that work on queries.

    The number of queries is the number of rows of the last layers' values. A decoder reads another
    sequence, so there is none where every linear of the graph has that many rows.
    """
    samples = {size for n in graph.nodes if n.op == "placeholder" for size in _first(n)}
    queries = {size for n in last_layers(graph) for size in _rows(n)} - samples
    layers = [n for n in graph.nodes if ops.kind(n) in ROWS_OF]
    decoder = {n for n in layers if queries & _rows(n)}
    reads = any(ops.kind(n) == "linear" and n not in decoder for n in layers)
    return decoder if reads else set()


def _first(node: fx.Node) -> set[int]:
    """Return the size of the first axis, where there is one and it is not open."""
    return {size for size in _shape(node)[:1] if isinstance(size, int)}


def _shape(node: fx.Node) -> Sequence[object]:
    """Return the shape of a tensor; no axes for a size that was computed."""
    return tuple(getattr(node.meta.get("val"), "shape", ()))


def _rows(node: fx.Node) -> set[int]:
    """Return how many rows a layer gives, and the first axis, where some decoders have queries."""
    shape = _shape(node)
    if len(shape) < 3 or (len(shape) == MAP_AXES and ops.kind(node) == "add"):
        return set()  # one answer a sample, or a sum of maps
    return {size for size in (shape[-2], shape[0]) if isinstance(size, int)}


def scales(layers: Iterable[fx.Node]) -> int:
    """Return how many sizes of maps layers give: a detector's last ones give several."""
    maps = (n.meta["val"].shape[2:] for n in layers if n.meta["val"].ndim == MAP_AXES)
    return len({str(list(size)) for size in maps})  # open sizes have no hash


def _with_users(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    reachable_nodes: set[fx.Node] = set()
    open_ = list(nodes)
    while open_:
        node = open_.pop()
        if node not in reachable_nodes:
            reachable_nodes.add(node)
            open_ += node.users
    return reachable_nodes
