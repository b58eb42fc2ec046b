"""False alarms of trtq compare: a file against itself, without and with 3 % of planted waiting.

Usage: python benchmarks/false_alarms.py --out benchmarks/results/false_alarms.md \
    [--same 100] [--planted 50]

Any other load on the machine during the run is part of the test. The planted slowdown spins for
3 % of the time the request has taken.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from smoke import TINY, arguments, few

PLANTED = 0.03
BLOCK_S, MAX_LOADS = few(0.01, 0.001), few(32, 4)


def planted(call: Any, share: float) -> Any:
    def slower() -> None:
        start = time.perf_counter_ns()
        call()
        until = time.perf_counter_ns()
        until += int(share * (until - start))
        while time.perf_counter_ns() < until:
            pass

    return slower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--same", type=int, default=100)
    parser.add_argument("--planted", type=int, default=50)
    parser.add_argument("--model", default="timm:mobilenetv3_small_050")
    parser.add_argument("--out", type=Path, required=True)
    args = arguments(parser, same=2, planted=2, model=TINY["tiny"])
    from trtq.bench.interleaved import TurnSettings, take_turns
    from trtq.bench.system_info import Watch
    from trtq.bench.workload import open_workload
    from trtq.export.onnx_file import save_onnx
    from trtq.export.to_onnx import export_onnx
    from trtq.graph.capture import capture
    from trtq.machine import cpu_name, package_version
    from trtq.models.load import load_model

    with tempfile.TemporaryDirectory() as folder:
        captured = capture(load_model(args.model).module, (3, 64, 64))
        path = Path(folder) / "m.onnx"
        save_onnx(export_onnx(captured.module, opset=20), path)

        def load() -> Any:
            return open_workload(path, taking_turns=True).call

        watch, rows = Watch("cpu"), {"same": [], "planted": []}
        for kind, count in (("same", args.same), ("planted", args.planted)):
            for i in range(count):
                start = time.perf_counter()
                found = take_turns(
                    load,
                    load if kind == "same" else (lambda: planted(load(), PLANTED)),
                    TurnSettings(block_s=BLOCK_S, max_groups=MAX_LOADS, seed=i),
                )
                rows[kind].append(
                    {
                        "outcome": found.outcome,
                        "ratio": found.ratio,
                        "low": found.low,
                        "high": found.high,
                        "noise": found.noise,
                        "loads": found.groups,
                        "s": time.perf_counter() - start,
                    }
                )
                if (i + 1) % few(10, 1) == 0:
                    print(kind, i + 1, json.dumps(rows[kind][-1]), flush=True)
                    watch.look()
                    args.out.write_text(
                        render(
                            rows,
                            args.model,
                            f"{cpu_name()}, ONNX Runtime {package_version('onnxruntime')}",
                            watch.others(),
                        )
                    )


def render(
    rows: dict[str, list[dict[str, Any]]], model: str, machine: str, others: float | None
) -> str:
    lines = [
        "# False alarms of trtq compare",
        "",
        f"Made by `benchmarks/false_alarms.py` on {machine}, {model} at 64x64, CPU; turns of "
        f"{BLOCK_S:g} s, at most {MAX_LOADS} loads of each. Other",
        f"processes used {others:.0%} of the CPU meanwhile." if others is not None else "",
        "",
        "| second file | runs | faster | slower | no measurable difference | ratio, median (5 % "
        "to 95 %) | half width, median | noise, median | loads of each, median | s a run |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = {
        "same": "the same, loaded once more",
        "planted": f"the same and {PLANTED:.0%} of waiting",
    }
    for kind, found in rows.items():
        if not found:
            continue
        outcomes = [r["outcome"] for r in found]
        ratio = np.asarray([r["ratio"] for r in found])
        half = np.median([(r["high"] - r["low"]) / 2 for r in found])
        lines.append(
            f"| {names[kind]} | {len(found)} | {outcomes.count('faster')} | "
            f"{outcomes.count('slower')} | "
            f"{outcomes.count('no measurable difference')} | {np.median(ratio):.4f} "
            f"({np.quantile(ratio, 0.05):.4f} to {np.quantile(ratio, 0.95):.4f}) | "
            f"{half:.4f} | {np.median([r['noise'] for r in found]):.4f} | "
            f"{np.median([r['loads'] for r in found]):.0f} | "
            f"{np.median([r['s'] for r in found]):.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
