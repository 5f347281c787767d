"""A Lightning data module that keeps every prepared sample in memory.

It suits sets of up to about 100,000 samples, and frozen towers, which then run once for each.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

from rich.progress import track

from datamodules.decoding import decode_sample, with_digests
from datamodules.ledger import SETUP, Ledger
from datamodules.loader import Batch, Delivery, Fetch, ResumableLoader
from datamodules.order import Draw, Order
from datamodules.reading import Reading, weight_of
from datamodules.resumable import ResumableDataModule
from datamodules.samples import Prepared, Rejected, Sample, collate
from datamodules.shards import read_shards
from datamodules.splits import hold_out, may_be_held_out
from datamodules.stream import labelled
from datamodules.trainer import function_of, ledger_of, ranks_of

_CHUNK = 256  # decoded samples held at once
_ALIGNED = 1024  # samples in a batch of `train_batches`
_log = logging.getLogger(__name__)


def _nothing(modality: str, content: str) -> bool:
    return False


@final
class _Kept(Fetch):
    """Collates samples that are in memory; samples of one weight lie together as a shard."""

    def __init__(self, groups: Sequence[Sequence[Prepared]]) -> None:
        self.groups = groups

    def __call__(self, draws: Sequence[Draw]) -> Delivery:
        return Delivery(collate([self.groups[d.shard][d.row] for d in draws]), len(draws))


class MemoryDataModule(ResumableDataModule):
    """Batches of prepared samples from shards, split by caption.

    Samples whose caption is held out are validated on if they are eligible (see
    `datamodules.splits.may_be_held_out`) and are never trained on, whatever shard they are from.
    With `val` shards, the captions in those are the ones kept out of training.

    `prepare` turns decoded samples, at most 256 at a time, into one dict each: `"inputs"`, a
    tensor (L, ...) per modality, and for cached tokens `"positions"`, (L, 3) per modality. Set it
    before `setup`; by default it is the `prepare` method of the Lightning module being trained.
    If it has a method `knows`, files for which that is true, given the modality and a name for the
    content (see `datamodules.decoding`), are not decoded.

    A run that was killed resumes in the middle of an epoch with the batches that were left.

    Attributes:
        prepare: see above; None until set.
        train_samples: prepared samples to train on, after `setup`.
        val_samples: prepared samples to validate on, after `setup`.
        ledger: what was read and what was refused.

    Args:
        train: paths, globs or brace lists of shards.
        val: the same for validation; None holds out samples of `train`.
        held_out: how many captions to hold out when `val` is None.
        held_out_source: only samples with this metadata `source` are held out; None: any.
        batch_size: largest batch.
        weights: how often a sample comes in an epoch, by metadata `source` or else by how the
            shard's file name starts; 1 where nothing fits.
        reading: which members are read, and how many samples may be rejected.
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
        reading: Reading | None = None,
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
        self.reading = reading or Reading()
        self.prepare: Callable[[list[Sample]], Sequence[Any]] | None = None
        self.train_samples: list[Prepared] = []
        self.val_samples: list[Prepared] = []
        self.ledger = Ledger()

    def setup(self, stage: str | None = None) -> None:
        """Read, prepare and split the shards, once.

        Raises:
            ValueError: no `prepare`, no shard, too few captions to hold out, or too many samples
                that cannot be read.
        """
        if self.train_samples:
            return
        rejected: list[Rejected] = []
        train = list(self._read(self.train, rejected))
        val = list(self._read(self.val, rejected)) if self.val else train
        eligible = [s for s in val if self.val or may_be_held_out(s.meta, self.held_out_source)]
        groups = [sample.group_id for sample in eligible]
        held = set(groups) if self.val else hold_out(groups, self.held_out, self.seed)
        chosen = [sample for sample in eligible if sample.group_id in held]
        kept = [sample for sample in train if sample.group_id not in held]
        num_read = len(train) + len(rejected) + (len(val) if self.val else 0)
        self.val_samples = list(self._prepared(chosen, rejected))
        self.train_samples = list(self._prepared(kept, rejected))
        self.ledger = ledger_of(self.trainer, "rejected", self.reading.max_rejected)
        self.ledger.record(SETUP, num_read - len(rejected), rejected, num_read)
        self.ledger.begin()
        self._report(len(train) - len(kept) - (0 if self.val else len(chosen)))

    def _read(self, shards: list[str], rejected: list[Rejected]) -> Iterator[Sample]:
        return read_shards(shards, self.reading.extensions, rejected)

    def _prepared(self, samples: list[Sample], rejected: list[Rejected]) -> Iterator[Prepared]:
        prepare = function_of(self.trainer, self.prepare, "prepare")
        knows = getattr(prepare, "knows", _nothing)
        with ThreadPoolExecutor(os.cpu_count()) as threads:  # decoders leave Python's lock
            for start in track(range(0, len(samples), _CHUNK), "Preparing", transient=True):
                read = [with_digests(sample) for sample in samples[start : start + _CHUNK]]
                known = [[m for m, name in s.digests.items() if knows(m, name)] for s in read]
                decoded = list(threads.map(decode_sample, read, known))
                rejected += [item for item in decoded if isinstance(item, Rejected)]
                chunk = [sample for sample in decoded if isinstance(sample, Sample)]
                for sample, values in zip(chunk, prepare(chunk), strict=True):
                    yield labelled(values, sample, self._weight(sample))

    def _weight(self, sample: Sample) -> float:
        if (source := str(sample.meta.get("source"))) in self.weights:
            return self.weights[source]
        return weight_of(Path(sample.shard).name, self.weights)

    def _report(self, num_left_out: int) -> None:
        _log.info(
            "%d samples to train on, %d to validate on, %d left out of training because their "
            "caption is held out; %s",
            len(self.train_samples),
            len(self.val_samples),
            num_left_out,
            self.ledger,
        )
        for item in self.ledger.rejected[:10]:
            _log.warning("rejected: %s", item)

    def make_train_loader(self) -> ResumableLoader:
        """Batches drawn by the seed, others each epoch: each sample once, or by `weights`."""
        groups: dict[float, list[Prepared]] = {}
        for sample in self.train_samples:
            groups.setdefault(sample["weight"], []).append(sample)
        counts = [len(group) for group in groups.values()]
        order = Order(counts, list(groups), window=len(groups) or 1, seed=self.seed)
        return self._make_loader(list(groups.values()), order)

    def val_dataloader(self) -> ResumableLoader | list[Batch]:
        """Every held-out sample once, in order."""
        if not self.val_samples:
            return []
        return self._make_loader([self.val_samples], Order([len(self.val_samples)]))

    def test_dataloader(self) -> ResumableLoader | list[Batch]:
        """What `val_dataloader` gives: a test judges a trained model on all held-out samples."""
        return self.val_dataloader()

    def _make_loader(self, groups: Sequence[Sequence[Prepared]], order: Order) -> ResumableLoader:
        ranks = ranks_of(self.trainer)
        return ResumableLoader(_Kept(groups), order, self.batch_size, ranks=ranks)

    def train_batches(self) -> Iterator[Batch]:
        """Every training sample once, in order, in batches of any size."""
        for start in range(0, len(self.train_samples), _ALIGNED):
            yield collate(self.train_samples[start : start + _ALIGNED])

    def captions(self) -> set[str]:
        """All captions that are trained on."""
        return {sample["caption"] for sample in self.train_samples}
