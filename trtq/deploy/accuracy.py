"""Run an engine on real images on a board.

The runner works like the local ones, through the TensorRT of the board's own Python.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np

from trtq.agent import encode
from trtq.artifact import digest_of, sha256_file
from trtq.data.metrics import Array
from trtq.deploy.agent_client import Agent
from trtq.deploy.answers import Done, Output, outputs_of
from trtq.deploy.board import Board
from trtq.deploy.jobs import BoardJob, JobStep, do
from trtq.errors import BoardError

BATCH = 8
MOST_ANSWERS = 4 << 30


class BoardRunner:
    """Runs an engine on a board; a whole set of images is one job.

    Args:
        agent: on the board.
        board: as it was probed.
        engine: path of the engine there, and its digest.
        batch: most images at once, the largest batch the engine takes.
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
                f"Cannot run images on {agent.device.name}",
                "its Python has no TensorRT",
                "on the board: sudo apt-get install python3-libnvinfer",
            )
        self.agent, self.board, self.batch, self.dla = agent, board, batch, dla
        self.path, self.sha256 = engine

    def run(self, batch: Array) -> dict[str, Array]:
        """Return every output by name; ``batch`` is float32 [N, C, H, W].

        Raises:
            BoardError: the engine does not run there.
        """
        home = self.board.home
        with tempfile.TemporaryDirectory(prefix="trtq-images-") as folder:
            local = Path(folder) / "images.bin"
            np.ascontiguousarray(batch, dtype=np.float32).tofile(local)
            digest = sha256_file(local)
            name = f"files/{digest}.bin"
            request = {
                "engine": self.path,
                "input": f"{home}/{name}",
                "output": f"{home}/files/{digest}.out",
                "shape": list(batch.shape[1:]),
                "count": len(batch),
                "batch": self.batch,
                "dla": self.dla,
            }
            argv = [self.board.python_path, "-I", self.board.agent, "infer", encode(request)]
            step = JobStep(name="images", argv=argv)
            job = BoardJob(title=f"{len(batch)} images", steps=[step], again=True)
            key = digest_of({"engine": self.sha256, "images": digest, "batch": self.batch})[:32]
            self.agent.upload(local, name, digest)
            self.agent.told.begin(f"Running {len(batch)} images on {self.agent.device.name}", 0)
            result, lines = do(self.agent, key, job)
            if not result.ok:
                output = [ln for ln in lines if ln.strip() and not ln.startswith("###")]
                raise BoardError(
                    f"Cannot run images on {self.agent.device.name}",
                    (output[-1] if output else result.why)[:400],
                )
            outputs = outputs_of(lines, self.agent.device.name)
            size = 4 * len(batch) * sum(math.prod(o.shape) for o in outputs)
            answers = self.agent.download(
                f"files/{digest}.out", Path(folder) / "answers.bin", most=min(size, MOST_ANSWERS)
            )
            if answers.stat().st_size != size:
                why = f"{answers.stat().st_size} bytes for {len(batch)} images, expected {size}"
                raise BoardError(
                    f"Cannot read the answers of {self.agent.device.name}",
                    why,
                    "Run the same command again",
                )
            data = np.fromfile(answers, dtype=np.float32)
            self.agent.ask("remove", Done, names=[name, f"files/{digest}.out"])
        return _split(data, outputs, len(batch), self.batch)


def _split(data: Array, outputs: list[Output], count: int, size: int) -> dict[str, Array]:
    """Return outputs by name from what the agent wrote.

    The data is batch by batch, and in each batch one output after another.
    """
    parts: dict[str, list[Array]] = {o.name: [] for o in outputs}
    place = 0
    for start in range(0, count, size):
        n = min(size, count - start)
        for o in outputs:
            length = n * int(np.prod(o.shape, dtype=np.int64))
            parts[o.name].append(data[place : place + length].reshape(n, *o.shape))
            place += length
    return {k: np.concatenate(v) for k, v in parts.items()}
