"""Reading some samples for `fusion doctor`, as a run would read them."""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import torch

from datamodules.decoding import decode_samples, with_digests
from datamodules.ledger import LedgerError
from datamodules.memory import MemoryDataModule
from datamodules.module import ShardDataModule
from datamodules.samples import Prepared, Rejected, Sample, collate
from datamodules.shards import read_shards
from datamodules.stream import labelled
from datamodules.urls import expand_shards
from encoders.cache import TokenCache
from fusion.doctor import Intake
from fusion.prepare import Preparation
from fusion.tasks import ContrastiveTask

POOL, CHUNK = 64, 16  # samples that a batch is chosen from; that are prepared together


class Taken(NamedTuple):
    """Samples that were read.

    Attributes:
        intake: how reading went.
        pool: a batch of up to 64 of them, those with the most modalities; None if there is none.
        batches: all of them, where towers that are frozen have run already; else none.
    """

    intake: Intake
    pool: dict[str, Any] | None
    batches: Sequence[dict[str, Any]]


def take(task: ContrastiveTask, data: Any, num_samples: int) -> Taken:
    """Reads samples of the training shards; nothing is written but to a folder that is removed.

    Raises:
        ValueError: the data module is none of ours, or there is no shard.
    """
    if isinstance(data, MemoryDataModule):
        with tempfile.TemporaryDirectory() as folder:
            prepare = Preparation(task.model.encoders, TokenCache(folder))
            return _take_first(data, prepare, num_samples)
    if isinstance(data, ShardDataModule):
        return _take_streamed(data, task, num_samples)
    raise ValueError(
        f"The data come from {type(data).__name__}; fusion doctor reads from a MemoryDataModule or "
        "a ShardDataModule."
    )


def _take_first(data: MemoryDataModule, prepare: Preparation, num: int) -> Taken:
    """The first samples of each shard, prepared as all of them would be."""
    rejected: list[Rejected] = []
    began = time.perf_counter()
    shards = expand_shards(data.train)
    each = -(-num // len(shards))
    read = [s for shard in shards for s in islice(_read(data, shard, rejected), each)]
    prepared: list[Prepared] = []
    for start in _shown(range(0, len(read), CHUNK)):
        chunk = map(with_digests, read[start : start + CHUNK])
        samples = list(decode_samples(chunk, rejected))
        pairs = zip(samples, prepare(samples), strict=True)
        prepared += [labelled(values, sample) for sample, values in pairs]
    seconds = (time.perf_counter() - began) / max(1, len(prepared))
    rich = sorted(prepared, key=lambda sample: -len(sample["inputs"]))[:POOL]
    batches = [collate(prepared[i : i + POOL]) for i in range(0, len(prepared), POOL)]
    present = Counter(name for sample in prepared for name in sample["inputs"])
    captions = [sample["caption"] for sample in prepared]
    groups = [sample["group_id"] for sample in prepared]
    intake = _intake(rejected, present, captions, groups, seconds, data)
    return Taken(intake, collate(rich) if rich else None, batches)


def _read(data: MemoryDataModule, shard: str, rejected: list[Rejected]) -> Iterator[Sample]:
    return read_shards([shard], data.reading.extensions, rejected)


def _take_streamed(data: ShardDataModule, task: ContrastiveTask, num: int) -> Taken:
    """The first batches that a run would train on."""
    data.transform, data.augment = task.transform, task.augment
    data.batch_size = min(data.batch_size, POOL)
    data.setup()
    loader = data.make_train_loader()
    batches: list[dict[str, Any]] = []
    began = seconds = 0.0
    try:
        for batch in loader:
            if batches:  # the first waits for workers to start
                seconds += time.perf_counter() - began
            batches.append(batch)
            if sum(len(each["keys"]) for each in batches) >= num:
                break
            began = time.perf_counter()
    except LedgerError:
        pass  # the check of what was rejected says so
    present: Counter[str] = Counter()
    for batch in batches:
        present.update({name: int(mask.any(1).sum()) for name, mask in batch["masks"].items()})
    captions = [caption for batch in batches for caption in batch["captions"]]
    groups = [group for batch in batches for group in batch["group_id"].tolist()]
    timed = max(1, len(groups) - (len(batches[0]["keys"]) if batches else 0))
    rejected = loader.ledger.rejected
    intake = _intake(rejected, present, captions, groups, seconds / timed, data)
    return Taken(replace(intake, concurrent=True), batches[0] if batches else None, [])


def _intake(
    rejected: Sequence[Rejected],
    present: Counter[str],
    captions: Sequence[str],
    groups: Sequence[int],
    seconds: float,
    data: MemoryDataModule | ShardDataModule,
) -> Intake:
    return Intake(
        num_read=len(groups) + len(rejected),
        rejected=Counter(str(item.code) for item in rejected),
        example=str(rejected[0]) if rejected else "",
        present=present,
        lengths=[len(caption) for caption in captions],
        groups=groups,
        seconds=seconds,
        concurrent=False,
        max_rejected=data.reading.max_rejected,
    )


def choose(pool: dict[str, Any], num: int) -> dict[str, Any]:
    """A batch of the samples with the most modalities, and of some with few, of distinct groups.

    Args:
        pool: what to choose from.
        num: how many.
    """
    groups = pool["group_id"].tolist()
    first = [row for row, group in enumerate(groups) if group not in groups[:row]]
    count = torch.stack([mask.any(1).long() for mask in pool["masks"].values()]).sum(0)
    ranked = sorted(first, key=lambda row: -int(count[row]))
    few = min(num // 4, max(0, len(ranked) - num))
    chosen = ranked[: num - few] + (ranked[-few:] if few else [])
    rows = torch.tensor(sorted(chosen))
    batch: dict[str, Any] = {
        name: [pool[name][row] for row in rows.tolist()] for name in ("keys", "captions")
    }
    batch |= {name: pool[name][rows] for name in ("group_id", "weight")}
    lengths = {n: max(1, int(m[rows].sum(1).max())) for n, m in pool["masks"].items()}
    for kind in ("inputs", "masks", "positions"):
        batch[kind] = {n: x[rows, : lengths[n]] for n, x in pool[kind].items()}
    return batch


def _shown(steps: range) -> Iterator[int]:
    from rich.console import Console
    from rich.progress import track

    yield from track(steps, "Reading", console=Console(stderr=True), transient=True)
