"""A C++ program that runs the engine with TensorRT and CUDA's runtime alone."""

from __future__ import annotations

import msgspec

from trtq.engine.manifest import EngineManifest
from trtq.errors import UsageError
from trtq.package.consumer import Choices, Files, Parts
from trtq.package.contents import Contents, Tensor
from trtq.package.python_program import BUILD_FIRST, ENGINE, engine_files, require_names
from trtq.package.template import template

SOURCE, CMAKE, HEADER = "main.cpp", "CMakeLists.txt", "model.h"
LIBRARIES = {True: "tensorrt_rtx", False: "nvinfer"}
BYTES = {
    "float64": 8,
    "int64": 8,
    "float32": 4,
    "int32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


class CppProgram:
    """A program to be compiled where it runs."""

    name = "cpp"
    title = "C++ program"
    takes = "an engine of TensorRT from 8.5 on or of TensorRT for RTX"

    def write(self, contents: Contents, choices: Choices) -> Parts:
        """Return the source, the engine and its manifest.

        Raises:
            UsageError: it is an ONNX file, TensorRT is older than tensors with names, or a type has
                no whole bytes.
        """
        del choices
        manifest = contents.require_engine("a program", BUILD_FIRST)
        require_names(contents, manifest)
        cmake = template(CMAKE).decode().replace("@LIBRARY@", LIBRARIES[contents.is_rtx])
        files: Files = {
            SOURCE: template(SOURCE),
            HEADER: _header(contents, manifest),
            CMAKE: cmake.encode(),
            **engine_files(contents, manifest),
        }
        notes = [*contents.profile_notes, "the program takes raw values, not images"]
        return Parts(files=files, start=_start(contents, manifest), notes=notes)


def _header(contents: Contents, manifest: EngineManifest) -> bytes:
    """Return what the program must know of the engine."""
    core = manifest.spec.get("dla")
    built = f"{manifest.built_with}, {manifest.device}"
    if contents.preprocess is not None:
        how = [f"// An image becomes the input by: {contents.preprocess.words}"]
    else:
        how = []
    lines = [
        "// What main.cpp knows of the engine. Written by trtq package.",
        *how,
        "#pragma once",
        "",
        "#include <cstddef>",
        "#include <cstdint>",
        "#include <vector>",
        "",
        f"#define TRTQ_HOST_CODE {int(bool(manifest.spec.get('version_compatible')))}",
        "",
        "namespace model {",
        "",
        "struct Tensor {",
        "  const char* name;",
        "  const char* dtype;",
        "  std::size_t bytes;  // of one value",
        "  std::vector<std::int64_t> usual;  // shape of an input; empty for outputs",
        "};",
        "",
        f"constexpr char kEngine[] = {_quoted(ENGINE)};",
        f"constexpr char kBuiltFor[] = {_quoted(built)};",
        f"constexpr std::size_t kEngineBytes = {len(contents.data)};",
        f"constexpr int kDlaCore = {core if isinstance(core, int) else -1};",
        "const std::vector<Tensor> kTensors{",
        *(f"    {_row(t)}," for t in (*contents.inputs, *contents.outputs)),
        "};",
        "",
        "}  // namespace model",
    ]
    return ("\n".join(lines) + "\n").encode()


def _row(tensor: Tensor) -> str:
    """Return a tensor as a row of ``kTensors``.

    Raises:
        UsageError: its values have no whole bytes, such as INT4.
    """
    if tensor.dtype not in BYTES:
        raise UsageError(
            f"Cannot package the tensor {tensor.words} for a program",
            f"values of {tensor.dtype} have no whole bytes of a known size",
            "Cast it in the model, to float32 or float16",
        )
    usual = ", ".join(map(str, tensor.usual or ())) if tensor.spans else ""
    name, dtype = _quoted(tensor.name), _quoted(tensor.dtype)
    return f"{{{name}, {dtype}, {BYTES[tensor.dtype]}, {{{usual}}}}}"


def _quoted(text: str) -> str:
    """Return a text as C++ writes it.

    Raises:
        UsageError: it has a character that cannot be printed.
    """
    if not text.isprintable():
        raise UsageError(
            f"Cannot write {text!r} into a C++ program",
            "it has a character that cannot be printed",
            "Rename the input or output",
        )
    return msgspec.json.encode(text).decode()


def _start(contents: Contents, manifest: EngineManifest) -> tuple[str, ...]:
    given = " ".join(f"{t.name}={t.name}.bin" for t in contents.inputs)
    return (
        f"With {manifest.builder.backend} {manifest.builder.version}, CUDA and CMake:",
        "",
        "    cd cpp",
        "    cmake -B build -DTENSORRT_ROOT=/path/to/TensorRT && cmake --build build",
        f"    build/run {given} --out .",
        "",
        "An input is a file of raw values; behind it a shape: "
        f"`{contents.inputs[0].name}=FILE:1x3x64x64`.",
    )
