"""Where one shard ends and the next begins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from datamodules.pack.source import PackError


class Cut(ABC):
    """Decides for each sample whether it begins a new shard. Its `repr` is kept in the journal."""

    @abstractmethod
    def begins_shard(self, first: int, index: int, num_bytes: int, num_drafts: int) -> bool:
        """Whether a sample begins a new shard.

        Args:
            first: number of the draft that the open shard began with, from 0.
            index: number of this draft.
            num_bytes: size of the open shard with this sample in it.
            num_drafts: how many drafts there are.
        """


@final
@dataclass(frozen=True)
class BySize(Cut):
    """Shards of at most `limit` bytes, or of one sample."""

    limit: int

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise PackError(f"got shards of {self.limit} bytes; give at least 1 MB")

    def begins_shard(self, first: int, index: int, num_bytes: int, num_drafts: int) -> bool:
        """See `Cut`."""
        return num_bytes > self.limit


@final
@dataclass(frozen=True)
class ByCount(Cut):
    """`num_shards` shards of as many drafts each (one more or less)."""

    num_shards: int

    def __post_init__(self) -> None:
        if self.num_shards < 1:
            raise PackError(f"got {self.num_shards} shards; give at least 1")

    def begins_shard(self, first: int, index: int, num_bytes: int, num_drafts: int) -> bool:
        """See `Cut`."""
        if num_drafts < self.num_shards:
            raise PackError(f"cannot make {self.num_shards} shards of {num_drafts} samples")
        return first * self.num_shards // num_drafts != index * self.num_shards // num_drafts
