"""The Lightning data module over shards; the only file of this package that needs Lightning.

It keeps every prepared sample in memory, which suits sets of up to about 100,000 samples.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningDataModule
from rich.progress import track
from torch.utils.data import DataLoader, Dataset, RandomSampler, WeightedRandomSampler

from datamodules.samples import (
    MEMBERS,
    Members,
    Prepared,
    Rejected,
    Sample,
    collate,
    decode_samples,
)
from datamodules.shards import read_shards
from datamodules.splits import hold_out, may_be_held_out

Prepare = Callable[[list[Sample]], Sequence[Any]]

_CHUNK = 256  # decoded samples held at once
_log = logging.getLogger(__name__)


class ShardDataModule(LightningDataModule):
    """Batches of prepared samples from shards, split by caption.

    Samples whose caption is held out are validated on if they are eligible (see
    `datamodules.splits.may_be_held_out`) and are never trained on, whatever shard they are from.
    With `val` shards, the captions in those are the ones kept out of training.

    `prepare` turns decoded samples, at most 256 at a time, into one dict each: `"inputs"`, a
    tensor (L, ...) per modality, and for cached tokens `"positions"`, (L, 3) per modality. Set it
    before `setup`; by default it is the `prepare` method of the Lightning module being trained.

    Attributes:
        prepare: see above; None until set.
        train_samples: prepared samples to train on, after `setup`.
        val_samples: prepared samples to validate on, after `setup`.
        rejected: everything in the shards that was refused, and why.

    Args:
        train: paths, globs or brace lists of shards.
        val: the same for validation; None holds out samples of `train`.
        held_out: how many captions to hold out when `val` is None.
        held_out_source: only samples with this metadata `source` are held out; None: any.
        batch_size: samples in a batch.
        weights: how often a sample is drawn by metadata `source`, or else by how the shard's file
            name starts; 1 where nothing fits. None draws each sample once an epoch.
        members: modality -> extensions in order of preference; None: `datamodules.MEMBERS`.
        seed: of the choice of held-out captions and of the order of training.
    """

    def __init__(
        self,
        train: list[str],
        val: list[str] | None = None,
        held_out: int = 0,
        held_out_source: str | None = None,
        batch_size: int = 256,
        weights: dict[str, float] | None = None,
        members: dict[str, list[str]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if val and held_out:
            raise ValueError(f"got val shards and held_out={held_out}; choose one of the two")
        if batch_size < 1 or held_out < 0:
            raise ValueError(
                f"got batch_size={batch_size} and held_out={held_out}; wanted at least 1 and 0"
            )
        self.train, self.val = train, val
        self.held_out, self.held_out_source = held_out, held_out_source
        self.batch_size, self.seed = batch_size, seed
        self.weights = weights or {}
        self.members: Members = members or MEMBERS
        self.prepare: Prepare | None = None
        self.train_samples: list[Prepared] = []
        self.val_samples: list[Prepared] = []
        self.rejected: list[Rejected] = []

    def setup(self, stage: str | None = None) -> None:
        """Read, prepare and split the shards, once.

        Raises:
            ValueError: no `prepare`, no shard, or too few captions to hold out.
        """
        if self.train_samples:
            return
        train = list(self._read(self.train))
        val = list(self._read(self.val)) if self.val else train
        eligible = [s for s in val if self.val or may_be_held_out(s.meta, self.held_out_source)]
        groups = [sample.group_id for sample in eligible]
        held = set(groups) if self.val else hold_out(groups, self.held_out, self.seed)
        chosen = [sample for sample in eligible if sample.group_id in held]
        kept = [sample for sample in train if sample.group_id not in held]
        self.val_samples = list(self._prepared(chosen))
        self.train_samples = list(self._prepared(kept))
        self._report(len(train) - len(kept) - (0 if self.val else len(chosen)))

    def _read(self, shards: list[str]) -> Iterator[Sample]:
        return read_shards(shards, self.members, self.rejected)

    def _prepared(self, samples: list[Sample]) -> Iterator[Prepared]:
        prepare = self.prepare or getattr(
            getattr(self.trainer, "lightning_module", None), "prepare", None
        )
        if prepare is None:
            raise ValueError("nothing prepares the samples; set the data module's `prepare`")
        decoded = decode_samples(samples, self.rejected)
        progress = track(range(0, len(samples), _CHUNK), "Preparing", transient=True)
        for _ in progress:
            chunk = list(itertools.islice(decoded, _CHUNK))
            for sample, values in zip(chunk, prepare(chunk), strict=True):
                prepared = {
                    **values,
                    "key": sample.key,
                    "shard": sample.shard,
                    "caption": sample.caption,
                    "group_id": sample.group_id,
                    "weight": self._weight(sample),
                }
                yield cast(Prepared, prepared)

    def _weight(self, sample: Sample) -> float:
        if (source := str(sample.meta.get("source"))) in self.weights:
            return self.weights[source]
        name = Path(sample.shard).name
        return next((w for prefix, w in self.weights.items() if name.startswith(prefix)), 1.0)

    def _report(self, num_left_out: int) -> None:
        _log.info(
            "%d samples to train on, %d to validate on, %d left out of training because their "
            "caption is held out, %d rejected",
            *(len(self.train_samples), len(self.val_samples), num_left_out, len(self.rejected)),
        )
        for item in self.rejected[:10]:
            _log.warning("rejected: %s", item)

    def train_dataloader(self) -> DataLoader:
        """Whole batches drawn by the seed, others each epoch: each sample once, or by `weights`.

        Raises:
            ValueError: fewer samples than one batch.
        """
        if len(self.train_samples) < self.batch_size:
            raise ValueError(
                f"{len(self.train_samples)} samples are left to train on, fewer than a batch of "
                f"{self.batch_size}; lower batch_size or held_out"
            )
        generator = torch.Generator().manual_seed(self.seed)
        sampler = RandomSampler(self.train_samples, generator=generator)
        if self.weights:
            weights = [sample["weight"] for sample in self.train_samples]
            sampler = WeightedRandomSampler(weights, len(weights), generator=generator)
        return DataLoader(
            cast(Dataset, self.train_samples),
            self.batch_size,
            sampler=sampler,
            drop_last=True,
            collate_fn=collate,
        )

    def train_batches(self) -> Iterator[dict[str, Any]]:
        """Every training sample once, in order; the last batch may be short."""
        return iter(DataLoader(cast(Dataset, self.train_samples), 1024, collate_fn=collate))

    def val_dataloader(self) -> DataLoader:
        """Every held-out sample once, in order; the last batch may be short."""
        return DataLoader(cast(Dataset, self.val_samples), self.batch_size, collate_fn=collate)
