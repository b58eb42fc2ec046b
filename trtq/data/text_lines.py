"""The adapter of text files: one text a line, made into indices by a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trtq.artifact import sha256_file
from trtq.data.model_inputs import DTYPES, InputNeeds, InputSpec, SizeRange
from trtq.data.opened import Data, Request
from trtq.data.preprocess import Preprocess
from trtq.data.samples import Samples
from trtq.data.tensor_samples import TensorSamples
from trtq.errors import DataError, MissingExtraError, UsageError, reason, said_by
from trtq.paths import expand_home
from trtq.typed import present

IDS, MASK, TYPES, POSITIONS = "input_ids", "attention_mask", "token_type_ids", "position_ids"
PARTS = {"mask": MASK, "type": TYPES, "segment": TYPES, "position": POSITIONS}  # in input names
AXES = ("batch", "length")
PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")
MISSING_MODEL = ("a text model has inputs such as", f"{IDS}, {MASK} and {TYPES}")


def open_text(request: Request) -> Data:
    """Return the lines of a text file as samples of a text model.

    Args:
        request: its ``tokenizer`` is the file of the tokenizer.

    Raises:
        UsageError: there is no tokenizer.
        MissingExtraError: the package ``tokenizers`` is not installed.
        DataError: the file or the tokenizer cannot be read, or the file is empty.
    """
    if request.tokenizer is None:
        raise UsageError(
            f"The texts of {request.text} need a tokenizer",
            "a text model takes indices of words",
            "Give the model's own: --tokenizer tokenizer.json",
        )
    lines = _lines(request)
    tokenizer = load_tokenizer(request.tokenizer)
    facts: dict[str, object] = {"tokenizer_sha256": sha256_file(_path(request.tokenizer))}

    def make(needs: InputNeeds | None, picture: Preprocess | None) -> Samples:
        del picture
        rows = TextRows(request, lines, tokenizer, needs=needs)
        samples = TensorSamples(request.text, rows, needs=needs, note=request.note)
        samples.facts = facts
        return samples

    def first(names: Sequence[str]) -> object:
        rows = TextRows(request, [max(lines, key=len)], tokenizer, names=names)
        return TensorSamples(request.text, rows).first_batch()

    return Data(name=request.text, make=make, first=first, axes=AXES)


def _path(text: str) -> Path:
    return Path(expand_home(text, "--tokenizer"))


def _lines(request: Request) -> list[str]:
    """Return the texts of a file, without the empty ones."""
    path = Path(expand_home(request.text, "--data"))
    try:
        # Not splitlines: it cuts texts at form feeds and Unicode's own separators, too.
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(
            f"Cannot read the texts of {request.text}", reason(exc), "Write it as UTF-8 text"
        ) from exc
    kept = [line.strip() for line in lines if line.strip()]
    if not kept:
        raise DataError(f"Cannot use {request.text}", "it has no line of text")
    if len(kept) < len(lines):
        request.tell(f"{len(lines) - len(kept)} empty lines of {request.text} are left out")
    return kept


def load_tokenizer(file: str) -> Any:
    """Return the tokenizer in a file of Hugging Face's ``tokenizers``.

    Args:
        file: ``tokenizer.json``.

    Returns:
        A ``tokenizers.Tokenizer``.

    Raises:
        MissingExtraError: the package is not installed.
        DataError: the file is missing, or no tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as exc:
        raise MissingExtraError(
            "Texts need the package tokenizers", hint="Install it: pip install trtq[text]"
        ) from exc
    path = _path(file)
    if not path.is_file():
        raise DataError(f"Cannot read the tokenizer {file}", "there is no such file")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as exc:  # of Rust: any kind
        raise DataError(
            f"Cannot read the tokenizer {file}",
            said_by(exc),
            "Give tokenizer.json of the model, as Hugging Face's tokenizers writes it",
        ) from exc


