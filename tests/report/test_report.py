"""The page a person reads: its content, and clicks and typing in a real browser."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import trtq
from tests.conftest import read, run_cli, spec
from trtq import EvaluateSpec, FinetuneSpec, ReportSpec, evaluate, quantize, write_report
from trtq.artifact import write_json
from trtq.errors import ArtifactError, UsageError
from trtq.report.layers import LayerRow, Layers


@pytest.fixture(scope="module")
def run_folder(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized and evaluated tiny CNN, its last layer in float."""
    out = tmp_path_factory.mktemp("reported") / "int8"
    quantize(spec(images, out, high_precision=("head",)))
    given = {
        "data": str(images),
        "onnx": f"{out}/model.qdq.onnx",
        "reference": f"{out}/model.fp32.onnx",
    }
    write_json(out / "evaluate.json", evaluate(EvaluateSpec.make(given)))
    return out


def test_a_page_is_one_file_with_everything(run_folder: Path, tmp_path: Path):
    done = run_cli(
        "report", str(run_folder), "--out", str(tmp_path / "p/page.html"), "--title", "Mine & yours"
    )
    assert done.returncode == 0, done.stderr
    assert "page.html" in done.stdout and "keeps" in done.stdout
    text = (tmp_path / "p/page.html").read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text) and "@import" not in text
    assert "<h1>Mine &amp; yours</h1>" in text
    for heading in (
        "Layer by layer",
        "All quantizers",
        "Skipped steps, with reasons",
        "Repeat it",
        "Where this was made",
    ):
        assert f"<h2>{heading}</h2>" in text
    record = read(run_folder / "quantize.json")
    for q in record["quantizers"]:
        assert q["name"] in text
    for f in record["left_in_float"]:
        assert f["reason"].replace("'", "&#39;") in text
    assert len(text) < 1_500_000
    beside = write_report(ReportSpec(run=(str(run_folder),)))
    assert beside.page == f"{run_folder}/report.html" and beside.verdict in beside.summary


def test_an_evaluation_without_a_reference(images, run_folder: Path, tmp_path: Path):
    folder = tmp_path / "alone"
    shutil.copytree(run_folder, folder)
    write_json(
        folder / "evaluate.json",
        evaluate(EvaluateSpec(data=str(images), onnx=f"{folder}/model.qdq.onnx")),
    )
    made = write_report(ReportSpec(run=(str(folder),)))
    assert "top-1 on 32 images (the float model was not measured)" in made.verdict
    text = (folder / "report.html").read_text()
    assert "not measured" in text and "any Q/DQ pair as written" in text
    both = write_report(
        ReportSpec(run=(str(folder), str(run_folder)), out=str(tmp_path / "both.html"))
    )
    assert both.bytes > 1000


def test_a_board_s_record_of_another_version_is_said(run_folder: Path, tmp_path: Path):
    shutil.copytree(run_folder, tmp_path / "r")
    (tmp_path / "r/deploy/nano").mkdir(parents=True)
    write_json(tmp_path / "r/deploy/nano/deploy.json", {"verb": "deploy", "schema": 0})
    write_report(ReportSpec(run=(str(tmp_path / "r"),)))
    assert (
        "deploy.json is of another version of trtq: deploy again"
        in (tmp_path / "r/report.html").read_text()
    )


def test_a_folder_of_training_says_how_to_report_it(cnn_out: Path, images: Path, tmp_path: Path):
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "finetune.json").write_text("{}")
    with pytest.raises(UsageError, match=r"holds a training and no quantize.json. Copy it to RUN/"):
        write_report(ReportSpec(run=(str(alone),)))
    start, trained = tmp_path / "a b", tmp_path / "trained"
    shutil.copytree(cnn_out, start)
    asked = {
        "model": "trtq.testing.models:tiny_cnn",
        "data": str(images),
        "input_size": "3x32x32",
        "preset": "imagenet",
        "encodings": str(start / "encodings.safetensors"),
        "out": str(trained),
        "epochs": 1,
        "parity_images": 4,
    }
    trtq.finetune(FinetuneSpec.make(asked))
    with pytest.raises(UsageError) as refused:
        write_report(ReportSpec(run=(str(trained),)))
    copy, _, line = refused.value.hint.removeprefix("Type ").partition(" && ")
    subprocess.run(shlex.split(copy), check=True)
    assert line == f"trtq report '{start}'"
    write_report(ReportSpec(run=(str(start),)))
    assert "<h2>Training</h2>" in (start / "report.html").read_text()
    with pytest.raises(UsageError, match=f"Type {line}"):
        write_report(ReportSpec(run=(str(start / "finetune"),)))


