"""Samples: what one key of a shard holds, and batches of prepared samples.

Letters: B batch, L length of one modality's input (pictures, token ids, frames or tokens).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor

from datamodules.decode import DECODERS, DecodeError, Raw, decode_metadata, decode_text

Members = Mapping[str, Sequence[str]]
MEMBERS: Members = {
    "image": ("webp", "jpg", "jpeg", "png", "gif", "bmp"),
    "text": ("txt",),
    "audio": ("speech_fr.opus", "speech_en.opus", "flac", "wav", "ogg", "opus", "mp3"),
}
"""Extensions that carry each modality; of several in one sample the first listed wins."""
METADATA = "json"


@dataclass(frozen=True, slots=True)
class Sample:
    """One key of a shard.

    Attributes:
        key: name inside the shard.
        shard: path of the shard or folder.
        inputs: modality -> bytes of its file, or the raw value once decoded; only those present.
            Text is always decoded.
        caption: the text; "" when there is none.
        meta: the metadata object; {} when there is none.
    """

    key: str
    shard: str
    inputs: Mapping[str, bytes | Raw]
    caption: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def group_id(self) -> int:
        """`group_of` the caption; a sample without one is a group of its own."""
        return group_of(self.caption or f"{self.shard}\0{self.key}")


class Rejected(NamedTuple):
    """Why something was not delivered; `key` is "" when it is a whole shard."""

    shard: str
    key: str
    member: str
    reason: str

    def __str__(self) -> str:
        name = f"{self.key}.{self.member}".strip(".")
        return f"{self.shard}: {name + ': ' if name else ''}{self.reason}"


def reject(item: Rejected, rejected: list[Rejected] | None) -> None:
    """Append `item` to the list; without a list nothing is tolerated.

    Raises:
        ValueError: `rejected` is None.
    """
    if rejected is None:
        raise ValueError(str(item))
    rejected.append(item)


def group_of(caption: str) -> int:
    """Hash a caption so that equal meanings of spelling share one group.

    Case, runs of white space, surrounding punctuation and the Unicode form do not count.

    Returns:
        A signed 64-bit integer, the same in every process.
    """
    words = " ".join(unicodedata.normalize("NFC", caption).casefold().split())
    start, end = 0, len(words)
    while start < end and not words[start].isalnum():
        start += 1
    while end > start and not words[end - 1].isalnum():
        end -= 1
    text = words[start:end] or words
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def build_sample(
    key: str, shard: str, fields: Mapping[str, bytes], members: Members = MEMBERS
) -> Sample | Rejected:
    """Choose the modalities among the members of one key; decode text and metadata only.

    Args:
        key: name of the sample.
        shard: where it was read.
        fields: extension -> bytes.
        members: modality -> extensions in order of preference.
    """
    chosen = {
        modality: next(ext for ext in extensions if ext in fields)
        for modality, extensions in members.items()
        if any(ext in fields for ext in extensions)
    }
    inputs: dict[str, bytes | Raw] = {m: fields[ext] for m, ext in chosen.items()}
    member = METADATA
    try:
        meta = decode_metadata(fields[METADATA]) if METADATA in fields else {}
        caption = ""
        if "text" in chosen:
            member = chosen["text"]
            inputs["text"] = caption = decode_text(fields[member])
    except DecodeError as error:
        return Rejected(shard, key, member, str(error))
    return Sample(key, shard, inputs, caption, meta)


def decode_samples(
    samples: Iterable[Sample], rejected: list[Rejected] | None = None
) -> Iterator[Sample]:
    """Decode the bytes of every modality to raw values (see `datamodules.decode`).

    Args:
        samples: as read; values that are decoded already pass through.
        rejected: receives the samples that cannot be decoded; None raises at the first.

    Raises:
        ValueError: a sample cannot be decoded and `rejected` is None.
    """
    for sample in samples:
        raw: dict[str, bytes | Raw] = {}
        for modality, value in sample.inputs.items():
            try:
                raw[modality] = DECODERS[modality](value) if isinstance(value, bytes) else value
            except DecodeError as error:
                reject(Rejected(sample.shard, sample.key, modality, str(error)), rejected)
                break
        else:
            yield replace(sample, inputs=raw)


class Prepared(TypedDict):
    """A sample ready to be batched: tensors with a leading length L."""

    key: str
    shard: NotRequired[str]
    caption: str
    group_id: int
    weight: float
    inputs: Mapping[str, Tensor]
    """modality -> (L, ...): what an encoder takes, or (L, dim) its cached tokens."""
    positions: NotRequired[Mapping[str, Tensor]]
    """modality -> (L, 3): present for cached tokens only."""


def collate(samples: Sequence[Prepared]) -> dict[str, Any]:
    """Batch prepared samples: pad along L with zeros, mask what is real.

    A modality that no sample has is left out; a sample without one that others have gets zeros
    and an all-False mask. Half precision is stored, float32 is batched.

    Returns:
        keys, captions: lists of B str; group_id (B,) int64; weight (B,) float32;
        inputs: modality -> (B, L, ...); masks: modality -> (B, L) bool, True = real;
        positions: modality -> (B, L, 3) float32, for the modalities that are cached tokens.

    Raises:
        ValueError: no sample, or shapes that do not fit together.
    """
    if not samples:
        raise ValueError("collate got no sample; wanted at least one")
    batch: dict[str, Any] = {
        "keys": [sample["key"] for sample in samples],
        "captions": [sample["caption"] for sample in samples],
        "group_id": torch.tensor([sample["group_id"] for sample in samples], dtype=torch.int64),
        "weight": torch.tensor([sample["weight"] for sample in samples], dtype=torch.float32),
        "inputs": {},
        "masks": {},
        "positions": {},
    }
    for modality in dict.fromkeys(m for sample in samples for m in sample["inputs"]):
        values = [sample["inputs"].get(modality) for sample in samples]
        if not any(value is not None and len(value) for value in values):
            continue
        batch["inputs"][modality], batch["masks"][modality] = _pad(values, modality)
        positions = [sample.get("positions", {}).get(modality) for sample in samples]
        if any(position is not None for position in positions):
            padded, mask = _pad(positions, f"positions of {modality}")
            if not torch.equal(mask, batch["masks"][modality]):
                raise ValueError(f"{modality}: every sample needs one position for each token")
            batch["positions"][modality] = padded
    return batch


def _pad(values: Sequence[Tensor | None], name: str) -> tuple[Tensor, Tensor]:
    """Stack (L_b, ...) tensors of any lengths to (B, max L, ...) and its mask (B, max L)."""
    present = [value for value in values if value is not None]
    shapes = {(value.shape[1:], value.dtype) for value in present}
    if len(shapes) > 1:
        raise ValueError(f"{name}: samples have different shapes {sorted(map(str, shapes))}")
    lengths = torch.tensor([0 if value is None else len(value) for value in values])
    longest = int(lengths.max())
    half = present[0].dtype in (torch.float16, torch.bfloat16)
    padded = present[0].new_zeros(
        len(values), longest, *present[0].shape[1:], dtype=torch.float32 if half else None
    )
    for row, value in zip(padded, values, strict=True):
        if value is not None:
            row[: len(value)] = value
    return padded, torch.arange(longest) < lengths[:, None]
