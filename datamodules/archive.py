"""Inspect the headers of a tar shard before anything in it is read.

Python's tarfile, and so WebDataset, ends a shard without an error at a damaged header: about half
of the samples vanish silently. WebDataset also reads a member whole before anyone can look at its
size. One pass over the headers closes both holes and names what may be read.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from datamodules.samples import Rejected

MAX_MEMBER_BYTES = 64 * 2**20
MAX_NAME = 512  # characters
_MAX_TAIL = 2**20  # zeros allowed after the end mark: writers pad to whole records


class DamagedShard(ValueError):
    """The archive is not whole; the message says where and what to do."""


def split_member(name: str) -> tuple[str | None, str | None]:
    """Split a member name into key and lower-case extension, at the first dot of its base name.

    Returns:
        (key, extension), or (None, None) for hidden files and names without an extension.
    """
    name = name.removeprefix("./")
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and extension else (None, None)


def inspect_shard(path: Path, wanted: Container[str]) -> tuple[set[str], list[Rejected]]:
    """Walk the headers of a `.tar` or `.tar.gz` and judge each key.

    Args:
        path: the shard.
        wanted: extensions that are read; members with others are ignored.

    Returns:
        (names of the members to read, one `Rejected` for each key that is refused). A damaged
        archive is refused whole: `rejected` is then one item whose key is "".
    """
    names: dict[str, list[str]] = {}
    found: dict[str, list[str]] = {}
    problems: dict[str, tuple[str, str]] = {}  # key -> (extension, reason)
    last = None
    try:
        for info in _headers(path):
            key, extension = split_member(info.name)
            if key is None or extension is None or info.isdir():
                continue
            if key not in found and (reason := _against_key(key, info.name)):
                problems[key] = ("", reason)
            if key in found and key != last:
                problems.setdefault(key, ("", "its members are not side by side in the shard"))
            last = key
            seen = found.setdefault(key, [])
            if extension in wanted:
                if reason := _against_member(info, extension in seen):
                    problems.setdefault(key, (extension, reason))
                seen.append(extension)
                names.setdefault(key, []).append(info.name)
    except DamagedShard as error:
        return set(), [Rejected(str(path), "", "", str(error))]
    for key, seen in found.items():
        if not seen:
            problems.setdefault(key, ("", "none of its members has a known extension"))
    accepted = {name for key in names if key not in problems for name in names[key]}
    return accepted, [Rejected(str(path), key[:MAX_NAME], *why) for key, why in problems.items()]


def _against_key(key: str, name: str) -> str:
    parts = key.split("/")
    if len(name) > MAX_NAME:
        return f"its name has {len(name)} characters, more than the limit of {MAX_NAME}"
    if ".." in parts or "" in parts or "\\" in key or not key.isprintable():
        return "its key is not a plain relative path"
    if key.startswith("__"):
        return "its key starts with __, which WebDataset keeps for itself"
    return ""


def _against_member(info: tarfile.TarInfo, twice: bool) -> str:
    if twice:
        return "the member is there twice"
    if not info.isreg():
        return "the member is not a plain file"
    if info.size > MAX_MEMBER_BYTES:
        return f"the member has {info.size} bytes, more than the limit of {MAX_MEMBER_BYTES}"
    return ""


def _headers(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield every header; raise DamagedShard unless the archive ends with its end mark."""
    offset = 0
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for info in archive:
                    yield info
                    archive.members = []  # type: ignore[attr-defined]  # constant memory
                offset = archive.offset  # type: ignore[attr-defined]
            stream.seek(offset)
            tail = stream.read(_MAX_TAIL + 1)
        except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError, zlib.error) as e:
            raise DamagedShard(f"the archive is damaged ({e}); build or fetch it again") from e
    if len(tail) < 1024 or len(tail) > _MAX_TAIL or tail.strip(b"\0"):
        raise DamagedShard(
            f"the archive is damaged or cut off at byte {offset}; build or fetch it again"
        )
