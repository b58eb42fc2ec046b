"""Files with the table of one verb."""

from __future__ import annotations

import pytest

from tests.conftest import read, run_cli
from trtq.errors import UsageError
from trtq.one_verb import ONE_VERB, read_one_verb

ALLOCATE = """
out = "{folder}/allocation.json"
[allocate]
analysis = "{folder}/analysis.json"
budget = ["size=0.2"]
"""


def test_a_file_does_one_verb(tmp_path):
    (tmp_path / "one.toml").write_text(ALLOCATE.format(folder=tmp_path))
    done = run_cli("run", str(tmp_path / "one.toml"))
    assert done.returncode == 1
    assert f"Cannot read the analysis {tmp_path}/analysis.json" in done.stderr


def test_what_is_no_file_of_one_verb(tmp_path):
    path = tmp_path / "one.toml"
    for tables, text in (
        (
            {"search": {}, "quantize": {}},
            r"it has \[search\] and also quantize. Write one file for",
        ),
        ({"search": {}, "fleet": {}}, r"it has \[search\] and also fleet"),
        ({"fleet": 3}, r"fleet in .* must be a table: found 3. Write \[fleet\]"),
        ({"fleet": {"device": "orin"}}, "Unknown setting 'device' in .fleet. of .*mean devices"),
    ):
        with pytest.raises(UsageError, match=text):
            read_one_verb(tables, path)
    assert read_one_verb({"out": "x", "quantize": {}}, path) is None
    assert not {"quantize", "finetune", "sweep", "run"} & set(ONE_VERB)


def test_a_file_of_one_verb_has_no_stages(tmp_path):
    (tmp_path / "one.toml").write_text(ALLOCATE.format(folder=tmp_path))
    done = run_cli("run", str(tmp_path / "one.toml"), "--dry-run")
    assert done.returncode == 2
    assert "it has no stages, only [allocate]" in done.stderr
    assert "trtq allocate --help" in done.stderr


def test_the_result_of_one_verb(tmp_path, images):
    text = (
        f'out = "{tmp_path}/analysis.json"\n[analyze]\nmodel = "trtq.testing.models:tiny_cnn"\n'
        f'data = "{images}"\ninput_size = "3x32x32"\npreset = "imagenet"\nmetric = "l2"\n'
        'images = 4\ncalib_images = 8\nbits = ["8"]\n'
    )
    (tmp_path / "one.toml").write_text(text)
    done = run_cli("run", str(tmp_path / "one.toml"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Result:\n")
    assert read(tmp_path / "analysis.json")["verb"] == "analyze"
