"""How fast a model gets onto a board: trtq's upload against scp.

Usage: python benchmarks/upload.py [--megabytes 200] [--rounds 5] --out benchmarks/results/upload.md

Both take turns through the same sshd on loopback. The board is trtq.testing.board's stand-in.
trtq's time includes the check whether the file is there, the SHA-256 on the other side, the flush
to disk and the rename; scp does none of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from smoke import arguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = arguments(parser, megabytes=1, rounds=1)
    from trtq.artifact import sha256_file
    from trtq.deploy.agent_client import Agent
    from trtq.deploy.board import probe
    from trtq.deploy.devices import parse_device
    from trtq.machine import cpu_name
    from trtq.progress import Silent
    from trtq.testing.board import StandInBoard

    folder = Path(tempfile.mkdtemp(prefix="trtq-upload-"))
    folder.chmod(0o755)
    os.environ["TRTQ_CONFIG"] = str(folder / "config")
    try:
        payload = folder / "model.onnx"
        payload.write_bytes(os.urandom(args.megabytes * 10**6))
        digest = sha256_file(payload)
        board = StandInBoard(folder / "board", "orin")
        login = board.folder / "login.sh"  # what a login script prints is more than scp can bear
        login.write_text(
            "".join(
                ln
                for ln in login.read_text().splitlines(keepends=True)
                if not ln.startswith("echo")
            )
        )
        with board.serving():
            device = parse_device("orin", board.address, identity=str(board.identity))
            agent = Agent(device, Silent())
            agent.link.accept(agent.link.offered_key()[0])
            probe(agent)
            there = board.home / ".trtq/files/model.onnx"
            scp = [
                "scp",
                "-O",
                "-q",
                "-F",
                str(agent.link.config),
                "-P",
                str(board.port),
                "-i",
                str(board.identity),
                str(payload),
                f"{board.user}@127.0.0.1:{there}.scp",
            ]
            subprocess.run(scp, check=True)
            rates: dict[str, list[float]] = {"scp": [], "trtq": []}
            for i in range(args.rounds):
                for name in ("scp", "trtq") if i % 2 else ("trtq", "scp"):
                    for path in there.parent.glob("model.onnx*"):
                        path.unlink()
                    os.sync()
                    start = time.perf_counter()
                    if name == "scp":
                        subprocess.run(scp, check=True)
                    else:
                        agent.upload(payload, "files/model.onnx", digest)
                    rates[name].append(args.megabytes / (time.perf_counter() - start))
            assert sha256_file(there) == digest if there.exists() else True
            agent.close()
        ratio = statistics.median(rates["trtq"]) / statistics.median(rates["scp"])
        lines = [
            "# Uploads",
            "",
            f"Made by `benchmarks/upload.py` on {cpu_name()}, {os.cpu_count()} cores, "
            f"{args.megabytes} MB of random bytes, both ends on this machine, one",
            f"multiplexed connection for both, in turns, {args.rounds} rounds. trtq's time "
            "holds a SHA-256 over there, a flush to disk and a rename.",
            "",
            "| | median, MB/s | lowest to highest |",
            "|---|---|---|",
            *(
                f"| {n} | {statistics.median(v):.0f} | {min(v):.0f} to {max(v):.0f} |"
                for n, v in rates.items()
            ),
            "",
            f"trtq reaches {ratio:.0%} of scp's rate.",
            "",
        ]
        args.out.write_text("\n".join(lines))
        print("\n".join(lines))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
