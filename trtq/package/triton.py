"""Triton: a model repository with the configuration, and an ensemble that takes image files."""

from __future__ import annotations

import re

from trtq.engine.manifest import manifest_path
from trtq.errors import UsageError
from trtq.package.consumer import Choices, Files, Parts
from trtq.package.contents import Contents, Span, Tensor
from trtq.package.files import as_json, labels_text
from trtq.package.pbtxt import Message, Word, to_text
from trtq.package.preprocessing import Preprocessing
from trtq.package.template import template

CONFIG, LABELS, MODEL_PY = "config.pbtxt", "labels.txt", "model.py"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
TYPES = {
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bool": "TYPE_BOOL",
    "string": "TYPE_STRING",
    **{f"{s}int{b}": f"TYPE_{s.upper()}INT{b}" for s in ("", "u") for b in (8, 16, 32, 64)},
}
DECODED = (1, 3)  # channels of images that the ensemble reads
BY_CLASS = ("classification", "text-classification")  # tasks whose output is scores of classes


class Triton:
    """NVIDIA Triton Inference Server."""

    name = "triton"
    title = "Triton Inference Server"
    takes = "an engine of TensorRT or an ONNX file"

    def write(self, contents: Contents, choices: Choices) -> Parts:
        """Return a model repository.

        Raises:
            UsageError: the name is none of a model, a type has no counterpart, or the engine is
                one of TensorRT for RTX.
        """
        _require_name(choices.name)
        contents.require_tensorrt(self.title)
        notes: list[str] = []
        labels = _labels(contents, notes)
        config = _config(contents, choices.name, labels)
        files: Files = {
            f"{choices.name}/{CONFIG}": _text(config),
            f"{choices.name}/1/{_file(contents)}": contents.data,
        }
        if labels is not None:
            files[f"{choices.name}/{LABELS}"] = labels_text(contents.classes)
        if contents.manifest is not None:
            beside = manifest_path(contents.path.with_name(_file(contents))).name
            files[f"{choices.name}/1/{beside}"] = as_json(contents.manifest)
        ensemble = _ensemble(contents, choices.name, files, notes)
        return Parts(files=files, start=_start(contents, choices.name, ensemble), notes=notes)


def _require_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise UsageError(
            f"Cannot use --name {name!r} for Triton",
            "a model's name is that of its folder: letters, digits, _, - and ., at most 128",
            "Give another, such as --name my_model",
        )


def _file(contents: Contents) -> str:
    return "model.plan" if contents.format == "engine" else "model.onnx"


def _text(config: Message) -> bytes:
    return (to_text(config) + "\n").encode()


def _config(contents: Contents, name: str, labels: str | None) -> Message:
    """Return the configuration of the model itself."""
    batched = contents.batch is not None
    engine = contents.format == "engine"
    return Message.of(
        name=name,
        platform="tensorrt_plan" if engine else "onnxruntime_onnx",
        backend="tensorrt" if engine else "onnxruntime",
        max_batch_size=max((b[2] for b in _batches(contents)), default=0),
        input=[_tensor(t, batched=batched) for t in contents.inputs],
        output=[_tensor(t, batched=batched, labels=labels) for t in contents.outputs],
        instance_group=[_instances(contents)],
        dynamic_batching=_batching(contents),
        optimization=_optimization(contents),
        parameters=_origin(contents),
    )


def _tensor(tensor: Tensor, *, batched: bool, labels: str | None = None) -> Message:
    """Return an input or an output; Triton adds the batch to ``dims`` where it batches."""
    if tensor.dtype not in TYPES:
        raise UsageError(
            f"Cannot package the tensor {tensor.words} for Triton",
            f"Triton has no type {tensor.dtype}",
            "Cast it in the model, to float32 or float16",
        )
    dims = tensor.dims[1:] if batched else tensor.dims
    return Message.of(
        name=tensor.name,
        data_type=Word(TYPES[tensor.dtype]),
        dims=dims or (1,),
        reshape=None if dims else Message.of(shape=()),
        label_filename=LABELS if labels == tensor.name else None,
    )


def _batches(contents: Contents) -> list[Span]:
    """Return smallest, usual and largest batch of each profile; none without a batch."""
    if contents.batch is None:
        return []
    return [contents.batch, *(rows[0].spans[0] for rows in contents.profiles)]


def _instances(contents: Contents) -> Message:
    """Return one instance on a GPU; Triton takes the profile for each request that fits it."""
    manifest = contents.manifest
    if manifest is None:
        return Message.of(count=1, kind=Word("KIND_AUTO"))
    core = manifest.spec.get("dla")
    dla = [Message.of(kind=Word("KIND_NVDLA"), device_id=core)] if isinstance(core, int) else None
    opened = any(-1 in t.dims for t in contents.inputs)
    return Message.of(
        count=1,
        kind=Word("KIND_GPU"),
        secondary_devices=dla,
        profile=[str(k) for k in range(1 + len(contents.profiles))] if opened else None,
    )


def _batching(contents: Contents) -> Message | None:
    """Return how requests are joined, up to the batches that the engine is fastest at."""
    batches = _batches(contents)
    if max((b[2] for b in batches), default=1) == 1:
        return None
    usual = tuple(sorted({b[1] for b in batches}))
    return Message.of(preferred_batch_size=usual, max_queue_delay_microseconds=100)


