"""Tracing by torch.export: with open axes where a model allows them, else with a batch of 1."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import fx, nn

from trtq.errors import CaptureError, explain_system, first_line
from trtq.graph.axes import Open, single
from trtq.graph.axis_needs import needed, refusal
from trtq.graph.explain import explain
from trtq.graph.feed import Feed
from trtq.graph.flat import Call, Flat
from trtq.graph.functional import drop_writes_, make_functional_
from trtq.graph.ties import tie

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch prints while it traces; failures still raise."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    loggers = [
        logging.getLogger(n)
        for n in ("torch.export", "torch._export", "torch.onnx", "torch.fx", "onnx_ir")
    ]
    levels = [lg.level for lg in loggers]
    try:
        for lg in loggers:
            lg.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for lg, level in zip(loggers, levels, strict=True):
            lg.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fastpath)


def trace(module: nn.Module, feed: Feed, opened: Open) -> fx.GraphModule:
    """Return ``module`` as a functional ATen graph.

    Composite ops (linear, conv2d, attention) are kept whole.

    Args:
        module: what to trace.
        feed: one batch.
        opened: the axes to leave open.

    Raises:
        Exception: any exception of torch.export.
    """
    with quiet(), torch.no_grad():
        program = _export(module, feed, opened)
        graph = program.module(check_guards=False)
        assert isinstance(graph, fx.GraphModule)
        if make_functional_(graph):
            return graph
        # Views of memory that changes later, nested graphs: torch's own functionalisation traces
        # everything again (3x the time).
        graph = program.run_decompositions({}).module(check_guards=False)
        assert isinstance(graph, fx.GraphModule)
        drop_writes_(graph)
        return graph


def _export(module: nn.Module, feed: Feed, opened: Open) -> torch.export.ExportedProgram:
    """Return a module exported with the weakest form of its open axes that it allows."""
    *rest, last = opened.dims()
    nested = isinstance(module, Flat)  # its tensors are *feed
    for shapes in rest:
        with contextlib.suppress(Exception):
            return torch.export.export(
                module, feed, dynamic_shapes=(shapes,) if nested else shapes, strict=False
            )
    return torch.export.export(
        module, feed, dynamic_shapes=(last,) if nested else last, strict=False
    )


def trace_best(
    model: nn.Module, call: Call, opened: Open, alone: str
) -> tuple[fx.GraphModule, Feed, Open, str]:
    """Trace with open axes where the model allows it, else with a batch of 1.

    Args:
        model: what to trace.
        call: the example.
        opened: the axes to leave open.
        alone: why the model takes one sample only; "" where it takes two.

    Returns:
        The graph, the batch that it was traced with, its open axes, and the reason where the batch
        is fixed, else "".

    Raises:
        CaptureError: it cannot be traced, or not with the axes that somebody asked for.
    """
    feed = call.feed
    try:
        return trace(model, feed, opened), feed, opened, ""
    except Exception as first:
        refused = explain_system(first)
        if refused is not None:
            raise refused from first
        if opened.asked:
            raise _explain_axes(first, model, call, opened) from first
        fitted = opened._replace(ranges=needed(str(first), opened), asked=True)
        if fitted.ranges and _is_within(feed, fitted):
            with contextlib.suppress(Exception):
                return trace(model, feed, fitted), feed, fitted, _narrower_words(opened, fitted)
        one = single(feed, opened)
        graph, kept = _trace_one(model, one, opened)
        why = alone or tie(model, lambda: trace(model, feed, opened))
        why = why or first_line(first).partition("! For more")[0]
        note = f"the model only captures with {_fixed_words(one, opened, kept)}: {why}"
        logger.info("%s", note)
        return graph, one, kept, note


def _trace_one(model: nn.Module, one: Feed, opened: Open) -> tuple[fx.GraphModule, Open]:
    """Trace with one sample: its other axes open where the model allows it.

    Raises:
        CaptureError: it cannot be traced.
    """
    if opened.of_one_sample.ranges:
        with contextlib.suppress(Exception):
            return trace(model, one, opened.of_one_sample), opened.of_one_sample
    try:
        return trace(model, one, opened.closed), opened.closed
    except Exception as exc:
        raise explain_system(exc) or explain(exc, model) from exc


def _is_within(feed: Feed, opened: Open) -> bool:
    """Whether an example has sizes within the ranges of open axes."""
    return all(
        tensor.shape[i] in opened.ranges[name]
        for tensor, names in zip(feed, opened.names, strict=True)
        for i, name in names.items()
    )


def _narrower_words(before: Open, after: Open) -> str:
    """Return which sizes a model takes of axes that were to be open without a limit."""
    changed = [f"{n} {r.meaning}" for n, r in after.ranges.items() if r != before.ranges[n]]
    return f"the model takes {', '.join(changed)}"


def _fixed_words(feed: Feed, opened: Open, kept: Open) -> str:
    """Return the sizes that axes have now that they are not open, and how to choose others."""
    sizes = {
        name: int(tensor.shape[i])
        for tensor, names in zip(feed, opened.names, strict=True)
        for i, name in names.items()
        if name not in kept.ranges
    }
    if set(sizes) <= opened.firsts:
        return "a fixed batch of 1"
    words = ", ".join(f"{name} {size}" for name, size in sizes.items())
    return f"fixed sizes, {words} (--input NAME=SIZES chooses others)"


def _explain_axes(exc: BaseException, model: nn.Module, call: Call, opened: Open) -> CaptureError:
    """Say which sizes the model takes where it does not take all that were asked for."""
    ranges = needed(str(exc), opened)
    if not ranges or not _is_within(call.feed, opened._replace(ranges=ranges)):
        return explain(exc, model)
    try:  # a hint must work when it is typed
        trace(model, call.feed, opened._replace(ranges=ranges))
    except Exception:
        return explain(exc, model)
    return refusal(call.names, call.feed, opened, ranges)
