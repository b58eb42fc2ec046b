"""A context for methods without the verb."""

from __future__ import annotations

import torch

from trtq.graph.capture import capture
from trtq.methods.base import MethodContext
from trtq.quant.placement import place


def bench_of(model, images=None, *, size=32):
    graph = capture(model.eval(), (3, size, size)).module
    batch = (
        torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        if images is None
        else images
    )
    return MethodContext(
        graph=graph,
        placement=place(graph),
        images=lambda limit: iter([(batch[:limit],)]),
        note=print,
        begin=lambda *a: None,
        advance=lambda n: None,
    )