class TextRows:
    """Texts as indices, masks and types, under the names of a model's inputs.

    Args:
        request: what was asked for.
        lines: the texts.
        tokenizer: of Hugging Face's ``tokenizers``.
        needs: what the model takes; None where it is not known.
        names: of the model's inputs where only these are known.
        pad: index that fills texts up; None for the tokenizer's.

    Texts are padded to a length that the model takes, and cut at the longest. In a batch they are
    padded to its longest, where the model has a mask that tells.
    """

    axes = AXES

    def __init__(
        self,
        request: Request,
        lines: Sequence[str],
        tokenizer: Any,
        *,
        needs: InputNeeds | None = None,
        names: Sequence[str] | None = None,
        pad: int | None = None,
    ) -> None:
        self.request, self.lines = request, lines
        # Lengths are set below: other samples may have others.
        self.tokenizer = type(tokenizer).from_str(tokenizer.to_str())
        self.pad = _pad(tokenizer) if pad is None else pad
        self.specs = {} if needs is None else {s.name: s for s in needs.inputs}
        self.kinds = _kinds(request.text, names or tuple(self.specs) or (IDS, MASK))
        self.length, self.range = _lengths(needs)
        self.cut = self.joined = False
        self.tokenizer.no_padding()
        own = (self.tokenizer.truncation or {}).get("max_length")
        longest = None if self.range is None else self.range.most
        limits = present((own, self.length, longest))
        if limits:
            self.tokenizer.enable_truncation(max_length=min(limits))

    def bound(self, needs: InputNeeds) -> TextRows:
        """Return the texts under the names and with the lengths of a model's inputs.

        Args:
            needs: what the model takes.

        Raises:
            DataError: two of its inputs could be the indices.
        """
        return TextRows(self.request, self.lines, self.tokenizer, needs=needs, pad=self.pad)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> dict[str, object]:
        encoding = self.tokenizer.encode(self.lines[index])
        if encoding.overflowing and not self.cut:
            self.cut = True
            self.request.tell(
                f"texts of {self.request.text} are cut at {len(encoding.ids)} tokens, such as line "
                f"{index + 1} of those that are not empty"
            )
        count = len(encoding.ids)
        values = {
            IDS: encoding.ids,
            MASK: encoding.attention_mask,
            TYPES: encoding.type_ids,
            POSITIONS: range(count),
        }
        size = self._taken(count)
        return {
            name: self._longer(kind, torch.tensor(values[kind]), size).to(self._dtype(name))
            for name, kind in self.kinds.items()
        }

    def _taken(self, count: int) -> int:
        """Return the first length from ``count`` on that the model takes."""
        if self.length is not None:
            return max(self.length, count)
        if self.range is None or MASK not in self.kinds.values():
            return count
        step = self.range.multiple
        size = -(-max(count, self.range.least) // step) * step
        return size if size in self.range else count

    def padded(self, rows: Sequence[Mapping[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """Return the texts of a batch with the length of the longest, marked by their masks.

        They are not changed for a model without a mask.

        Args:
            rows: the inputs of each text by name, [length] each.
        """
        sizes = {len(row[name]) for row in rows for name in self.kinds}
        if len(sizes) < 2 or MASK not in self.kinds.values():
            return [dict(row) for row in rows]
        if not self.joined:
            self.joined = True
            self.request.tell(f"texts of {self.request.text} are padded to the longest of a batch")
        return [
            {name: self._longer(kind, row[name], max(sizes)) for name, kind in self.kinds.items()}
            for row in rows
        ]

    def _longer(self, kind: str, values: torch.Tensor, size: int) -> torch.Tensor:
        """Return one input of a text, continued to ``size`` tokens."""
        start = len(values)
        filler = self.pad if kind == IDS else 0
        tail = (
            torch.arange(start, size) if kind == POSITIONS else torch.full((size - start,), filler)
        )
        return torch.cat([values, tail.to(values.dtype)])

    def _dtype(self, name: str) -> torch.dtype:
        """Return the type of an input; indices that do not fit it are refused later."""
        spec = self.specs.get(name)
        dtype = torch.int64 if spec is None else DTYPES.get(spec.dtype, torch.int64)
        return torch.int64 if dtype == torch.uint8 else dtype


def _pad(tokenizer: Any) -> int:
    """Return the index that fills texts up: the tokenizer's own, else a usual token's, else 0."""
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    ids = (tokenizer.token_to_id(token) for token in PADS)
    return next((i for i in ids if i is not None), 0)


def _kinds(name: str, inputs: Sequence[str]) -> dict[str, str]:
    """Return what each input of a model is, by its name.

    Raises:
        DataError: two inputs would be the indices, so the model is no text encoder.
    """
    kinds = {
        i: next((kind for part, kind in PARTS.items() if part in i.lower()), IDS) for i in inputs
    }
    if sum(kind == IDS for kind in kinds.values()) != 1:
        raise DataError(
            f"The texts of {name} do not fit the model",
            f"its inputs are {', '.join(inputs)}; {' '.join(MISSING_MODEL)}",
            "Give .npz files with these names, or file.py:factory",
        )
    return kinds


def _lengths(needs: InputNeeds | None) -> tuple[int | None, SizeRange | None]:
    """Return the fixed length of a model's texts, or the range of an open one."""
    spec: InputSpec | None = None if needs is None else next(iter(needs.inputs), None)
    if needs is None or spec is None or len(spec.shape) < 2:
        return None, None
    size = spec.shape[1]
    return (size, None) if isinstance(size, int) else (None, needs.ranges.get(size))
