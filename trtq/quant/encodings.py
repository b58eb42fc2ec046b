"""Encodings: the one artefact every method writes and every later stage reads.

A safetensors file holds ``amax`` of each quantizer; its metadata holds, as JSON, the formats, where the numbers come from,
and a digest of both, so that an edit by hand or a torn file is noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import fx

from trtq.artifact import SCHEMA, sha256_bytes, write_bytes
from trtq.errors import EncodingsError
from trtq.graph.normalize import get_constant
from trtq.quant.formats import Format

CONSTANT = "constant:"


@dataclass(slots=True, kw_only=True)
class Encodings:
    """Formats and numbers of one model.

    Attributes:
        amax: by quantizer name, float32, shape [] or [C], greater than 0.
        formats: by quantizer name.
        constants: by name in the graph, float32: weights and biases that a method put in place of the model's own (rounding,
            corrections, factors folded in).
        left_in_float: by quantizer name, the reason.
        origin: model, data and method digests and names.
    """

    amax: dict[str, torch.Tensor]
    formats: dict[str, Format]
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    left_in_float: dict[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def scale(self, name: str) -> torch.Tensor:
        """Return the real value of one integer step, ``amax / qmax`` (S1 eq. 3), float32, shape of ``amax``.

        Raises:
            EncodingsError: there is no such quantizer, or a value is not greater than 0.
        """
        if name not in self.amax:
            raise EncodingsError(
                f"There is no encoding for {name}",
                f"the file has {len(self.amax)} quantizers",
                "It was made for another model or placement: run trtq quantize again",
            )
        amax = self.amax[name]
        if not bool(torch.isfinite(amax).all()) or not bool((amax > 0).all()):
            raise EncodingsError(f"The encoding of {name} cannot be used", "amax must be finite and greater than 0")
        return amax / self.formats[name].qmax

    def constant(self, graph: fx.GraphModule, node: fx.Node) -> torch.Tensor:
        """Return a constant of ``graph`` as these encodings have it: a method's, or the graph's own."""
        own = get_constant(graph, node)
        assert own is not None, node.target
        return self.constants.get(str(node.target), own)

    def digest(self) -> str:
        """Return the SHA-256 over names, formats and numbers."""
        parts = [self._header_json()]
        for name, value in sorted(self._tensors().items()):
            parts += [name.encode(), value.numpy().tobytes()]
        return sha256_bytes(b"\0".join(parts))

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return every tensor of the file by its key there."""
        named = {**self.amax, **{CONSTANT + k: v for k, v in self.constants.items()}}
        return {k: v.detach().to(torch.float32).contiguous() for k, v in named.items()}

    def _header_json(self) -> bytes:
        header = {"formats": self.formats, "left_in_float": self.left_in_float, "origin": self.origin}
        return msgspec.json.encode(msgspec.to_builtins(header), order="sorted")

    def save(self, path: Path) -> Path:
        """Write the file atomically."""
        meta = {"trtq": "encodings", "schema": str(SCHEMA), "header": self._header_json().decode(), "digest": self.digest()}
        return write_bytes(path, save(self._tensors(), metadata=meta))

    @classmethod
    def load(cls, path: Path) -> Encodings:
        """Read the file back.

        Raises:
            EncodingsError: missing, torn, not trtq's, of a newer schema, or changed since trtq wrote it.
        """
        again = "Make it again: trtq quantize ..."
        try:
            with safe_open(path, framework="pt") as handle:
                meta = handle.metadata() or {}
                tensors = {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118
        except FileNotFoundError as exc:
            raise EncodingsError(f"Cannot read the encodings {path}", "there is no such file", again) from exc
        except (SafetensorError, OSError) as exc:
            raise EncodingsError(f"Cannot read the encodings {path}", f"not a whole safetensors file ({exc})", again) from exc
        if meta.get("trtq") != "encodings":
            raise EncodingsError(f"{path} holds no encodings", "it is a safetensors file of something else", again)
        if meta.get("schema") != str(SCHEMA):
            raise EncodingsError(
                f"Cannot read the encodings {path}",
                f"its schema is {meta.get('schema')}, this trtq reads {SCHEMA}",
                "Upgrade trtq, or make it again",
            )
        try:
            header = msgspec.json.decode(meta["header"])
            result = cls(
                amax={k: v for k, v in tensors.items() if not k.startswith(CONSTANT)},
                constants={k.removeprefix(CONSTANT): v for k, v in tensors.items() if k.startswith(CONSTANT)},
                formats={k: msgspec.convert(v, Format) for k, v in header["formats"].items()},
                left_in_float=header["left_in_float"],
                origin=header["origin"],
            )
        except (KeyError, msgspec.MsgspecError) as exc:
            raise EncodingsError(f"Cannot read the encodings {path}", f"its header is damaged ({exc})", again) from exc
        if result.digest() != meta.get("digest"):
            raise EncodingsError(
                f"The encodings {path} were changed since trtq wrote them",
                f"their digest is {result.digest()[:12]}, the file says {str(meta.get('digest'))[:12]}",
                again,
            )
        return result