def test_tables_sort_and_filter(run_folder: Path, tmp_path: Path, opened):
    record = read(run_folder / "quantize.json")
    page = opened(
        Path(write_report(ReportSpec(run=(str(run_folder),), out=str(tmp_path / "a.html"))).page)
    )
    rows = page.locator("#quantizer-table tbody tr")
    assert rows.count() == len(record["quantizers"])
    head = page.locator("#quantizer-table th", has_text="SQNR")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    known = [q["sqnr_db"] for q in record["quantizers"] if q["sqnr_db"] is not None]
    cells = [
        c
        for c in page.locator("#quantizer-table tbody tr td:last-child").all_text_contents()
        if c != "exact"
    ]
    assert cells == [f"{v:.1f} dB" for v in sorted(known)]
    head.locator("button").press("Enter")  # the keyboard does what the mouse does
    assert head.get_attribute("aria-sort") == "descending"
    cells = [
        c
        for c in page.locator("#quantizer-table tbody tr td:last-child").all_text_contents()
        if c != "exact"
    ]
    assert cells == [f"{v:.1f} dB" for v in sorted(known, reverse=True)]
    assert page.locator("#quantizer-table th[aria-sort]").count() == 1
    page.get_by_label("Find quantizers").fill("weight int8")
    weights = sum(q["role"] == "weight" for q in record["quantizers"])
    assert page.locator("#quantizer-table tbody tr:visible").count() == weights
    assert (
        page.locator("#find-quantizer-count").text_content()
        == f"{weights} of {len(record['quantizers'])} rows"
    )
    page.get_by_label("Find quantizers").fill("no such thing")
    assert page.locator("#quantizer-table tbody tr:visible").count() == 0


def test_histograms_come_on_demand(run_folder: Path, tmp_path: Path, opened):
    page = opened(
        Path(write_report(ReportSpec(run=(str(run_folder),), out=str(tmp_path / "a.html"))).page)
    )
    q = next(q for q in read(run_folder / "quantize.json")["quantizers"] if q["histogram"])
    button = page.locator(f'button.hist[data-q="{q["name"]}"]')
    assert page.locator("tr.detail").count() == 0
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    drawn = page.locator("tr.detail svg")
    assert drawn.get_attribute("aria-label").startswith(f"Magnitudes of {q['name']}: 0 to ")
    assert drawn.locator("path.bars").get_attribute("d").count("M") == sum(
        c > 0 for c in q["histogram"]
    )
    page.locator("#quantizer-table th button").first.click()  # sorting puts it away, and says so
    assert (
        page.locator("tr.detail").count() == 0 and button.get_attribute("aria-expanded") == "false"
    )
    button.click()
    button.click()
    assert page.locator("tr.detail").count() == 0


def test_the_strip_names_layers_and_finds_them(run_folder: Path, tmp_path: Path, opened):
    page = opened(
        Path(write_report(ReportSpec(run=(str(run_folder),), out=str(tmp_path / "a.html"))).page)
    )
    layers = json.loads(page.locator("#layers").text_content())
    frame, said = page.locator(".strip-frame"), page.locator("#strip-said")
    frame.focus()
    frame.press("ArrowRight")
    assert said.text_content().startswith(
        f"1 of {len(layers)}: {layers[0][0]}, INT8, computes in INT8"
    )
    frame.press("End")
    assert said.text_content().startswith(f"{len(layers)} of {len(layers)}: {layers[-1][0]}")
    frame.press("ArrowRight")  # there is nothing behind the last
    assert said.text_content().startswith(f"{len(layers)} of")
    frame.press("Enter")
    assert page.get_by_label("Find layers").input_value() == layers[-1][0]
    box = page.locator("svg.strip").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5 / len(layers), box["y"] + 20)
    assert said.text_content().startswith(f"1 of {len(layers)}: {layers[0][0]}")
    page.mouse.click(box["x"] + box["width"] * 0.5 / len(layers), box["y"] + 20)
    assert layers[0][0] in page.locator("#layer-table tbody tr:visible").first.text_content()


