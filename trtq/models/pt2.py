"""Archives of torch.export (.pt2): a program with its weights, read without running code."""

from __future__ import annotations

import io
import logging
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn
from torch.export import ExportedProgram

from trtq.artifact import decode_json
from trtq.errors import ModelError, first_line, reason
from trtq.layouts import channels_first, layout_of
from trtq.models.load import LoadedModel

_AGAIN = "Save it again: torch.export.save(program, 'model.pt2')"
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


class _Payload(msgspec.Struct):
    """Description of one tensor in a table of an archive."""

    path_name: str = ""
    use_pickle: bool = False


class _Table(msgspec.Struct):
    """The tensors of an archive by name."""

    config: dict[str, _Payload] = {}


def load_pt2(path: Path) -> LoadedModel:
    """Return the model of an archive.

    Args:
        path: written by ``torch.export.save``.

    Raises:
        ModelError: missing, damaged, of another kind, or it has objects that only unpickling
            could read.
    """
    what = f"Cannot read the exported program {path}"
    if not path.is_file():
        raise ModelError(what, "there is no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            _require_plain(archive, what)
    except _DAMAGED as exc:
        raise ModelError(what, "it is not a whole archive of torch.export", _AGAIN) from exc
    except OSError as exc:
        raise ModelError(what, reason(exc)) from exc
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
    except Exception as exc:  # torch's failures share no base
        raise ModelError(what, f"torch cannot load it ({first_line(exc)})", _AGAIN) from exc
    finally:
        logger.setLevel(level)
    return from_program(program, str(path))


def from_program(program: ExportedProgram, name: str) -> LoadedModel:
    """Return the model of an exported program.

    Args:
        program: is not changed.
        name: for records.

    Raises:
        ModelError: it computes in another type than float32.
    """
    _require_single(program, name)
    module = program.module(check_guards=False)
    assert isinstance(module, nn.Module)
    for part in module.modules():
        part.training = False
    return LoadedModel(
        module=module,
        name=name,
        weights="the program's own",
        input_hints=_hints(program),
    )


def _require_single(program: ExportedProgram, name: str) -> None:
    kinds = {t.dtype for t in program.state_dict.values() if t.is_floating_point()}
    others = sorted(str(k).removeprefix("torch.") for k in kinds - {torch.float32})
    if others:
        raise ModelError(
            f"Cannot use the exported program {name}",
            f"its weights are {', '.join(others)}, expected float32: types are part of a program",
            "Call model.float() before torch.export.export, and give it float32 inputs",
        )


def _hints(program: ExportedProgram) -> Mapping[str, Any]:
    """Return the size of the image that a program of one image takes."""
    named = {s.arg.name for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"}
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in named]
    values = [n.meta.get("val") for n in nodes]
    if len(values) != 1 or not isinstance(values[0], torch.Tensor) or values[0].ndim != 4:
        return {}
    shape = tuple(values[0].shape)
    if not all(isinstance(s, int) for s in shape[1:]):
        return {}
    layout = layout_of(shape) or "NCHW"
    return {"input_size": channels_first(shape[1:], layout), "layout": layout}


def _require_plain(archive: zipfile.ZipFile, what: str) -> None:
    """Refuse an archive with anything that torch would unpickle freely.

    Raises:
        ModelError: names the part.
    """
    for name in _pickled(archive, what):
        content = archive.read(name)
        try:
            torch.load(io.BytesIO(content), weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as exc:
            raise ModelError(
                what,
                f"{name} in it is not a plain tensor, and reading it could run code",
                "Load it where you trust it, and save a program with plain tensors",
            ) from exc


def _pickled(archive: zipfile.ZipFile, what: str) -> Iterator[str]:
    """Yield the names of the parts that torch reads with pickle.

    Raises:
        ModelError: one is an object of a class, or a table of them is damaged.
    """
    names = archive.namelist()
    for name in names:
        if name.endswith(("weights_config.json", "constants_config.json")):
            folder = name.rpartition("/")[0]
            for payload in _table(archive, name, what).config.values():
                path = payload.path_name
                if "custom_obj" in path:
                    raise ModelError(
                        what,
                        f"it holds the object {path}, and reading that could run code",
                        "Export the model without objects of classes of its own",
                    )
                if payload.use_pickle:
                    yield _named(names, folder, path, what)
        elif name.endswith(".pt") and ("sample_inputs" in name or "serialized_" in name):
            yield name


def _table(archive: zipfile.ZipFile, name: str, what: str) -> _Table:
    try:
        return decode_json(archive.read(name), _Table)
    except msgspec.MsgspecError as exc:
        raise ModelError(what, f"{name} in it is damaged ({reason(exc)})", _AGAIN) from exc


def _named(names: list[str], folder: str, path: str, what: str) -> str:
    """Return the name in an archive of what a table names.

    Raises:
        ModelError: it is not there.
    """
    full = next((n for n in names if n.endswith(f"/{path}")), None)
    if full is None:
        raise ModelError(what, f"{folder}/{path} is missing in it", _AGAIN)
    return full
