"""A queue like Slurm's: sbatch, squeue, scancel and sacct as programs on PATH."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

PROGRAM = '''#!{python}
"""One program under four names; a folder is the queue."""
import json, os, re, signal, subprocess, sys
from pathlib import Path

QUEUE = Path({queue!r})
name, words = Path(sys.argv[0]).name, sys.argv[1:]
with (QUEUE / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps([name, *words]) + "\\n")


def option(key):
    return next((w.partition("=")[2] for w in words if w.startswith(f"--{{key}}=")), None)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\\nState:\\tZ" not in Path(f"/proc/{{pid}}/status").read_text()


def tasks(job):
    return {{int(p.name): int(p.read_text()) for p in (QUEUE / job).iterdir()}}


if name == "sbatch":
    if "--partition=nowhere" in words:
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    job = str(100 + len([p for p in QUEUE.iterdir() if p.is_dir()]))
    (QUEUE / job).mkdir()
    low, high = map(int, re.fullmatch(r"(\\d+)-(\\d+)", option("array")).groups())
    script = [w for w in words if not w.startswith("--")]
    for task in range(low, high + 1):
        log = open(option("output").replace("%a", str(task)), "w")
        environ = {{**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}}
        process = subprocess.Popen(
            ["/bin/sh", *script], env=environ, stdout=log, stderr=log, start_new_session=True
        )
        (QUEUE / job / str(task)).write_text(str(process.pid))
    print(f"{{job}};cluster")
elif name == "squeue":
    job = option("jobs")
    if (QUEUE / "mute").exists():
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
    running = [t for t, pid in tasks(job).items() if alive(pid)]
    if not running:
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    print("\\n".join(f"{{job}}_{{t}}" for t in running))
elif name == "scancel":
    for pid in tasks(words[0]).values():
        if alive(pid):
            os.killpg(pid, signal.SIGTERM)
elif name == "sacct":
    print("OUT_OF_MEMORY|0:125")
'''


def write_queue(folder: Path, *names: str) -> Path:
    """Write the programs and return the folder for PATH; the queue is ``folder/queue``."""
    (folder / "queue").mkdir(parents=True)
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    text = PROGRAM.format(python=sys.executable, queue=str(folder / "queue"))
    for name in names or ("sbatch", "squeue", "scancel", "sacct"):
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755 | stat.S_IXUSR)
    return bin_folder
