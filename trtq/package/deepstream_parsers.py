"""Who reads the outputs of a detector for nvinfer, by its head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from trtq.errors import UsageError
from trtq.package.consumer import Choices, Files
from trtq.package.contents import Contents
from trtq.package.template import template
from trtq.tasks.heads import Head
from trtq.tasks.heads.end_to_end import EndToEnd
from trtq.tasks.heads.yolo import Rows, Yolo, YoloObjectness

NMS, NONE = 2, 4  # cluster-mode
SOURCE, MAKEFILE, LIBRARY = "nvdsinfer_trtq.cpp", "Makefile", "libnvdsinfer_trtq.so"
FOLDER, OWN = "parser", "NvDsInferParseTrtq"


@dataclass(frozen=True, kw_only=True)
class Parser:
    """A function that nvinfer calls.

    Attributes:
        function: its name.
        library: the file that has it, as the configuration names it.
        cluster: nvinfer's cluster-mode behind it.
        files: its source, by path below the consumer's folder; empty where the user supplies it.
        note: what the user must supply, "" for nothing.
    """

    function: str
    library: str
    cluster: int
    files: Files = field(default_factory=dict)
    note: str = ""


# Functions of NVIDIA's libraries whose outputs are those of a head.
STOCK: Mapping[str, Parser] = {
    "tensorflow": Parser(
        function="NvDsInferParseCustomTfSSD",
        library="/opt/nvidia/deepstream/deepstream/lib/libnvds_infercustomparser.so",
        cluster=NONE,
        note="the parser is in DeepStream's own library",
    ),
    "efficient-nms": Parser(
        function="NvDsInferParseCustomEfficientNMS",
        library="libnvds_infercustomparser_tao.so",
        cluster=NONE,
        note="the parser is in NVIDIA-AI-IOT/deepstream_tao_apps, post_processor: build it there "
        "and put libnvds_infercustomparser_tao.so beside the configuration; it wants the outputs "
        "in the order number, boxes, scores, classes",
    ),
}


def find_parser(contents: Contents, head: Head, choices: Choices) -> Parser:
    """Return the parser of a detector: the one that was named, a written one, or NVIDIA's.

    Args:
        contents: of the package, for errors.
        head: how the outputs encode boxes.
        choices: of the user; a parser needs its library and the reverse.

    Raises:
        UsageError: none is known for the head; the error says what to write.
    """
    if choices.parser or choices.parser_library:
        return _named(head, choices)
    own = _written(head)
    if own is not None:
        return own
    if head.name in STOCK:
        return STOCK[head.name]
    raise UsageError(
        f"No parser is known for the head {head.name} of {contents.path.name}",
        f"nvinfer needs a C function that reads {head.summary}",
        "Write one with the prototype NvDsInferParseCustomFunc of nvdsinfer_custom_impl.h, and "
        "give --parser FUNCTION --parser-library FILE.so",
    )


def _named(head: Head, choices: Choices) -> Parser:
    if not choices.parser or not choices.parser_library:
        given, missing = ("--parser", "--parser-library")[:: 1 if choices.parser else -1]
        raise UsageError(
            f"{given} needs {missing}",
            "nvinfer loads a function from a library",
            "Give --parser FUNCTION --parser-library FILE.so",
        )
    return Parser(
        function=choices.parser,
        library=choices.parser_library,
        cluster=NONE if isinstance(head, EndToEnd) else NMS,
        note=f"you supply {choices.parser_library} with the function {choices.parser}",
    )


def _written(head: Head) -> Parser | None:
    """Return a parser with its source; None for heads with other outputs."""
    selected = isinstance(head, EndToEnd) and not head.gives
    if selected:
        values = {"ANCHORS_FIRST": "true", "SELECTED": "true", "OBJECTNESS": "0"}
    elif isinstance(head, Rows) and type(head) in (Yolo, YoloObjectness):
        last = "true" if head.last else "false"
        values = {"ANCHORS_FIRST": last, "SELECTED": "false", "OBJECTNESS": str(head.objectness)}
    else:
        return None
    values["OUTPUT"] = msgspec.json.encode(head.outputs[0]).decode()
    source = template(SOURCE).decode()
    for name, value in values.items():
        source = source.replace(f"@{name}@", value)
    return Parser(
        function=OWN,
        library=f"{FOLDER}/{LIBRARY}",
        cluster=NONE if selected else NMS,
        files={
            f"{FOLDER}/{SOURCE}": source.encode(),
            f"{FOLDER}/{MAKEFILE}": template("parser.mk"),
        },
        note=f"build the parser where DeepStream is: make -C {FOLDER}",
    )
