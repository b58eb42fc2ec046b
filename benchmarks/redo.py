"""What the scripts of the papers share.

The printed numbers, the models to redo them with, rows with a verdict, and one page per paper.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomllib
from smoke import few

AGREE, DIFFERS, NOT = "agree", "differs", "not comparable"
HERE = Path(__file__).parent
MIOU_NOISE = 0.5


@dataclass(frozen=True)
class Row:
    """One printed figure or claim beside ours."""

    what: str
    paper: str
    ours: str
    verdict: str
    why: str = ""


@dataclass
class Section:
    """One table or figure of a paper."""

    id: str
    data: str
    rows: list[Row] = field(default_factory=list)
    picture: str = ""

    def says(self, what: str, paper: str, ours: str, holds: bool, why: str = "") -> None:
        """Add a claim that can be checked in direction or ratio."""
        self.rows.append(Row(what, paper, ours, AGREE if holds else DIFFERS, why))

    def better(
        self, what: str, paper: str, ours: str, difference: float, noise: float, why: str = ""
    ) -> None:
        """Add a claim that one figure is above another.

        Within the noise of the images the claim is not decided.

        Args:
            what: the claim.
            paper: its figures.
            ours: ours.
            difference: points that the claim wants above 0.
            noise: points, as ``noise_of`` gives them.
            why: what else to know.
        """
        if abs(difference) <= noise:
            self.rows.append(
                Row(
                    what,
                    paper,
                    ours,
                    NOT,
                    "; ".join(
                        filter(
                            None,
                            [f"{difference:+.2f} lies within the noise of {noise:.2f} points", why],
                        )
                    ),
                )
            )
        else:
            self.says(
                what,
                paper,
                ours,
                difference > 0,
                "; ".join(filter(None, [f"noise {noise:.2f} points", why])),
            )

    def shows(self, what: str, paper: str, ours: str, why: str) -> None:
        """Add a figure that cannot be compared with the printed one, with the reason."""
        self.rows.append(Row(what, paper, ours, NOT, why))


@dataclass(frozen=True)
class Subject:
    """A model that stands for the paper's: settings of quantize and of evaluate."""

    name: str
    own: dict[str, Any]
    where: dict[str, Any]
    limit: int

    @property
    def data(self) -> str:
        """What a row was measured on."""
        return (
            f"{self.name}, {self.limit} images of "
            f"{Path(self.where['data']).parent.name or ''}/{Path(self.where['data']).name}"
        )

    def quantized(self, folder: Path, **changes: Any) -> tuple[Any, Any]:
        """Return the records of a quantization and of its evaluation.

        The quantization does nothing but what is asked for.
        """
        from trtq import QuantizeSpec, quantize

        values = {
            **self.own,
            "out": str(folder / "o"),
            "calib_cache": str(folder / "c"),
            "preset_quant": "none",
            "calibrator": "max",
            "calib_images": few(256, 16),
            "parity_images": 16,
            "min_agreement": 0,
        }
        made = quantize(QuantizeSpec.make({**values, **changes}))
        return made, self.evaluated(folder / "o")

    def evaluated(self, folder: Path) -> Any:
        """Return the record of the Q/DQ file in a folder."""
        from trtq import EvaluateSpec, evaluate

        files = {
            "onnx": str(folder / "model.qdq.onnx"),
            "reference": str(folder / "model.fp32.onnx"),
        }
        shared = {k: self.own[k] for k in ("input_size", "preset") if k in self.own}
        return evaluate(
            EvaluateSpec.make(
                {**self.where, **shared, **files, "batch_size": 50, "limit": self.limit}
            )
        )

    def analyzed(self, folder: Path, metric: str, bits: Sequence[str], **more: Any) -> Path:
        """Return the file of a sensitivity analysis."""
        from trtq import AnalyzeSpec, analyze

        out = folder / f"{metric}-{'-'.join(bits)}.json"
        own = {k: v for k, v in self.own.items() if k != "calib_images"}
        analyze(
            AnalyzeSpec.make(
                {
                    **own,
                    "calib_images": few(256, 16),
                    "out": str(out),
                    "metric": metric,
                    "bits": list(bits),
                    "calib_cache": str(folder / "c"),
                    **more,
                }
            )
        )
        return out


def add_subject(parser: argparse.ArgumentParser, role: str, default: str) -> None:
    """Add the flags that choose the model of a role."""
    parser.add_argument(
        f"--{role}", default=default, help="a model of models.py, or anything with the flags below"
    )
    for flag, text in (
        ("model", "timm:NAME, torchvision:NAME or file.py:function"),
        ("checkpoint", "its weights"),
        ("data", "images to calibrate on"),
        ("eval", "images to evaluate on, in folders by class"),
        ("input-size", "such as 3x224x224"),
        ("class-index", "JSON list of folder names"),
    ):
        parser.add_argument(f"--{role}-{flag}", default=None, help=text)


