"""What an index of embeddings does.

Shapes: n entries, Q queries, D width of the embeddings.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Hit(NamedTuple):
    """An entry that a query found.

    Attributes:
        key: name of the entry.
        similarity: cosine of the query and the entry.
        metadata: what was stored with it.
    """

    key: str
    similarity: float
    metadata: Mapping[str, Any]


class Index(Protocol):
    """Unit rows under keys, with the metadata to show them by."""

    def add(self, keys: Sequence[str], rows: Tensor, metadata: Sequence[Mapping[str, Any]]) -> None:
        """Stores entries, all or none; an entry whose key is there already is replaced.

        Args:
            keys: n distinct names.
            rows: (n, D) unit rows.
            metadata: n mappings that JSON can hold.
        """
        ...

    def search(self, rows: Tensor, k: int) -> list[list[Hit]]:
        """The k entries nearest to each query (Q, D), best first; fewer if the index has fewer."""
        ...

    def keys(self) -> list[str]:
        """Keys of all entries."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Removes entries; keys that are not there are ignored."""
        ...

    def __len__(self) -> int: ...
