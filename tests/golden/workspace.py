"""A folder in which the golden files are made again: images, checkpoints, quantized models."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.golden.artefacts import Reader
from tests.golden.models import MODELS, write_weights
from trtq.cli import run_command
from trtq.testing.images import write_classes, write_scenes

CODE = re.compile(r" \[[A-Z]+-\d{3}\]$", re.MULTILINE)  # of errors; tests of their own
CALIBRATION = [
    *("--calib-images", "12"),
    *("--batch-size", "4"),
    *("--parity-images", "8"),
]


class Workspace:
    """Runs command lines in this process and keeps what they write in the working directory.

    Paths are relative: they stand in records and ONNX files, whose bytes are then always the same.
    """

    def __init__(self) -> None:
        self.images = write_classes(Path("images"), 4, 8)
        self.scenes, self.masks = write_scenes(Path("scenes"), 16)
        self.read = Reader({Path.cwd(): "WORK"})
        self._done: dict[str, Path] = {}

    def run(self, *words: str | Path, code: int = 0) -> dict[str, Any]:
        """Run one command line and return it with what it printed.

        Args:
            words: without the name of the program.
            code: the exit code it must have; -1 for any.
        """
        out, err = io.StringIO(), io.StringIO()
        texts = [str(w) for w in words]
        torch.manual_seed(0)  # what a new process starts with
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = run_command(texts)
        assert code in (found, -1), f"trtq {' '.join(texts)}: exit code {found}: {err.getvalue()}"
        printed: dict[str, Any] = {"command": self.read.text(" ".join(["trtq", *texts]))}
        if found:
            printed["exit code"] = found
            printed["errors"] = self.read.lines(CODE.sub("", err.getvalue()))
        return {**printed, "output": self.read.lines(out.getvalue())}

    def json(self, *words: str | Path, code: int = 0) -> Any:
        """Run one command line with ``--json`` and return the record it prints."""
        printed = self.run(*words, "--json", code=code)
        return self.read.plain(json.loads("\n".join(printed["output"])))

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return the folder ``name``, filled by ``make`` when it is asked for the first time."""
        if name not in self._done:
            folder = Path(name)
            folder.mkdir(parents=True)
            make(folder)
            self._done[name] = folder
        return self._done[name]

    def model(self, name: str) -> list[str]:
        """Return the words for one of the models: MODEL, its checkpoint, its input."""
        model = MODELS[name]
        if not model.weights:
            return [*model.words, *model.normalization]
        folder = self.once(
            f"weights/{name}", lambda f: _save(write_weights(model, f / "model.safetensors"))
        )
        weights = str(folder / "model.safetensors")
        return [*model.words, *model.normalization, "--checkpoint", weights]

    def data(self, name: str) -> Path:
        """Return the images for one of the models."""
        return self.scenes if MODELS[name].data == "scenes" else self.images

    def quantize_words(self, name: str, *more: str | Path) -> list[str | Path]:
        """Return the words of ``trtq quantize`` for one of the models, without ``--out``."""
        return ["quantize", *self.model(name), "--data", self.data(name), *CALIBRATION, *more]

    def quantized(self, name: str, path: str = "w8a8", *more: str | Path) -> Path:
        """Return the folder of a quantized model; ``path`` names it."""

        def make(folder: Path) -> None:
            words = self.quantize_words(name, *more)
            if "--calib-cache" not in words:  # its own: no other model's ranges are found there
                words += ["--calib-cache", folder / "cache"]
            printed = self.run(*words, "--out", folder)
            (folder / "printed.json").write_text(json.dumps(printed))

        return self.once(f"{name}/{path}", make)

    def files(self, folder: Path, record: str) -> dict[str, Any]:
        """Return everything in a folder that a verb filled, but for the float model in short."""
        return {
            **json.loads((folder / "printed.json").read_text()),
            "record": self.read.record(folder / record),
            "encodings": self.read.encodings(folder / "encodings.safetensors"),
            "model.fp32.onnx": self.read.onnx_in_short(folder / "model.fp32.onnx"),
            "model.qdq.onnx": self.read.onnx(folder / "model.qdq.onnx"),
        }


def _save(path: Path) -> None:
    assert path.is_file()
