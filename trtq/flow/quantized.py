"""A quantized model in memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import onnx
from torch import fx

from trtq.export.onnx_file import save_onnx
from trtq.export.parity import require_parity
from trtq.flow.compare import compare_simulation
from trtq.flow.inputs import Inputs, quantized_metadata
from trtq.flow.pair import mark_fp16_ranges_
from trtq.flow.ptq import Attempt
from trtq.flow.run import Run
from trtq.graph.signature import Signature
from trtq.python_words import python_words
from trtq.quant.encodings import Encodings
from trtq.quant.placement import Placement
from trtq.quant.simulate import insert_fake_quantize
from trtq.records.quantize import PresetRecord, QuantizeRecord, RecipeRecord
from trtq.specs import QuantizeOptions

if TYPE_CHECKING:
    from trtq.flow.evaluate import Evaluation
    from trtq.tasks import Task


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """An ONNX model in memory.

    Attributes:
        model: the ONNX model, with trtq's metadata.
    """

    model: onnx.ModelProto

    def save(self, path: str | Path) -> Path:
        """Write the file and return its path.

        Args:
            path: of the file; it replaces one that is there.

        Raises:
            ArtifactError: the file cannot be written.
        """
        return save_onnx(self.model, Path(path))


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A model with a number format and a range for every tensor.

    Attributes:
        inputs: the float model, the calibration samples and the run.
        asked: the options that were asked for.
        done: what was taken, after methods and fallbacks.
        preset: the preset and its quick check; None where none was asked for.
        fp32: the float model as ONNX.
        recipe: what each component of a paper's recipe did; None without one.
    """

    inputs: Inputs
    asked: QuantizeOptions
    done: Attempt
    preset: PresetRecord | None
    fp32: onnx.ModelProto
    recipe: RecipeRecord | None = None

    @property
    def graph(self) -> fx.GraphModule:
        """The float graph after methods that change it."""
        return self.done.graph

    @property
    def signature(self) -> Signature:
        """Names, types and shapes of inputs and outputs."""
        return self.inputs.model.graph.signature

    @property
    def encodings(self) -> Encodings:
        """A format and a range for every quantizer."""
        return self.done.encodings

    @property
    def placement(self) -> Placement:
        """Where the quantizers are."""
        return self.done.placement

    @property
    def notes(self) -> list[str]:
        """Every fallback, skip and automatic choice."""
        return self.inputs.run.note.lines

    @property
    def summary(self) -> str:
        """One line for a person."""
        from trtq.flow.quantize_record import summary_of

        return summary_of(self)

    def simulate(self) -> fx.GraphModule:
        """Return the graph with fake-quantize calls: float32 [N, C, H, W] in, float32 out."""
        return insert_fake_quantize(self.graph, self.placement, self.encodings)

    @python_words
    def export(self, target: str | None = None, *, opset: int | None = None) -> OnnxFile:
        """Return the model as ONNX with Q/DQ pairs.

        Args:
            target: a device and a TensorRT release, such as ``orin@10.3``; it decides the opset.
            opset: of the file; default: what the target reads, else that of the options.

        Raises:
            UsageError: the target has no INT8 arithmetic, or does not read the opset.
            ExportError: this opset cannot hold an op of the model, or torch and ONNX Runtime do not
                compute the same from the file.
        """
        from trtq.platform.target import check_files

        options = self.done.options
        if target is not None:
            options = msgspec.structs.replace(options, target=target, opset=opset)
        elif opset is not None:
            options = msgspec.structs.replace(options, opset=opset)
        if options == self.done.options:
            return OnnxFile(model=copy.deepcopy(self.done.qdq))
        check_files(options)
        inputs = replace(self.inputs, run=Run(self.inputs.run.progress))
        simulated = self.simulate()
        metadata = quantized_metadata(self.encodings)
        model = inputs.export(simulated, options, **metadata)
        require_parity(compare_simulation(inputs, options, simulated, model).parity)
        mark_fp16_ranges_(inputs, (model,))
        return OnnxFile(model=model)

    @python_words
    def evaluate(
        self, data: object, task: str | Task | None = None, *, batch_size: int = 16
    ) -> Evaluation:
        """Return the scores of the exported model beside those of the float model.

        Both run in ONNX Runtime on the CPU, every Q/DQ pair as written.

        Args:
            data: samples that calibration did not use, with targets where a task needs them; as for
                ``trtq.quantize``.
            task: ``classification``, ``segmentation``, ``tensors`` or one from outside
                (``file.py:NAME``); default: what the model is known to be.
            batch_size: samples in a call.

        Raises:
            DataError: the data are no samples.
            UsageError: an unknown task, or answers and targets do not fit.
        """
        from trtq.flow.evaluate import evaluate_quantized

        return evaluate_quantized(self, data, task, batch_size=batch_size)

    @python_words
    def save(self, folder: str | Path) -> QuantizeRecord:
        """Write the folder that ``trtq quantize --out`` writes, and return its record.

        Args:
            folder: made when missing.

        Raises:
            ArtifactError: another process writes there.
        """
        from trtq.flow.save import save_quantized

        return save_quantized(self, Path(folder))
