"""Kind of a file that is given as a checkpoint, by its content and not by its name."""

from __future__ import annotations

import shlex
import zipfile
from pathlib import Path
from typing import Literal

from trtq.errors import ModelError, reason
from trtq.magic import HEAD, content_of

Kind = Literal["safetensors", "torch", "torchscript"]
SAVE = (
    "Save only the weights, in the program that has the model: "
    "torch.save(model.state_dict(), 'weights.pt')"
)
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch.save wrote first before 1.6

_OF_PROGRAM = (
    'import sys, torch; torch.save(dict(torch.export.load(sys.argv[1]).state_dict), "weights.pt")'
)

_OTHER = "Give the file with the weights"
_MENDS = {
    **dict.fromkeys(("npy", "hdf5", "gguf", "tflite"), SAVE),
    "engine": "Give the weights that it was built from",
    "json": f"{_OTHER}, or an index with a weight_map",
}


def unreadable(path: Path, what: str, hint: str = "") -> ModelError:
    """Return the error that says what a file is instead of a checkpoint.

    Args:
        path: as the user gave it.
        what: the file is.
        hint: what to do.
    """
    return ModelError(f"Cannot read the checkpoint {path}", what, hint)


def kind_of(path: Path) -> Kind:
    """Return how the weights in a file are stored.

    Args:
        path: an existing file.

    Raises:
        ModelError: it holds no weights in a form that is read; names the form and the way out.
    """
    head, size = _head_of(path)
    if _is_safetensors(head, size):  # first: the length it starts with may look like anything
        return "safetensors"
    content = content_of(head)
    if content is not None:
        raise unreadable(path, content.what, content.mend or _MENDS.get(content.kind, _OTHER))
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if head[0] == 0x80:
        return _kind_of_pickle(path, head)
    return _kind_of_other(path, head)


def _head_of(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as f:
            head = f.read(HEAD)
        size = path.stat().st_size
    except OSError as exc:
        raise unreadable(path, reason(exc)) from exc
    return head, size


def _kind_of_other(path: Path, head: bytes) -> Kind:
    if path.suffix == ".onnx" or (head[0] == 0x08 and _is_onnx(path)):
        hint = "Give the PyTorch weights that it was exported from"
        raise unreadable(path, "it is an ONNX model", hint)
    if path.suffix == ".safetensors":
        return "safetensors"  # its reader says what is wrong with it
    what = "it is not a whole torch file, nor a safetensors file"
    raise unreadable(path, what, "Download or save it again")


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 2 <= length <= size


def _kind_of_pickle(path: Path, head: bytes) -> Kind:
    if _LEGACY in head[:16]:
        return "torch"
    hint = "Load it where you trust it, and save its tensors: torch.save(state_dict, 'weights.pt')"
    raise unreadable(
        path,
        "it is a plain pickle, not written by torch.save, and reading that could run code",
        hint,
    )


def _kind_of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as exc:
        raise unreadable(
            path,
            "it is not a whole torch file (the archive is cut off or damaged)",
            "Download or save it again",
        ) from exc
    inside = {n.split("/", 1)[-1] for n in names}
    if (
        "archive_format" in inside
        or "serialized_exported_program.json" in inside
        or any(n.endswith(".pt2") for n in inside)
    ):
        raise unreadable(
            path,
            "it is an archive of torch.export (.pt2)",
            f"Save its weights: python -c '{_OF_PROGRAM}' {shlex.quote(str(path))}",
        )
    if "data.pkl" in inside:
        return "torchscript" if "constants.pkl" in inside else "torch"
    raise unreadable(path, f"it is {_other_zip(names, inside)}", SAVE)


def _other_zip(names: list[str], inside: set[str]) -> str:
    if not names:
        return "an empty zip archive"
    if all(n.endswith(".npy") for n in names):
        return "a NumPy archive (.npz)"
    if "model.weights.h5" in inside:
        return "a Keras archive"
    if "bytecode.pkl" in inside or "mobile_debug_handles.pkl" in inside:
        return "a model for PyTorch Mobile"
    nested = [n for n in names if n.endswith((".pt", ".pth", ".safetensors", ".ckpt", ".bin"))]
    if nested:
        return f"a zip archive with {nested[0]} in it: unpack it and give that file"
    return f"a zip archive of something else (it starts with {names[0]})"


def _is_onnx(path: Path) -> bool:
    import onnx

    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception:  # protobuf's DecodeError is not public; after any error the file is not ONNX
        return False
    return model.ir_version > 0 and len(model.graph.node) > 0
