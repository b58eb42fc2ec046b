"""DeepStream: the configuration of nvinfer for one image input."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from trtq.engine.manifest import EngineManifest, manifest_path
from trtq.errors import UsageError
from trtq.export.fp16 import has_half
from trtq.package.consumer import Choices, Files, Parts
from trtq.package.contents import Contents, Tensor
from trtq.package.deepstream_config import Value, config_text
from trtq.package.deepstream_graph import (
    Fed,
    Scaling,
    plain_scaling,
    to_bytes,
    with_one_scale,
    with_probabilities,
)
from trtq.package.deepstream_outputs import Reading, read_outputs
from trtq.package.files import as_json
from trtq.package.preprocessing import Preprocessing

CONFIG, ENGINE, ONNX = "config_infer_primary.txt", "model.engine", "model.onnx"
FP32, INT8, FP16 = range(3)  # network-mode
COLORS = {"rgb": 0, "bgr": 1}  # model-color-format
GRAY = 2
FILTERS = {"nearest": 0, "bilinear": 1, "bicubic": 2}  # scaling-filter


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The model as nvinfer gets it.

    Attributes:
        files: of the model.
        properties: keys that name them.
        scaling: of pixels.
        notes: what was changed.
    """

    files: Files
    properties: dict[str, Value]
    scaling: Scaling
    notes: list[str]


class DeepStream:
    """NVIDIA DeepStream's Gst-nvinfer."""

    name = "deepstream"
    title = "DeepStream (Gst-nvinfer)"
    takes = "an engine of TensorRT or an ONNX file with one image input"

    def write(self, contents: Contents, choices: Choices) -> Parts:
        """Return a configuration, the model and what it needs.

        Raises:
            UsageError: nvinfer cannot feed the inputs or read the outputs, or the engine is one of
                TensorRT for RTX.
        """
        contents.require_tensorrt("DeepStream")
        image, how = _image_of(contents)
        reading = read_outputs(contents, choices)
        packed = _packed(contents, image, how, reading)
        properties = {
            "gpu-id": 0,
            "gie-unique-id": 1,
            "process-mode": 1,
            **packed.properties,
            "batch-size": _batch(contents),
            "infer-dims": how.input_size,
            "output-blob-names": tuple(t.name for t in contents.outputs),
            **_pixels(how, packed.scaling),
            **reading.properties,
        }
        files = {CONFIG: config_text(properties, reading.classes), **packed.files, **reading.files}
        notes = [*contents.profile_notes, *packed.notes, *reading.notes, *_differences(how)]
        return Parts(files=files, start=_start(contents), notes=notes)


def _image_of(contents: Contents) -> tuple[Tensor, Preprocessing]:
    """Return the image input and its preprocessing.

    Raises:
        UsageError: there is none that nvinfer can feed.
    """
    what = f"Cannot package {contents.path.name} for DeepStream"
    image, how = contents.image, contents.preprocess
    if image is None or how is None:
        shown = "; ".join(t.words for t in contents.inputs)
        raise UsageError(
            what,
            f"nvinfer feeds one image whose preprocessing is known; the inputs are {shown}",
            f"{contents.others}. Where it is an image, say how it is fed: --preset imagenet, or "
            "--mean and --std",
        )
    if how.channels not in (1, 3) or how.dtype == "uint8":
        given = "bytes" if how.dtype == "uint8" else f"{how.channels} channels"
        raise UsageError(
            what,
            f"nvinfer feeds floats of gray or three colours; the input takes {given}",
            contents.others,
        )
    if image.dtype != "float32":
        raise UsageError(
            what,
            f"nvinfer feeds float32; the input is {image.words}",
            f"Cast it in the model. {contents.others}",
        )
    if contents.manifest is not None and -1 in image.dims[1:]:
        size = "x".join(map(str, (1, *how.input_size)))
        raise UsageError(
            what,
            f"nvinfer runs one size; the engine was built for several: {image.words}",
            f"Build it for one: --shapes {image.name}={size}",
        )
    return image, how


def _packed(contents: Contents, image: Tensor, how: Preprocessing, reading: Reading) -> Packed:
    if contents.manifest is not None:
        return _packed_engine(contents, contents.manifest, how, reading)
    assert contents.model is not None
    return _packed_file(contents, with_one_scale(contents.model, image.name, how), reading)