def test_dark_light_print_and_no_script(run_folder: Path, tmp_path: Path, opened):
    path = Path(write_report(ReportSpec(run=(str(run_folder),), out=str(tmp_path / "a.html"))).page)
    paper = "getComputedStyle(document.body).backgroundColor"
    assert opened(path, color_scheme="light").evaluate(paper) == "rgb(255, 255, 255)"
    dark = opened(path, color_scheme="dark")
    assert dark.evaluate(paper) == "rgb(18, 22, 28)"
    dark.emulate_media(media="print")
    assert dark.locator(".tools:visible").count() == 0
    assert (
        dark.evaluate("getComputedStyle(document.querySelector('.scroll')).overflow") == "visible"
    )
    plain = opened(path, java_script_enabled=False)
    assert (
        plain.locator("button.hist:visible").count() == 0
        and plain.locator(".tools:visible").count() == 0
    )
    assert plain.locator("#layer-table tbody tr").count() > 0


def test_a_thousand_layers(run_folder: Path, tmp_path: Path, opened):
    """All of it is on the page, and sorting, searching and pointing still work."""
    shutil.copytree(run_folder, tmp_path / "big")
    record = read(tmp_path / "big/quantize.json")
    first = record["quantizers"][:2]
    assert {q["role"] for q in first} == {"input", "weight"}
    record["quantizers"] = [
        {
            **q,
            "layer": f"block.{i}.conv",
            "name": f"block.{i}.conv.{q['role']}",
            "sqnr_db": 20 + (i * 7919) % 997 / 50,
        }
        for i in range(1000)
        for q in first
    ]
    record["model"]["weight_values"] = {f"block.{i}.conv": 1 + i for i in range(1000)}
    (tmp_path / "big/quantize.json").write_text(json.dumps(record))
    made = write_report(ReportSpec(run=(str(tmp_path / "big"),)))
    assert made.bytes < 2_500_000
    page = opened(Path(made.page))
    assert page.locator("#layer-table tbody tr").count() == 1000 + len(
        {f["layer"] for f in record["left_in_float"]}
    )
    page.locator("#quantizer-table th button").last.click()
    page.get_by_label("Find layers").fill("block.77.")
    assert page.locator("#layer-table tbody tr:visible").count() == 1
    page.locator(".strip-frame").press("PageDown")
    assert "block.19.conv" in page.locator("#strip-said").text_content()
    assert (
        page.evaluate("document.querySelector('svg.strip').querySelectorAll('*').length") < 40
    )  # a path a colour


def test_what_the_strip_draws():
    """Two layers with a work of 1 and 3 have bars of a third and of the whole track.

    A missing value draws nothing.
    """
    common = {"runs": "INT8", "loss": None}
    rows = [
        LayerRow(name="a", precision="INT8", sqnr_db=20.0, share=0.25, **common),
        LayerRow(name="b", precision="INT4", sqnr_db=None, share=0.75, **common),
    ]
    drawn = Layers(rows=rows, sensitivity="", work="share of the weights, counted").strip
    assert re.findall(r'class="share" d="([^"]*)"', drawn) == [
        "M0.00 34h430.00v-10.7h-430.00zM500.00 34h430.00v-32.0h-430.00z"
    ]
    assert re.findall(r'class="sqnr" d="([^"]*)"', drawn) == ["M0.00 34h430.00v-32.0h-430.00z"]
    assert 'class="int8"' in drawn and 'class="below"' in drawn and 'class="loss"' not in drawn
    assert "share of the weights, counted, up to 75.0 %" in drawn


