"""Judges what the headers of a shard say of each sample, before any of it is read."""

from __future__ import annotations

import zlib
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from datamodules.headers import DamagedShard, Header, open_archive, walk_headers
from datamodules.reasons import Reason
from datamodules.samples import METADATA, Rejected

MAX_MEMBER_BYTES = 64 * 2**20
MAX_NAME = 512  # characters
MAX_MEMBERS = 256  # of one sample
_ABSURD = 10_000  # members of one sample that refuse its whole shard
_SMALLER = {"txt": 2**16, METADATA: 2**20}  # extensions of members that are never so large
_Why = tuple[str, Reason, str]  # extension, code, sentence


class Member(NamedTuple):
    """Where one member of a sample lies."""

    name: str
    offset: int
    size: int


@dataclass(slots=True)
class Found:
    """One sample of a shard; or a member that belongs to none, whose key is its whole name.

    Attributes:
        key: its name.
        members: extension -> the member, of those that are read.
        others: extensions of members that are ignored.
        refused: why it is not delivered; None if nothing in the headers speaks against it.
    """

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    refused: Rejected | None = None


def split_member(name: str) -> tuple[str | None, str | None]:
    """Split a member name into key and lower-case extension, at the first dot of its base name.

    Returns:
        (key, extension), or (None, None) for hidden files and names without an extension.
    """
    name = name.removeprefix("./")
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and extension else (None, None)


def max_bytes(extension: str) -> int:
    """The largest size of a member that is read."""
    return min(MAX_MEMBER_BYTES, _SMALLER.get(extension.rpartition(".")[2], MAX_MEMBER_BYTES))


def find_samples(stream: BinaryIO, wanted: Container[str], shard: str) -> list[Found]:
    """Walks the headers of an archive and judges each sample, in the order of their first members.

    Args:
        stream: the archive, see `datamodules.headers.open_archive`.
        wanted: extensions that are read; members with others are ignored.
        shard: what it is called in what is refused.

    Raises:
        DamagedShard: the archive is not whole; none of its samples is to be trusted.
    """
    samples: list[Found] = []
    by_key: dict[str, Found] = {}
    last, in_a_row = "", 0
    for header in walk_headers(stream):
        if header.is_folder:
            continue
        key, extension = split_member(header.name)
        if key is None or extension is None:
            why = "", Reason.NO_KEY, "its name is hidden or has no extension"
            samples.append(_refused(Found(header.name), shard, why))
            continue
        why, sample = None, by_key.get(key)
        if sample is None:
            sample = by_key[key] = Found(key)
            samples.append(sample)
            why = _against_key(key, header.name)
        elif key != last:
            reason = "the key comes twice, or its members are not side by side in the shard"
            why = "", Reason.DUPLICATE_KEY, reason
        last, in_a_row = key, in_a_row + 1 if key == last else 1
        if in_a_row > _ABSURD:
            raise DamagedShard(
                f"a sample of the archive has more than {_ABSURD} members; give each its own key",
                Reason.TOO_MANY_MEMBERS,
            )
        _refused(sample, shard, why or _against_member(sample, extension, header, wanted))
        if len(sample.members) + len(sample.others) > MAX_MEMBERS:
            continue
        if extension in wanted:
            sample.members[extension] = Member(header.name, header.offset, header.size)
        else:
            sample.others.append(extension)
    for sample in by_key.values():
        if not sample.members:
            _refused(sample, shard, _without_members(sample, wanted))
    return samples


def _refused(sample: Found, shard: str, why: _Why | None) -> Found:
    """The same sample, refused unless it is already."""
    if why and sample.refused is None:
        sample.refused = Rejected(shard, sample.key[:MAX_NAME], *why)
    return sample


def _against_key(key: str, name: str) -> _Why | None:
    parts = key.split("/")
    if len(name) > MAX_NAME:
        reason = f"its name has {len(name)} characters, more than the limit of {MAX_NAME}"
        return "", Reason.LONG_NAME, reason
    if ".." in parts or "" in parts or "\\" in key or not key.isprintable():
        return "", Reason.UNSAFE_KEY, "its key is not a plain relative path"
    if key.startswith("__"):
        return "", Reason.RESERVED_NAME, "its key starts with __, which WebDataset keeps for itself"
    return None


def _against_member(
    sample: Found, extension: str, header: Header, wanted: Container[str]
) -> _Why | None:
    if extension in sample.members:
        return extension, Reason.DUPLICATE_MEMBER, "the member is there twice"
    if len(sample.members) + len(sample.others) >= MAX_MEMBERS:
        return "", Reason.TOO_MANY_MEMBERS, f"it has more than {MAX_MEMBERS} members"
    if len(header.name) > MAX_NAME:
        reason = f"a name of it has {len(header.name)} characters; the limit is {MAX_NAME}"
        return extension[:MAX_NAME], Reason.LONG_NAME, reason
    if extension.startswith("__"):
        return extension, Reason.RESERVED_NAME, "the member is one that WebDataset keeps for itself"
    if not header.is_file:
        return extension, Reason.NOT_A_FILE, "the member is a link, a device or a sparse file"
    if extension in wanted and header.size > (limit := max_bytes(extension)):
        reason = f"the member has {header.size} bytes, more than the limit of {limit}"
        return extension, Reason.TOO_LARGE, reason
    if extension not in wanted and extension[0].isdigit() and _is_known(extension, wanted):
        return extension, Reason.DOTTED_KEY, _dotted(extension)
    return None


def _without_members(sample: Found, wanted: Container[str]) -> _Why:
    for extension in sample.others:
        if _is_known(extension, wanted):
            return extension, Reason.DOTTED_KEY, _dotted(extension)
    return "", Reason.NO_MEMBER, "none of its members has a known extension"


def _dotted(extension: str) -> str:
    shown = extension.encode("unicode_escape").decode()[:50]
    return f"its key seems to hold a dot: {shown!r} is no known extension"


def _is_known(extension: str, wanted: Container[str]) -> bool:
    return extension.rpartition(".")[2] in wanted


def inspect_shard(path: Path, wanted: Container[str]) -> tuple[set[str], list[Rejected]]:
    """Walk the headers of a `.tar` or `.tar.gz` and judge each sample.

    Args:
        path: the shard.
        wanted: extensions that are read; members with others are ignored.

    Returns:
        (names of the members to read, one `Rejected` for each sample that is refused). A damaged
        archive is refused whole: `rejected` is then one item whose key is "".
    """
    try:
        with open_archive(path) as stream:
            samples = find_samples(stream, wanted, str(path))
    except DamagedShard as error:
        return set(), [Rejected(str(path), "", "", error.reason, str(error))]
    accepted = [s for s in samples if s.refused is None]
    names = {member.name for sample in accepted for member in sample.members.values()}
    return names, [s.refused for s in samples if s.refused is not None]


def read_members(stream: BinaryIO, sample: Found) -> dict[str, bytes]:
    """Reads the members of a sample: extension -> bytes.

    Raises:
        DamagedShard: the archive was cut off after its headers were walked through.
    """
    fields = {}
    try:
        for extension, member in sample.members.items():
            stream.seek(member.offset)
            fields[extension] = stream.read(member.size)
            if len(fields[extension]) < member.size:
                raise EOFError("it is cut off")
    except (EOFError, zlib.error) as error:
        raise DamagedShard(
            f"the archive changed while it was read ({error}); build or fetch it again",
            Reason.CHANGED_SHARD,
        ) from error
    return fields