def _optimization(contents: Contents) -> Message | None:
    """Return a CUDA graph where all sizes are fixed; TensorRT behind ONNX Runtime for a file."""
    if contents.format == "onnx":
        precision = "INT8" if contents.pairs else "FP32"
        choice = Message.of(key="precision_mode", value=precision)
        accelerator = Message.of(name="tensorrt", parameters=[choice])
        return Message.of(
            execution_accelerators=Message.of(gpu_execution_accelerator=[accelerator])
        )
    fixed = not any(-1 in t.dims for t in (*contents.inputs, *contents.outputs))
    return Message.of(cuda=Message.of(graphs=True)) if fixed else None


def _origin(contents: Contents) -> list[Message]:
    """Return where the model comes from, as parameters, which Triton only shows."""
    values = {"trtq.sha256": contents.digest}
    if contents.task is not None:
        values["trtq.task"] = contents.task_label
    if contents.preprocess is not None:
        values["trtq.preprocess"] = contents.preprocess.words
    return [Message.of(key=k, value=Message.of(string_value=v)) for k, v in values.items()]


def _labels(contents: Contents, notes: list[str]) -> str | None:
    """Return the output that gets a file of labels: one score a class, and as many names."""
    if contents.task is None or contents.task.name not in BY_CLASS or not contents.classes:
        return None
    read = getattr(contents.task, "output", "") or contents.outputs[0].name
    output = next(t for t in contents.outputs if t.name == read)
    if len(output.dims) != 2 or output.dims[1] not in (-1, len(contents.classes)):
        notes.append(
            f"the {len(contents.classes)} names of classes are left out: {output.words} has not as "
            "many scores"
        )
        return None
    return output.name


def _ensemble(contents: Contents, name: str, files: Files, notes: list[str]) -> str:
    """Add an ensemble that takes image files; return its name, "" where images do not fit."""
    image, how = contents.image, contents.preprocess
    if image is None or how is None:
        notes.append("no ensemble for image files: the model does not say how images fit its input")
        return ""
    if how.channels not in DECODED:
        notes.append(f"no ensemble for image files: the input has {how.channels} channels")
        return ""
    if any(not t.dims for t in contents.outputs):
        notes.append("no ensemble for image files: an output has no axes")
        return ""
    reader, ensemble = f"{name}_preprocess", f"{name}_images"
    files[f"{reader}/{CONFIG}"] = _text(_reader_config(contents, reader, image, how))
    files[f"{reader}/1/{MODEL_PY}"] = template("triton_model.py")
    files[f"{reader}/1/preprocess.json"] = as_json(how)
    files[f"{ensemble}/{CONFIG}"] = _text(_ensemble_config(contents, name, image))
    # Triton wants a folder of a version, and keeps none that is empty in an archive.
    files[f"{ensemble}/1/README"] = b"An ensemble has no file of its own.\n"
    return ensemble


def _images(count: int) -> Message:
    return Message.of(name="IMAGES", data_type=Word("TYPE_STRING"), dims=(count,))


def _reader_config(contents: Contents, name: str, image: Tensor, how: Preprocessing) -> Message:
    """Return the configuration of the model that reads images; it batches itself."""
    dims = (_count(contents), *how.input_size)
    result = Message.of(name=image.name, data_type=Word(TYPES[image.dtype]), dims=dims)
    return Message.of(
        name=name,
        backend="python",
        max_batch_size=0,
        input=[_images(_count(contents))],
        output=[result],
        instance_group=[Message.of(count=2, kind=Word("KIND_CPU"))],
    )


def _count(contents: Contents) -> int:
    """Return how many images a request has; -1 for any number."""
    return -1 if contents.batch is not None else contents.inputs[0].dims[0]


def _ensemble_config(contents: Contents, name: str, image: Tensor) -> Message:
    steps = [
        Message.of(
            model_name=f"{name}_preprocess",
            model_version=-1,
            input_map=[_map("IMAGES", "IMAGES")],
            output_map=[_map(image.name, "trtq_input")],
        ),
        Message.of(
            model_name=name,
            model_version=-1,
            input_map=[_map(image.name, "trtq_input")],
            output_map=[_map(t.name, t.name) for t in contents.outputs],
        ),
    ]
    return Message.of(
        name=f"{name}_images",
        platform="ensemble",
        max_batch_size=0,
        input=[_images(_count(contents))],
        output=[_tensor(t, batched=False) for t in contents.outputs],
        ensemble_scheduling=Message.of(step=steps),
    )


def _map(key: str, value: str) -> Message:
    return Message.of(key=key, value=value)


def _start(contents: Contents, name: str, ensemble: str) -> tuple[str, ...]:
    """Return how to start the server, for the README."""
    manifest = contents.manifest
    loose = manifest is not None and manifest.spec.get("version_compatible")
    option = " --backend-config=tensorrt,version-compatible=true" if loose else ""
    lines = [
        "Start the server with this folder as its model repository:",
        "",
        f"    tritonserver --model-repository=$PWD/triton{option}",
        "",
        f"The model is `{name}`; its inputs are "
        + "; ".join(f"`{t.words}`" for t in contents.inputs)
        + ".",
    ]
    if manifest is not None:
        lines.append(
            f"The server must have TensorRT {manifest.builder.version} and a GPU of compute "
            f"capability {manifest.target.capability}."
        )
    if ensemble:
        lines += [
            f"`{ensemble}` takes image files: `IMAGES`, one element the bytes of one file. Its "
            "Python model needs NumPy and Pillow: `pip install numpy pillow` in the container.",
        ]
    return tuple(lines)
