"""The heads of a model: the layers behind which there is no other one, and what follows them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from trtq import ops
from trtq.graph.naming import is_softmax
from trtq.graph.nodes import operands

MAP_AXES = 4  # samples, channels, height, width


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
