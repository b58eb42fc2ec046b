"""The files of a search: each allocation is quantized and evaluated once.

A file that an earlier run measured is not measured again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtq.artifact import digest_of, ensure_writable_dir, package_version, write_json
from trtq.commands.candidate import Candidate
from trtq.commands.evaluate import choose_images, evaluation_record
from trtq.data.source import Source
from trtq.engine.runner import OnnxRunner, Runner
from trtq.export.onnx_file import save_onnx
from trtq.export.parity import require_same_float
from trtq.files import ALLOCATION_JSON, EVALUATE_JSON, FP32, MODEL_FILES, QDQ, QUANTIZE_JSON
from trtq.flow.evaluate import Evaluation, Evaluator
from trtq.flow.ptq import Inputs
from trtq.flow.quantize import choose_samples, quantize_model
from trtq.flow.run import Run
from trtq.flow.save import write_quantized
from trtq.progress import Progress
from trtq.records.allocate import AllocateRecord
from trtq.records.evaluate import EvaluateRecord
from trtq.specs import QuantizeOptions, SearchSpec
from trtq.version import __version__
from trtq.workspace import Workspace

TRIES = "tries"
BATCH = 16
SHARED = (
    "calibrator",
    "percentile",
    "calib_images",
    "attention",
    "batch_size",
    "seed",
    "calib_cache",
)
# Where things are, and how many at once: covered by digests, or without influence on the result.
PLACES = ("calib_cache", "batch_size", "checkpoint", "checkpoint_key", "data", "class_index")


@dataclass(frozen=True, kw_only=True)
class Tries:
    """What measures allocations.

    Attributes:
        spec: of the search.
        data: the images for calibration.
        val: the images for accuracy.
        images_sha256: digests of both.
        told: receives progress.
    """

    spec: SearchSpec
    data: Source
    val: Source
    images_sha256: list[str]
    told: Progress

    def measure(
        self, candidate: Candidate, allocated: AllocateRecord, *, methods: bool, label: str
    ) -> Path:
        """Quantize and evaluate one allocation; return the folder of its files and records."""
        options = QuantizeOptions.of(
            self.spec,
            bits="w8a8",
            method=(),
            method_arg={},
            target=None,
            opset=None,
            preset_quant="auto" if methods else "none",
            min_agreement=0.0,
            layer_bits={layer.name: layer.option for layer in allocated.layers},
        )
        folder = candidate.folder / TRIES / self._key(candidate, allocated, options)[:12]
        ensure_writable_dir(folder)
        write_json(folder / ALLOCATION_JSON, allocated)
        if not (folder / EVALUATE_JSON).is_file():
            self.told.note(f"{label}: {allocated.summary}")
            self._quantize_and_evaluate(candidate, options, folder)
        return folder

    def _key(
        self, candidate: Candidate, allocated: AllocateRecord, options: QuantizeOptions
    ) -> str:
        settings = {**candidate.fields, **{f: getattr(options, f) for f in SHARED}}
        settings["preset_quant"] = options.preset_quant
        return digest_of(
            [
                [(v.name, v.option) for v in allocated.layers],
                {k: v for k, v in settings.items() if k not in PLACES},
                candidate.digests,
                self.images_sha256,
                bool(self.spec.val),
                self.spec.limit,
                [__version__, package_version("torch"), package_version("onnxruntime")],
            ]
        )

    def _quantize_and_evaluate(
        self, candidate: Candidate, options: QuantizeOptions, folder: Path
    ) -> None:
        run = Run(self.told)
        run.note(*candidate.model.notes)
        everything = candidate.images(self.data, range(len(self.data)))
        samples = choose_samples(everything, options, run)
        quantized = quantize_model(candidate.model, samples, options, run)
        work = Workspace(folder, QUANTIZE_JSON, run.progress, run.clock)
        work.remove_leftovers(MODEL_FILES)
        spec = {**candidate.fields, **options.without("layer_bits")}
        write_quantized(
            quantized,
            work,
            {**spec, "out": str(folder), "allocation": str(folder / ALLOCATION_JSON)},
        )
        calibrated = frozenset(samples.contents())
        files = (folder / QDQ, folder / FP32)
        runners = (OnnxRunner(quantized.done.qdq), OnnxRunner(quantized.fp32))
        record = self._evaluate(candidate, quantized.inputs, runners, files, calibrated)
        write_json(folder / EVALUATE_JSON, record)

    def float_accuracy(self, candidate: Candidate) -> EvaluateRecord:
        """Return the accuracy of a candidate's float model.

        The images that calibrate the other candidates are left out here, too.
        """
        folder = ensure_writable_dir(candidate.folder)
        run = Run(self.told)
        samples = candidate.images(self.data, range(len(self.data)))
        answer = candidate.model.answer_kind(samples.classes)
        inputs = Inputs(model=candidate.model, samples=samples, answer=answer, run=run)
        onnx = inputs.export(candidate.model.graph.module, QuantizeOptions(), precision="fp32")
        graph = candidate.model.graph
        require_same_float(graph.module, onnx, graph.examples)
        path = save_onnx(onnx, folder / FP32)
        drawn = self.data.sample(self.spec.calib_images, self.spec.seed)
        calibrated = frozenset(self.data.short_contents(drawn))
        return self._evaluate(candidate, inputs, (OnnxRunner(onnx), None), (path, None), calibrated)

    def _evaluate(
        self,
        candidate: Candidate,
        inputs: Inputs,
        runners: tuple[Runner, Runner | None],
        files: tuple[Path, Path | None],
        calibrated: frozenset[str],
    ) -> EvaluateRecord:
        """Return the record of a model beside its reference on the images for accuracy."""
        note, apart = Run(self.told).note, bool(self.spec.val)
        indices = choose_images(self.val, self.spec.limit, frozenset() if apart else calibrated)
        samples = candidate.images(self.val, indices, labelled=True)
        shared = sum(content in calibrated for content in samples.contents()) if apart else 0
        if shared:
            note(f"{shared} of these images were used for calibration")
        runner, reference = runners
        evaluator = Evaluator(
            runner,
            reference,
            known=inputs.answer,
            task=None,
            names=(str(files[0]), str(files[1])),
            note=note,
        )
        seen: Evaluation = evaluator.run(samples, BATCH, self.told)
        spec: dict[str, Any] = {
            "onnx": str(files[0]),
            "reference": None if files[1] is None else str(files[1]),
            "data": self.val.name,
            "limit": self.spec.limit,
            "exclude": None if apart else str(files[0].with_name(QUANTIZE_JSON)),
        }
        return evaluation_record(
            seen,
            samples,
            spec=spec,
            onnx=files[0],
            reference=files[1],
            calibration_images=shared,
            runtime=runner.label,
            notes=note.lines,
        )
