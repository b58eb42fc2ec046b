"""Commands in processes of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def start(*args: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trtq", *args],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **env},
    )


def start_two(*args: str) -> list[subprocess.Popen[str]]:
    """Start two processes with the variables that torchrun sets, without its third process."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return [start(*args, **shared, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
