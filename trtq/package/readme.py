"""The README of a package: what is in it, and how to start it."""

from __future__ import annotations

from collections.abc import Mapping

from trtq.package.consumer import Consumer, Parts
from trtq.package.contents import Contents


def readme_text(name: str, contents: Contents, parts: Mapping[Consumer, Parts]) -> bytes:
    """Return the README of a package.

    Args:
        name: of the model.
        contents: what was packaged.
        parts: what each consumer starts from.
    """
    lines = [f"# {name}", "", *_facts(contents)]
    for consumer, part in parts.items():
        lines += ["", f"## {consumer.title}", "", *part.start]
        lines += ["", *(f"- {note}" for note in part.notes)] if part.notes else []
    lines += [
        "",
        "## Integrity",
        "",
        "`package.json` has the digest of every file. In the folder around this one:",
        "",
        "    trtq package --check FOLDER",
    ]
    return ("\n".join(lines) + "\n").encode()


def _facts(contents: Contents) -> list[str]:
    """Return a list of what the model is."""
    manifest = contents.manifest
    rows = {
        "Made from": f"`{contents.path.name}`, SHA-256 `{contents.digest}`",
        "Engine": manifest.summary if manifest is not None else "",
        "Inputs": "; ".join(f"`{t.words}`" for t in contents.inputs),
        "Outputs": "; ".join(f"`{t.words}`" for t in contents.outputs),
        "Batch": "{} to {}, usual {}".format(*(contents.batch[i] for i in (0, 2, 1)))
        if contents.batch is not None
        else "",
        "Images": contents.preprocess.words if contents.preprocess is not None else "",
        "Task": contents.task_label,
        "Classes": str(len(contents.classes) or ""),
    }
    facts = [f"- {k}: {v}" for k, v in rows.items() if v]
    return facts + [f"- Note: {n}" for n in contents.notes]
