"""A model of two integer inputs and open axes on a board."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tests.support.boards import needs_sshd, spec
from tests.support.onnx_files import text_encoder
from trtq.commands.deploy import deploy
from trtq.deploy import measure

pytestmark = needs_sshd


def test_a_text_encoder_is_built_and_measured_with_inputs_that_exist(
    orin, tmp_path, monkeypatch, images
):
    onnx.save(text_encoder(), tmp_path / "m.onnx")
    lines, files, do = [], {}, measure.do

    def watched(agent, key, job):
        lines.append(job.steps[-1].argv)
        given = next(w for w in lines[0] if w.startswith("--loadInputs=")).partition("=")[2]
        files.update({n: np.fromfile(p, np.int64) for n, p in _pairs(given)})
        return do(agent, key, job)

    monkeypatch.setattr(measure, "do", watched)
    made = deploy(
        spec(
            orin,
            tmp_path / "m.onnx",
            tmp_path / "o",
            shapes=("ids=1x8:1x16:4x32",),
            bench_batch=(2,),
            data=str(images),
        )
    )
    (row,) = made.rows
    assert row.input_shapes == {"ids": [2, 16], "mask": [2, 16]}
    assert row.memory is None or row.memory.io == 2 * 2 * 16 * 8
    assert "--shapes=ids:2x16,mask:2x16" in lines[0]
    assert {n: a.shape for n, a in files.items()} == {"ids": (32,), "mask": (32,)}
    assert 0 <= files["ids"].min() <= files["ids"].max() < 11
    assert (files["mask"] == 1).all()
    assert "they fill one input" in made.unavailable["accuracy"]
    assert "--minShapes=ids:1x8,mask:1x8" in made.manifest.builder.command
    left = {p.suffix for p in Path(orin.home).rglob("files/*")}
    assert ".bin" not in left


def _pairs(given: str):
    return [part.split(":") for part in given.split(",")]
