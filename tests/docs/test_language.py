"""Text that users read has no word of ``words.toml``; the linter finds one that is planted."""

from __future__ import annotations

import pytest

from tests.docs import language
from tests.docs.language import Text, findings, texts, without_code


def test_no_text_has_such_a_word():
    every = [finding for text in texts() for finding in findings(text)]
    assert every == []


def test_every_kind_of_text_is_read():
    places = {text.place.partition(":")[0] for text in texts()}
    assert {"README.md", "CHANGELOG.md", "docs/methods.md", "trtq/records/quantize.py"} <= places
    assert {"trtq --help", "trtq build --precision", "trtq device add --jump"} <= places
    assert {"USAGE-001", "BOARD-001"} <= places


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
        ("```\nit stays\n```\n# What stays\n", []),
    ],
)
def test_a_planted_word_is_found(text, words):
    page = Text("page.md", without_code(text), 1)
    found = [f.words for f in findings(page)]
    assert len(found) == len(words)
    assert all(any(word in f for f in found) for word in words)


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
    assert language.newest(path) == "# Changelog\n\n## [2.0]\nnew\n\n"
