"""One function prints everything; names from files, boards and users are plain text."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trtq
from tests.conftest import read
from trtq.cli import run_command
from trtq.cli.display import ConsoleProgress
from trtq.terminal import ClosedOutputError, Lines, new_table, say, say_table, stack, visible

ROOT = Path(trtq.__file__).parent
# Files that print for another process, which reads JSON lines: no person sees them.
PROTOCOLS = ("agent.py", "engine/worker.py", "bench/startup_worker.py", "bench/clocks.py")
PROGRAMS = ("package/templates/run.py",)  # runs where trtq is not
PRINTERS = {"print", "echo", "secho", "Console"}
CODE = re.compile(r"-\d{3}\](?=\n)")
EVIL = "a\x1b[2J\x9b31m\u202egnp\u200b\x07[red]x[/][/]$y$</script>\nb"
SHOWN = r"a\x1b[2J\u009b31m\u202egnp\u200b\x07[red]x[/][/]$y$</script>\nb"


def printers(path: Path) -> list[int]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            stream = name == "write" and ast.unparse(node.func).startswith(
                ("sys.stdout", "sys.stderr")
            )
            if name in PRINTERS or stream:
                found.append(node.lineno)
    return found


def test_nothing_prints_but_the_one_function():
    here = {p.relative_to(ROOT).as_posix(): p for p in ROOT.rglob("*.py")}
    free = {"terminal.py", *PROTOCOLS, *PROGRAMS}
    found = {
        n: lines
        for n, p in here.items()
        if n not in free and not n.startswith("testing/") and (lines := printers(p))
    }
    found.pop("cli/display.py", None)  # the progress bar, below
    assert found == {}
    assert len(printers(ROOT / "cli/display.py")) == 1
    assert printers(ROOT / "bench/startup_worker.py")  # the look works


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢字 ✓", "plain é 漢字 ✓"),
        ("tab\tstays", "tab\tstays"),
        ("\x1b]0;t\x07", r"\x1b]0;t\x07"),
        ("\x7f", r"\u007f"),
        ("\u2066x\u2069", r"\u2066x\u2069"),
        ("\ufeffx", r"\ufeffx"),
        ("\r\n", r"\r\n"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\udb40\udc41"),
        ("\u2028", r"\u2028"),
        ("\u3164", r"\u3164"),
        ("\x00", r"\x00"),
        (5, "5"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text, shown):
    assert visible(text) == shown


def test_json_stays_the_same_json(capsys):
    value = {"a\u202e\x9b": "\U000e0041\u200b é"}
    say(json.dumps(value, ensure_ascii=False, indent=2), lines=True)
    out = capsys.readouterr().out
    assert json.loads(out) == value
    assert out.count("\n") == 3
    assert "\u202e" not in out


def test_one_line_stays_one_line_and_a_stack_has_as_many_as_it_has_texts(capsys):
    say("a\nb")
    say(stack(["a\nb", "c"]))
    assert capsys.readouterr().out == "a\\nb\na\\nb\nc\n"
    assert isinstance(stack([]), Lines)


def test_tables_take_no_markup(capsys):
    say_table(new_table(EVIL, ["", "[bold]FP32"]), [("[/]", "[red]1"), (":smile:", EVIL[:4])])
    out = capsys.readouterr().out
    for text in ("[red]x[/][/]", "[bold]FP32", "[/]", "[red]1", ":smile:", r"\x1b[2J"):
        assert text in out
    assert "\x1b[2J" not in out


def test_bars_take_no_markup(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    with ConsoleProgress() as progress:
        progress.begin("[/]x\x1b[2J", 2)
        progress.status("[/red]\u202e")
        progress.advance(1)
        progress.note("[/]\x1b]0;t\x07")
    text = stream.getvalue()
    assert "[/]x\\x1b[2J" in text
    assert "[/]\\x1b]0;t\\x07" in text
    assert "\u202e" not in text
    assert "\x1b[2J" not in text


def test_errors_usage_and_unknown_commands_show_names_as_text(capsys, tmp_path):
    for words in (
        ["inspect", f"{tmp_path}/{EVIL}.json"],
        [EVIL],
        ["inspect", f"--{EVIL}"],
        ["bench", "x.onnx", "--mode", EVIL],
    ):
        assert run_command(words) in (1, 2)
        shown = capsys.readouterr()
        assert "\x1b" not in shown.out + shown.err
        assert "\u202e" not in shown.out + shown.err
        assert r"\x1b[2J" in shown.err


def test_a_record_with_such_names_is_shown_as_text(cnn_out, tmp_path, capsys):
    record = read(cnn_out / "quantize.json")
    record["model"]["name"] = EVIL
    record["left_in_float"] = [
        {"name": EVIL, "layer": EVIL, "role": "input", "reason": EVIL, "low": None, "high": None}
    ]
    record["notes"] = [EVIL]
    (tmp_path / "quantize.json").write_text(json.dumps(record))
    assert run_command(["inspect", str(tmp_path / "quantize.json")]) == 0
    out = capsys.readouterr().out
    assert f"model: {SHOWN}\n" in out
    assert run_command(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "</script>\nb" not in page
    assert "\u202e" not in page
    assert r"\u202egnp" in page
    assert "&lt;/script&gt;" in page


def test_mathtext_and_hidden_labels_in_plots(tmp_path):
    from trtq.bench.history import Entry, plot
    from trtq.records.quantize import QuantizerRecord
    from trtq.report.figures import histogram_figure

    entries = [
        Entry(
            time="2026-11-01T00:00:00",
            file=name,
            device="$\\frac{",
            mode="latency",
            batch=1,
            median_ms=1.0,
            images_per_s=None,
            joule=None,
            process_bytes=None,
            valid=True,
            machine="m",
        )
        for name in ("_a$x$.onnx", "$\\alpha$\x1b.onnx")
    ]
    text = plot(entries, tmp_path / "h.svg").read_bytes()
    assert text.startswith(b"<?xml")
    quantizer = QuantizerRecord(
        name="$\\frac{$<b>",
        layer="a",
        role="input",
        format="int8",
        granularity="tensor",
        amax=0.5,
        amax_min=0.5,
        channels=None,
        sqnr_db=None,
        saturated=0.0,
        low=0.0,
        high=1.0,
        histogram=[1, 2],
        histogram_limit=1.0,
        runs="",
        extra_ops=0,
        computes_in="",
    )
    figure = histogram_figure(quantizer)
    assert "&lt;b&gt;" in figure


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_has_gone_ends_the_command_and_a_closed_standard_error_does_not(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Gone())
    say("to nobody", err=True)
    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(ClosedOutputError):
        say("to nobody")
    assert run_command(["targets"]) == 141
    monkeypatch.setattr(sys, "stdout", None)
    say("to nobody")


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    python = f"{sys.executable} -m trtq"
    settings = {**os.environ, **env}
    return subprocess.run(
        ["bash", "-c", line.replace("TRTQ", python)],
        capture_output=True,
        text=True,
        check=False,
        env=settings,
    )


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("TRTQ targets | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("TRTQ --help >&-", 0, ""),
        ("TRTQ targets >&- 2>&- <&-", 0, ""),
        (
            "TRTQ targets > /dev/full",
            1,
            "trtq: Cannot write to standard output: no space left on device. [SYSTEM-000]\n",
        ),
        (
            "PYTHONIOENCODING=latin-1 TRTQ inspect '漢字'",
            1,
            "trtq: Cannot inspect \\u6f22\\u5b57: there is no such file or folder. "
            "[ARTIFACT-000]\n",
        ),
        ("PYTHONIOENCODING=ascii TRTQ methods", 0, ""),
    ],
)
def test_standard_output_that_is_closed_full_or_of_another_encoding(line, code, error):
    done = shell(line)
    assert (done.returncode, CODE.sub("-000]", done.stderr)) == (code, error)
