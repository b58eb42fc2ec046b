"""A hostile board: a stand-in for the ssh program that answers what a test tells it to.

``HostileBoard(folder)`` writes the program; ``board.says("probe", code)`` gives it Python code for
a verb of the agent (``""`` for every other one); ``board.replays("probe", data)`` has it send
bytes. Put ``board.bin`` first in the PATH.
"""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = """#!{python}
import base64, json, os, sys, time
if "-O" in sys.argv or "-G" in sys.argv:
    sys.exit(0)
out, err, words = sys.stdout.buffer, sys.stderr.buffer, sys.argv[-1].split()
verb = words[-2] if len(words) > 2 else "true"
try:
    asked = json.loads(base64.urlsafe_b64decode(words[-1]))
except ValueError:
    asked = dict()
log = sys.argv[sys.argv.index("-E") + 1] if "-E" in sys.argv else os.devnull


def send(**answer):
    out.write(b"@trtq " + json.dumps(answer).encode() + b"\\n")
    out.flush()


def hello():
    send(event="hello", protocol=2, agent=asked.get("agent", ""), python="3.6")


def own(text):
    with open(log, "a") as handle:
        handle.write(text)


for name in (verb, "any"):
    place = os.path.join({folder!r}, name)
    if os.path.exists(place + ".bin"):
        with open(place + ".bin", "rb") as handle:
            out.write(handle.read())
        sys.exit(0)
    if os.path.exists(place + ".py"):
        with open(place + ".py") as handle:
            exec(handle.read())
        out.flush()
        sys.exit(0)
"""


class HostileBoard:
    """One such board.

    Args:
        folder: for the program and what it answers.

    Attributes:
        bin: folder of the ``ssh`` that answers for it.
    """

    def __init__(self, folder: Path) -> None:
        self.bin, self._answers = folder / "bin", folder / "answers"
        for subfolder in (self.bin, self._answers):
            subfolder.mkdir(parents=True, exist_ok=True)
        program = self.bin / "ssh"
        program.write_text(PROGRAM.format(python=sys.executable, folder=str(self._answers)))
        program.chmod(0o755)

    def says(self, verb: str, code: str) -> None:
        """Have it run Python code for a verb.

        The code can use ``out``, ``err``, ``asked``, ``send``, ``hello`` and ``own`` (ssh's log).
        """
        (self._answers / f"{verb or 'any'}.bin").unlink(missing_ok=True)
        (self._answers / f"{verb or 'any'}.py").write_text(code)

    def replays(self, verb: str, data: bytes) -> None:
        """Have it send bytes for a verb."""
        (self._answers / f"{verb or 'any'}.bin").write_bytes(data)
