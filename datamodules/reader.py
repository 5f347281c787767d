"""Reads single samples out of shards, by the number of the shard and of the sample in it."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, final

from datamodules.archive import Found, find_samples
from datamodules.cache import ShardCache
from datamodules.headers import DamagedShard
from datamodules.manifest import ShardEntry
from datamodules.reasons import Reason
from datamodules.samples import Members, Rejected, Sample, build_sample
from datamodules.shards import known_extensions
from datamodules.urls import FetchError, is_remote

NUM_OPEN = 64


class Shard(NamedTuple):
    """A shard whose samples can be counted off.

    Attributes:
        url: where it is.
        num_samples: how many samples are in it, those that will be refused included.
        entry: what its manifest says; None without one.
    """

    url: str
    num_samples: int
    entry: ShardEntry | None = None


class OpenShard(NamedTuple):
    """A plain tar that is open, and what was found in it."""

    file: BinaryIO
    samples: Sequence[Found]


@final
class ShardReader:
    """Samples by address, from any number of shards; a few are open at a time.

    Only headers are read before a sample is asked for, and of a sample only the members that are
    wanted. It may be used in any process, also after a fork.

    Args:
        shards: the shards.
        members: modality -> extensions in order of preference.
        cache: brings shards that are remote or packed.
        num_open: shards that a process keeps open; those that are read in turn should fit, for a
            shard that is opened again is walked through again.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        members: Members,
        cache: ShardCache,
        num_open: int = NUM_OPEN,
    ) -> None:
        self.shards, self.members, self.cache = shards, members, cache
        self.num_open = num_open
        self._wanted = known_extensions(members)
        self._open: OrderedDict[int, OpenShard | Rejected] = OrderedDict()

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def read(self, shard: int, row: int) -> Sample | Rejected:
        """Reads one sample, its inputs as bytes.

        Raises:
            FetchError: a remote shard cannot be had.
            OSError: a file is gone or cannot be read.
        """
        opened = self._opened(shard)
        if isinstance(opened, Rejected):
            return opened
        found, url = opened.samples[row], self.shards[shard].url
        if found.refused is not None:
            return found.refused
        fields = {}
        for extension, member in found.members.items():
            # pread has no position, so forks of this process may share the file.
            fields[extension] = os.pread(opened.file.fileno(), member.size, member.offset)
            if len(fields[extension]) < member.size:
                reason = "the shard was cut off after it was opened; build or fetch it again"
                return Rejected(url, found.key, extension, Reason.CHANGED_SHARD, reason)
        return build_sample(found.key, url, fields, self.members)

    def _opened(self, shard: int) -> OpenShard | Rejected:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        while len(self._open) >= self.num_open:
            _, oldest = self._open.popitem(last=False)
            if isinstance(oldest, OpenShard):
                oldest.file.close()
        self._open[shard] = opened = self._index(self.shards[shard])
        return opened

    def _index(self, shard: Shard) -> OpenShard | Rejected:
        opened = open_shard(shard.url, self._wanted, self.cache, shard.entry)
        if isinstance(opened, Rejected) or len(opened.samples) == shard.num_samples:
            return opened
        opened.file.close()
        reason = (
            f"it holds {len(opened.samples)} samples, not the {shard.num_samples} of its manifest "
            "or of the start of this run; build or fetch it again"
        )
        return Rejected(shard.url, "", "", Reason.CHANGED_SHARD, reason)


def open_shard(
    url: str, wanted: Container[str], cache: ShardCache, entry: ShardEntry | None = None
) -> OpenShard | Rejected:
    """Opens a shard and walks through its headers.

    Returns:
        The open shard; or why a local one is refused, which is damage, not a fault of the network.

    Raises:
        FetchError: a remote shard cannot be had.
        OSError: a file is gone or cannot be read.
    """
    try:
        file = cache.open(url, entry)
    except FetchError as error:
        if is_remote(url):
            raise
        return Rejected(url, "", "", Reason.DAMAGED_SHARD, str(error))
    try:
        return OpenShard(file, find_samples(file, wanted, url))
    except DamagedShard as error:
        file.close()
        return Rejected(url, "", "", error.reason, str(error))


def count_shards(
    urls: Sequence[str],
    members: Members,
    cache: ShardCache,
    entries: Mapping[str, ShardEntry],
) -> tuple[list[Shard], list[Rejected]]:
    """Counts the samples of shards: from their manifests, or by a walk through their headers.

    Args:
        urls: the shards, see `datamodules.urls.expand_shards`.
        members: modality -> extensions.
        cache: brings remote shards that no manifest describes.
        entries: what manifests say, by URL.

    Returns:
        (the shards, those that are damaged; these are left out).

    Raises:
        FetchError: a remote shard cannot be had.
        OSError: a file is gone or cannot be read.
    """
    from rich.console import Console
    from rich.progress import track

    wanted = known_extensions(members)
    quiet = sum(url not in entries for url in urls) < 2  # a manifest is no work
    console = Console(stderr=True)
    counted = [
        _count(url, wanted, cache, entries.get(url))
        for url in track(urls, "Counting samples", console=console, transient=True, disable=quiet)
    ]
    shards = [shard for shard in counted if isinstance(shard, Shard)]
    return shards, [item for item in counted if isinstance(item, Rejected)]


def _count(
    url: str, wanted: Container[str], cache: ShardCache, entry: ShardEntry | None
) -> Shard | Rejected:
    if entry is not None:
        fault = _against_size(url, entry)
        return (
            Rejected(url, "", "", Reason.CHANGED_SHARD, fault)
            if fault
            else Shard(url, entry.samples, entry)
        )
    opened = open_shard(url, wanted, cache)
    if isinstance(opened, Rejected):
        return opened
    opened.file.close()
    return Shard(url, len(opened.samples))


def _against_size(url: str, entry: ShardEntry) -> str:
    """What is wrong with the size of a local shard; "" if nothing, or if it is remote."""
    path = Path(url)
    if not path.exists() or (size := path.stat().st_size) == entry.bytes:
        return ""
    return f"it has {size} bytes, not the {entry.bytes} of its manifest; build or fetch it again"
