"""Lock GPU clocks and always release them.

A second process holds the other end of a pipe and undoes the lock when the pipe closes.

Run as ``python -m trtq.bench.clocks UUID``, this file is that second process.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from trtq.bench.meters.nvml import Gpu, explain_nvml

READY = "ready"


@contextmanager
def locked_clocks(gpu: Gpu, mhz: int | None = None) -> Iterator[str]:
    """Lock the SM clock of a GPU; yield a text about the result, for the record.

    Without permission nothing is changed and the text says so. The clocks are released afterwards,
    even when this process is killed.

    Args:
        gpu: whose clocks.
        mhz: default: the highest clock, which may throttle; readings under load show it.
    """
    uuid = gpu.ask("uuid", lambda: gpu.nvml.nvmlDeviceGetUUID(gpu.handle))
    top = mhz or gpu.ask(
        "largest SM clock",
        lambda: gpu.nvml.nvmlDeviceGetMaxClockInfo(gpu.handle, gpu.nvml.NVML_CLOCK_SM),
    )
    if uuid is None or top is None:
        yield f"floating: {gpu.missing.get('uuid') or gpu.missing.get('largest SM clock')}"
        return
    # The guardian is there before the lock is, so that there is no moment without one.
    with subprocess.Popen(
        [sys.executable, "-m", "trtq.bench.clocks", uuid],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as guardian:
        assert guardian.stdin is not None and guardian.stdout is not None
        if guardian.stdout.readline().strip() != READY:
            yield "floating: the process that would free them again did not start"
            return
        try:
            gpu.nvml.nvmlDeviceSetGpuLockedClocks(gpu.handle, top, top)
        except gpu.nvml.NVMLError as exc:
            yield f"floating: {explain_nvml(exc)}"
        else:
            yield f"locked at {top} MHz"
        finally:
            guardian.stdin.close()
            guardian.wait()


def guard(uuid: str) -> int:
    """Wait until the parent process ends, then free the clocks.

    Standard input is the pipe from that process: it ends when the process does, for any
    reason.

    Args:
        uuid: of the GPU, as NVML gives it.

    Returns:
        the exit status, always 0: without permission there was no lock to free.
    """
    import signal

    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # what ends the other one must not end this one: it has still to work
        signal.signal(number, signal.SIG_IGN)
    gpu = Gpu(uuid=uuid)
    print(READY, flush=True)
    sys.stdin.read()
    gpu.ask("locked clocks", lambda: gpu.nvml.nvmlDeviceResetGpuLockedClocks(gpu.handle))
    return 0


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1]))
