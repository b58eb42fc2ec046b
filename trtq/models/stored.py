"""The tensors of a checkpoint under flat names: of one file, of shards, or of a folder."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from trtq.artifact import decode_json
from trtq.errors import ModelError, listed, reason, suggest
from trtq.models.file_kind import SAVE, kind_of, unreadable
from trtq.models.inert import Inert, array_of, module_tensors, read_torch

StateDict = dict[str, torch.Tensor]
INDEXES = (
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
)
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# Folders of other tools: a file that tells them, what they are, what to do (with the folder).
OTHER_FOLDERS = (
    (
        ".metadata",
        "it is a folder of torch.distributed.checkpoint",
        "Convert it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {} "
        "weights.pt",
    ),
    ("saved_model.pb", "it is a SavedModel of TensorFlow", SAVE),
    ("data.pkl", "it is the unpacked content of a torch file", "Give the .pt file itself"),
)
_DEPTH = 12  # of nested dicts and modules


@dataclass
class Stored:
    """The tensors of a checkpoint.

    Attributes:
        path: where they come from, as the user gave it.
        tensors: by flat name: the keys of nested dicts and the name of the tensor, joined by dots.
        table: by flat name, the dict that the tensor is in, with a dot at its end; ``""`` for the
            outermost one.
        ordered: tensors are in the order in which the model registered them.
        notes: what a user must know about how it was read.
        key: the part of the file that was asked for; names are below it.
    """

    path: Path
    tensors: StateDict
    table: dict[str, str]
    ordered: bool
    notes: list[str] = field(default_factory=list)
    key: str = ""

    def full(self, prefix: str) -> str:
        """Return what names in the file begin with, as ``--checkpoint-key`` takes it.

        Args:
            prefix: beginning of flat names, such as one of :attr:`table`.
        """
        return f"{self.key}{prefix}".rstrip(".")

    def tables(self) -> dict[str, int]:
        """Return how many tensors each dict has."""
        return Counter(self.table.values())

    def of(self, table: str) -> StateDict:
        """Return the tensors of one dict by flat name.

        Args:
            table: one of the keys of :meth:`tables`.
        """
        return {n: t for n, t in self.tensors.items() if self.table[n] == table}

    def under(self, key: str) -> Stored:
        """Return what is below ``key``: keys of nested dicts, beginnings of names.

        Args:
            key: such as ``model.ema``; dots at its ends do not count.

        Raises:
            ModelError: nothing is; lists what there is.
        """
        start = f"{key.strip('.')}."
        names = [n for n in self.tensors if n.startswith(start)]
        if not names:
            known = ", ".join(
                f"{t.rstrip('.')} ({n} tensors)" for t, n in list(self.tables().items())[:8] if t
            )
            raise ModelError(
                f"The checkpoint {self.path} has no weights under {key!r}",
                f"it has tensors under {known}" if known else "its tensors are not nested",
                suggest(key, [t.rstrip(".") for t in self.tables() if t])
                if known
                else "Leave --checkpoint-key out",
            )
        tensors = {n[len(start) :]: self.tensors[n] for n in names}
        table = {n[len(start) :]: self.table[n][len(start) :] for n in names}
        return Stored(self.path, tensors, table, self.ordered, self.notes, f"{self.key}{start}")


def read_stored(path: Path, key: str | None = None) -> Stored:
    """Return the tensors of a checkpoint, read without running code.

    Args:
        path: ``.safetensors``, a file of ``torch.save`` or ``torch.jit.save``, an index of shards,
            or a folder with one of these.
        key: only what is below it; empty for everything.

    Raises:
        ModelError: missing, damaged, of another form (named), or without tensors.
    """
    file = _resolve(path)
    stored = _read(file, path)
    if file != path:
        stored.notes.append(f"weights read from {file.name} in the folder")
    if not stored.tensors:
        raise ModelError(f"Cannot use the checkpoint {path}", "there are no tensors in it", SAVE)
    return stored.under(key) if key else stored


def _resolve(path: Path) -> Path:
    """Return the file to read: ``path``, or the one in a folder that holds the weights."""
    if not path.is_dir():
        if path.is_file():
            return path
        raise unreadable(
            path, "it is not a regular file" if path.exists() else "there is no such file"
        )
    files = _weight_files(path)
    if len(files) == 1:
        return files[0]
    for name, what, hint in OTHER_FOLDERS:
        if (path / name).is_file():
            raise unreadable(path, what, hint.format(shlex.quote(str(path))))
    if not files:
        raise unreadable(
            path, "it is a folder without weights", f"Known endings: {' '.join(ENDINGS)}"
        )
    names = ", ".join(p.name for p in files[:4])
    raise unreadable(
        path,
        f"it is a folder with {len(files)} files of weights: {names}",
        "Give one of the files",
    )


def _weight_files(folder: Path) -> list[Path]:
    """Return the index of a folder, else its files of weights.

    If the weights exist as safetensors and as .bin, only the former.
    """
    indexes = [folder / n for n in INDEXES if (folder / n).is_file()]
    indexes = indexes or sorted(folder.glob("*.index.json"))
    if indexes:
        return indexes[:1]
    files = [p for p in sorted(folder.iterdir()) if p.suffix in ENDINGS and p.is_file()]
    suffixes = Counter(p.suffix for p in files)
    if suffixes[".safetensors"] == 1 and set(suffixes) <= {".safetensors", ".bin"}:
        return [p for p in files if p.suffix == ".safetensors"]
    return files


def _read(file: Path, path: Path) -> Stored:
    shards = _shards(file)
    if shards is not None:
        return _read_shards(file, shards, path)
    kind = kind_of(file)
    if kind == "safetensors":
        tensors = _read_safetensors(file)
        return Stored(path, tensors, dict.fromkeys(tensors, ""), ordered=False)
    content = read_torch(file, script=kind == "torchscript")
    notes = _notes(content.content, content.skipped, kind)
    lost = list(_in_lists(content.content, "", ()))
    if lost:
        notes.append(
            f"tensors in lists have no names and were left out: {listed(lost, 4)} (save them in a "
            "dict by name if they are weights)"
        )
    stored = Stored(path, {}, {}, ordered=True, notes=notes)
    for table, name, value in _walk(content.content, "", ()):
        if f"{table}{name}" not in stored.tensors:
            stored.tensors[f"{table}{name}"] = value
            stored.table[f"{table}{name}"] = table
    if not stored.tensors:
        raise ModelError(
            f"Cannot use the checkpoint {path}",
            f"expected a state dict, found {_what(content.content)}",
            SAVE,
        )
    return stored


def _what(content: object) -> str:
    if isinstance(content, Inert):
        return f"an object of {content.origin}"
    if isinstance(content, Mapping):
        return (
            f"a dict without tensors; its keys are {[str(k) for k in content][:6]}"
            if content
            else "an empty dict"
        )
    return type(content).__name__


def _notes(content: object, skipped: list[str], kind: str) -> list[str]:
    if kind == "torchscript":
        return ["the checkpoint is a TorchScript archive: its tensors were read, its code was not"]
    if not skipped:
        return []
    what = "is a pickled module" if isinstance(content, Inert) else "holds more than tensors"
    lost = f"not loaded: {listed(skipped, 6)}"
    return [f"the checkpoint {what}: only its tensors were read, no code was run ({lost})"]


def _walk(
    value: object, table: str, outer: tuple[int, ...]
) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield every tensor with the dict it is in and its name there."""
    items = _items(value)
    if len(outer) > _DEPTH or id(value) in outer:
        return
    outer = (*outer, id(value))
    for key, item in items.items():
        tensor = array_of(item) if isinstance(item, Inert) else item
        if isinstance(tensor, torch.Tensor):
            yield table, str(key), tensor
        elif isinstance(value, Inert):
            # Tensors of a module are named as its state dict would name them: its children are no
            # dicts of their own.
            for inner, name, below in _walk(item, "", outer):
                yield table, f"{key}.{inner}{name}", below
        else:
            yield from _walk(item, f"{table}{key}.", outer)


