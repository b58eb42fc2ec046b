"""Run an engine on real samples on a board.

The runner works like the local ones, through the TensorRT of the board's own Python.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trtq.agent import encode
from trtq.artifact import digest_of, sha256_file
from trtq.deploy.agent_client import Agent
from trtq.deploy.answers import Done, Output, outputs_of
from trtq.deploy.board import Board
from trtq.deploy.jobs import BoardJob, JobStep, do
from trtq.errors import BoardError
from trtq.export.feeds import AnyArray, Inputs, InputSlot, count_of, feed_for

BATCH = 8
MOST_ANSWERS = 4 << 30
# Types of TensorRT as NumPy calls them.
TYPES: Mapping[str, str] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
KINDS = {dtype: kind for kind, dtype in TYPES.items()}


class BoardRunner:
    """Runs an engine on a board; all samples of one shape are one job.

    Args:
        agent: on the board.
        board: as it was probed.
        engine: path of the engine there, and its SHA-256.
        batch: most samples at once, the largest batch the engine takes.
        dla: core that the engine was built for, None for the GPU.

    Raises:
        BoardError: the board's Python has no TensorRT.
    """

    def __init__(
        self,
        agent: Agent,
        board: Board,
        engine: tuple[str, str],
        batch: int,
        *,
        dla: int | None = None,
    ) -> None:
        if not board.tensorrt_python:
            raise BoardError(
                f"Cannot run samples on {agent.device.name}",
                "its Python has no TensorRT",
                "on the board: sudo apt-get install python3-libnvinfer",
            )
        self.agent, self.board, self.batch, self.dla = agent, board, batch, dla
        self.path, self.sha256 = engine

    def run(self, batches: Sequence[Inputs], slots: Sequence[InputSlot]) -> dict[str, AnyArray]:
        """Return every output by name, over all samples in order.

        Args:
            batches: arrays by input name, samples first. Neighbours of one shape become one job.
            slots: the engine's inputs, for their types.

        Returns:
            arrays of the engine's own types, samples first.

        Raises:
            BoardError: the engine does not run there, its answers are cut, or have over 4 GiB.
            UsageError: an array has values that an input cannot hold.
        """
        fed = [feed_for(slots, batch, "engine") for batch in batches]
        groups = [list(g) for _, g in itertools.groupby(fed, key=_shapes)]
        parts = [self._run_alike(_joined(group)) for group in groups]
        return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}

    def _run_alike(self, arrays: Inputs) -> dict[str, AnyArray]:
        """Return the outputs for samples of one shape: one job."""
        home, count = self.board.home, count_of(arrays)
        with tempfile.TemporaryDirectory(prefix="trtq-samples-") as folder:
            local = Path(folder) / "samples.bin"
            with local.open("wb") as out:
                for start in range(0, count, self.batch):
                    for array in arrays.values():
                        array[start : start + self.batch].tofile(out)
            digest = sha256_file(local)
            name = f"files/{digest}.bin"
            inputs = [
                {"name": n, "shape": list(a.shape[1:]), "dtype": KINDS[a.dtype.name]}
                for n, a in arrays.items()
            ]
            request = {
                "engine": self.path,
                "input": f"{home}/{name}",
                "output": f"{home}/files/{digest}.out",
                "inputs": inputs,
                "count": count,
                "batch": self.batch,
                "dla": self.dla,
            }
            argv = [self.board.python_path, "-I", self.board.agent, "infer", encode(request)]
            step = JobStep(name="samples", argv=argv)
            job = BoardJob(title=f"{count} samples", steps=[step], again=True)
            seen = {"engine": self.sha256, "samples": digest, "inputs": inputs, "batch": self.batch}
            key = digest_of(seen)[:32]
            self.agent.upload(local, name, digest)
            self.agent.told.begin(f"Running {count} samples on {self.agent.device.name}", 0)
            result, lines = do(self.agent, key, job)
            if not result.ok:
                output = [ln for ln in lines if ln.strip() and not ln.startswith("###")]
                raise BoardError(
                    f"Cannot run samples on {self.agent.device.name}",
                    (output[-1] if output else result.why)[:400],
                )
            outputs = outputs_of(lines, self.agent.device.name)
            size = count * sum(_bytes_of(o) for o in outputs)
            answers = self.agent.download(
                f"files/{digest}.out", Path(folder) / "answers.bin", most=min(size, MOST_ANSWERS)
            )
            if answers.stat().st_size != size:
                why = f"{answers.stat().st_size} bytes for {count} samples, expected {size}"
                raise BoardError(
                    f"Cannot read the answers of {self.agent.device.name}",
                    why,
                    "Run the same command again",
                )
            data = answers.read_bytes()
            self.agent.ask("remove", Done, names=[name, f"files/{digest}.out"])
        return _split(data, outputs, count, self.batch)


def _shapes(arrays: Inputs) -> list[tuple[str, tuple[int, ...]]]:
    return [(n, a.shape[1:]) for n, a in arrays.items()]


def _joined(group: Sequence[Inputs]) -> dict[str, AnyArray]:
    return {n: np.concatenate([arrays[n] for arrays in group]) for n in group[0]}


def _bytes_of(output: Output) -> int:
    """Return the bytes of one sample of an output."""
    return int(math.prod(output.shape) * np.dtype(TYPES[output.dtype]).itemsize)


def _split(data: bytes, outputs: list[Output], count: int, size: int) -> dict[str, AnyArray]:
    """Return outputs by name from what the agent wrote.

    The data is batch by batch, and in each batch one output after another.

    Args:
        data: raw values of all outputs.
        outputs: in the order of the data; shapes are without the samples.
        count: number of samples.
        size: samples in a batch; the last one has the rest.
    """
    parts: dict[str, list[AnyArray]] = {o.name: [] for o in outputs}
    place = 0
    for start in range(0, count, size):
        n = min(size, count - start)
        for o in outputs:
            values = np.frombuffer(data, TYPES[o.dtype], n * math.prod(o.shape), place)
            parts[o.name].append(values.reshape(n, *o.shape))
            place += n * _bytes_of(o)
    return {k: np.concatenate(v) for k, v in parts.items()}
