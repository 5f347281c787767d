"""Bad samples through the whole loader: workers, ledger, memory, and a second epoch."""

import json
import resource
from collections import Counter
from pathlib import Path

import pytest
import torch

from datamodules.ledger import Ledger
from datamodules.loader import ResumableLoader
from datamodules.module import ShardDataModule
from datamodules.reading import Reading
from tests.datamodules.test_hostile_shards import Planted, plant

MAX_GROWTH = 256 * 1024  # kB that a worker may grow by


def with_memory(samples):
    """The worker's largest size so far, in kB, in the place of an input."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return [{"inputs": {"size": torch.tensor([[size]])}} for _ in samples]


def loader_of(planted: Planted, ledger: Path) -> ResumableLoader:
    module = ShardDataModule(
        [str(path) for path in planted.shards],
        batch_size=16,
        num_workers=2,
        window=2,
        reading=Reading(max_rejected=0.6),
    )
    module.augment = with_memory
    module.setup()
    loader = module.train_dataloader()
    loader.ledger = Ledger(ledger, 0.6)
    return loader


def check(planted: Planted, folder: Path) -> None:
    loader = loader_of(planted, folder / "rejected.jsonl")
    for _ in range(2):
        delivered, sizes = Counter(), []
        for batch in loader:
            delivered.update(batch["keys"])
            sizes += batch["inputs"]["size"].flatten().tolist()
        assert delivered == Counter(key for _, key in planted.good.elements())
        assert max(sizes) - min(sizes) < MAX_GROWTH
    lines = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    told = Counter((line["shard"], line["key"], line["member"], line["code"]) for line in lines)
    assert told == planted.bad
    ledger = loader.ledger
    assert ledger.num_read == 2 * (planted.good.total() + planted.bad.total())
    assert ledger.num_read == ledger.num_delivered + ledger.num_rejected
    assert ledger.num_rejected == 2 * planted.bad.total()


def test_each_bad_sample_is_listed_once(tmp_path):
    check(plant(tmp_path, num_shards=3, num_good=97, num_bad=2), tmp_path)


@pytest.mark.slow
def test_560_bad_samples_among_5000_good(tmp_path):
    check(plant(tmp_path, num_shards=10, num_good=4990, num_bad=20), tmp_path)
