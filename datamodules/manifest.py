"""The manifest of a pack of shards: what each shard holds, and its SHA-256.

A tar has no checksum over its data and readers end silently at a damaged header; a size, a digest
and counts beside it are what tells a whole shard from a damaged one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.archive import inspect_shard, split_member
from datamodules.samples import MEMBERS, METADATA, Rejected

VERSION = 1
NAME = "manifest.json"
MODALITIES: Mapping[str, str] = {ext: name for name, exts in MEMBERS.items() for ext in exts}
"""Extension -> modality, for every extension that is read but `json`."""
EXTENSIONS = frozenset(MODALITIES) | {METADATA}
_DIGEST = re.compile("[0-9a-f]{64}")
# A letter first: of a_0.5.jpg and a_0.7.jpg a shard makes one sample with members 5.jpg and 7.jpg.
_QUALIFIED = re.compile(r"[a-z][\w-]*\.(\w+)")
MAX_BYTES = 2**28
"""Of a manifest: about a million shards."""


class _Known:
    """All extensions that a decoder is known for, as `inspect_shard` asks for them."""

    def __contains__(self, extension: str) -> bool:
        return extension == METADATA or modality_of(extension) is not None


KNOWN = _Known()


def modality_of(extension: str) -> str | None:
    """The modality that a member carries: by its extension, or the last part of one like sfx.opus.

    None for metadata and for what is not known.
    """
    qualified = _QUALIFIED.fullmatch(extension)
    last = qualified[1] if qualified else extension
    return MODALITIES.get(extension) or MODALITIES.get(last)


class ManifestError(ValueError):
    """There is no manifest, or it is not one; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """What a manifest says of one shard.

    Attributes:
        name: file name, beside the manifest.
        samples: number of samples in it.
        bytes: its size.
        sha256: its digest, in hex.
        modalities: those that at least one of its samples has, sorted.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    modalities: tuple[str, ...]

    @classmethod
    def parse(cls, value: Any) -> ShardEntry:
        """Checks what was read from JSON.

        Raises:
            ManifestError: a field is missing or of another type or range, or a name has a folder.
        """
        fields = {"name": str, "samples": int, "bytes": int, "sha256": str, "modalities": list}
        if not isinstance(value, dict) or any(
            type(value.get(field)) is not kind for field, kind in fields.items()
        ):
            raise ManifestError(f"a shard's entry needs {', '.join(fields)}; pack the source again")
        name = value["name"]
        if Path(name).name != name or "\\" in name or not name.isprintable():
            raise ManifestError(f"a shard is named {name!r}; wanted a plain file name")
        if min(value["samples"], value["bytes"]) < 0 or not _DIGEST.fullmatch(value["sha256"]):
            raise ManifestError(f"the counts or digest of {name} are none; pack the source again")
        modalities = tuple(map(str, value["modalities"]))
        return cls(name, value["samples"], value["bytes"], value["sha256"], modalities)


class Damage(NamedTuple):
    """A file of a pack that is not what the manifest says, and how."""

    name: str
    reason: str


def describe_shard(path: Path) -> tuple[ShardEntry, list[Rejected]]:
    """Reads a shard through: its entry, and what a reader would refuse of it.

    Raises:
        OSError: it cannot be read.
    """
    names, refused = inspect_shard(path, KNOWN)
    parts = [split_member(name) for name in names]
    modalities = {modality for _, ext in parts if ext and (modality := modality_of(ext))}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
    num_samples = len({key for key, _ in parts})
    return ShardEntry(path.name, num_samples, size, digest, tuple(sorted(modalities))), refused


def write_manifest(shards: Sequence[ShardEntry], path: Path) -> None:
    """Writes a manifest; see `read_manifest`."""
    total = sum(shard.samples for shard in shards)
    value = {"version": VERSION, "samples": total, "shards": [asdict(shard) for shard in shards]}
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def read_manifest(folder: Path) -> list[ShardEntry]:
    """Reads the manifest of a pack.

    Raises:
        ManifestError: there is none, it is damaged, of another version, or its counts differ.
    """
    path = folder / NAME
    if not path.is_file():
        raise ManifestError(f"{folder} has no {NAME}; give the folder of a finished pack")
    if path.stat().st_size > MAX_BYTES:
        raise ManifestError(f"{path} has more than {MAX_BYTES} bytes; pack the source again")
    return parse_manifest(path.read_bytes(), str(path))


def parse_manifest(text: bytes, where: str) -> list[ShardEntry]:
    """Checks the content of a manifest.

    Args:
        text: the file.
        where: its name for messages.

    Raises:
        ManifestError: it is damaged, of another version, or its counts differ.
    """
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where} is not JSON ({error}); pack the source again") from error
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise ManifestError(f"{where} is not of version {VERSION}; pack the source again")
    if not isinstance(value.get("shards"), list):
        raise ManifestError(f"{where} lists no shards; pack the source again")
    shards = [ShardEntry.parse(entry) for entry in value["shards"]]
    total = sum(shard.samples for shard in shards)
    if len({shard.name for shard in shards}) < len(shards) or value.get("samples") != total:
        raise ManifestError(f"the counts or names in {where} do not agree; pack the source again")
    return shards


def check_pack(folder: Path) -> tuple[list[ShardEntry], list[Damage]]:
    """Compares every shard of a pack with the manifest: size, SHA-256, headers, counts.

    Returns:
        (the shards listed, one `Damage` for each file with anything wrong). A shard that lies
        there but is not listed counts as damage: a glob would read it.

    Raises:
        ManifestError: there is no manifest.
    """
    try:
        shards = read_manifest(folder)
    except ManifestError as error:
        if not (folder / NAME).is_file():
            raise
        return [], [Damage(NAME, str(error))]
    found = [(shard.name, _faults(folder / shard.name, shard)) for shard in shards]
    listed = {shard.name for shard in shards}
    found += [
        (path.name, ["it is not in the manifest"])
        for path in sorted([*folder.glob("*.tar"), *folder.glob("*.tar.gz")])
        if path.name not in listed
    ]
    return shards, [Damage(name, "; ".join(faults)) for name, faults in found if faults]


def _faults(path: Path, wanted: ShardEntry) -> list[str]:
    if path.is_symlink() or not path.is_file():
        return ["it is missing" if not path.exists() else "it is not a plain file"]
    try:
        got, refused = describe_shard(path)
    except OSError as error:
        return [f"it cannot be read ({error.strerror})"]
    faults = []
    if got.bytes != wanted.bytes:
        faults.append(f"{got.bytes} bytes, not {wanted.bytes}")
    if got.sha256 != wanted.sha256:
        faults.append("another SHA-256")
    if refused:
        more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        key = f"{refused[0].key}: " if refused[0].key else ""
        faults.append(f"{key}{refused[0].reason}{more}")
    if got.samples != wanted.samples:
        faults.append(f"{got.samples} samples, not {wanted.samples}")
    if got.modalities != wanted.modalities:
        faults.append(f"modalities {list(got.modalities)}, not {list(wanted.modalities)}")
    return faults
