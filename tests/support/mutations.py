"""Deterministic damage for files: bytes, JSON, TOML, safetensors, ONNX and checkpoints."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
from typing import Any

import onnx

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2**63,
    -(2**70),
    0.5,
    -1e308,
    1e-320,
    "",
    "x",
    "nan",
    "\x1b[31m\u202e",
    "~",
    "../../etc",
    "/",
    "a" * 300,
    [],
    {},
    [1],
    ["x"],
    [[]],
    [None],
    {"a": 1},
    {"schema": 9},
    [1, 2, 3, 4, 5, 6],
    "2026-13-40",
    "w8a8",
    "int8",
)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one to three places changed, cut off, doubled or left out."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(made) or 1)
        size = rng.choice((1, 2, 8, 64, 1024))
        how = rng.randrange(6)
        if how == 0 and made:
            made[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            made[at : at + size] = rng.randbytes(size)
        elif how == 2:
            del made[at : at + size]
        elif how == 3:
            del made[at:]
        elif how == 4:
            made[at:at] = made[at : at + size]
        else:
            made[at:at] = rng.choice(
                (
                    b"\0",
                    b"\xff\xfe",
                    b"\xef\xbb\xbf",
                    b"{",
                    b"[" * 5000,
                    b"1e999",
                    b"-",
                    b'"',
                    b"\n",
                )
            )
    return bytes(made)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(p for k, v in inside for p in _places(v, (*path, k)))]


def _holder(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


def mutate_tree(tree: Any, rng: random.Random) -> Any:
    """Return a JSON-like value with one or two places replaced, removed, doubled or renamed.

    Places near the root are chosen more often.
    """
    made = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 2)):
        by_depth: dict[int, list[tuple[Any, ...]]] = {}
        for place in _places(made):
            by_depth.setdefault(len(place), []).append(place)
        path = rng.choice(by_depth[rng.choice(sorted(by_depth))])
        if not path:
            if rng.random() < 0.2:
                return rng.choice(VALUES)
            continue
        holder, key = _holder(made, path), path[-1]
        how = rng.randrange(4)
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif how == 2 and isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        else:
            holder[key] = rng.choice(VALUES)
    return made


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Return JSON whose structure was changed, or bytes that are JSON no more."""
    if rng.random() < 0.25:
        return mutate_bytes(data, rng)
    return json.dumps(mutate_tree(json.loads(data), rng)).encode()


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """Return text with lines left out, doubled, swapped, or given another value."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    lines = data.decode().splitlines()
    for _ in range(rng.randint(1, 2)):
        i, how = rng.randrange(len(lines)), rng.randrange(4)
        name, sep, _ = lines[i].partition(rng.choice(("=", ":")))
        if how == 0 and len(lines) > 1:
            del lines[i]
        elif how == 1:
            lines.insert(i, rng.choice(lines))
        elif how == 2:
            lines[i] = f"{name} {sep or '='} {json.dumps(rng.choice(VALUES))}"
        else:
            lines[i] = lines[i][::-1]
    return "\n".join(lines).encode()


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Return the file with another header, whose length is right, or with other bytes."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    inner = header.get("__metadata__", {}).get("header")
    if inner is not None and rng.random() < 0.5:
        header["__metadata__"]["header"] = json.dumps(mutate_tree(json.loads(inner), rng))
    else:
        header = mutate_tree(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def mutate_zip(data: bytes, rng: random.Random) -> bytes:
    """Return a zip, such as a .pt file, with one entry changed or left out."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as given, zipfile.ZipFile(out, "w") as made:
        names = given.namelist()
        chosen = rng.choice(
            [n for n in names if n.endswith(".pkl")] if rng.random() < 0.6 else names
        )
        for name in names:
            content = given.read(name)
            if name != chosen:
                made.writestr(name, content)
            elif rng.random() < 0.8:
                made.writestr(name, mutate_bytes(content, rng))
    return out.getvalue()


def mutate_onnx(data: bytes, rng: random.Random) -> bytes:
    """Return a damaged model.

    A node, a constant, a shape, a type or metadata is changed, or the bytes are.
    """
    if rng.random() < 0.25:
        return mutate_bytes(data, rng)
    model = onnx.load_from_string(data)
    for _ in range(rng.randint(1, 2)):
        rng.choice(ONNX_CHANGES)(model, rng)
    return model.SerializeToString()


def _node(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = model.graph.node
    if not nodes:
        return
    node, how = rng.choice(nodes), rng.randrange(6)
    if how == 0:
        nodes.remove(node)
    elif how == 1:
        node.op_type = rng.choice(
            ("Conv", "Nope", "", "Add", "If", "Constant", "QuantizeLinear", "Reshape")
        )
    elif how == 2 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(
            ("", "nowhere", node.output[0] if node.output else "x")
        )
    elif how == 3:
        del node.input[:]
    elif how == 4:
        del node.attribute[:]
    else:
        node.domain, node.name = (
            rng.choice(("", "ai.onnx.ml", "mine")),
            rng.choice(("", "a b", "\x1b[2J")),
        )


def _constant(model: onnx.ModelProto, rng: random.Random) -> None:
    constants = model.graph.initializer
    if not constants:
        return
    tensor, how = rng.choice(constants), rng.randrange(5)
    if how == 0:
        constants.remove(tensor)
    elif how == 1:
        tensor.data_type = rng.choice((0, 1, 3, 7, 8, 10, 11, 14, 21, 99))
    elif how == 2:
        tensor.raw_data = mutate_bytes(tensor.raw_data, rng)
    elif how == 3:
        del tensor.dims[:]
        tensor.dims.extend(rng.choice(([], [0], [-1], [1, 1], [2**40], [3, 2, 1])))
    else:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = (
            "location",
            rng.choice(("none.bin", "../../etc/passwd", "", "/dev/zero")),
        )


def _value(model: onnx.ModelProto, rng: random.Random) -> None:
    values = list(model.graph.input) if rng.random() < 0.5 else list(model.graph.output)
    if not values:
        return
    value, how = rng.choice(values), rng.randrange(5)
    tensor = value.type.tensor_type
    if how == 0:
        tensor.elem_type = rng.choice((0, 1, 7, 8, 10, 11))
    elif how == 1:
        value.name = rng.choice(("", "other"))
    elif how == 2:
        tensor.ClearField("shape")
    elif how == 3 and tensor.shape.dim:
        rng.choice(tensor.shape.dim).dim_value = rng.choice((0, -1, 1, 2**40))
    else:
        del (model.graph.input if rng.random() < 0.5 else model.graph.output)[:]


def _head(model: onnx.ModelProto, rng: random.Random) -> None:
    how = rng.randrange(4)
    if how == 0 and model.opset_import:
        model.opset_import[0].version = rng.choice((0, 1, 9, 13, 99, -1))
    elif how == 1:
        del model.opset_import[:]
    elif how == 2:
        model.ir_version = rng.choice((0, 2, 99))
    elif model.metadata_props:
        entry = rng.choice(model.metadata_props)
        entry.value = mutate_json(entry.value.encode(), rng).decode("utf-8", "replace")


ONNX_CHANGES = (_node, _node, _constant, _value, _head)
