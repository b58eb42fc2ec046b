"""Modules out of what other tools put around them: compilers, data parallelism, averaging."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn.parameter import UninitializedParameter

from trtq.errors import ModelError

# Wrappers by package and class, with the child that is the model and what the wrapper is for.
WRAPPERS = {
    ("torch", "OptimizedModule"): ("_orig_mod", "torch.compile"),
    ("torch", "DataParallel"): ("module", "DataParallel"),
    ("torch", "DistributedDataParallel"): ("module", "DistributedDataParallel"),
    ("torch", "AveragedModel"): ("module", "AveragedModel"),
    ("torch", "CheckpointWrapper"): ("_checkpoint_wrapped_module", "activation checkpointing"),
    ("timm", "ModelEma"): ("ema", "timm's ModelEma"),
    ("timm", "ModelEmaV2"): ("module", "timm's ModelEmaV2"),
    ("timm", "ModelEmaV3"): ("module", "timm's ModelEmaV3"),
}
# What has no plain module in it any more.
_REFUSED = {
    ("torch", "FullyShardedDataParallel"): "FullyShardedDataParallel, which keeps only a part of the weights here",
}


def _class_key(module: nn.Module) -> tuple[str, str]:
    kind = type(module)
    return kind.__module__.partition(".")[0], kind.__name__


def unwrap(module: nn.Module, name: str) -> tuple[nn.Module, list[str]]:
    """Return the plain module inside of wrappers, in eval mode, and a line for each kind of wrapper that came off.

    Wrappers of parts of the model come off as well. Modules that TorchScript or torch.export made have no plain module in them.

    Args:
        module: what a factory returned; its own children are replaced where they are wrapped.
        name: of the model, as the user wrote it.

    Raises:
        ModelError: there is no plain module in it, or its parameters have no shape yet.
    """
    notes: list[str] = []
    module = _plain(module, "", notes)
    for parent_name, parent in list(module.named_modules()):
        for child_name, child in list(parent.named_children()):
            plain = _plain(child, f"{parent_name}.{child_name}".lstrip("."), notes)
            if plain is not child:
                setattr(parent, child_name, plain)
        if getattr(parent, "_compiled_call_impl", None) is not None:  # module.compile()
            parent._compiled_call_impl = None
            notes.append(_line("torch.compile", parent_name))
    _refuse(module, name)
    try:
        return module.eval(), notes
    except NotImplementedError as exc:
        raise _made_by(
            name,
            "a graph of torch.export, which has its batch and its training mode fixed",
            "Return the module that was given to torch.export",
        ) from exc


def _plain(module: nn.Module, where: str, notes: list[str]) -> nn.Module:
    while _class_key(module) in WRAPPERS:
        child, wrapper = WRAPPERS[_class_key(module)]
        inner = getattr(module, child, None)
        if not isinstance(inner, nn.Module):
            break
        notes.append(_line(wrapper, where))
        module = inner
    return module


def _line(wrapper: str, where: str) -> str:
    return f"{where or 'the model'} was taken out of its wrapper ({wrapper})"


def _made_by(name: str, what: str, mend: str) -> ModelError:
    return ModelError(f"Cannot use the model {name!r}", f"it is {what}", mend)


def _refuse(module: nn.Module, name: str) -> None:
    for where, part in module.named_modules():
        owner = f"its part {where!r} is" if where else "it is"
        if isinstance(part, torch.jit.ScriptModule):
            raise ModelError(
                f"Cannot use the model {name!r}",
                f"{owner} a ScriptModule of TorchScript, which cannot be captured",
                "Return the module that it was made from; --checkpoint takes the weights of the TorchScript file",
            )
        if _class_key(part) in _REFUSED:
            raise ModelError(
                f"Cannot use the model {name!r}",
                f"{owner} wrapped in {_REFUSED[_class_key(part)]}",
                "Return the module without it, and give its full state dict with --checkpoint",
            )
        if where and isinstance(part, fx.GraphModule) and "eval" in vars(part):
            raise ModelError(
                f"Cannot use the model {name!r}",
                f"{owner} a graph of torch.export, which has its batch and its training mode fixed",
                "Return the module that was given to torch.export",
            )
    for where, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise _made_by(
                name,
                f"lazy: {where!r} has no shape yet",
                "Run the model once in the factory, or write the sizes of its layers",
            )
        if parameter.is_meta:
            raise _made_by(
                name, f"on the meta device: {where!r} has no values", "Make it on the CPU"
            )
