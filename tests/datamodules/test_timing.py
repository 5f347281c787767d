import io
import random
import time

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.ledger import LedgerError
from datamodules.loader import Delivery, Fetch, ResumableLoader
from datamodules.module import ShardDataModule
from datamodules.order import Order
from datamodules.reading import Reading
from datamodules.timing import StageTimer, Timing, time_loader

SIZE, NUM = 4, 20


def loader_of(make_shard, transform, bad=0, max_rejected=0.5, **options):
    """20 pictures with captions, every fifth without one, the last `bad` of them damaged."""
    members = []
    for number in range(NUM):
        picture = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(picture, "PNG")
        data = picture.getvalue()
        members.append((f"s{number:02}.png", data[:50] if number >= NUM - bad else data))
        if number % 5:
            members.append((f"s{number:02}.txt", b"a thing"))
    reading = Reading(max_rejected=max_rejected, **options)
    path = str(make_shard(members))
    data = ShardDataModule([path], batch_size=SIZE, num_workers=0, reading=reading)
    data.augment = transform
    data.setup()
    return data.train_dataloader()


def transform(samples):
    """Pictures as they are; words as their number of letters."""
    return [
        {
            "inputs": {
                name: torch.tensor([len(raw)]) if name == "text" else raw[None]
                for name, raw in sample.inputs.items()
            }
        }
        for sample in samples
    ]


def busy(samples):
    """Half a millisecond of work for each picture."""
    until = time.process_time() + 5e-4 * ("image" in samples[0].inputs)
    while time.process_time() < until:
        pass
    return transform(samples)


def test_every_sample_is_counted_in_every_stage_that_it_goes_through(make_shard):
    timer = StageTimer(loader_of(make_shard, transform))
    assert list(timer.run(100)) == [0, 1, 2, 3, 4]
    assert {name: stage.num_samples for name, stage in timer.stages.items()} == {
        "read": NUM,
        "decode of image": NUM,
        "transform of image": NUM,
        "transform of text": NUM - 4,
        "collate": NUM,
    }
    seconds = [stage.seconds for stage in timer.stages.values()]
    assert min(seconds) > 0 and timer.rate == pytest.approx(NUM / sum(seconds))


def test_the_slowest_stage_is_found(make_shard):
    timer = StageTimer(loader_of(make_shard, busy))
    assert list(timer.run(2)) == [0, 1]
    assert timer.slowest.name == "transform of image"
    assert 1000 < timer.slowest.rate <= 2000 and timer.rate < timer.slowest.rate


def test_what_is_rejected_goes_no_further(make_shard):
    timer = StageTimer(loader_of(make_shard, transform, bad=3))
    list(timer.run(100))
    counts = {name: stage.num_samples for name, stage in timer.stages.items()}
    assert counts["decode of image"] == NUM and counts["transform of image"] == NUM - 3
    assert counts["collate"] == NUM - 3

    timer = StageTimer(loader_of(make_shard, transform, required=["text"]))
    list(timer.run(100))
    counts = {name: stage.num_samples for name, stage in timer.stages.items()}
    assert counts["read"] == NUM and counts["decode of image"] == NUM - 4

    def fails(samples):
        raise ValueError("not this one")

    timer = StageTimer(loader_of(make_shard, fails))
    list(timer.run(100))
    assert "collate" not in timer.stages


def test_what_no_tower_takes_is_not_decoded_here_either(make_shard):
    loader = loader_of(make_shard, transform)
    loader.fetch.modalities = ("audio",)
    timer = StageTimer(loader)
    list(timer.run(100))
    assert not [name for name in timer.stages if "image" in name]
    assert all("image" not in batch["inputs"] for batch in loader)


def test_timing_draws_nothing_from_the_generators(make_shard):
    timer = StageTimer(loader_of(make_shard, transform))
    before = torch.get_rng_state(), random.getstate()
    list(timer.run(2))
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


class Slow(Fetch):
    """Delivers numbers, every sample in two milliseconds; the first batch in much longer."""

    def __init__(self):
        self.first = True

    def __call__(self, draws):
        time.sleep(1.0 if self.first else 2e-3 * len(draws))
        self.first = False
        return Delivery({"keys": [draw.row for draw in draws]}, len(draws))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_is_timed_over_epochs_without_its_start(num_workers):
    loader = ResumableLoader(Slow(), Order([12]), SIZE, num_workers)
    timings = [(t.num_samples, t.rate) for t in time_loader(loader, 10)]
    assert [num for num, _ in timings] == [SIZE * n for n in range(1, 11)]
    assert 60 < timings[-1][1] < 1000  # with the start it would be below 40


def test_too_much_that_is_rejected_stops_the_timing(make_shard):
    loader = loader_of(make_shard, transform, bad=8, max_rejected=0.1)
    with pytest.raises(LedgerError, match="more than max_rejected"):
        list(time_loader(loader, 50))


def test_a_loader_that_does_not_stream_has_no_stages():
    with pytest.raises(ValueError, match="ShardDataModule"):
        StageTimer(ResumableLoader(Slow(), Order([12]), SIZE))


def test_no_time_is_no_error():
    assert Timing("x").rate == 0
