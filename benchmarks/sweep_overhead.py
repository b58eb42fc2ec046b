"""What `trtq sweep` costs over `trtq run`: seconds a run, and requests to the store.

Usage: python benchmarks/sweep_overhead.py --out benchmarks/results/sweep_overhead.md

Runs of a small model, one at a time, in one sweep: the sweep's time less the time of its
`trtq run` processes is what the sweep adds. Requests are counted by a server of S3 on this machine
(`pip install s3fs 'moto[server]'`; without them that table is left out, as are rows of Ray without
`ray`).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smoke import arguments, few

from trtq import SweepRecord, SweepSpec, sweep

RUNS, PLANNED, MODELS, DRIVEN = few(8, 2), few(200, 4), few(4, 2), few(200, 4)
DELAY_S = 0.03  # of each answer of S3, as over a network
RECIPE = """
out = "{folder}/{name}"
[quantize]
model = "trtq.testing.models:tiny_cnn"
data = "{folder}/images"
input_size = "3x32x32"
preset = "imagenet"
calib_images = 8
parity_images = 8
calib_cache = "{folder}/cache"
preset_quant = "none"
calibrator = "percentile"
[evaluate]
held_out = false
[vary]
"quantize.{setting}" = {values}
"""
INSTANT = """
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from trtq.jobs.leases import this_driver
from trtq.jobs.store import Store
from trtq.jobs.work import Ended


class Instant:
    name, workers, shared = "instant", 100, False

    def __init__(self, progress):
        self.jobs, self.store, self.progress, self.seconds = [], None, progress, 0.0

    def room(self):
        return self.workers - len(self.jobs)

    def submit(self, jobs):
        self.jobs += jobs

    def wait(self, seconds):
        jobs, self.jobs = self.jobs, []
        start = time.perf_counter()
        if jobs and self.store is None:
            self.store = Store.open(jobs[0].url, this_driver(60.0), create=False)
        with ThreadPoolExecutor(16) as pool:
            done = list(pool.map(self.end, jobs))
        self.seconds += time.perf_counter() - start
        return done

    def end(self, job):
        return Ended(name=job.name, code=0, upload=self.store.upload(job.key, Path({prepared!r})))

    def close(self):
        self.progress.note(f"uploads {{self.seconds}}")


def open_executor(settings, progress):
    return Instant(progress)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = arguments(parser)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import trtq.stages  # noqa: F401  # its imports are measured apart
    from trtq.machine import cpu_name
    from trtq.testing.images import write_classes

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        write_classes(folder / "images", 4, 4, size=32)
        lines = [
            *_overhead(folder),
            *_on_ray(folder),
            *_planning(folder),
            *_driver(folder, "a local folder"),
        ]
        lines += ["", *_on_s3(folder)]
    args.out.write_text(
        "\n".join(
            [
                "# What a sweep adds to its runs",
                "",
                f"Made by `benchmarks/sweep_overhead.py` on {cpu_name()}, {os.cpu_count()} cores, "
                f"load {os.getloadavg()[0]:.1f}; a network of 3,500 weights, one run at a time.",
                "",
                "| figure | value |",
                "|---|---|",
                *lines,
                "",
            ]
        )
    )
    print(args.out.read_text())


def _sweep_file(folder: Path, name: str, count: int, *, models: bool = False) -> Path:
    """Write the file of a sweep: runs of one model, or each of its own (other random weights)."""
    path = folder / f"{name}.toml"
    values = [round(90 + 10 * (i + 1) / count, 4) for i in range(count)]
    setting = ("percentile", values) if not models else ("seed", list(range(count)))
    path.write_text(RECIPE.format(folder=folder, name=name, setting=setting[0], values=setting[1]))
    return path


def _overhead(folder: Path) -> list[str]:
    """Return the rows about a sweep that does all runs, and about one that reuses them."""
    _, first = _added(SweepSpec(recipe=str(_sweep_file(folder, "first", 1)), workers=1))
    spec = SweepSpec(recipe=str(_sweep_file(folder, "timed", RUNS)), workers=1)
    record, added = _added(spec)
    start = time.perf_counter()
    again = sweep(spec)
    reused = time.perf_counter() - start
    assert len(again.in_state("reused")) == RUNS
    inside = sum(r.seconds or 0.0 for r in record.rows)
    return [
        f"| `trtq run` in a process of its own, mean of {RUNS} | {inside / RUNS:.2f} s |",
        f"| once: torch.export is imported, the model captured (a sweep of 1) | {first:.1f} s |",
        f"| what a sweep of {RUNS} adds to a run: planning, claim, copies, records, page | "
        f"{added / RUNS:.2f} s |",
        f"| the same sweep again, all reused, a run, planning included | {reused / RUNS:.2f} s |",
    ]


