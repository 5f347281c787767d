"""Indexes of embeddings, and searching them."""

from fusion.retrieval.base import Hit, Index
from fusion.retrieval.lance import LanceIndex
from fusion.retrieval.search import Entry, add_entries, find

__all__ = ["Entry", "Hit", "Index", "LanceIndex", "add_entries", "find"]
