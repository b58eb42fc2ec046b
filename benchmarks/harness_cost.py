"""What the harness adds to a request, and the memory of a million samples.

Usage: python benchmarks/harness_cost.py --out benchmarks/results/harness_cost.md

The harness's loop runs against a bare one, around a model that does nothing.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from smoke import arguments, few

CALLS, ROUNDS = few(20_000, 200), few(9, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = arguments(parser)
    import scipy.stats  # noqa: F401  # its import is not what is measured

    from trtq.bench.latency import summarize
    from trtq.bench.sampling import StopRule, quiet_interpreter, sample, time_block
    from trtq.bench.workload import open_workload
    from trtq.machine import cpu_name, package_version

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["output"])],
        "nothing",
        [value("input", TensorProto.FLOAT, [1, 3, 8, 8])],
        [value("output", TensorProto.FLOAT, [1, 3, 8, 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nothing.onnx"
        onnx.save(model, path)
        call = open_workload(path).call
        times = np.zeros(CALLS, dtype=np.int64)
        added, bare = [], []
        for _ in range(ROUNDS):
            with quiet_interpreter():
                start = time.perf_counter_ns()
                for _ in range(CALLS):
                    call()
                plain = time.perf_counter_ns() - start
                start = time.perf_counter_ns()
                time_block(call, times)
                timed = time.perf_counter_ns() - start
            bare.append(plain / CALLS / 1e3)
            added.append((timed - plain) / CALLS / 1e3)

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

    sample(_nothing, 1e-7, StopRule(seconds=0.01, samples=10_000, limit_s=1))
    before = peak()
    found = sample(
        _nothing,
        1e-7,
        StopRule(seconds=0.0, samples=few(1_000_000, 10_000), limit_s=60, narrow=1.0),
    )
    summarize("e2e", found)
    args.out.write_text(
        f"""# What the harness adds

Made by `benchmarks/harness_cost.py` on {cpu_name()}, \
ONNX Runtime {package_version("onnxruntime")}; {ROUNDS} turns of {CALLS} requests \
to a model that does
nothing (one Identity), bare loop and timed loop one after the other.

| figure | value |
|---|---|
| a request in a bare loop | {statistics.median(bare):.2f} us |
| what the timed loop adds to it | {statistics.median(added):.2f} us \
(of {ROUNDS} turns {min(added):.2f} to {max(added):.2f}) |
| memory that {len(found.ns)} samples and their summary take | {peak() - before:.0f} MB |
"""
    )
    print(args.out.read_text())


def _nothing() -> None:
    return None


if __name__ == "__main__":
    main()