def _on_ray(folder: Path) -> list[str]:
    """Return the rows about a sweep on Ray, which is started on this machine for each sweep."""
    if importlib.util.find_spec("ray") is None:
        return ["| on Ray | not measured: ray is not installed |"]
    _, alone = _added(SweepSpec(recipe=str(_sweep_file(folder, "r1", 1)), workers=1, on="ray"))
    file = _sweep_file(folder, "r", RUNS + 1)
    _, all_of_them = _added(SweepSpec(recipe=str(file), workers=1, on="ray"))
    return [
        f"| on Ray, once: it is started (a sweep of 1) | {alone:.1f} s |",
        f"| on Ray: what one more run adds, of {RUNS} | {(all_of_them - alone) / RUNS:.2f} s |",
    ]


def _added(spec: SweepSpec) -> tuple[SweepRecord, float]:
    """Return the record of a sweep, and its seconds less those of its runs."""
    start = time.perf_counter()
    record = sweep(spec)
    total = time.perf_counter() - start
    assert not record.failed, record.summary
    return record, total - sum(r.seconds or 0.0 for r in record.rows)


def _seconds_of_planning(path: Path) -> float:
    from trtq.progress import Silent
    from trtq.recall import recalling
    from trtq.sweep.key import address_of
    from trtq.sweep.variants import read_sweep

    start = time.perf_counter()
    with recalling():
        for variant in read_sweep(path).variants():
            address_of(variant.recipe, Silent())
    return time.perf_counter() - start


def _planning(folder: Path) -> list[str]:
    """Return the rows about planning: of runs that share their model, and of one more model."""
    one = _seconds_of_planning(_sweep_file(folder, "one", 1))
    same = _seconds_of_planning(_sweep_file(folder, "same", PLANNED)) - one
    other = _seconds_of_planning(_sweep_file(folder, "other", MODELS, models=True)) - one
    return [
        f"| planning of one more run of the same model and images, mean of {PLANNED - 1} | "
        f"{same / (PLANNED - 1) * 1e3:.1f} ms |",
        f"| planning of one more model of this size (it is captured), mean of {MODELS - 1} | "
        f"{other / (MODELS - 1):.2f} s |",
    ]


def _driver(folder: Path, where: str, url: str = "") -> list[str]:
    """Return the row about the sweep's own process: jobs end at once, with the files of a run."""
    record = sweep(SweepSpec(recipe=str(_sweep_file(folder, "first", 1)), workers=1))
    instant = folder / "instant.py"
    prepared = Path(record.store) / record.rows[0].files
    instant.write_text(INSTANT.format(prepared=str(prepared)))
    path = _sweep_file(folder, f"driven{len(url)}", DRIVEN)
    planned = _seconds_of_planning(path)
    start = time.perf_counter()
    done = sweep(SweepSpec(recipe=str(path), on=f"{instant}:open_executor", store=url))
    total = time.perf_counter() - start
    assert len(done.in_state("done")) == DRIVEN, done.summary
    uploads = float(next(n for n in done.notes if n.startswith("uploads ")).split()[1])
    return [
        f"| the sweep's own process, {where}: claim, records, done.json, page; a run, "
        f"{DRIVEN} runs, 100 at a time | {max(0.0, total - uploads - planned) / DRIVEN:.3f} s |"
    ]


def _on_s3(folder: Path) -> list[str]:
    """Return the tables about a store in S3."""
    if not all(importlib.util.find_spec(n) for n in ("moto", "s3fs", "flask")):
        return ["A store in S3 was not measured: moto's server or s3fs is not installed."]
    with _server() as calls:
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        driver = _driver(folder, f"S3 that answers after {DELAY_S * 1e3:.0f} ms", "s3://bucket/d")
        counts = []
        for count in (1, 2):
            path = _sweep_file(folder, f"s3-{count}", count)
            spec = SweepSpec(recipe=str(path), workers=1, store=f"s3://bucket/{count}")
            calls.clear()
            record = sweep(spec)
            done = Counter(calls)
            calls.clear()
            sweep(spec)
            counts.append((done, Counter(calls)))
    files = sum(v for k, v in record.rows[0].measured.sizes.items() if k.endswith(("onnx", "ors")))
    rows = [
        f"| {method} | {counts[1][0][method] - counts[0][0][method]} | "
        f"{counts[1][1][method] - counts[0][1][method]} |"
        for method in ("PUT", "GET", "HEAD", "POST", "DELETE")
    ]
    return [
        "A store in S3 (moto's server on this machine, whose own time counts):",
        "",
        "| figure | value |",
        "|---|---|",
        *driver,
        "",
        "Requests for one more run (a sweep of two less a sweep of one, renewals of the lease in "
        f"the time of that run included); {files} bytes of model files in 11 files:",
        "",
        "| request | run done | run reused |",
        "|---|---|---|",
        *rows,
    ]


@contextmanager
def _server() -> Iterator[list[str]]:
    """Serve S3 on loopback and yield the methods of the requests."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    calls: list[str] = []
    inner = DomainDispatcherApplication(create_backend_app)

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_args: object) -> None:
            """Say nothing."""

    def app(environ, respond):
        calls.append(environ["REQUEST_METHOD"])
        time.sleep(DELAY_S)
        return inner(environ, respond)

    made = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{made.server_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        yield calls
    finally:
        made.shutdown()
        thread.join()


if __name__ == "__main__":
    main()
