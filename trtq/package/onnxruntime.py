"""ONNX Runtime: an ONNX file of one EPContext node that holds the engine, or names its file.

The providers of TensorRT and of TensorRT for RTX read ``embed_mode`` and ``ep_cache_context``, and
compare ``hardware_architecture`` with the GPU (onnx_ctx_model_helper.cc of both). ``source`` names
the provider that the node is for: where several are registered, each takes its own nodes.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from trtq.artifact import size_words
from trtq.engine.manifest import EngineManifest, manifest_path
from trtq.errors import UsageError
from trtq.package.consumer import Choices, Files, Parts
from trtq.package.contents import Contents, Tensor
from trtq.package.files import as_json
from trtq.version import __version__

DOMAIN, OP = "com.microsoft", "EPContext"
PROVIDERS = {True: "NvTensorRTRTXExecutionProvider", False: "TensorrtExecutionProvider"}
MODEL, ENGINE, MANIFEST = "model_ctx.onnx", "model.engine", "manifest.json"
OPSET, IR_VERSION = 20, 10
LARGEST = (1 << 31) - (1 << 20)  # of a protobuf file, with room for what is around the engine
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float64": TensorProto.DOUBLE,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}  # that the operator's schema takes


class OnnxRuntime:
    """ONNX Runtime with the provider of the engine's TensorRT."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    takes = "an engine"

    def write(self, contents: Contents, choices: Choices) -> Parts:
        """Return the ONNX file around the engine.

        Raises:
            UsageError: it is an ONNX file, too large to be embedded, or has a type without a
                counterpart.
        """
        manifest = contents.require_engine(
            self.title, "ONNX Runtime runs the file as it is; build an engine from it: trtq build"
        )
        if choices.embed and len(contents.data) > LARGEST:
            raise UsageError(
                f"Cannot embed {contents.path.name}",
                f"it has {size_words(len(contents.data))}, and an ONNX file ends at 2 GB",
                "Leave --embed out",
            )
        model = context_model(contents, manifest, choices.name, embed=choices.embed)
        files: Files = {MODEL: model.SerializeToString()}
        beside = MANIFEST if choices.embed else manifest_path(Path(ENGINE)).name
        files[beside] = as_json(manifest)
        if not choices.embed:
            files[ENGINE] = contents.data
        provider = PROVIDERS[contents.is_rtx]
        notes = [f"the node is for {provider}; no other provider runs it"]
        notes += contents.profile_notes
        if contents.batch is None and any(-1 in t.dims for t in contents.inputs):
            notes.append("shapes outside the profile that the engine was built for are refused")
        return Parts(files=files, start=_start(contents, manifest), notes=notes)


def context_model(
    contents: Contents, manifest: EngineManifest, name: str, *, embed: bool
) -> onnx.ModelProto:
    """Return the model of one node.

    Args:
        contents: of the engine.
        manifest: of the engine.
        name: of the model.
        embed: whether the node holds the engine's bytes, else the name of the file beside it.

    Returns:
        a checked model with the inputs and outputs of the engine; open axes without a name are
        called ``TENSOR_AXIS``.

    Raises:
        UsageError: an input or output has a type that the node cannot have.
    """
    node = helper.make_node(
        OP,
        [t.name for t in contents.inputs],
        [t.name for t in contents.outputs],
        name=name,
        domain=DOMAIN,
        main_context=1,
        embed_mode=int(embed),
        ep_cache_context=contents.data if embed else ENGINE,
        ep_sdk_version=manifest.builder.version,
        hardware_architecture=_architecture(manifest),
        onnx_model_filename=manifest.source.name,
        partition_name=name,
        source=PROVIDERS[contents.is_rtx],
    )
    graph = helper.make_graph(
        [node],
        name,
        [_value(t) for t in contents.inputs],
        [_value(t) for t in contents.outputs],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="trtq"
    )
    model.producer_version = __version__
    onnx.checker.check_model(model)
    return model


def _architecture(manifest: EngineManifest) -> str:
    """Return the compute capability as the providers write it: ``86``, or ``80+``."""
    if manifest.spec.get("hardware_compatible") == "ampere+":
        return "80+"
    return manifest.target.capability.replace(".", "")


def _value(tensor: Tensor) -> onnx.ValueInfoProto:
    if tensor.dtype not in TYPES:
        raise UsageError(
            f"Cannot package the tensor {tensor.words} for ONNX Runtime",
            f"EPContext takes no {tensor.dtype}",
            "Cast it in the model, to float32 or float16",
        )
    shape = [f"{tensor.name}_{i}" if a == "" else a for i, a in enumerate(tensor.axes)]
    return helper.make_tensor_value_info(tensor.name, TYPES[tensor.dtype], shape)


PLUGIN = """
    import onnxruntime
    import onnxruntime_ep_nv_tensorrt_rtx as plugin

    name = plugin.get_ep_name()
    onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    options = onnxruntime.SessionOptions()
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == name]
    options.add_provider_for_devices(devices, {})
    session = onnxruntime.InferenceSession("onnxruntime/MODEL", options)
"""
BUILT_IN = """
    import onnxruntime

    providers = ["TensorrtExecutionProvider"]
    session = onnxruntime.InferenceSession("onnxruntime/MODEL", providers=providers)
"""


def _start(contents: Contents, manifest: EngineManifest) -> tuple[str, ...]:
    code = PLUGIN if contents.is_rtx else BUILT_IN
    wheel = (
        "onnxruntime onnxruntime-ep-nv-tensorrt-rtx-cu13"
        if contents.is_rtx
        else ("onnxruntime-gpu")
    )
    return (
        f"`pip install {wheel}`. Load the file in place of the engine, which must be beside it "
        "where it is not inside:",
        *code.replace("MODEL", MODEL).splitlines(),
        "",
        f"The provider must have {manifest.builder.backend} {manifest.builder.version}, and the "
        f"GPU compute capability {manifest.target.capability}.",
    )
