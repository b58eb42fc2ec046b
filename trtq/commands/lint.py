"""``trtq lint``: numbered rules over an ONNX file of any origin, for one target."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from trtq.artifact import Record, ensure_writable_dir, ensure_writable_file, header
from trtq.engine.lint_target import reader_of
from trtq.errors import UsageError
from trtq.export.lint import lint, repair
from trtq.export.lint_coverage import functions
from trtq.export.lint_view import Finding, Reader, View
from trtq.export.onnx_file import parse_onnx, read_onnx, save_onnx
from trtq.platform.target import Target
from trtq.specs import LintSpec


class LintRecord(Record, frozen=True, kw_only=True):
    """The findings of the rules.

    Attributes:
        onnx_sha256: of the file that was read.
        reader: who the file was read for.
        findings: in the order of the rules; with ``fix``, those that are left.
        repaired: places by rule.
    """

    onnx_sha256: str
    reader: str
    findings: list[Finding]
    repaired: dict[str, int]

    @property
    def passed(self) -> bool:
        """Whether the file builds, and no layer that was to compute in INT8 computes in float."""
        return not any(f.severity in ("error", "float") for f in self.findings)

    @property
    def summary(self) -> str:
        """One line for a person."""
        counts = Counter[str](f.severity for f in self.findings)
        words = {
            "error": "would not build",
            "float": "would compute in float",
            "slow": "cost speed",
            "note": "notes",
        }
        counts_text = (
            ", ".join(f"{counts[k]} {v}" for k, v in words.items() if counts[k]) or "nothing found"
        )
        fixed = (
            f"; repaired {sum(self.repaired.values())} places ({', '.join(self.repaired)})"
            if self.repaired
            else ""
        )
        return f"for {self.reader}: {counts_text}{fixed}"


def run_lint(spec: LintSpec) -> LintRecord:
    """Look at an ONNX file, and repair a copy when asked.

    Args:
        spec: what was asked for.

    Raises:
        ExportError: it cannot be read, or the repaired copy is not valid.
        UsageError: the target is unknown, or the copy would take the file's place.
    """
    target, path = Target.parse(spec.target), Path(spec.onnx)
    (model, _, digest), reader = read_onnx(path), reader_of(target)
    repaired: dict[str, int] = {}
    if spec.allow_value_changes and spec.fix is None:
        raise UsageError(
            "--allow-value-changes does nothing without --fix", hint="Add --fix OUT.onnx"
        )
    if spec.fix is not None:
        out = Path(spec.fix)
        if out.resolve() == path.resolve():
            raise UsageError("--fix would overwrite the file it reads", hint="Give another path")
        ensure_writable_file(out, option="--fix", inputs=[path])
        ensure_writable_dir(out.parent, option="--fix")
        model, repaired = repair(model, reader, change_values=spec.allow_value_changes)
        save_onnx(model, out)
    return LintRecord(
        **header("lint", spec),
        onnx_sha256=digest,
        reader=reader.name,
        findings=[*lint(model, reader), *_local_functions(path, spec, reader)],
        repaired=repaired,
    )


def _local_functions(path: Path, spec: LintSpec, reader: Reader) -> list[Finding]:
    """Return what the parser finds in the file's local functions.

    Every command here reads them as part of the graph.
    """
    return [] if spec.fix is not None else list(functions(View(parse_onnx(path), reader)))
