"""trtq writes today what it wrote when the golden files were made.

Every file in ``tests/golden/`` holds one model on one path: the command lines, the records, the
ONNX graph, scales, what lint, cost and dry runs print, calibration caches. The tests make all of
it again in a temporary folder and compare.

To rewrite the files after a change that is meant (all of them, then read ``git diff``)::

    TRTQ_GOLDEN=write pytest tests/test_golden.py

Texts, names, nodes and counts must always be equal. Numbers must be equal but for their last
digits on the processor and with the packages in ``tests/golden/machine.json``; elsewhere they may
differ as far as sums in another order take them (``tests/golden/compare.py`` has the limits).
Digests of bytes and all digits of all numbers count with ``exact``::

    TRTQ_GOLDEN=exact pytest tests/test_golden.py

To prove on another machine that a change alters nothing, write the files of the commit before it
elsewhere, and compare the change with those::

    export TRTQ_GOLDEN_FOLDER=/tmp/before
    TRTQ_GOLDEN=write pytest tests/test_golden.py    # at the commit before
    TRTQ_GOLDEN=exact pytest tests/test_golden.py    # with the change
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.golden import compare, machine
from tests.golden.cases import CASES
from tests.golden.workspace import Workspace

FOLDER = Path(os.environ.get("TRTQ_GOLDEN_FOLDER") or Path(__file__).parent / "golden")
MACHINE = FOLDER / "machine.json"
MODE = os.environ.get("TRTQ_GOLDEN", "")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    assert MODE in ("", "write", "exact"), f"TRTQ_GOLDEN={MODE}: known are write and exact"
    if MODE == "write":
        FOLDER.mkdir(parents=True, exist_ok=True)
        compare.write(MACHINE, machine.describe())
    root, threads = tmp_path_factory.mktemp("golden"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name in ("TRTQ_TRTEXEC", "TRTQ_DEBUG", "TRTQ_CALIB_CACHE"):
            patch.delenv(name, raising=False)
        torch.set_num_threads(1)  # the models are tiny, and the order of sums is always the same
        yield Workspace()
        torch.set_num_threads(threads)


SLOW = {"vit.methods", "deit.fallbacks", "mobilenet.fallbacks"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES]
)
def test_what_is_written_is_what_was_written(name: str, work: Workspace):
    actual, path = CASES[name](work), FOLDER / f"{name}.json"
    if MODE == "write":
        compare.write(path, actual)
        return
    assert path.is_file(), f"there is no {path}: TRTQ_GOLDEN=write pytest tests/test_golden.py"
    found = compare.differences(compare.read(path), actual, how=_how())
    if found:
        pytest.fail(compare.explain(path, found, _how()), pytrace=False)


def _how() -> compare.How:
    if MODE == "exact":
        return "exact"
    return "near" if compare.read(MACHINE) == machine.describe() else "loose"


def test_every_golden_file_has_a_case():
    assert {p.stem for p in FOLDER.glob("*.json")} == {*CASES, MACHINE.stem}


def test_a_difference_is_named_with_its_place():
    before = {"a": {"nodes": ["Conv x", "Relu y"], "sqnr_db": 30.0, "digest": "sha256:00"}}
    after = {"a": {"nodes": ["Conv x", "Add y"], "sqnr_db": 31.0, "digest": "sha256:01"}}
    found = {how: compare.differences(before, after, how=how) for how in compare.RELATIVE}
    assert [line.splitlines()[0] for line in found["near"]] == ["a.nodes[1]", "a.sqnr_db"]
    assert [line.splitlines()[0] for line in found["loose"]] == ["a.nodes[1]"]
    assert len(compare.differences(before, after, how="exact")) == 3
    assert not compare.differences(before, before, how="exact")
    longer = {"a": {**before["a"], "nodes": ["Conv x", "Clip z", "Relu y"]}}
    text = compare.explain(Path("x.json"), compare.differences(before, longer, how="near"), "near")
    assert "the first is a.nodes\n    expected: 2 entries\n    actual:   3 entries" in text
    assert "+Clip z" in text