def _packed_engine(
    contents: Contents, manifest: EngineManifest, how: Preprocessing, reading: Reading
) -> Packed:
    """Return an engine, unchanged.

    Raises:
        UsageError: it divides channels by different numbers, which nvinfer cannot.
    """
    scaling = plain_scaling(how)
    if scaling is None:
        stds = ", ".join(f"{s:g}" for s in how.stds)
        source = manifest.source.name
        raise UsageError(
            f"Cannot package {contents.path.name} for DeepStream",
            f"nvinfer has one scale for all channels, and they are divided by {stds}",
            f"Package the ONNX file: trtq package {source} --for deepstream --out DIR; it moves "
            "the division into the graph. An engine built from DIR/deepstream/model.onnx fits, too",
        )
    codes = manifest.codes if manifest.has_codes else ""
    mode = INT8 if "INT8" in codes else FP16 if manifest.precision == "fp16" else FP32
    notes = []
    if reading.scores:
        notes.append(
            "scores are read as the engine gives them: nvinfer takes no class where all are 0 or "
            "below. For probabilities build from the file that trtq package writes of the ONNX file"
        )
    core = manifest.spec.get("dla")
    dla: dict[str, Value] = {"enable-dla": 1, "use-dla-core": core} if isinstance(core, int) else {}
    return Packed(
        files={
            ENGINE: contents.data,
            manifest_path(contents.path.with_name(ENGINE)).name: as_json(manifest),
        },
        properties={"model-engine-file": ENGINE, "network-mode": mode, **dla},
        scaling=scaling,
        notes=notes,
    )


def _packed_file(contents: Contents, fed: Fed, reading: Reading) -> Packed:
    """Return an ONNX file, changed where nvinfer cannot feed or read it as it is."""
    notes = [fed.note] if fed.note else []
    model: onnx.ModelProto = fed.model
    if reading.scores:
        changed = with_probabilities(model, reading.scores)
        if changed is not None:
            model = changed
            notes.append(f"a Softmax makes {reading.scores} probabilities, as nvinfer reads them")
    data = contents.data if model is contents.model else to_bytes(model, contents.path.name)
    typed = contents.pairs > 0 or has_half(model)
    # Where the file has the types, another mode sets flags that such a network must not have.
    properties: dict[str, Value] = {
        "onnx-file": ONNX,
        "model-engine-file": f"{ONNX}_b{_batch(contents)}_gpu0_fp32.engine",  # as nvinfer names it
        "network-mode": FP32,
    }
    if typed:
        properties["strongly-typed"] = 1
        notes.append(
            "the types are in the file, which needs strongly-typed and network-mode 0. Where "
            f"DeepStream does not know strongly-typed, it builds no Q/DQ file: build {ONNX} there "
            "with trtexec, and name the engine in model-engine-file"
        )
    return Packed(files={ONNX: data}, properties=properties, scaling=fed.scaling, notes=notes)


def _batch(contents: Contents) -> int:
    return contents.batch[2] if contents.batch is not None else max(contents.inputs[0].dims[0], 1)


def _pixels(how: Preprocessing, scaling: Scaling) -> dict[str, Value]:
    """Return the keys that say how pixels become the input."""
    letterbox = how.fit == "letterbox"
    keys: dict[str, Value] = {
        "net-scale-factor": scaling.scale,
        "model-color-format": COLORS[how.channel_order] if how.channels == 3 else GRAY,
        "maintain-aspect-ratio": int(letterbox),
        "scaling-filter": FILTERS[how.interpolation],
    }
    if any(scaling.offsets):
        keys["offsets"] = scaling.offsets
    return {**keys, "symmetric-padding": 1} if letterbox else keys


def _differences(how: Preprocessing) -> list[str]:
    """Return where nvinfer's pixels are not those of the calibration."""
    notes = ["nvinfer resizes without the antialiasing that the calibration had"]
    if how.fit == "letterbox" and how.fill:
        notes.append(f"nvinfer's borders are black; the calibration had {how.fill}")
    if how.crops:
        _, height, width = how.input_size
        notes.append(
            f"nvinfer squeezes the whole frame to {width}x{height}; the calibration cut the centre "
            "out"
        )
    return notes


def _start(contents: Contents) -> tuple[str, ...]:
    lines = [
        f"`deepstream/{CONFIG}` is the configuration of nvinfer. In deepstream-app:",
        "",
        "    [primary-gie]",
        "    enable=1",
        f"    config-file=deepstream/{CONFIG}",
    ]
    if contents.manifest is not None:
        version = contents.manifest.builder.version
        lines += ["", f"DeepStream must have TensorRT {version}, with which the engine was built."]
    return tuple(lines)
