"""No text of the project has a word of ``words.toml``; the linter finds one that is planted."""

from __future__ import annotations

import re

import pytest

from tests.docs import language
from tests.docs.language import findings
from tests.docs.language_texts import (
    ROOT,
    Text,
    comments,
    docstrings,
    newest,
    program,
    strings,
    texts,
    without_code,
    without_markup,
)


def test_no_text_has_such_a_word():
    every = [finding for text in texts() for finding in findings(text)]
    assert every == []


def test_every_kind_of_text_is_read():
    places = {text.place.partition(":")[0] for text in texts()}
    assert {"README.md", "CHANGELOG.md", "docs/methods.md", "trtq/records/quantize.py"} <= places
    assert {"trtq --help", "trtq build --precision", "trtq device add --jump"} <= places
    assert {"USAGE-001", "BOARD-001"} <= places
    assert {"trtq/agent.py", "trtq/engine/worker.py", "trtq/report/page.html.j2"} <= places
    assert {"trtq/package/templates/run.py", "trtq/report/page.js", "mkdocs.yml"} <= places
    assert {"trtq/platform/devices.toml", "jetson/README.md"} <= places


@pytest.mark.parametrize(
    "term",
    [
        "post-training quantization",
        "quantization-aware training",
        "calibration",
        "Q/DQ",
        "mixed.precision",
        "benchmarking",
        "deployment",
        "sensitivity",
    ],
)
def test_a_heading_has_each_term_of_the_field(term):
    pages = [without_code(path.read_text()) for path in (ROOT / "docs").glob("*.md")]
    headings = [line for page in pages for line in page.splitlines() if line.startswith("#")]
    assert any(re.search(term, heading, re.IGNORECASE) for heading in headings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The engine is held against the file.", ["held against"]),
        ("Meanwhile the clocks are locked.", ["Meanwhile"]),
        ("A stopped run goes on.", ["goes on", "goes"]),
        ("The file is made anew, thereby mended.", ["anew", "thereby", "mended"]),
        ("The layer stays in float.", ["stays"]),
        ("One scale. Of the others, none is kept.", ["Of"]),
        ("First.\n\nWhat it reaches is listed.", ["What"]),
        ("- What it reaches is listed.", ["What"]),
        ("What does it cost?", []),  # a question
        ("A list of what is known; lists of ops.", []),
        ("A stand-in stands for a board.", []),
        ("`goes on` is code, and [a page](stays.md) too.\n\n    trtq lies", []),
        ("```\n# it stays\n```\n", []),
        ("# What stays\n", ["stays", "What"]),  # a heading
        ("## 3. Training with the codes in place", ["codes in place"]),
        ("## What does INT8 cost?", []),
        ("| What it reaches | 3 |", ["What"]),  # a cell of a table
        ("20 s for sensors that look part of the time", ["part of the time"]),
        ("800 samples may be worth 20. It is worth it.", ["worth 20"]),
        ("A factor counts. No factor passes SiLU.", ["No factor"]),
        ("Share of the loss that asks for\nthe float model", ["asks for the float"]),
    ],
)
def test_a_planted_word_is_found(text, words):
    page = Text("page.md", without_code(text), 1)
    got = [f.words for f in findings(page)]
    assert len(got) == len(words)
    assert all(any(word in f for f in got) for word in words)


SOURCE = '''"""A module that stays."""
NOTE, NAME = "it goes on", "stays"


def _tell(note, node):
    """Tell meanwhile."""
    note(f"{node} takes no "
         f"Q/DQ pairs")  # whatever it is
'''


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        (strings, ["goes on", "goes", "takes no Q/DQ"]),  # a single word may be a name
        (docstrings, ["stays", "meanwhile"]),
        (comments, ["whatever"]),
    ],
)
def test_strings_docstrings_and_comments_of_a_source_are_text(reader, words):
    got = [f.words for text in reader("a.py", SOURCE) for f in findings(text)]
    assert len(got) == len(words)
    assert all(any(word in text for text in got) for word in words)


def test_templates_are_text():
    page = '<p class="stays">The {{ stays }} file\nstays. {% if stays %}</p><style>lies {}</style>'
    text = Text("page.html.j2", without_markup(page), 1)
    assert [f.place for f in findings(text)] == ["page.html.j2:2"]
    code = 'int stays; // the engine stays\nputs("it lies there");\n/* goes\n on */ x("lies");'
    got = {f.place for text in program("main.cpp", code) for f in findings(text)}
    assert got == {"main.cpp:1", "main.cpp:2", "main.cpp:3"}


def test_a_finding_has_its_line_and_an_advice(monkeypatch, capsys):
    page = Text("page.md", "One.\n\nTwo is\nmade anew.", 1)
    monkeypatch.setattr(language, "texts", lambda: [page])
    assert language.main() == 1
    line = "page.md:4: ... One. Two is made anew. ... (better: again, or a verb with re-)\n"
    assert capsys.readouterr().out == line
    monkeypatch.setattr(language, "texts", lambda: [])
    assert language.main() == 0


def test_the_newest_part_of_a_changelog_ends_at_the_next_release(tmp_path):
    path = tmp_path / "CHANGELOG.md"
    path.write_text("# Changelog\n\n## [2.0]\nnew\n\n## [1.0]\nold\n")
    assert newest(path) == "# Changelog\n\n## [2.0]\nnew\n\n"
