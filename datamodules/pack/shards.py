"""Existing shards as a source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import final

from datamodules.archive import MAX_NAME, find_samples, inspect_shard, read_members, split_member
from datamodules.headers import DamagedShard, open_archive
from datamodules.manifest import KNOWN
from datamodules.pack.source import Draft, PackError, Plan, Refusal, Source
from datamodules.urls import local_shards

SUFFIXES = (".tar", ".tar.gz", ".tgz")


@final
class ShardSource(Source):
    """The samples of shards, in order. A damaged shard is refused whole.

    Members of other extensions are refused one by one; the rest of their sample is packed.

    Args:
        pattern: a folder of shards, or a path, glob or brace list as `read_shards` takes it.
        target: the folder that is written to; the shards must lie elsewhere.
    """

    def __init__(self, pattern: str, target: Path | None = None) -> None:
        self.pattern, self.target = pattern, target

    def plan(self) -> Plan:
        """Walks the headers of all shards; `items` reads them."""
        folder = Path(self.pattern)
        if folder.is_dir():
            paths = [path for path in sorted(folder.iterdir()) if path.name.endswith(SUFFIXES)]
            if not paths:
                raise PackError(f"{folder} holds no shard; wanted {', '.join(SUFFIXES)}")
        else:
            paths = local_shards([self.pattern])
        folders = {path.parent.resolve() for path in paths}
        if self.target is not None and self.target.resolve() in folders:
            raise PackError(f"the shards lie in {self.target} already; write to another folder")
        count = sum(len({split_member(n)[0] for n in inspect_shard(p, KNOWN)[0]}) for p in paths)
        return Plan(count, (item for path in paths for item in _read(path)))


def _read(path: Path) -> Iterator[Draft | Refusal]:
    try:
        with open_archive(path) as stream:
            for found in find_samples(stream, KNOWN, path.name):
                source = f"{path.name}:{found.key[:MAX_NAME]}"
                if found.refused is not None:
                    yield Refusal(source, found.refused.member, found.refused.reason)
                    continue
                for extension in found.others:
                    reason = "its extension is not one of those that are packed"
                    yield Refusal(source, extension, reason)
                yield Draft(source, found.key, read_members(stream, found))
    except DamagedShard as error:
        yield Refusal(path.name, "", str(error))
