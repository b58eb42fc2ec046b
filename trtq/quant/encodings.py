"""Encodings: the one artefact every method writes and every later stage reads.

A safetensors file holds the range of each quantizer; its metadata holds, as JSON, the formats,
where the numbers come from, and a digest of both, so that an edit by hand or a torn file is
noticed.
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

from trtq.artifact import SCHEMA, decode_json, sha256_bytes, write_bytes
from trtq.errors import EncodingsError, UsageError, reason
from trtq.graph.nodes import get_constant
from trtq.quant.formats import FP8_LARGEST, Format

CONSTANT, AMIN = "constant:", "amin:"
AGAIN = "Make it again: trtq quantize ..."
SETTLED_WITHIN = 2.0**-10  # twice what rounding to the 11 bits of FP16 takes at most


class _Header(msgspec.Struct):
    formats: dict[str, Format]
    left_in_float: dict[str, str]
    origin: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Encodings:
    """Formats and numbers of one model.

    Attributes:
        amax: by quantizer name, float32, shape [], [C] or [C, blocks]: the largest magnitude of a
            uniform format, greater than 0; the highest value of an asymmetric or a log2 one.
        amin: the lowest value, of asymmetric and log2 formats only; same shape.
        formats: by quantizer name; the keys are those of ``amax``.
        constants: by name in the graph, float32: weights and biases that a method put in place of
            the model's own (rounding, corrections, factors folded in).
        left_in_float: by quantizer name, the reason.
        origin: model, data and method digests and names; JSON can hold it.
    """

    amax: dict[str, torch.Tensor]
    formats: dict[str, Format]
    amin: dict[str, torch.Tensor] = field(default_factory=dict)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    left_in_float: dict[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def scale(self, name: str) -> torch.Tensor:
        """Return one step of the codes, float32, shape of ``amax``.

        ``amax / qmax`` for a uniform format (S1 eq. 3), ``(amax - amin) / (2^b - 1)`` for an
        asymmetric one (S3 eq. 1), and ``(log2 amax - log2 amin) / (2^b - 1)`` for log2 (S3 eq. 4).
        For an NVFP4 activation it is the unit of its blocks' scales, ``amax / (6 * 448)``.

        Args:
            name: of the quantizer.

        Raises:
            EncodingsError: there is no such quantizer, or a value is not usable.
        """
        if name not in self.amax:
            raise EncodingsError(
                f"There is no encoding for {name}",
                f"the file has {len(self.amax)} quantizers",
                "It was made for another model or placement: run trtq quantize again",
            )
        amax, fmt = self.amax[name], self.formats[name]
        if fmt.has_kernel:
            if not bool(torch.isfinite(amax).all()) or not bool((amax > 0).all()):
                raise EncodingsError(
                    f"The encoding of {name} cannot be used",
                    "amax must be finite and greater than 0",
                )
            dynamic = fmt.kind == "fp4" and not fmt.blocked
            return amax / (fmt.qmax * FP8_LARGEST if dynamic else fmt.qmax)
        low, high = self._ends(name)
        step = (high - low) / fmt.qmax
        # A channel of one value: a step of that value holds it exactly.
        return torch.where(step > 0, step, torch.where(low == 0, torch.ones_like(low), low.abs()))

    def round_scales_to_fp16_(self) -> None:
        """Move each scale of a format with a kernel to the nearest FP16 number.

        A scale is moved where that number is within 0.1 % for every channel.

        FP16 graphs then have the same scales as float32 graphs, and INT8 kernels output FP16
        instead of float32. Below 3e-5, where FP16 becomes coarse, and above the range of FP16 a
        scale does not change.
        """
        for name, fmt in self.formats.items():
            if not fmt.has_kernel or fmt.kind == "fp4":  # whose scales have a form of their own
                continue
            scale = self.scale(name)
            near = scale.to(torch.float16).to(torch.float32)
            if bool(((near - scale).abs() <= SETTLED_WITHIN * scale).all()):
                self.amax[name] = near * fmt.qmax

    def to_cpu_(self) -> None:
        """Bring all numbers to the CPU, where they are kept; graphs have theirs where they are."""
        for numbers in (self.amax, self.amin, self.constants):
            numbers.update({k: v.cpu() for k, v in numbers.items()})

    def zero_point(self, name: str) -> torch.Tensor | None:
        """Return the code of real zero (of 1 for log2), round(-amin / step).

        Args:
            name: of the quantizer.

        Returns:
            float32, shape of ``amax``; None for a format with a kernel, where the code is 0. It may
            be outside the codes, when zero is outside the range.

        Raises:
            EncodingsError: a value is not usable.
        """
        if self.formats[name].has_kernel:
            return None
        return (-self._ends(name)[0] / self.scale(name)).round()

    def _ends(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the range of an asymmetric format, or its logarithm for log2."""
        low, high = self.amin.get(name), self.amax[name]
        if (
            low is None
            or low.shape != high.shape
            or not bool(torch.isfinite(low).all() and (low <= high).all())
        ):
            raise EncodingsError(
                f"The encoding of {name} cannot be used",
                "amin must be finite and no larger than amax",
            )
        if self.formats[name].kind != "log2":
            return low, high
        if not bool((low > 0).all()):
            raise EncodingsError(
                f"The encoding of {name} cannot be used",
                "the lowest value of a log2 format must be greater than 0",
            )
        return low.log2(), high.log2()

    def constant(self, graph: fx.GraphModule, node: fx.Node) -> torch.Tensor:
        """Return a constant of ``graph`` under these encodings: a method's or the graph's own.

        Args:
            graph: captured.
            node: a ``get_attr`` node of it.
        """
        own = get_constant(graph, node)
        assert own is not None, node.target
        return self.constants.get(str(node.target), own)

    def digest(self) -> str:
        """Return the SHA-256 in hex over names, formats and numbers."""
        parts = [self._header_json()]
        for name, value in sorted(self._tensors().items()):
            parts += [name.encode(), value.numpy().tobytes()]
        return sha256_bytes(b"\0".join(parts))

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return every tensor of the file by its key there."""
        groups = (("", self.amax), (AMIN, self.amin), (CONSTANT, self.constants))
        named = {prefix + k: v for prefix, values in groups for k, v in values.items()}
        return {k: v.detach().cpu().to(torch.float32).contiguous() for k, v in named.items()}

    def _header_json(self) -> bytes:
        header = {
            "formats": self.formats,
            "left_in_float": self.left_in_float,
            "origin": self.origin,
        }
        return msgspec.json.encode(msgspec.to_builtins(header), order="sorted")

    def save(self, path: Path) -> Path:
        """Write the file atomically, and return its path.

        Tensors are float32: ``NAME`` for amax, ``amin:NAME`` and ``constant:NAME``. The metadata
        has the schema, the header (formats, reasons, origin) as JSON, and the digest.

        Args:
            path: with the suffix ``.safetensors``; an existing file is replaced.
        """
        meta = {
            "trtq": "encodings",
            "schema": str(SCHEMA),
            "header": self._header_json().decode(),
            "digest": self.digest(),
        }
        return write_bytes(path, save(self._tensors(), metadata=meta))

    @classmethod
    def load(cls, path: Path) -> Encodings:
        """Read the file back.

        Args:
            path: from :meth:`save`.

        Raises:
            EncodingsError: missing, torn, not trtq's, of a newer schema, or changed since trtq
                wrote it.
        """
        meta, tensors = _read(path)
        try:
            header = decode_json(meta["header"], _Header)
            result = cls(
                amax={k: v for k, v in tensors.items() if not k.startswith((CONSTANT, AMIN))},
                amin=_with_prefix(tensors, AMIN),
                constants=_with_prefix(tensors, CONSTANT),
                formats=header.formats,
                left_in_float=header.left_in_float,
                origin=header.origin,
            )
        except (KeyError, msgspec.MsgspecError, UsageError) as exc:
            raise EncodingsError(
                f"Cannot read the encodings {path}", f"its header is damaged ({reason(exc)})", AGAIN
            ) from exc
        if result.digest() != meta.get("digest"):
            raise EncodingsError(
                f"The encodings {path} were changed since trtq wrote them",
                f"their digest is {result.digest()[:12]}, the file says "
                f"{str(meta.get('digest'))[:12]}",
                AGAIN,
            )
        return result


def _with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose keys have a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Return the metadata and the tensors of an encodings file.

    Raises:
        EncodingsError: missing, torn, not trtq's, or of a newer schema.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            meta = handle.metadata() or {}
            tensors = {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118
    except FileNotFoundError as exc:
        raise EncodingsError(
            f"Cannot read the encodings {path}", "there is no such file", AGAIN
        ) from exc
    except (SafetensorError, OSError) as exc:
        raise EncodingsError(
            f"Cannot read the encodings {path}", f"not a whole safetensors file ({exc})", AGAIN
        ) from exc
    if meta.get("trtq") != "encodings":
        raise EncodingsError(
            f"{path} holds no encodings", "it is a safetensors file of something else", AGAIN
        )
    if meta.get("schema") != str(SCHEMA):
        raise EncodingsError(
            f"Cannot read the encodings {path}",
            f"its schema is {meta.get('schema')}, this trtq reads {SCHEMA}",
            "Upgrade trtq, or make it again",
        )
    return meta, tensors