def _in_lists(value: object, name: str, outer: tuple[int, ...]) -> Iterator[str]:
    """Yield where arrays of floats are in lists, which give them no names."""
    if len(outer) > _DEPTH or id(value) in outer or not isinstance(value, (Mapping, list, tuple)):
        return
    outer = (*outer, id(value))
    unnamed = not isinstance(value, Mapping)
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in items:
        tensor = array_of(item) if isinstance(item, Inert) else item
        if isinstance(tensor, torch.Tensor):
            if unnamed and tensor.is_floating_point() and tensor.ndim:
                yield f"{name}{key}"
        else:
            yield from _in_lists(item, f"{name}{key}.", outer)


def _items(value: object) -> Mapping[Any, object]:
    """Return what may hold tensors in a dict, a module or a list; empty for other things."""
    if isinstance(value, Inert):
        return module_tensors(value) or {}
    if isinstance(value, (list, tuple)):
        return {i: v for i, v in enumerate(value) if isinstance(v, (Mapping, Inert))}
    return value if isinstance(value, Mapping) else {}


def _read_safetensors(file: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: StateDict = load_file(file)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as exc:
        raise unreadable(
            file, f"it is not a whole safetensors file ({reason(exc)})", "Download or save it again"
        ) from exc
    return state


def _shards(file: Path) -> dict[str, str] | None:
    """Return which file each tensor of an index is in; None where ``file`` is no index.

    Raises:
        ModelError: the index is damaged, or names files outside its folder.
    """
    if file.suffix != ".json":
        return None
    try:
        index = decode_json(file.read_bytes(), Any)
    except (OSError, msgspec.MsgspecError):
        return None  # the reader of its content reports what it is instead
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if shards is None:
        return None
    try:
        names = msgspec.convert(shards, dict[str, str])
    except msgspec.ValidationError:
        names = {}
    if not names:
        raise unreadable(file, "its weight_map is not a table of file names", "Download it again")
    outside = next((v for v in names.values() if Path(v).name != v), None)
    if outside is not None:
        raise unreadable(
            file,
            f"its weight_map names a file outside its folder: {outside!r}",
            "Download it again",
        )
    return names


def _read_shards(file: Path, shards: dict[str, str], path: Path) -> Stored:
    result = Stored(path, {}, {}, ordered=False)
    for shard in dict.fromkeys(shards.values()):
        if not (file.parent / shard).is_file():
            raise unreadable(
                path, f"its shard {shard} is missing in {file.parent}", "Download all shards"
            )
        part = _read(file.parent / shard, file.parent / shard)
        wanted = [n for n, s in shards.items() if s == shard]
        lost = next((n for n in wanted if n not in part.tensors), None)
        if lost is not None:
            raise unreadable(
                path,
                f"its shard {shard} has no tensor {lost!r}, which the index says it has",
                "Download all shards again",
            )
        result.tensors.update({n: part.tensors[n] for n in wanted})
        result.notes += [n for n in part.notes if n not in result.notes]
    result.table = dict.fromkeys(result.tensors, "")
    return result
