"""A model repository in a real Triton server, where ``tritonserver`` is on the PATH."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

LIMIT_S = 120.0


@pytest.fixture
def server():
    """The server's program."""
    found = shutil.which("tritonserver")
    if found is None:
        pytest.skip("no tritonserver on the PATH")
    return Path(found)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def status(port: int, path: str) -> int:
    """Return the status of a request to the server, 0 where nothing answers."""
    asked = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(asked), contextlib.suppress(OSError):
        asked.request("GET", path)
        return asked.getresponse().status
    return 0


def wait(process: subprocess.Popen, port: int, path: str) -> bool:
    """Wait until a path answers with 200; give up when the server has ended or refuses."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end and process.poll() is None:
        if status(port, path) == 200:
            return True
        # Alive with its models loaded, or not loaded: it answers, and will answer the same.
        if status(port, "/v2/health/live") == 200 and status(port, path) == 400:
            return False
        time.sleep(0.5)
    return False


@pytest.mark.parametrize(
    ("model", "backend"), [("segmenter", "onnxruntime"), ("segmenter_preprocess", "python")]
)
def test_a_server_loads_the_package(model, backend, server, packaged, files, tmp_path):
    backends = server.resolve().parents[1] / "backends"
    if not (backends / backend).is_dir():
        pytest.skip(f"this tritonserver has no backend {backend}")
    folder = packaged(files.segmenter, "triton")
    port, log = free_port(), tmp_path / "log"
    line = [
        str(server),
        f"--model-repository={folder}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        f"--load-model={model}",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
        "--exit-on-error=false",
    ]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with (
        log.open("wb") as out,
        subprocess.Popen(line, stdout=out, stderr=subprocess.STDOUT, env=env) as process,
    ):
        try:
            ready = wait(process, port, f"/v2/models/{model}/ready")
        finally:
            process.kill()
    text = log.read_text(errors="replace")
    if "No module named" in text:
        pytest.skip("the server's Python lacks NumPy or Pillow, which the README asks for")
    assert ready, text[-3000:]
