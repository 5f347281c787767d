"""Existing shards as a source."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import final

from datamodules.archive import MAX_NAME, inspect_shard, split_member
from datamodules.manifest import KNOWN
from datamodules.pack.source import Draft, PackError, Plan, Refusal, Source
from datamodules.shards import expand_shards

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
            paths = expand_shards([self.pattern])
        folders = {path.parent.resolve() for path in paths}
        if self.target is not None and self.target.resolve() in folders:
            raise PackError(f"the shards lie in {self.target} already; write to another folder")
        count = sum(len({split_member(n)[0] for n in inspect_shard(p, KNOWN)[0]}) for p in paths)
        return Plan(count, (item for path in paths for item in _read(path)))


def _read(path: Path) -> Iterator[Draft | Refusal]:
    accepted, rejected = inspect_shard(path, KNOWN)
    for item in rejected:
        source = f"{path.name}:{item.key}" if item.key else path.name
        yield Refusal(source, item.member, item.reason)
    if not accepted:
        return
    key: str | None = None
    members: dict[str, bytes] = {}
    refused = {item.key for item in rejected}
    for name, extension, content in _members(path, accepted):
        if name[:MAX_NAME] in refused or (content is None and extension in KNOWN):
            continue
        if content is None:
            reason = "its extension is not one of those that are packed"
            yield Refusal(f"{path.name}:{name}", extension, reason)
            continue
        if name != key and key is not None:
            yield Draft(f"{path.name}:{key}", key, members)
            members = {}
        key = name
        members[extension] = content
    if key is not None:
        yield Draft(f"{path.name}:{key}", key, members)


def _members(path: Path, accepted: set[str]) -> Iterator[tuple[str, str, bytes | None]]:
    """(key, extension, bytes) of the members; the bytes are None where they are not read."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        with tarfile.open(fileobj=stream, mode="r:") as archive:  # type: ignore[call-overload]
            for info in archive:
                key, extension = split_member(info.name)
                file = archive.extractfile(info) if info.name in accepted else None
                if key is not None and extension is not None and info.isreg():
                    yield key, extension, file.read() if file else None
                archive.members = []  # type: ignore[attr-defined]  # constant memory
