"""Commands in processes of their own, forked from one that has imported what they import."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path

from trtq.testing.board import free_port

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch.distributed", "torch.export", "torch._dynamo", "onnxruntime", "trtq.commands.finetune"]
)


class Started:
    """A command line in a process; what it writes is there once it has ended."""

    def __init__(self, args: tuple[str, ...], env: dict[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="process"))
        self.process = FORKS.Process(target=_run, args=(args, env, self.folder))
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    poll = returncode.fget

    def kill(self) -> None:
        self.process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.process.join(timeout)
        assert self.returncode is not None, f"no end in {timeout} s"
        return (self.folder / "out").read_text(), (self.folder / "err").read_text()


def _run(args: tuple[str, ...], env: dict[str, str], folder: Path) -> None:
    os.environ.clear()  # that of the server is of the test which started it
    os.environ.update(env)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    # A shell's background jobs, pytest among them, ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["trtq", *args]
    from trtq.cli import main

    main()


def start(*args: str, **env: str) -> Started:
    return Started(args, {**os.environ, **env})


def start_two(*args: str) -> list[Started]:
    """Start two processes with the variables that torchrun sets, without its third process."""
    port = str(free_port())
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return [start(*args, **shared, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
