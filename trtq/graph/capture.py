"""Capture: one torch.export graph of the model, with a dynamic batch where the model allows it."""

from __future__ import annotations

import contextlib
import logging
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_structure

from trtq.errors import CaptureError, explain_system, first_line
from trtq.graph.functional import make_functional_
from trtq.graph.naming import assign_names_
from trtq.graph.nodes import operands
from trtq.graph.normalize import normalize_
from trtq.graph.signature import Signature, signature_of

logger = logging.getLogger(__name__)
# Folding BatchNorm reorders float32 operations: most models stay below 1e-6, near-singular
# variances reach 1e-5.
MAX_REL_DIFF = 1e-4
MAX_TIED = 1e-3  # share of class indices that two nearly equal scores may decide


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedGraph:
    """A model as one functional FX graph, ready to be calibrated, quantized and exported.

    Attributes:
        module: the graph; parameters are its own (BatchNorm folded), nodes carry a stable name in
            ``meta["trtq_name"]``.
        example: one input batch, float32, shape [2, C, H, W] ([1, C, H, W] when the batch is
            static).
        dynamic_batch: False when the model only captures at batch 1.
        notes: why the batch is static, which outputs were dropped; what the user must know.
        max_rel_diff: max |graph - eager| / max |eager| on a random batch.
        passes: what normalisation did, by name and count.
        signature: names, types and shapes of what goes in and what comes out.
    """

    module: fx.GraphModule
    example: torch.Tensor
    dynamic_batch: bool
    notes: tuple[str, ...]
    max_rel_diff: float
    passes: dict[str, int]
    signature: Signature


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


def trace(module: nn.Module, example: torch.Tensor, *, dynamic: bool) -> fx.GraphModule:
    """Return ``module`` as a functional ATen graph.

    Composite ops (linear, conv2d, attention) are kept whole.

    Args:
        module: what to trace.
        example: one input batch.
        dynamic: leave the batch open.
    """
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    with quiet(), torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
        graph = program.module(check_guards=False)
        assert isinstance(graph, fx.GraphModule)
        if make_functional_(graph):
            return graph
        # Views of memory that changes later, nested graphs: torch's own functionalisation traces
        # everything again (3x the time).
        graph = program.run_decompositions({}).module(check_guards=False)
        assert isinstance(graph, fx.GraphModule)
        return graph


def first_tensor(output: object) -> torch.Tensor:
    """Return the tensor that is the model's answer.

    It is the output itself, ``out["out"]``, or the first of a sequence.
    """
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, dict) and output:
        return first_tensor(output.get("out", next(iter(output.values()))))
    if isinstance(output, (tuple, list)) and output:
        return first_tensor(output[0])
    raise CaptureError(
        "Cannot use the model's output",
        f"expected a tensor, found {type(output).__name__}",
        "Wrap the model so that it returns logits",
    )


def _dropped_outputs(output: object) -> str:
    """Say which outputs :func:`first_tensor` leaves out, "" when there is one only."""
    if isinstance(output, dict) and len(output) > 1:
        kept = "out" if "out" in output else next(iter(output))
        return (
            f"the model has {len(output)} outputs: {kept!r} is kept, "
            f"{', '.join(repr(k) for k in output if k != kept)} dropped"
        )
    if isinstance(output, (tuple, list)) and len(output) > 1:
        return f"the model has {len(output)} outputs: the first is kept, the others are dropped"
    return ""


class AllOutputs(nn.Module):
    """The model with all its output tensors in a tuple, the one that is kept first.

    Modules keep the model's own names.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the output tensors."""
        output = self.model(x)
        kept = first_tensor(output)
        return (
            kept,
            *(t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t is not kept),
        )


def keep_first_(graph: fx.GraphModule) -> None:
    """Let a graph return its first output alone.

    Raises:
        CaptureError: weights of the model serve other outputs only, and would be lost.
    """
    before = {str(n.target) for n in graph.graph.nodes if n.op == "get_attr" and n.users}
    output = graph.graph.output_node()
    (results,) = operands(output)
    output.args = ((results[0],),)
    codegen = graph.graph._codegen
    assert isinstance(codegen, fx.graph._PyTreeCodeGen)
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=tree_structure(0))
    graph.graph.eliminate_dead_code()
    lost = before - {str(n.target) for n in graph.graph.nodes if n.op == "get_attr" and n.users}
    weights = sorted(n for n in lost if isinstance(_parameter(graph, n), nn.Parameter))
    if weights:
        names = ", ".join(w.removeprefix("model.") for w in weights[:3])
        raise CaptureError(
            f"The model has {len(results)} outputs, and only the first can be kept",
            f"{len(weights)} weights serve the others alone and would be lost: {names}",
            "Wrap the model so that it returns one tensor that all its weights make, such as "
            "torch.cat of its outputs",
        )
    graph.recompile()


