"""The file between ``trtq allocate`` and ``trtq quantize --allocation``.

It holds a width for every layer of one model.
"""

from __future__ import annotations

from pathlib import Path

from trtq.artifact import SCHEMA, check_record, read_json
from trtq.errors import ArtifactError
from trtq.quant.formats import BitConfig
from trtq.records.allocate import AllocateRecord


def read_allocation(path: Path, weights_sha256: str) -> dict[str, BitConfig]:
    """Return the width of every layer.

    Args:
        path: what ``trtq allocate`` wrote.
        weights_sha256: of the model that is quantized.

    Raises:
        ArtifactError: missing, damaged, no allocation, or made for a model with other weights.
    """
    content = read_json(path, kind="allocation")
    if content.get("verb") != "allocate" or content.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{path} holds no allocation",
            f"it is of {content.get('verb', 'something else')}",
            "Make one: trtq allocate ...",
        )
    record = check_record(content, path, AllocateRecord, kind="allocation")
    made_for = record.model.weights_sha256
    if made_for != weights_sha256:
        raise ArtifactError(
            f"The allocation {path} was made for another model",
            f"its weights are {made_for[:12]}, this model's are {weights_sha256[:12]}",
            "Run trtq analyze and trtq allocate on this model",
        )
    return {layer.name: BitConfig.parse(layer.option) for layer in record.layers}
