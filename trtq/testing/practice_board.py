"""A stand-in Jetson to practise with: ``python -m trtq.testing.practice_board orin``.

It runs until Ctrl-C, in a temporary folder, on loopback only. The SSH server and trtq's agent are
real. The engines are not, and all figures are invented: the name of the board says that it is a
stand-in, in every record.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import shutil
import signal
import tempfile
from pathlib import Path

from trtq.testing.board import KINDS, StandInBoard, find_sshd


def main() -> None:
    """Run a board until it is interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m trtq.testing.practice_board", description=__doc__
    )
    parser.add_argument("kind", choices=list(KINDS), help="the board")
    kind = parser.parse_args().kind
    if find_sshd() is None:
        parser.exit(1, "There is no OpenSSH server here: apt-get install openssh-server\n")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="trtq-board-"))
    try:
        folder.chmod(0o755)
        model = f"{KINDS[kind].model} (stand-in: its figures are invented)"
        board = StandInBoard(folder / "board", dataclasses.replace(KINDS[kind], model=model))
        with board.serving():
            words = ["trtq", "device", "add", f"my-{kind}", board.address]
            print(f"A stand-in {kind} runs here until Ctrl-C. Add it from another terminal:")
            print(f"  {shlex.join([*words, '--identity', str(board.identity)])}")
            print(f"Its host key is {board.fingerprint()}", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        print("The stand-in is off")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