def test_several_runs_side_by_side(run_folder: Path, images: Path, tmp_path: Path, opened):
    for name, bits in (("w8", "w8a8"), ("w4", "w4a8")):
        quantize(spec(images, tmp_path / name, bits=bits, min_agreement=0))
    done = run_cli(
        "report",
        str(run_folder),
        str(tmp_path / "w8"),
        str(tmp_path / "w4"),
        "--out",
        str(tmp_path / "all.html"),
    )
    assert done.returncode == 0, done.stderr
    assert "3 runs: " in done.stdout
    page = opened(tmp_path / "all.html")
    assert page.locator("#run-table tbody tr").count() == 4  # and the float model, once
    assert (
        "The runs were measured on different images" in page.locator("p.warn").first.text_content()
    )
    text = page.content()
    for word in ("int8", "w8", "w4", "W4A8", "float trtq.testing.models:tiny_cnn", "trtq quantize"):
        assert word in text
    assert page.locator("figure svg").count() >= 1
    page.locator("#run-table th button", has_text="weights").click()
    order = page.locator("#run-table tbody tr td:first-child").all_text_contents()
    assert order[0] == "w4" and order[-1].startswith(
        "float"
    )  # codes count at their width, not at a byte each
    # Two of the same kind are comparable.
    write_report(
        ReportSpec(run=(str(tmp_path / "w8"), str(tmp_path / "w4")), out=str(tmp_path / "two.html"))
    )
    assert "different images" not in (tmp_path / "two.html").read_text()


def test_what_the_second_run_measured_of_the_float_model_is_kept(
    run_folder: Path, images: Path, tmp_path: Path
):
    """The order of the folders changes nothing."""
    from trtq.report.run_comparison import compare_runs
    from trtq.report.summary import summarize_run

    quantize(spec(images, tmp_path / "w8"))
    folders = [run_folder, tmp_path / "w8"]
    rows = [
        compare_runs(order, [summarize_run(f) for f in order]).rows[-1]
        for order in (folders, folders[::-1])
    ]
    assert rows[0] == rows[1] and rows[0].width == "float"


def test_names_are_text_and_nothing_else(run_folder: Path, tmp_path: Path, opened):
    """A shared record may hold any name."""
    shutil.copytree(run_folder, tmp_path / "evil $x$")
    path = tmp_path / "evil $x$/quantize.json"
    record = read(path)
    bad = '</script><img src=x onerror="console.error(1)">" onload="console.error(2)'
    for q in record["quantizers"]:
        q["name"], q["layer"] = f"{bad}{q['name']}", f"{bad}{q['layer']}"
    path.write_text(json.dumps(record))
    page = opened(Path(write_report(ReportSpec(run=(str(tmp_path / "evil $x$"),))).page))
    assert page.locator("img").count() == 0
    page.locator("button.hist").first.click()
    assert bad in page.locator("tr.detail svg").get_attribute("aria-label")
    write_report(
        ReportSpec(
            run=(str(run_folder), str(tmp_path / "evil $x$")), out=str(tmp_path / "two.html")
        )
    )
    opened(tmp_path / "two.html")


def test_what_cannot_be_reported(run_folder: Path, tmp_path: Path):
    text = "trtq: trtq report needs RUN. See trtq report --help. [USAGE-"
    assert run_cli("report").stderr.startswith(text)
    with pytest.raises(UsageError, match="There is nothing to report: no run is named"):
        write_report(ReportSpec(run=()))
    with pytest.raises(UsageError, match="is named twice"):
        write_report(ReportSpec(run=(str(run_folder), f"{run_folder}/.")))
    with pytest.raises(
        UsageError,
        match=r"Cannot report on .*: it holds no quantize.json. Name a folder that trtq run, "
        r"quantize",
    ):
        write_report(ReportSpec(run=(str(tmp_path),)))
    with pytest.raises(UsageError, match=r"Cannot report on .*nowhere: there is no such folder"):
        write_report(ReportSpec(run=(str(tmp_path / "nowhere"),)))
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "quantize.json").write_text("{")
    with pytest.raises(ArtifactError, match="it is not whole JSON"):
        write_report(ReportSpec(run=(str(tmp_path),)))


def test_commands_are_copied_by_a_button(run_folder: Path, tmp_path: Path, opened):
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run/evaluate.json").unlink()
    write_report(ReportSpec(run=(str(tmp_path / "run"),)))
    page = opened(tmp_path / "run/report.html")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    assert page.locator("dl.steps dt").count() == 2
    page.locator("dl.steps button.copy").first.click()
    page.wait_for_function("document.querySelector('button.copy').textContent === 'copied'")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("trtq evaluate ") and copied.endswith(f"--out {tmp_path}/run")
