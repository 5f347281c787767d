"""Filling an index with what a pipeline embeds, and asking it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusion.inference import Inputs, Item, Pipeline
from fusion.retrieval.base import Hit, Index

_BATCH = 64


class Entry(NamedTuple):
    """Something to index.

    Attributes:
        key: its name in the index.
        item: what is embedded.
        metadata: what is shown of it when it is found.
    """

    key: str
    item: Item
    metadata: Mapping[str, Any]


def add_entries(
    pipeline: Pipeline,
    index: Index,
    entries: Iterable[Entry],
    refuse: Callable[[Entry, str], None],
    progress: Callable[[], object] = lambda: None,
) -> list[str]:
    """Embeds entries and stores them in one step, so that an index is never half filled.

    Args:
        pipeline: what embeds them.
        index: what stores them.
        entries: read one by one, so that only their embeddings are held; of equal keys the last
            counts.
        refuse: called with an entry that cannot be embedded, and the reason.
        progress: called after each entry.

    Returns:
        Keys of the stored entries.
    """
    metadata: dict[str, Mapping[str, Any]] = {}
    rows: dict[str, Tensor] = {}
    waiting: dict[str, Inputs] = {}
    for entry in entries:
        try:
            waiting[entry.key] = pipeline.prepare(entry.item)
            metadata[entry.key] = entry.metadata
        except ValueError as error:
            refuse(entry, str(error))
        if len(waiting) == _BATCH:
            _embed(pipeline, waiting, rows)
        progress()
    _embed(pipeline, waiting, rows)
    if rows:
        index.add(list(rows), torch.stack(list(rows.values())), [metadata[key] for key in rows])
    return list(rows)


def _embed(pipeline: Pipeline, waiting: dict[str, Inputs], rows: dict[str, Tensor]) -> None:
    """Moves what waits to `rows`, embedded."""
    rows.update(zip(waiting, pipeline.embed(list(waiting.values())), strict=True))
    waiting.clear()


def find(pipeline: Pipeline, index: Index, query: Item, k: int) -> list[Hit]:
    """The k entries nearest to a query of any modalities, fused into one."""
    return index.search(pipeline.encode([query]), k)[0]
