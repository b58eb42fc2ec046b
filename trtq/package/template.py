"""Programs that packages carry: files of ``templates``, which run where trtq is not."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).with_name("templates")
BODY = "# ---- body ----\n"
PART = "# ---- {} ----\n"


def template(name: str) -> bytes:
    """Return a file as it is packaged; parts that it names are put in their places.

    A line ``# ---- NAME ----`` stands for the body of ``NAME.py``, whose imports the file has
    itself.

    Args:
        name: of a file of ``templates``, such as ``run.py``; marks such as ``@LIBRARY@`` remain in
            it.
    """
    text = (FOLDER / name).read_text(encoding="utf-8")
    for part in FOLDER.glob("*.py"):
        place = PART.format(part.stem)
        if place in text:
            body = part.read_text(encoding="utf-8").partition(BODY)[2].strip("\n")
            text = text.replace(place, f"{body}\n")
    return text.encode()
