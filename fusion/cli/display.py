"""How entries and words are shown in a terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def origin_of(metadata: Mapping[str, Any]) -> str:
    """Path of an entry's first file, or its shard and key."""
    source, files = metadata.get("source", ""), metadata.get("files")
    if files:
        return str(Path(source, next(iter(files.values()))))
    return f"{source}: {metadata.get('key', '')}"


def printable(text: str) -> str:
    """One line without control characters: captions come from strangers, terminals obey them."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
