"""Samples of shards, read, decoded and prepared as a batch asks for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import torch

from datamodules.decoding import decode_sample
from datamodules.loader import Delivery, Fetch
from datamodules.order import Draw
from datamodules.reader import ShardReader
from datamodules.reasons import Reason
from datamodules.samples import Prepared, Rejected, Sample, collate
from datamodules.seeding import seed_generators

Prepare = Callable[[list[Sample]], Sequence[Mapping[str, Any]]]
"""Decoded samples to what an encoder takes: `{"inputs": {modality: (L, ...)}}` for each."""


def first_caption(sample: Sample) -> Sample:
    """The sample as it is: its first caption is its text."""
    return sample


def drawn_caption(sample: Sample) -> Sample:
    """The sample with one of its captions, drawn from torch's generator."""
    if len(sample.captions) < 2 or "text" not in sample.inputs:
        return sample
    caption = sample.captions[int(torch.randint(len(sample.captions), ()))]
    return replace(sample, inputs={**sample.inputs, "text": caption})


def labelled(values: Mapping[str, Any], sample: Sample, weight: float = 1.0) -> Prepared:
    """Prepared values with what `collate` needs to know of their sample."""
    text = sample.inputs.get("text")
    return Prepared(
        key=sample.key,
        shard=sample.shard,
        caption=text if isinstance(text, str) else sample.caption,
        group_id=sample.group_id,
        weight=weight,
        inputs=values["inputs"],
        positions=values.get("positions", {}),
    )


@final
class StreamFetch(Fetch):
    """Reads, decodes and prepares the samples of each batch anew; memory does not grow.

    Before a sample is prepared torch's, numpy's and Python's generators are seeded for it, so that
    augmentation depends neither on the workers nor on where a run was resumed.

    Args:
        reader: of the shards.
        prepare: see `Prepare`.
        caption: chooses the caption of a sample that has several.
        required: modalities without which a sample is rejected.
        modalities: those that are decoded, beside text; None: all.
    """

    def __init__(
        self,
        reader: ShardReader,
        prepare: Prepare,
        caption: Callable[[Sample], Sample] = first_caption,
        required: Sequence[str] = (),
        modalities: Sequence[str] | None = None,
    ) -> None:
        self.reader, self.prepare = reader, prepare
        self.caption, self.required, self.modalities = caption, required, modalities
        names = "\0".join(f"{shard.url} {shard.num_samples}" for shard in reader.shards)
        self.fingerprint = hashlib.sha256(names.encode()).hexdigest()[:16]

    def __call__(self, draws: Sequence[Draw]) -> Delivery:
        """See `Fetch`."""
        prepared: list[Prepared] = []
        rejected: list[Rejected] = []
        try:
            for draw in draws:
                seed_generators(draw.seed)
                sample = self.reader.read(draw.shard, draw.row)
                made = sample if isinstance(sample, Rejected) else self._prepared(sample)
                if isinstance(made, Rejected):
                    rejected.append(made)
                else:
                    prepared.append(made)
        except (OSError, ValueError) as error:  # of the storage: bad samples do not raise
            return Delivery(None, 0, (), _sentence(error))
        return Delivery(collate(prepared) if prepared else None, len(prepared), rejected)

    def wanted(self, sample: Sample) -> Sample | Rejected:
        """What is to be decoded of a sample that was read, with the caption that it gets.

        Returns:
            The sample without the modalities that no tower takes, or why it is rejected.
        """
        if missing := [name for name in self.required if name not in sample.inputs]:
            reason = f"it has no {' and no '.join(missing)}"
            return Rejected(sample.shard, sample.key, "", Reason.MISSING_MODALITY, reason)
        if self.modalities is not None:
            kept = {n: v for n, v in sample.inputs.items() if n in (*self.modalities, "text")}
            sample = replace(sample, inputs=kept)
        return self.caption(sample)

    def _prepared(self, sample: Sample) -> Prepared | Rejected:
        wanted = self.wanted(sample)
        if isinstance(wanted, Rejected):
            return wanted
        decoded = decode_sample(wanted)
        if isinstance(decoded, Rejected):
            return decoded
        try:
            return labelled(self.prepare([decoded])[0], decoded)
        except ValueError as error:
            return Rejected(sample.shard, sample.key, "", Reason.UNFIT, _sentence(error))


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())[:500] or type(error).__name__
