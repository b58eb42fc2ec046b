"""A tokenizer of a few words."""

from __future__ import annotations

from pathlib import Path

import pytest

WORDS = ("[PAD]", "[UNK]", "one", "two", "three", "four")


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json; without the package the test is skipped by name."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
