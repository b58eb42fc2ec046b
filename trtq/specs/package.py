"""The model to package, and its consumers."""

from __future__ import annotations

from typing import Annotated

from trtq.specs.base import Doc, PathDoc
from trtq.specs.inputs import PictureSpec


class PackageSpec(PictureSpec, frozen=True, kw_only=True):
    """Write a folder that a consumer starts from.

    Options about images say what a file does not, or replace what it says.
    """

    file: Annotated[
        str, PathDoc(description="An engine with its manifest beside it, or an ONNX file.")
    ]
    for_: Annotated[
        tuple[str, ...],
        Doc(
            description="Who runs it: triton, deepstream, onnxruntime, python or cpp; each gets a "
            "folder of its own. Repeatable."
        ),
    ]
    out: Annotated[
        str, PathDoc(description="The folder; package.json in it has the digest of every file.")
    ]
    name: Annotated[
        str | None, Doc(description="Name of the model; default: the file's, without its suffixes.")
    ] = None
    task: Annotated[
        str | None,
        Doc(description="Meaning of the outputs, such as detection:yolo; default: the file's own."),
    ] = None
    labels: Annotated[
        str | None,
        PathDoc(description="Names of the classes, one a line; default: those of the file."),
    ] = None
    embed: Annotated[
        bool,
        Doc(
            description="For onnxruntime: the engine is inside the ONNX file (embed_mode 1), not "
            "beside it."
        ),
    ] = False
    parser: Annotated[
        str | None,
        Doc(
            description="For deepstream: the function that reads a detector's outputs; default: "
            "the known one of its head."
        ),
    ] = None
    parser_library: Annotated[
        str | None,
        Doc(description="For deepstream: the library of --parser, as nvinfer finds it."),
    ] = None
