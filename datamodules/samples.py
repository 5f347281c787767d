"""Samples: what one key of a shard holds, and batches of prepared samples.

Letters: B batch, L length of one modality's input (pictures, token ids, frames or tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor

from datamodules.decode import (
    DecodeError,
    Raw,
    check_text,
    decode_metadata,
    decode_text,
)
from datamodules.groups import group_of
from datamodules.reasons import Reason

Members = Mapping[str, Sequence[str]]
MEMBERS: Members = {
    "image": ("webp", "jpg", "jpeg", "png", "gif", "bmp"),
    "text": ("txt",),
    "audio": ("speech_fr.opus", "speech_en.opus", "flac", "wav", "ogg", "opus", "mp3"),
    "video": ("mp4", "webm"),
    "sensor": ("npy",),
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
            Text is always decoded (see `datamodules.decoding` for the rest).
        captions: all its captions; the first is that of the text member, if there is one.
        meta: the metadata object; {} when there is none.
        digests: modality -> name of its file's content, once taken (see `with_digests`).
    """

    key: str
    shard: str
    inputs: Mapping[str, bytes | Raw]
    captions: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """The first caption; "" when there is none."""
        return self.captions[0] if self.captions else ""

    @property
    def group_id(self) -> int:
        """`group_of` the metadata's `group_id` (int or str), or else of the first caption.

        A sample without either is a group of its own.
        """
        given = self.meta.get("group_id")
        if isinstance(given, int | str) and not isinstance(given, bool):
            return group_of(f"group {given} named")  # no caption's, no mark lost
        return group_of(self.caption or f"{self.shard}\0{self.key}")


class Rejected(NamedTuple):
    """Why something was not delivered.

    Attributes:
        shard: path of the shard or folder.
        key: of the sample; "" when it is a whole shard; the whole name of a member without a key.
        member: the extension, or the modality, that is to blame; "" when it is all of the sample.
        code: why, for counting.
        reason: why, in one sentence.
    """

    shard: str
    key: str
    member: str
    code: Reason
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


def build_sample(
    key: str, shard: str, fields: Mapping[str, bytes], members: Members = MEMBERS
) -> Sample | Rejected:
    """Choose the modalities among the members of one key; decode text and metadata only.

    The captions are the text member's, then those of the list `captions` in the metadata; each
    is checked as `decode_text` does, and a caption that is there twice counts once.

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
        captions = _captions(meta)
        if "text" in chosen:
            member = chosen["text"]
            captions = dict.fromkeys([decode_text(fields[member]), *captions])
    except DecodeError as error:
        return Rejected(shard, key, member, error.reason, str(error))
    if captions and "text" in members:
        inputs["text"] = next(iter(captions))
    return Sample(key, shard, inputs, tuple(captions), meta)


def _captions(meta: Mapping[str, Any]) -> dict[str, None]:
    """The metadata's list `captions`, each once."""
    captions = meta.get("captions", [])
    if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
        raise DecodeError(
            "this metadata has captions that are not a list of strings", Reason.WRONG_FORMAT
        )
    return dict.fromkeys(map(check_text, captions))


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
