"""The table of error codes follows the source, and numbers stay what they are."""

from __future__ import annotations

import itertools
import re

import pytest

from tests.support.error_numbers import GROUPS, number, read, texts, written
from tests.support.error_sites import CLASSES, Texts, sites
from trtq.error_codes import OR, PLACEHOLDER, TABLE, Closed, Group, Row, code_of, fixed_length
from trtq.python_words import as_arguments

READ = Texts("DataError", "Cannot read {path}", "it is not a whole image ({cause})", "Copy it")
LABELS = Texts("DataError", "Cannot read {path}", "it has no labels", "Give --labels FILE")
SPACE = Texts("DataError", "Cannot write {path}", "no space is left on the device", "")


@pytest.fixture(scope="module")
def found() -> list[Texts]:
    return sites()


def rows(kind: str, group: Group) -> set[tuple[str, ...]]:
    return {Texts(kind, *texts(row)).fixed for row in group.rows}


def test_every_raise_site_has_a_row_and_every_row_a_raise_site(found):
    table = read()
    in_table = set[tuple[str, ...]]().union(*(rows(k, g) for k, g in table.items()))
    in_source = {site.fixed for site in found}
    assert len(found) > 900
    missing, stale = in_source - in_table, in_table - in_source
    assert not missing, f"make errors: new or reworded errors: {sorted(missing)[:5]}"
    assert not stale, f"make errors: rows without an error: {sorted(stale)[:5]}"


def test_writing_the_table_again_changes_nothing_but_names_of_values(found):
    table = read()
    again = number(table, found)
    assert [*again] == [*table] == CLASSES
    for kind, group in again.items():
        old = {row.number: Texts(kind, *texts(row)).fixed for row in table[kind].rows}
        assert {row.number: Texts(kind, *texts(row)).fixed for row in group.rows} == old
        assert group.closed == table[kind].closed
    assert written(table) == TABLE.read_text()


def test_numbers_are_given_once():
    for group in read().values():
        numbers = [row.number for row in (*group.rows, *group.closed)]
        assert len(numbers) == len(set(numbers))
        assert min(numbers, default=1) >= 1
    prefixes = [prefix for prefix, _ in GROUPS.values()]
    assert len(prefixes) == len(set(prefixes)) == len(CLASSES)


def test_every_row_is_found_by_its_own_texts():
    for kind, group in read().items():
        for row in group.rows:
            forms = ([PLACEHOLDER.sub("Zq9", f) for f in text.split(OR)] for text in texts(row))
            codes = {code_of([kind], *form) for form in itertools.product(*forms)}
            assert group.code(row.number) in codes, row


def test_a_reworded_error_keeps_its_number_and_a_removed_one_is_closed_for_good():
    table = number({}, [READ, LABELS])
    first = {texts(row): row.number for row in table["DataError"].rows}
    assert sorted(first.values()) == [1, 2]

    reworded = READ._replace(reason="it is not a complete image ({cause})", hint="Copy it again")
    table = number(table, [reworded, SPACE])
    group = table["DataError"]
    now = {texts(row): row.number for row in group.rows}
    assert now == {reworded[1:]: first[READ[1:]], SPACE[1:]: 3}
    assert group.closed == [Closed(first[LABELS[1:]], *LABELS[1:])]

    again = number(number(table, [reworded]), [reworded, LABELS._replace(reason="12 34 56 78")])
    assert {row.number for row in again["DataError"].rows} == {first[READ[1:]], 4}
    assert {row.number for row in again["DataError"].closed} == {first[LABELS[1:]], 3}


def test_an_error_of_another_class_is_named_by_the_code_that_it_replaces():
    table = number({}, [LABELS])
    moved = number(table, [LABELS._replace(kind="UsageError")])
    (closed,) = moved["DataError"].closed
    assert closed.replaced_by == "USAGE-001"
    assert moved["UsageError"].rows == [Row(1, *LABELS[1:])]


@pytest.mark.parametrize(
    ("template", "text", "length"),
    [
        ("it has no labels", "it has no labels", 16),
        ("it has no labels", "it has no labels there", -1),
        ("{a} of {b}", "3 of 4", 4),
        ("{a} of {b}", "3 off 4", -1),
        ("it is {a} | it was {a} before", "it was x before", 14),
        ("ab{x}ba", "aba", -1),  # the two ends may not overlap
        ("", "", 0),
        ("", "more", -1),
        ("{cause}", "", 0),
        ("{'left': ...}", "{'left': ...}", 13),  # braces around no name are text
    ],
)
def test_a_template_fits_a_text(template, text, length):
    assert fixed_length(template, text) == length


SOURCE = """
HINTS = {"a": ("no space", "Free some"), "b": ("no memory", "Close programs")}

def refuse(why, hint="Copy it"):
    return DataError(f"Cannot read {path}", why, hint)

def one(path):
    raise refuse("it is empty")

def two(path):
    what = f"Cannot open {path}"
    if path:
        why = "it is a folder"
        raise DataError(what, why)
    why, hint = HINTS[path]
    raise DataError(what, why, hint)
"""


def test_names_are_followed_to_callers_tables_and_the_last_assignment(tmp_path, monkeypatch):
    package = tmp_path / "trtq"
    package.mkdir()
    (package / "agent.py").write_text("HINTS = {}\n")
    (package / "one.py").write_text("from trtq.errors import DataError\n" + SOURCE)
    monkeypatch.setattr("tests.support.error_sites.ROOT", package)
    assert {site[1:] for site in sites()} == {
        ("Cannot read {path}", "it is empty", "Copy it"),
        ("Cannot open {path}", "it is a folder", ""),
        ("Cannot open {path}", "no space", "Free some"),
        ("Cannot open {path}", "no memory", "Close programs"),
    }


def test_no_error_takes_a_word_of_its_sentence_for_the_value_of_an_option():
    """Every text of the table, as the Python API says it."""
    values = set[str]()
    for group in read().values():
        for text in itertools.chain.from_iterable(map(texts, group.rows)):
            values |= set(re.findall(r'\b[a-z_]+="([^"]*)"', as_arguments(text)))
    assert not values & {"and", "are", "for", "has", "in", "is", "must", "of", "or", "to", "would"}
    assert not {v for v in values if re.search(r"^\(|[:,;]$", v)}
