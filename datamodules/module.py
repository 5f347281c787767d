"""The Lightning data module that streams shards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from datamodules.cache import ShardCache, manifest_beside
from datamodules.ledger import SETUP, Ledger
from datamodules.loader import Batch, ResumableLoader
from datamodules.order import Order
from datamodules.reader import NUM_OPEN, Shard, ShardReader, count_shards
from datamodules.reading import Reading, weight_of
from datamodules.resumable import ResumableDataModule
from datamodules.samples import Rejected, Sample
from datamodules.stream import Prepare, StreamFetch, drawn_caption, first_caption
from datamodules.trainer import function_of, ledger_of, modalities_of, ranks_of
from datamodules.urls import expand_shards

_log = logging.getLogger(__name__)


class ShardDataModule(ResumableDataModule):
    """Batches straight from shards, local or remote, of any number of samples.

    Samples are read, decoded and prepared in worker processes as batches need them. Every sample
    is trained on once in an epoch (or by `weights`), every rank takes the same number of steps,
    and a run that was killed resumes in the middle of an epoch with exactly the batches that were
    left, with any number of workers. What cannot be read is rejected, listed in the run's
    `rejected.jsonl`, and stops the run when it is too much.

    `transform` turns a list of decoded samples into one dict each: `"inputs"`, a tensor (L, ...)
    per modality; `augment` does so for training. By default they are the methods of these names
    of the Lightning module being trained; if it has `modalities`, only these are decoded.

    Args:
        train: paths, globs, brace lists or URLs (http, https, s3, gs) of shards.
        val: the same for validation; None: there is none.
        batch_size: largest batch of a rank. All batches are of nearly one size.
        num_workers: processes that read and decode.
        weights: how often a shard's samples come in an epoch, by how its file name starts; 1
            where nothing fits.
        window: shards that are mixed together while shuffling; None trains in the shards' order.
        reading: which members are read, and how many samples may be rejected.
        seed: of the order, of captions that are drawn, and of augmentation.
    """

    def __init__(
        self,
        train: list[str],
        val: list[str] | None = None,
        batch_size: int = 256,
        num_workers: int = 2,
        weights: dict[str, float] | None = None,
        window: int | None = 16,
        reading: Reading | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                f"got batch_size={batch_size} and num_workers={num_workers}; wanted at least 1 "
                "and 0"
            )
        self.train, self.val = train, val
        self.batch_size, self.num_workers = batch_size, num_workers
        self.weights, self.window, self.seed = weights or {}, window, seed
        self.reading = reading or Reading()
        self.transform: Prepare | None = None
        self.augment: Prepare | None = None
        self._cache = ShardCache(self.reading.cache)
        self._shards: dict[str, tuple[list[Shard], list[Rejected]]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Finds the shards and counts their samples.

        Raises:
            ValueError: no shard, one that cannot be had, or too many that are damaged.
        """
        for name, urls in (("train", self.train), ("val", self.val)):
            if urls and name not in self._shards:
                found = expand_shards(urls)
                entries = manifest_beside(found, self._cache)
                members = self.reading.extensions
                self._shards[name] = count_shards(found, members, self._cache, entries)
                shards, damaged = self._shards[name]
                num_samples = sum(shard.num_samples for shard in shards)
                _log.info("%d samples in %d shards to %s on", num_samples, len(shards), name)
                for item in damaged[:10]:
                    _log.warning("rejected: %s", item)

    def make_train_loader(self) -> ResumableLoader:
        """Mixed batches of the training shards."""
        shards, damaged = self._shards["train"]
        weights = [weight_of(Path(shard.url).name, self.weights) for shard in shards]
        order = Order([s.num_samples for s in shards], weights, self.window, self.seed)
        augment = function_of(self.trainer, self.augment, "augment")
        fetch = self._fetch(shards, augment, drawn_caption)
        ledger = self._ledger("rejected", damaged, len(order))
        return self._make_loader(fetch, order, ledger, repeat_empty=True)

    def val_dataloader(self) -> ResumableLoader | list[Batch]:
        """Every sample of the validation shards once, in order."""
        if "val" not in self._shards:
            return []
        shards, damaged = self._shards["val"]
        order = Order([shard.num_samples for shard in shards])
        transform = function_of(self.trainer, self.transform, "transform")
        fetch = self._fetch(shards, transform, first_caption)
        ledger = self._ledger("rejected-val", damaged, len(order))
        return self._make_loader(fetch, order, ledger, repeat_empty=False)

    def test_dataloader(self) -> ResumableLoader | list[Batch]:
        """What `val_dataloader` gives: a test judges a trained model on all held-out samples."""
        return self.val_dataloader()

    def _fetch(
        self, shards: Sequence[Shard], prepare: Prepare, caption: Callable[[Sample], Sample]
    ) -> StreamFetch:
        # At the seam of two windows a batch reads from both.
        num_open = max(NUM_OPEN, 2 * (self.window or 1))
        reader = ShardReader(shards, self.reading.extensions, self._cache, num_open)
        required = self.reading.required
        return StreamFetch(reader, prepare, caption, required, modalities_of(self.trainer))

    def _ledger(self, name: str, damaged: Sequence[Rejected], num_samples: int) -> Ledger:
        ledger = ledger_of(self.trainer, name, self.reading.max_rejected)
        ledger.record(SETUP, 0, damaged, num_samples)
        return ledger

    def _make_loader(
        self, fetch: StreamFetch, order: Order, ledger: Ledger, repeat_empty: bool
    ) -> ResumableLoader:
        ranks = ranks_of(self.trainer)
        return ResumableLoader(
            fetch, order, self.batch_size, self.num_workers, ranks, ledger, repeat_empty
        )

    def captions(self) -> Iterator[str]:
        """The captions of all training samples."""
        shards, _ = self._shards["train"]
        members = {"text": self.reading.extensions.get("text", ())}
        reader = ShardReader(shards, members, self._cache)
        for shard, (_, num_samples, _) in enumerate(shards):
            for row in range(num_samples):
                sample = reader.read(shard, row)
                if isinstance(sample, Sample):
                    yield from sample.captions
