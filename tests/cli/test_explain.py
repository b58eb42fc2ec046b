"""Codes of errors: printed with each error, and explained by ``trtq explain``."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.conftest import run_cli, run_process
from trtq import error_codes, errors
from trtq.error_codes import Closed, Entry, Group, Row
from trtq.errors import BuilderMemoryError, DataError, MeterError, UsageError
from trtq.python_words import as_arguments


def code_in(text: str) -> str:
    return re.search(r" \[([A-Z]+-\d{3})\]$", text.strip())[1]


def test_an_error_ends_with_a_code_that_explain_knows(tmp_path):
    done = run_cli("inspect", str(tmp_path / "missing"))
    code = code_in(done.stderr)
    assert done.stderr.count("\n") == 1
    shown = run_cli("explain", code)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.splitlines() == [
        f"{code}  ArtifactError: A file trtq wrote is missing, damaged or in use",
        "  Message  Cannot inspect {path}",
        "  Reason   there is no such file or folder",
        f"  Docs     docs/concepts.md, docs/errors.md#{code.lower()}",
        "{name} is a value of the run; {cause} is what the system or another program reported.",
    ]


def test_the_text_of_an_error_has_no_code_and_python_reads_it_beside():
    error = DataError("Cannot read the labels", "they are none", "Try x")
    assert str(error) == "Cannot read the labels: they are none. Try x."
    assert re.fullmatch(r"DATA-\d{3}", error.code)
    assert error.coded == f"Cannot read the labels: they are none. Try x. [{error.code}]"


def test_a_code_stays_when_options_become_arguments_and_when_an_error_is_repeated():
    error = UsageError("--fix would overwrite the file it reads", hint="Give another path")
    code = error.code
    assert code != "USAGE-000"
    error.reword(as_arguments)
    assert error.message.startswith("fix ")
    assert error.code == code
    assert DataError(f"Run 3: {error.message}").with_code_of(error).code == code


def test_an_error_in_words_of_another_class_has_that_code():
    own = MeterError("Energy is not measured in this mode", "its load is another one").code
    assert own.startswith("METER-")
    assert UsageError("Energy is not measured in this mode", "its load is another one").code == own


def test_a_derived_class_has_the_code_of_its_base():
    class OwnError(DataError):
        pass

    assert OwnError("no such text anywhere").code == "DATA-000"
    base = DataError("There are no images in x", "the folder is empty").code
    assert OwnError("There are no images in x", "the folder is empty").code == base
    assert BuilderMemoryError("no such text anywhere").code == "MEMORY-000"


def test_a_table_that_cannot_be_read_leaves_the_error_as_it_is(monkeypatch):
    def refuse() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(error_codes, "groups", refuse)
    assert DataError("Cannot read x").coded == "Cannot read x."


@pytest.mark.parametrize("text", ["data-1", "[DATA-001]", "DATA001", " DATA-1 "])
def test_a_code_is_found_as_people_type_it(text):
    assert run_cli("explain", text).stdout.startswith("DATA-001  DataError: ")


def test_groups_and_the_errors_of_a_group_are_listed():
    lines = run_cli("explain").stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [
        g.prefix for g in error_codes.groups().values()
    ]
    assert re.fullmatch(
        r"METER +\d+  MeterError: A sensor is missing or does not answer", lines[15]
    )
    for group in ("METER", "meter", "MeterError"):
        text = run_cli("explain", group).stdout
        assert "  METER-000 " in text
        assert "Cannot meter this CPU: only root may read {path}" in text


def test_json_has_the_same():
    (row,) = json.loads(run_cli("explain", "KERNEL-001", "--json").stdout)
    assert row["class"] == "MissingKernelError"
    assert row["closed"] is False
    assert row["message"].startswith("Cannot build the engine for ")
    assert {"code", "meaning", "reason", "hint", "page"} <= row.keys()
    every = json.loads(run_cli("explain", "--json").stdout)
    assert [g["prefix"] for g in every] == [g.prefix for g in error_codes.groups().values()]
    (general,) = json.loads(run_cli("explain", "DATA-0", "--json").stdout)
    assert "message" not in general


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("DATA-999", "List the codes of the group: trtq explain DATA."),
        ("DATUM-3", "Did you mean DATA?"),
        ("dat", "Did you mean DATA?"),
        ("42", "Known: AGREE, ARTIFACT, BENCH"),
    ],
)
def test_an_unknown_code_is_refused_with_the_nearest(text, hint):
    done = run_cli("explain", text)
    assert done.returncode == 2
    assert done.stderr.startswith(f"trtq: Unknown error code {text!r}. {hint}")


def test_the_general_code_says_that_the_text_is_another_programs():
    assert "another program or library gave the text" in run_cli("explain", "SYSTEM-000").stdout


def test_a_closed_code_names_what_replaced_it(monkeypatch):
    closed = Closed(7, "Cannot read {path}", "it is odd | it is even", "", "USAGE-001")
    group = Group(prefix="DATA", page="data.md", rows=[Row(8, "a", "", "")], closed=[closed])
    monkeypatch.setattr(error_codes, "groups", lambda: {"DataError": group})
    text = run_cli("explain", "DATA-7").stdout
    assert "This code is closed" in text
    assert "Replaced by USAGE-001" in text
    assert "  Reason   it is odd\n     or    it is even\n" in text
    assert "DATA-007" not in run_cli("explain", "DATA").stdout
    assert Entry("DataError", "DATA-007", group, closed) in list(error_codes.entries())


def test_every_group_has_a_class_and_a_page():
    from tests.docs.test_pages import ROOT

    for kind, group in error_codes.groups().items():
        assert issubclass(getattr(errors, kind), errors.TrtqError)
        assert (ROOT / "docs" / group.page).is_file()


def test_explain_is_quick_and_needs_no_torch():
    code = "import sys; sys.modules['torch'] = sys.modules['numpy'] = None\n"
    code += "from trtq.cli import run_command; sys.exit(run_command(['explain', 'DATA-001']))"
    line = [sys.executable, "-c", code]
    assert subprocess.run(line, capture_output=True, check=False).returncode == 0
    assert run_process("explain", "DATA-001").stdout.startswith("DATA-001")


def test_importing_trtq_reads_no_table():
    code = "import sys, trtq.errors; print('trtq.error_codes' in sys.modules)"
    line = [sys.executable, "-c", code]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_hint_that_depends_on_the_case_is_said_in_words():
    shown = run_cli("explain", "DATA-017").stdout
    assert "Hint     the error itself has it, since it depends on the case" in shown
