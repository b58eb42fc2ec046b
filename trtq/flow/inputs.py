"""Inputs that all attempts at quantizing a model share: model, samples and task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
from torch import fx

from trtq.data.answers import ANSWER, TASK, Kind
from trtq.data.samples import Samples
from trtq.export.onnx_file import set_metadata_, target_metadata
from trtq.export.to_onnx import export_onnx
from trtq.flow.model import Model
from trtq.flow.run import Run
from trtq.graph.device import moved
from trtq.graph.feed import Feed
from trtq.graph.signature import SIGNATURE
from trtq.platform.target import Target, opset_of
from trtq.quant.encodings import Encodings
from trtq.quant.simulate import formats_needed
from trtq.specs import QuantizeOptions
from trtq.tasks import Task
from trtq.workers import Workers

USUAL_VALUES = 3 * 224 * 224  # of a sample; larger ones are looked at in smaller numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Inputs that all attempts of one run share.

    Attributes:
        model: to quantize; never changed.
        samples: for calibration.
        answer: what the model's output is.
        run: the listener, the notes and the clock.
        task: what the outputs mean, bound to the model; None for what ``answer`` says.
        origin: more metadata of the ONNX files.
        workers: the processes that calibrate together.
    """

    model: Model
    samples: Samples
    answer: Kind
    run: Run
    task: Task | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    workers: Workers = field(default_factory=Workers)

    def images(self, count: int, batch_size: int) -> Iterator[Feed]:
        """Return batches of the first ``count`` calibration samples.

        Args:
            count: how many samples.
            batch_size: at most; smaller where the model takes fewer.

        Returns:
            One tensor for each input of the model, on its device.
        """
        size = self.model.largest_batch
        most = batch_size if size is None else min(batch_size, size)
        feeds = self.samples.inputs(count, most, self.model.input_names)
        return moved(feeds, self.model.device)

    def of_usual_size(self, count: int, *, least: int) -> int:
        """Return how many samples have as many values as ``count`` images of 3x224x224 at most.

        Args:
            count: of samples of that size or smaller.
            least: at least so many.
        """
        examples = self.model.graph.examples
        own = sum(t.numel() for t in examples)
        each = own // max((len(t) for t in examples if t.ndim), default=1)
        return min(count, max(least, count * USUAL_VALUES // max(1, each)))

    def export(
        self, graph: fx.GraphModule, options: QuantizeOptions, **metadata: str
    ) -> onnx.ModelProto:
        """Return ``graph`` as ONNX, with the metadata later verbs read.

        Args:
            graph: with fake-quantize calls, or in float.
            options: opset, target and storage of weights.
            metadata: more entries of the file.

        Raises:
            ExportError: the opset cannot hold an op of the graph.
        """
        model = export_onnx(
            graph,
            opset=opset_of(options, formats_needed(graph)),
            int4=options.weight_storage == "int4",
            note=self.run.note,
        )
        target = target_metadata(Target.given(options.target))
        origin = {**origin_of(self.model, self.answer), **self.origin}
        if self.task is not None:
            origin[TASK] = self.task.label
        set_metadata_(model, {**origin, **target, **metadata})
        self.run.clock.lap("export")
        return model


def quantized_metadata(encodings: Encodings) -> dict[str, str]:
    """Return what a Q/DQ file says of its encodings: ``precision`` and ``encodings_sha256``."""
    return {"precision": "int8", "encodings_sha256": encodings.digest()}


def origin_of(model: Model, answer: Kind) -> dict[str, object]:
    """Return what an ONNX file says of the model that it was written from.

    Args:
        model: captured.
        answer: what its first output is.

    Returns:
        ``preprocess`` (where there is one), ``model``, ``weights``, the signature and ``answer``.
    """
    origin: dict[str, object] = {"preprocess": model.preprocess} if model.preprocess else {}
    description = {"model": model.name, "weights": model.weights, SIGNATURE: model.graph.signature}
    return {**origin, **description, ANSWER: answer}
