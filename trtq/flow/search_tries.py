"""The tries of a search: each allocation is quantized and evaluated once.

In a folder the files of a try are kept, and what an earlier run measured is not measured again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from trtq.artifact import (
    digest_of,
    ensure_writable_dir,
    read_record,
    sha256_bytes,
    write_json,
)
from trtq.data.samples import Samples, preprocess_digest
from trtq.engine.runner import OnnxRunner
from trtq.export.parity import require_same_float
from trtq.files import ALLOCATION_JSON, EVALUATE_JSON, MODEL_FILES, QDQ, QUANTIZE_JSON
from trtq.flow.candidate import Candidate
from trtq.flow.evaluate import Evaluator
from trtq.flow.evaluate_record import Measured, evaluation_record
from trtq.flow.inputs import Inputs
from trtq.flow.quantize import choose_samples, quantize_model
from trtq.flow.quantized import Quantized
from trtq.flow.run import Run
from trtq.flow.save import write_quantized
from trtq.machine import package_version
from trtq.progress import Progress
from trtq.records.allocate import AllocateRecord
from trtq.records.evaluate import EvaluateRecord
from trtq.records.quantize import QuantizeRecord
from trtq.records.search import Try
from trtq.specs import QuantizeOptions, SearchOptions
from trtq.version import __version__
from trtq.workspace import Workspace

TRIES = "tries"
BATCH = 16
PLACES = ("calib_cache", "batch_size", "layer_bits")  # no influence, or covered by the layers


@dataclass(kw_only=True)
class Tried:
    """One allocation, quantized and evaluated.

    Attributes:
        allocated: the widths.
        methods: that were applied.
        onnx_bytes: of the Q/DQ model.
        scored: its accuracy beside its float model's.
        folder: with its files; None where none is kept.
        quantized: the model; None where an earlier run made it, or another one is the best by now.
        figures: against the goals of the search, once they are compared.
        helped: whether the family's methods were applied.
    """

    allocated: AllocateRecord
    methods: list[str]
    onnx_bytes: int
    scored: EvaluateRecord
    folder: Path | None = None
    quantized: Quantized | None = None
    figures: Try | None = None
    helped: bool = False

    @property
    def judged(self) -> Try:
        """The figures, once there are some."""
        assert self.figures is not None
        return self.figures


@dataclass(frozen=True, kw_only=True)
class Tries:
    """Measures allocations.

    Attributes:
        options: of the search.
        progress: receives what happens.
    """

    options: SearchOptions
    progress: Progress

    def measure(
        self, candidate: Candidate, allocated: AllocateRecord, *, methods: bool, label: str
    ) -> Tried:
        """Return an allocation as a model that is measured, in this run or in an earlier one.

        Args:
            candidate: the model.
            allocated: a width for every layer.
            methods: whether the family's quantization methods are applied.
            label: for progress.
        """
        options = self._options(allocated, methods=methods)
        folder = self._folder(candidate, options)
        if folder is not None:
            write_json(ensure_writable_dir(folder) / ALLOCATION_JSON, allocated)
            if (folder / EVALUATE_JSON).is_file():
                return _stored(allocated, folder)
        self.progress.note(f"{label}: {allocated.summary}")
        quantized = self._quantize(candidate, options)
        if folder is not None:
            _write(quantized, folder)
        scored = self._evaluate(
            candidate, quantized.inputs, (quantized.done.qdq, quantized.fp32), folder
        )
        if folder is not None:
            write_json(folder / EVALUATE_JSON, scored)
        return Tried(
            allocated=allocated,
            methods=[m.name for m in quantized.done.methods],
            onnx_bytes=int(quantized.done.qdq.ByteSize()),
            scored=scored,
            folder=folder,
            quantized=quantized,
        )

    def quantize(
        self, candidate: Candidate, allocated: AllocateRecord, *, methods: bool
    ) -> Quantized:
        """Return the model of an allocation.

        Args:
            candidate: the model.
            allocated: a width for every layer.
            methods: whether the family's quantization methods are applied.
        """
        return self._quantize(candidate, self._options(allocated, methods=methods))

    def _options(self, allocated: AllocateRecord, *, methods: bool) -> QuantizeOptions:
        return QuantizeOptions.of(
            self.options,
            bits="w8a8",
            target=None,
            preset_quant="auto" if methods else "none",
            min_agreement=0.0,
            layer_bits={layer.name: layer.option for layer in allocated.layers},
        )

    def _folder(self, candidate: Candidate, options: QuantizeOptions) -> Path | None:
        """Return the folder of a try: its name covers all that the result depends on."""
        if candidate.folder is None:
            return None
        drawn = max(self.options.calib_images, self.options.images)
        data, scored = candidate.data, candidate.scored
        key = digest_of(
            [
                list(options.layer_bits.items()),
                options.without(*PLACES),
                candidate.digests,
                candidate.name,
                preprocess_digest(data),
                data.take(drawn, self.options.seed).digest(),
                scored.digest(),
                [scored.targets_identity(), data.targets_identity()],
                candidate.val is not None,
                self.options.limit,
                [__version__, package_version("torch"), package_version("onnxruntime")],
            ]
        )
        return candidate.folder / TRIES / key[:12]

    def _quantize(self, candidate: Candidate, options: QuantizeOptions) -> Quantized:
        run = Run(self.progress)
        run.note(*candidate.model.notes)
        samples = choose_samples(candidate.data, options, run)
        return quantize_model(candidate.model, samples, options, run, task=candidate.task)

    def float_accuracy(self, candidate: Candidate) -> EvaluateRecord:
        """Return the accuracy of a candidate's float model.

        The samples that calibrate the other candidates are left out here, too.
        """
        inputs, fp32 = self._float(candidate)
        return self._evaluate(candidate, inputs, (fp32, None), None)

    def float_on_one(self, candidate: Candidate) -> EvaluateRecord:
        """Return what is measured of a candidate: its float model against itself, on one sample."""
        inputs, fp32 = self._float(candidate)
        return self._count(candidate, inputs, (fp32, fp32), candidate.scored.select([0]))

    def _float(self, candidate: Candidate) -> tuple[Inputs, onnx.ModelProto]:
        model, run = candidate.model, Run(self.progress)
        answer = model.answer_kind(candidate.data.classes)
        inputs = Inputs(model=model, samples=candidate.data, answer=answer, run=run)
        fp32 = inputs.export(model.graph.module, QuantizeOptions(), precision="fp32")
        require_same_float(model.graph.module, fp32, model.graph.examples)
        return inputs, fp32

    def _evaluate(
        self,
        candidate: Candidate,
        inputs: Inputs,
        models: tuple[onnx.ModelProto, onnx.ModelProto | None],
        folder: Path | None,
    ) -> EvaluateRecord:
        """Return the record of a model beside its reference, on the samples for accuracy."""
        samples, shared = candidate.measured_on(self.options)
        return self._count(candidate, inputs, models, samples, shared=shared, folder=folder)

    def _count(
        self,
        candidate: Candidate,
        inputs: Inputs,
        models: tuple[onnx.ModelProto, onnx.ModelProto | None],
        samples: Samples,
        *,
        shared: int = 0,
        folder: Path | None = None,
    ) -> EvaluateRecord:
        note = Run(self.progress).note
        if shared:
            note(f"{shared} of these images were used for calibration")
        model, reference = models
        runner = OnnxRunner(model)
        evaluator = Evaluator(
            runner,
            None if reference is None else OnnxRunner(reference),
            known=inputs.answer,
            task=candidate.task,
            names=(candidate.name, f"the float {candidate.name}"),
            note=note,
            metadata=candidate.model.metadata,
        )
        seen = evaluator.run(samples, BATCH, self.progress)
        measured = Measured(
            spec={
                "onnx": candidate.name if folder is None else str(folder / QDQ),
                "data": samples.name,
                "limit": self.options.limit,
                "exclude": None if candidate.val is not None else candidate.data.name,
                **({} if candidate.task is None else {"task": candidate.task.label}),
            },
            onnx_sha256=_digest(model),
            reference_sha256=None if reference is None else _digest(reference),
            calibration_images=shared,
            runtime=runner.label,
            notes=note.lines,
        )
        return evaluation_record(seen, samples, measured)


def _digest(model: onnx.ModelProto) -> str:
    """Return the digest of the file that a model is written as."""
    return sha256_bytes(model.SerializeToString())


def _stored(allocated: AllocateRecord, folder: Path) -> Tried:
    """Return what an earlier run measured."""
    record = read_record(folder / QUANTIZE_JSON, QuantizeRecord, kind="quantize record")
    return Tried(
        allocated=allocated,
        methods=[m.name for m in record.methods],
        onnx_bytes=record.files[QDQ].bytes,
        scored=read_record(folder / EVALUATE_JSON, EvaluateRecord),
        folder=folder,
    )


def _write(quantized: Quantized, folder: Path) -> None:
    """Write the files of a try and the record that vouches for them."""
    run = quantized.inputs.run
    work = Workspace(folder, QUANTIZE_JSON, run.progress, run.clock)
    work.remove_leftovers(MODEL_FILES)
    spec = {
        "model": quantized.inputs.model.name,
        "data": quantized.inputs.samples.name,
        "out": str(folder),
        "allocation": str(folder / ALLOCATION_JSON),
        **quantized.asked.without("layer_bits"),
    }
    write_quantized(quantized, work, spec)
