"""The catalogue of platforms: devices, releases, targets, and who asks it."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path

import msgspec
import onnx
import pytest

from tests.conftest import run_cli, spec
from trtq import ExportSpec, export_profiles, quantize
from trtq.cost.devices import devices, find_device, target_of
from trtq.engine.job import prepare
from trtq.engine.lint_target import reader_of
from trtq.engine.target_table import board_lines, list_targets
from trtq.errors import EngineError, UsageError
from trtq.export.onnx_file import get_metadata, load_onnx
from trtq.platform import catalogue as catalogue_module
from trtq.platform import releases as releases_module
from trtq.platform.agent_rows import AGENT, agent_rows, with_rows
from trtq.platform.catalogue import boards, catalogue
from trtq.platform.releases import Runtime, Span, parse_version, releases
from trtq.platform.target import Target
from trtq.quant.placement import RULES, TENSORRT, rules_for
from trtq.specs import BuildSpec
from trtq.typed import toml_as

PACKAGE = Path(catalogue_module.__file__).parents[1]
has_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)


# ---- the rows ----------------------------------------------------------------------------------


def test_every_row_fits_the_others():
    known = catalogue()
    formats = {"FP16", "INT8", "BF16", "FP8", "FP4"}
    for sm, row in known.capabilities.items():
        assert set(row.formats) <= formats, sm
        assert set(row.rtx) <= {"FP32", *row.formats}, sm
        assert row.placement in RULES, sm
        span = row.kernels
        assert span.last is None or span.first <= span.last, sm
        assert row.shipped is None or span.covers(row.shipped), sm
    for name, device in known.devices.items():
        assert device.sm in known.capabilities, name
        assert not device.variant_of or known.devices[device.variant_of].sm == device.sm, name
        assert device.roofline is None or device.roofline.kind in known.classes, name
        assert not device.variant_of or device.roofline is not None, name
        # A board's release is that of its JetPack, and only boards have one.
        ships = bool(known.capabilities[device.sm].ships)
        assert (device.board is not None) == (ships and not device.variant_of), name


def test_every_board_can_be_recognised_and_built_for():
    by_text = [text for row in boards().values() for text in row.models]
    assert len(by_text) == len(set(by_text))
    for name, row in boards().items():
        target = Target.parse(name)
        assert target.release is not None, name
        assert target.dla == (row.dla > 0), name
        assert all(text == text.lower() for text in row.models), name
        assert row.workspace == tuple(sorted(row.workspace)), name
        first, last = (tuple(map(int, v.split("."))) for v in row.jetpacks)
        assert first <= last, name
        known = [tuple(map(int, v.split("."))) for v in catalogue().jetpack.values()]
        assert first in known and last <= max(known), name


def test_every_row_of_releases_is_a_span_in_order():
    known = releases()
    tables = (known.flags, known.features, known.apis, known.forms, known.types, known.custom)
    for table in (*tables, known.ops):
        for name, span in table.items():
            assert span.first >= known.oldest, name
            assert span.last is None or span.first <= span.last, name
    assert known.rtx_missing <= {*known.features, *known.ops}
    assert known.rtx_ops.isdisjoint(known.ops)
    for steps in (known.reads, known.writes):
        assert [opset for _, opset in steps] == sorted(opset for _, opset in steps)
        assert steps[0][0] == known.oldest
    for opset, ir in known.ir.items():
        assert onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]) == ir


def test_rows_of_releases_without_public_source_say_where_they_were_read():
    """Up to 11.1 the source is public; of later releases every row names a document."""
    public = parse_version("11.1")
    file = toml_as(releases_module.FILE.read_bytes(), dict)
    for table in releases_module.TITLES:
        for name, row in file[table].items():
            if isinstance(row, str):
                span = Span.parse(row)
                assert max(span.first, span.last or span.first) <= public, name
    assert all(parse_version(v) <= public for v, row in file["op"].items() if isinstance(row, str))
    found = releases_module.sources()
    assert all(r.source for r in found)
    # Every release of the catalogue that is newer has a row.
    newest = releases().newest
    after = {(11, minor) for minor in range(2, newest[1] + 1)}
    assert newest[0] == 11 and after <= {r.version for r in found}


def test_the_page_of_releases_lists_every_sourced_row(monkeypatch):
    monkeypatch.syspath_prepend(PACKAGE.parent / "docs")  # as mkdocs does for its hooks
    hooks = importlib.util.spec_from_file_location("hooks", PACKAGE.parent / "docs/hooks.py")
    module = importlib.util.module_from_spec(hooks)
    hooks.loader.exec_module(module)
    page = module.on_page_markdown((PACKAGE.parent / "docs/releases.md").read_text())
    assert "| 11.5 | trtexec --independentWeightLayouts, from 11.5 on | release notes" in page
    assert page.count("\n| 1") == len(releases_module.sources())


NEW_BOARD = """
[device.orin-mini]
title = "Jetson Orin Mini"
sm = 87
[device.orin-mini.board]
models = ["orin mini"]
soc = ["tegra235"]
dla = 1
workspace = [[5.0, 256]]
rails = [["VDD_MINI"]]
modes = ["7W", "MAXN"]
throttles_c = 99.0
jetpacks = ["6.1", "7.2"]
notes = []
"""


def test_a_new_board_is_one_row(tmp_path: Path, monkeypatch):
    file = tmp_path / "devices.toml"
    file.write_text(catalogue_module.FILE.read_text() + NEW_BOARD)
    monkeypatch.setattr(catalogue_module, "FILE", file)
    catalogue.cache_clear()
    try:
        target = Target.parse("orin-mini@10.3")
        assert (target.device, target.dla, target.opset) == ("Jetson Orin Mini", True, 20)
        assert [r.name for r in list_targets() if "mini" in r.name] == ["orin-mini"]
        assert "6.1 to 7.2, 1 DLA core;" in board_lines("orin-mini")[0]
        assert reader_of(target).name == "Jetson Orin Mini, TensorRT 10.3"
        rows = agent_rows()
        assert '("orin mini", "orin-mini"),' in rows
        assert '"tegra235": ("8.7", ((0, "orin-mini"),)),' in rows
        assert '("VDD_MINI",),' in rows
    finally:
        catalogue.cache_clear()


def test_an_unknown_field_of_the_catalogue_is_an_error():
    data = (PACKAGE / "platform/devices.toml").read_bytes()
    wrong = data.replace(b"[device.nano]\n", b'[device.nano]\ncolour = "green"\n')
    with pytest.raises(msgspec.ValidationError, match="colour"):
        msgspec.toml.decode(wrong, type=catalogue_module.Catalogue)


def test_spans_read_and_write_themselves():
    assert Span.parse("8.0 to 10.16") == ((8, 0), (10, 16))
    assert Span.parse("8.6 on") == ((8, 6), None)
    assert Span.parse("8.0 to 10.16").words == "from 8.0 to 10.16"
    assert Span.parse("8.6 on").words == "from 8.6 on"
    assert parse_version("8.5.2") == (8, 5)


def test_what_a_runtime_has():
    assert (
        Runtime((8, 5))
        .lacks("engines without weights")
        .endswith("8.5 has no engines without weights (releases from 10.0 on have it)")
    )
    assert Runtime(rtx=True).lacks("DLA") == "TensorRT for RTX has no DLA"
    assert (Runtime().title, Runtime().opset) == ("TensorRT 10 and later", 25)
    assert (Runtime((8, 5)).opset, Runtime(rtx=True).opset) == (17, 25)
    assert not Runtime((8, 0)).parses("axis beside one scale")
    assert Runtime().parses("axis beside one scale")


# ---- one refusal -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "feature", "reason"),
    [
        ("nano", "INT8", "compute capability 5.3 has no INT8 arithmetic"),
        ("orin@10.3", "FP8", "compute capability 8.7 has no FP8 arithmetic"),
        ("h100@8.6", "FP8", "TensorRT 8.6 has no FP8 (releases from 10.0 on have it)"),
        ("t4", "INT4 weights", "compute capability 7.5 has no kernels for INT4 weights"),
        ("orin-nano", "DLA", "it has no DLA"),
        ("sm86@11.0", "calibration cache", "has no calibration cache (releases from 8.0 to 10.16"),
    ],
)
def test_a_target_says_what_it_lacks(target, feature, reason):
    parsed = Target.parse(target)
    assert reason in parsed.lacks(feature)
    start = re.escape(f"Cannot export {feature} for {parsed.device}: ")
    with pytest.raises(UsageError, match=start + ".*Do it otherwise"):
        parsed.require(feature, doing="export", hint="Do it otherwise")
    with pytest.raises(EngineError, match=re.escape(f"Cannot build with --x for {parsed.device}")):
        parsed.require(feature, doing="build with", called="--x", error=EngineError)


def test_a_target_lacks_nothing_that_it_has_or_whose_release_is_open():
    for target, feature in (("xavier", "INT8"), ("rtx4090", "FP8"), ("rtx3080", "DLA")):
        assert bool(Target.parse(target).lacks(feature)) == (feature == "DLA")
    assert Target.parse("rtx3080").lacks("calibration cache") == ""
    assert Target.parse("xavier").lacks("DLA") == ""
    assert "releases from 8.0 to 10.7" in Target.parse("orin@10.13").lacks("DLA")


def test_the_dla_came_back_with_types():
    assert Target.parse("orin@11.4.1").lacks("DLA") == ""
    assert "releases from 11.4 on" in Target.parse("orin@11.3").lacks("DLA")
    assert Target.parse("orin-nx@11.4.1").lacks("DLA").endswith("Jetson AGX Orin alone")
    assert Target.parse("thor@11.4.1").lacks("DLA") == "it has no DLA"
    assert Target.parse("xavier").lacks("DLA") == ""


def test_when_a_file_for_one_target_is_not_for_another():
    assert not Target.parse("orin").contradicts(Target.parse("orin-nx@10.3"))
    assert not Target.parse("rtx3080").contradicts(Target.parse("sm86"))
    assert Target.parse("orin@10.3").contradicts(Target.parse("orin@8.5"))
    assert Target.parse("rtx3080").contradicts(Target.parse("rtx4090"))


def test_predictions_and_targets_are_the_same_devices():
    assert target_of("orin-nano-super").name == "orin-nano"
    assert target_of("orin@10.3").text == "orin@10.3"
    for name, device in devices().items():
        target = target_of(name)
        for precision in ("int8", "fp8"):
            assert (precision in device.peaks) == (precision.upper() in target.formats), name
    assert find_device("orin").title == "Jetson AGX Orin 64 GB"


def test_placement_rules_are_looked_up_for_the_target():
    assert rules_for(None) is rules_for(Target.parse("xavier@8.5")) is TENSORRT


# ---- the agent ---------------------------------------------------------------------------------


def test_the_agent_has_the_rows_of_the_catalogue():
    source = AGENT.read_text(encoding="utf-8")
    assert agent_rows() in source, "python -m trtq.platform.agent_rows --write"
    assert with_rows(source) == source
    ast.parse(agent_rows())


def test_no_other_module_spells_devices_or_releases():
    """Names of boards and numbers of compute capabilities are in the catalogue alone."""
    titles = {catalogue().devices[name].title for name in boards()}
    for path in PACKAGE.rglob("*.py"):
        if "testing" in path.parts or path.name == "agent.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in titles, f"{path}:{node.lineno}"
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute):
                values = [c.value for c in node.comparators if isinstance(c, ast.Constant)]
                spelled = node.left.attr == "sm" and any(v is not None for v in values)
                assert not spelled, f"{path}:{node.lineno}"


# ---- the target in the file --------------------------------------------------------------------


@pytest.fixture(scope="module")
def for_rtx(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rtx")
    quantize(spec(images, out, target="rtx3080"))
    return out


def _stored(path: Path) -> str | None:
    target = get_metadata(load_onnx(path)).get("target")
    assert target is None or isinstance(target, str)
    return target


def test_files_say_which_target_they_are_for(for_rtx: Path, cnn_out: Path, images: Path, tmp_path):
    assert _stored(for_rtx / "model.qdq.onnx") == _stored(for_rtx / "model.fp32.onnx") == "rtx3080"
    assert _stored(cnn_out / "model.qdq.onnx") is None
    export_profiles(
        ExportSpec(
            model="trtq.testing.models:tiny_cnn",
            data=str(images),
            input_size=(3, 32, 32),
            preset="imagenet",
            images=4,
            encodings=f"{cnn_out}/encodings.safetensors",
            out=f"{tmp_path}/profiles",
            target=("xavier@8.5", "xavier@8.4"),
        )
    )
    for version in ("8.5", "8.4"):  # one graph for both, and each file has its own target
        name = f"xavier-{version}"
        assert _stored(tmp_path / f"profiles/{name}.onnx") == f"xavier@{version}"
        assert _stored(tmp_path / f"profiles/{name}.fp32.onnx") == f"xavier@{version}"


@has_rtx
def test_a_build_needs_no_second_target(for_rtx: Path, tmp_path: Path):
    engine = tmp_path / "e.engine"
    done = run_cli("build", f"{for_rtx}/model.qdq.onnx", "--out", str(engine))
    assert done.returncode == 0, done.stderr
    assert "the target is rtx3080" in done.stderr
    manifest = json.loads(engine.with_suffix(".engine.json").read_text())
    assert manifest["target"]["name"] == manifest["spec"]["target"] == "rtx3080"
    assert engine.stat().st_size > 1000
    other = run_cli(
        *("build", f"{for_rtx}/model.qdq.onnx", "--target", "rtx4090", "--out", str(engine))
    )
    assert other.returncode == 0, other.stderr
    assert "was written for rtx3080, and is built for rtx4090" in other.stderr
    assert json.loads(engine.with_suffix(".engine.json").read_text())["target"]["name"] == "rtx4090"
    same = run_cli("build", f"{for_rtx}/model.qdq.onnx", "--target", "sm86", "--out", str(engine))
    assert same.returncode == 0, same.stderr
    assert "was written for" not in same.stderr


def test_a_file_without_a_target_needs_one(cnn_out: Path, tmp_path: Path):
    asked = BuildSpec(onnx=f"{cnn_out}/model.qdq.onnx", out=f"{tmp_path}/e.engine")
    with pytest.raises(UsageError, match=r"needs --target: .* does not say which device"):
        prepare(asked)
    done = run_cli("build", asked.onnx, "--out", asked.out)
    assert done.returncode == 2
    assert "trtq build needs --target" in done.stderr
