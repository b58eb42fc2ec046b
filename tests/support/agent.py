"""The board's agent and the old Python that it runs on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

AGENT = Path(__file__).parents[2] / "jetson/agent.py"


def old_python() -> str | None:
    """Return a Python 3.6 that starts, as JetPack 4 has it."""
    for path in (
        shutil.which("python3.6"),
        *map(str, Path.home().glob(".pyenv/versions/3.6.*/bin/python")),
    ):
        if (
            path
            and subprocess.run(
                [path, "-c", "import json"], capture_output=True, check=False
            ).returncode
            == 0
        ):
            return path
    return None