def subject(args: argparse.Namespace, role: str) -> Subject:
    """Return the model of a role."""
    from models import evaluation, settings

    given = {
        k: getattr(args, f"{role}_{k}")
        for k in ("model", "checkpoint", "data", "input_size", "class_index")
    }
    if given["model"] is None:
        name = getattr(args, role)
        return Subject(name, settings(name), evaluation(name), args.images)
    if given["data"] is None or getattr(args, f"{role}_eval") is None:
        raise SystemExit(
            f"--{role}-model needs --{role}-data and --{role}-eval: accuracy is not measured on "
            "the images of calibration"
        )
    own = {k: v for k, v in given.items() if v is not None}
    where = {
        "data": getattr(args, f"{role}_eval"),
        **{k: own[k] for k in ("class_index",) if k in own},
    }
    return Subject(given["model"], own, where, args.images)


def printed(paper: str) -> dict[str, dict[str, Any]]:
    """Return what a paper prints, by the id of the table or figure."""
    return {t["id"]: t for t in tomllib.loads((HERE / f"papers/{paper}.toml").read_text())["table"]}


def parser_of(doc: str) -> argparse.ArgumentParser:
    """Return the flags that every script has."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tables", nargs="*", default=[], help="ids such as 'Table 1'; default: all"
    )
    parser.add_argument("--images", type=int, default=2000, help="images to evaluate on")
    parser.add_argument(
        "--out", type=Path, required=True, help="the page; what was done before stays in it"
    )
    return parser


def redo(
    paper: str,
    title: str,
    work: dict[str, Callable[[], Section]],
    args: argparse.Namespace,
    *,
    partly: bool = False,
) -> None:
    """Do every table that is asked for and write the page after each.

    An interrupted run keeps the tables it has done. A table that is not asked for keeps the section
    that an earlier run wrote.
    """
    tables = printed(paper)
    unknown = [t for t in args.tables if t not in work]
    if unknown:
        raise SystemExit(f"{', '.join(unknown)}: {paper} has {', '.join(work)}")
    missing = [t for t in tables if t not in work]
    assert partly or not missing, missing
    held = _sections(args.out)
    for name, make in work.items():
        if not args.tables or name in args.tables:
            print(f"{paper} {name}", flush=True)
            held[name] = _render(
                make(),
                tables[name],
                shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
            )
            _write(args.out, title, [held[n] for n in work if n in held])


def _sections(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    parts = re.split(r"(?m)^## ", path.read_text())[1:]
    return {
        p.partition(":")[0]: f"## {p.rstrip()}\n" for p in parts if not p.startswith("Verdicts")
    }


def _render(section: Section, table: dict[str, Any], command: str) -> str:
    lines = [
        f"## {section.id}: {table['title']}",
        "",
        f"Paper: {table['data']}",
        "",
        f"Here: {section.data}. `{command}`",
        "",
    ]
    lines += ["| what | paper | ours | verdict | why |", "|---|---|---|---|---|"]
    lines += [
        f"| {r.what} | {r.paper} | {r.ours} | {r.verdict} | {r.why} |".replace("\n", " ")
        for r in section.rows
    ]
    if section.picture:
        lines += ["", f"![{section.id}]({section.picture})"]
    if table["problems"]:
        lines += [
            "",
            "What the print leaves open or contradicts:",
            "",
            *(f"- {p}" for p in table["problems"]),
        ]
    return "\n".join([*lines, ""])


def _write(path: Path, title: str, sections: Sequence[str]) -> None:
    counts = {v: sum(s.count(f"| {v} |") for s in sections) for v in (AGREE, DIFFERS, NOT)}
    head = [
        f"# {title}",
        "",
        "Made on a CPU; accuracy is of exported files in ONNX Runtime. Each table names the "
        "command that made it.",
        "",
    ]
    head += ["## Verdicts", "", "; ".join(f"{n} {v}" for v, n in counts.items()) + ".", ""]
    beside = path.with_name(f".{path.name}.new")
    beside.write_text("\n".join([*head, *sections]))
    beside.replace(path)


def noise_of(*records: Any) -> float:
    """Return two standard errors of a difference of accuracies, in points.

    The images are paired and discordant at most where one of the files differs from the float
    model. Files A and B can differ only on images where A or B differs from the float model: at
    most d = (1 - agreement A) + (1 - agreement B) of n; the difference of right answers then has a
    variance of at most d / n. For mIoU no such bound is known: half a point.
    """
    if records[0].miou is not None:
        return MIOU_NOISE
    apart = sum(1.0 - r.agreement / 100.0 for r in records)
    return 200.0 * math.sqrt(max(apart, 1.0 / records[0].images) / records[0].images)


def points(value: float) -> str:
    """Return a difference in points."""
    return f"{value:+.2f}"