def _parameter(graph: fx.GraphModule, name: str) -> object:
    value: object = graph
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def capture(model: nn.Module, input_size: tuple[int, int, int]) -> CapturedGraph:
    """Capture ``model`` as one normalised graph.

    Args:
        model: in eval mode, float32, on the CPU; takes [N, C, H, W], returns a tensor (or a dict or
            tuple of them).
        input_size: (C, H, W).

    Raises:
        CaptureError: the forward pass fails on this input size, or torch.export refuses; names
            module and line.
    """
    example = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    raw = _answer(model, example)
    reference = first_tensor(raw)
    wrapped = model if isinstance(raw, torch.Tensor) else AllOutputs(model)
    prefix = "" if wrapped is model else "model."
    graph, dynamic, note = _trace_best(wrapped, example)
    if wrapped is not model:
        keep_first_(graph)
    if not dynamic:
        example, reference = example[:1], reference[:1]
    passes = normalize_(graph)
    assign_names_(graph, prefix=prefix)
    with torch.no_grad(), quiet():
        got = graph(example)
        if not dynamic:
            reference = first_tensor(model(example))
    diff = _difference(got, reference)
    if not diff <= MAX_REL_DIFF:
        raise CaptureError(
            "The captured graph does not equal the model",
            f"outputs differ by {diff:.2e} of their largest value, at most {MAX_REL_DIFF:.0e} "
            "is rounding",
            "Is the model in eval mode, and free of randomness and of state that forward() "
            "changes?",
        )
    return CapturedGraph(
        module=graph,
        example=example,
        dynamic_batch=dynamic,
        notes=tuple(n for n in (note, _dropped_outputs(raw)) if n),
        max_rel_diff=diff,
        passes=passes,
        signature=signature_of(graph, example, dynamic=dynamic),
    )


def _answer(model: nn.Module, example: torch.Tensor) -> object:
    """Return what the model gives for ``example``, as it gives it.

    Raises:
        CaptureError: it fails, gives no tensor, or none that is finite.
    """
    try:
        # torch's fused path for whole encoder layers answers otherwise where a mask leaves no key.
        with quiet(), torch.no_grad():
            answer: object = model(example)
            reference = first_tensor(answer)
    except CaptureError:
        raise
    except Exception as exc:
        raise explain_system(exc) or CaptureError(
            f"The model's forward pass fails on input {list(example.shape)}",
            f"{type(exc).__name__}: {first_line(str(exc))}",
            "Give the size it expects with --input-size CxHxW; a model with several inputs "
            "needs a wrapper that makes them from one",
        ) from exc
    if not torch.isfinite(reference).all():
        raise CaptureError(
            "The model gives NaN or infinity on random input",
            hint="Check its weights and its checkpoint",
        )
    return answer


def _difference(got: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest value.

    For integers it is the share of unequal ones, without ties.
    """
    if not reference.is_floating_point():
        return max(0.0, float((got != reference).double().mean()) - MAX_TIED)
    return float((got - reference).abs().max() / reference.abs().max().clamp_min(1e-30))


def _trace_best(model: nn.Module, example: torch.Tensor) -> tuple[fx.GraphModule, bool, str]:
    """Trace with a dynamic batch where the model allows it, else with batch 1.

    Returns the graph, whether the batch is dynamic, and the reason where it is not.
    """
    try:
        return trace(model, example, dynamic=True), True, ""
    except Exception as first:
        refused = explain_system(first)
        if refused is not None:
            raise refused from first
        try:
            graph = trace(model, example[:1], dynamic=False)
        except Exception as exc:
            raise explain_system(exc) or _explain(exc, model) from exc
        note = f"the model only captures with a fixed batch of 1 ({first_line(first)})"
        logger.info("%s", note)
        return graph, False, note


def _explain(exc: BaseException, model: nn.Module) -> CaptureError:
    """Name the module and the source line a torch.export failure comes from."""
    where = _last_module(exc, model)
    text = first_line(exc)
    hint = (
        "Change that line to plain tensor operations, or quantize a part of the model that has none"
    )
    if "data-dependent" in str(exc) or "GuardOnDataDependentSymNode" in type(exc).__name__:
        text = (
            "forward() decides by the values of a tensor (if, while, .item()), which a graph "
            "cannot do"
        )
        hint = "Replace the decision by torch.where or torch.cond, or move it out of forward()"
    place = f" at {where}" if where else ""
    return CaptureError(f"Cannot capture the model as a graph{place}", text, hint)


def _last_module(exc: BaseException, model: nn.Module) -> str:
    """Return the innermost module of the user's on the way to a failure, with its line."""
    names = {id(m): n for n, m in reversed(list(model.named_modules()))}
    by_type = {type(m): n for n, m in model.named_modules()}
    frames = [f for f, _ in traceback.walk_tb(exc.__traceback__)]
    for frame in reversed(frames):
        owner, code = frame.f_locals.get("self"), frame.f_code
        written_by_user = code.co_name != "__call__" and "/torch/" not in code.co_filename
        if isinstance(owner, nn.Module) and written_by_user:
            name = names.get(id(owner), by_type.get(type(owner), "")) or "(top)"
            line = f"{code.co_filename}:{frame.f_lineno}"
            return f"module {name} ({type(owner).__name__}), {line}"
    return ""
