"""Modules out of what other tools put around them: compilers, data parallelism, averaging."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn.parameter import UninitializedParameter

from trtq.errors import ModelError, listed

# Wrappers by package and class, with the child that is the model and what the wrapper is for.
WRAPPERS = {
    ("torch", "OptimizedModule"): ("_orig_mod", "torch.compile"),
    ("torch", "DataParallel"): ("module", "DataParallel"),
    ("torch", "DistributedDataParallel"): ("module", "DistributedDataParallel"),
    ("torch", "AveragedModel"): ("module", "AveragedModel"),
    ("torch", "CheckpointWrapper"): ("_checkpoint_wrapped_module", "activation checkpointing"),
    ("timm", "ModelEmaV2"): ("module", "timm's ModelEmaV2"),
    ("timm", "ModelEmaV3"): ("module", "timm's ModelEmaV3"),
}
# Objects that no longer contain a plain module, and the object to return instead.
_EXPORTED = (
    "a graph of torch.export, which has its batch and its training mode fixed",
    "Return the module that was given to torch.export",
)
_REFUSED = {
    ("torch", "FullyShardedDataParallel"): (
        "wrapped in FullyShardedDataParallel, which keeps only a part of the weights here",
        "Return the module without it, and give its full state dict with --checkpoint",
    ),
    ("torch", "UnflattenedModule"): _EXPORTED,
}
_SCRIPT = (
    "a ScriptModule of TorchScript, which cannot be captured",
    "Return the module that it was made from; --checkpoint takes weights of TorchScript files",
)


def _class_key(module: nn.Module) -> tuple[str, str]:
    kind = type(module)
    return kind.__module__.partition(".")[0], kind.__name__


def unwrap(module: nn.Module, name: str) -> tuple[nn.Module, list[str]]:
    """Return the plain module in eval mode, and a line for each kind of wrapper that came off.

    Wrappers of parts of the model come off as well. Modules that TorchScript or torch.export made
    have no plain module in them.

    Args:
        module: what a factory returned; its own children are replaced where they are wrapped.
        name: of the model, as the user wrote it.

    Raises:
        ModelError: there is no plain module in it, or its parameters have no shape or no values.
    """
    came_off: dict[str, list[str]] = {}
    module = _plain(module, "", came_off)
    for where, parent in list(module.named_modules()):
        for child_name, child in list(parent._modules.items()):
            if child is None:
                continue
            plain = _plain(child, f"{where}.{child_name}".lstrip("."), came_off)
            if plain is not child:
                setattr(parent, child_name, plain)
        if getattr(parent, "_compiled_call_impl", None) is not None:  # module.compile()
            parent._compiled_call_impl = None
            came_off.setdefault("torch.compile", []).append(where)
    for where, part in module.named_modules():
        _refuse(part, where, name)
    _check_parameters(module, name)
    try:
        module.eval()
    except NotImplementedError as exc:
        raise _unusable(name, "", *_EXPORTED) from exc
    return module, [_line(wrapper, parts) for wrapper, parts in came_off.items()]


def _plain(module: nn.Module, where: str, came_off: dict[str, list[str]]) -> nn.Module:
    while _class_key(module) in WRAPPERS:
        child, wrapper = WRAPPERS[_class_key(module)]
        inner = getattr(module, child, None)
        if not isinstance(inner, nn.Module):
            break
        came_off.setdefault(wrapper, []).append(where)
        module = inner
    return module


def _line(wrapper: str, parts: list[str]) -> str:
    return f"{listed([p or 'the model' for p in parts], 3)}: the wrapper came off ({wrapper})"


def _unusable(name: str, where: str, what: str, hint: str) -> ModelError:
    owner = f"its part {where!r} is" if where else "it is"
    return ModelError(f"Cannot use the model {name!r}", f"{owner} {what}", hint)


def _refuse(part: nn.Module, where: str, name: str) -> None:
    if isinstance(part, torch.jit.ScriptModule):
        raise _unusable(name, where, *_SCRIPT)
    if _class_key(part) in _REFUSED:
        raise _unusable(name, where, *_REFUSED[_class_key(part)])
    if where and isinstance(part, fx.GraphModule) and "eval" in vars(part):
        raise _unusable(name, where, *_EXPORTED)
    if type(part).__module__.startswith(
        ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
    ):
        what = f"quantized already ({type(part).__module__}.{type(part).__name__})"
        raise _unusable(name, where, what, "Return the float model")


def _check_parameters(module: nn.Module, name: str) -> None:
    for where, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            what = f"lazy: {where!r} has no shape yet"
            hint = "Run the model once in the factory, or write the sizes of its layers"
            raise _unusable(name, "", what, hint)
        if parameter.is_meta:
            what = f"on the meta device: {where!r} has no values"
            raise _unusable(name, "", what, "Make it on the CPU")


def out_of_inference_mode_(module: nn.Module) -> None:
    """Replace tensors made in ``torch.inference_mode()``: nothing can be traced with them.

    A tensor that several modules share is still shared afterwards.

    Args:
        module: changed in place.
    """
    plain: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            if parameter.is_inference():
                own = plain.setdefault(id(parameter), nn.Parameter(parameter.detach().clone()))
                setattr(part, name, own)
        for name, buffer in part.named_buffers(recurse=False, remove_duplicate=False):
            if buffer.is_inference():
                setattr(part, name, plain.setdefault(id(buffer), buffer.detach().clone()))
