"""Reads a draft and decodes it once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from datamodules.archive import MAX_MEMBER_BYTES
from datamodules.decode import DECODERS, DecodeError, decode_metadata
from datamodules.manifest import modality_of
from datamodules.pack.source import Draft, File, Refusal, against_size
from datamodules.samples import METADATA, Rejected, build_sample

_FILE_CHANGED = "the file changed while it was packed"


@dataclass(frozen=True, slots=True)
class Judged:
    """A sample that can be read.

    Attributes:
        members: extension -> bytes.
        digest: of all members; equal for samples with the same bytes.
    """

    members: Mapping[str, bytes]
    digest: bytes


def digest_of(members: Mapping[str, bytes]) -> bytes:
    """Digest of a sample's members; their order does not count."""
    total = hashlib.sha256()
    for extension, content in sorted(members.items()):
        total.update(f"{extension} {len(content)}\0".encode())
        total.update(content)
    return total.digest()


def judge(draft: Draft) -> Judged | Refusal:
    """Reads every member of a draft and decodes it once."""
    members: dict[str, bytes] = {}
    for extension, content in draft.members.items():
        data = _read(content) if isinstance(content, File) else content
        reason = data if isinstance(data, str) else against_size(len(data))
        if not isinstance(data, str) and not reason:
            reason = _against(extension, data)
            members[extension] = data
        if reason:
            return Refusal(draft.source, extension, reason)
    if not members.keys() - {METADATA}:
        return Refusal(draft.source, "", "it holds metadata only")
    sample = build_sample(draft.name, draft.source, members)
    if isinstance(sample, Rejected):  # such as a caption in the metadata that is no text
        return Refusal(draft.source, sample.member, sample.reason)
    return Judged(members, digest_of(members))


def _read(file: File) -> bytes | str:
    try:
        with file.path.open("rb") as stream:
            data = stream.read(MAX_MEMBER_BYTES + 1)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return data if len(data) == file.size else _FILE_CHANGED


def _against(extension: str, data: bytes) -> str:
    try:
        modality = modality_of(extension)
        if modality is None:
            decode_metadata(data)
        else:
            DECODERS[modality](data)
    except DecodeError as error:
        return str(error)
    return ""
