import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch

from datamodules.ledger import Ledger
from datamodules.loader import Delivery, Fetch, ResumableLoader
from datamodules.order import Order
from datamodules.reasons import Reason
from datamodules.samples import Rejected

ROOT = Path(__file__).parents[2]
BAD = {(1, 3), (2, 0)}
SIZES = (5, 1, 8, 4, 2, 11, 3, 7, 6)


class Numbers(Fetch):
    """Delivers addresses, with a random number for each; some are rejected."""

    def __init__(self, bad=frozenset(), fingerprint="", failure="", seconds=0.0):
        self.bad, self.fingerprint, self.failure, self.seconds = bad, fingerprint, failure, seconds

    def __call__(self, draws):
        time.sleep(self.seconds)
        good = [draw[:2] for draw in draws if draw[:2] not in self.bad]
        rejected = [
            Rejected("a.tar", str(draw[:2]), "", Reason.DAMAGED, "it is damaged")
            for draw in draws
            if draw[:2] in self.bad
        ]
        seeds = [draw.seed for draw in draws if draw[:2] not in self.bad]
        torch.manual_seed(draws[0].seed)
        batch = {"keys": good, "seeds": seeds, "noise": torch.rand(2)} if good else None
        return Delivery(batch, len(good), rejected, self.failure)


def loader(batch_size=4, num_workers=0, counts=(5, 9, 1, 7), window=2, **options):
    order = Order(counts, window=window)
    options.setdefault("fetch", Numbers())
    options.setdefault("ledger", Ledger(None, 1.0))
    return ResumableLoader(order=order, batch_size=batch_size, num_workers=num_workers, **options)


def batches(loader) -> list:
    return [(b["keys"], b["seeds"], b["noise"].tolist()) for b in loader]


def test_one_epoch_after_the_other():
    it = loader()
    first, second = batches(it), batches(it)
    assert len(first) == len(it) == 6 and first != second
    for epoch in (first, second):
        assert Counter(k for keys, _, _ in epoch for k in keys) == Counter(
            (s, r) for s, n in enumerate((5, 9, 1, 7)) for r in range(n)
        )
    assert (it.epoch, it.step) == (1, 6)


def test_any_number_of_workers_gives_the_same_batches():
    wanted = [batches(it := loader()), batches(it)]
    for workers in (1, 2, 4):
        other = loader(num_workers=workers)
        assert [batches(other), batches(other)] == wanted


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_anywhere_any_number_of_times(workers):
    whole = loader()
    wanted = [batches(whole), batches(whole), batches(whole)]
    flat = [batch for epoch in wanted for batch in epoch]
    for cut in (1, 3, 6, 7, 12):
        broken, seen = loader(num_workers=workers), []
        while len(seen) < len(flat):
            for number, batch in enumerate(broken):
                seen.append((batch["keys"], batch["seeds"], batch["noise"].tolist()))
                if number + 1 == cut and len(seen) < len(flat):
                    state = broken.state_dict()  # workers have fetched more than this by now
                    broken = loader(num_workers=2 - workers)
                    broken.load_state_dict(state)
                    break
        assert seen == flat


def test_stopping_early_goes_on_with_the_next_epoch():
    it = loader()
    for _ in it:
        break
    whole = loader()
    batches(whole)
    assert batches(it) == batches(whole)


def test_a_state_taken_before_the_first_batch_is_the_same_place():
    first = loader()
    next(iter(first))
    again = loader()
    again.load_state_dict(first.state_dict())
    assert again.state_dict() == first.state_dict()
    iter(again)  # Lightning asks for an iterator that it does not use
    assert batches(again) == batches(loader())[1:]


def test_a_finished_epoch_resumes_with_the_next():
    it = loader()
    for _ in it:
        state = it.state_dict()
    assert (state["epoch"], state["step"]) == (1, 0)
    again = loader()
    again.load_state_dict(state)
    assert batches(again) == batches(it)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    for workers in (0, 1):
        torch.manual_seed(5)
        it = iter(loader(num_workers=workers))
        next(it), next(it)
        assert torch.rand(3).equal(wanted)


def test_another_set_or_another_batch_is_refused():
    state = loader().state_dict()
    with pytest.raises(ValueError, match="other shards"):
        loader(counts=(5, 9, 1, 8)).load_state_dict(state)
    with pytest.raises(ValueError, match="other shards"):
        loader(fetch=Numbers(fingerprint="b")).load_state_dict(state)
    with pytest.raises(ValueError, match="6 steps of up to 4 samples .* has 3 of up to 8"):
        loader(batch_size=8).load_state_dict(state)
    two = loader(batch_size=2, ranks=(1, 2))
    two.load_state_dict(state)  # two ranks of two are as large as one of four


def test_rejected_samples_make_a_batch_smaller_and_are_counted():
    it = loader(batch_size=1, fetch=Numbers(BAD))
    first = batches(it)
    assert len(first) == 20 and not BAD & {k for keys, _, _ in first for k in keys}
    assert str(it.ledger) == "read 22 = delivered 20 + rejected 2 (2 damaged)"
    steady = loader(batch_size=1, fetch=Numbers(BAD), repeat_empty=True)
    repeated = batches(steady)
    assert len(repeated) == 22 == len(steady) and steady.ledger.num_repeated == 2
    assert len({keys[0] for keys, _, _ in repeated}) == 20
    assert (steady.ledger.num_delivered, steady.ledger.num_rejected) == (20, 2)


def test_nothing_but_rejected_samples_is_an_error():
    everything = {(s, r) for s in range(4) for r in range(9)}
    with pytest.raises(ValueError, match="every sample of the first batch was rejected: a.tar"):
        batches(loader(fetch=Numbers(everything), repeat_empty=True))
    with pytest.raises(ValueError, match="more than max_rejected=0.05"):
        batches(loader(fetch=Numbers(BAD), ledger=Ledger()))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_one_sentence(workers):
    with pytest.raises(ValueError, match=r"^b.tar: No such file$"):
        batches(loader(fetch=Numbers(failure="b.tar: No such file"), num_workers=workers))


def check_coverage(counts, workers, world, batch_size):
    parts = [loader(batch_size, workers, counts, ranks=(r, world)) for r in range(world)]
    keys = [[b["keys"] for b in part] for part in parts]
    assert len({len(steps) for steps in keys}) == 1
    wanted = sorted((s, r) for s, n in enumerate(counts) for r in range(n))
    assert sorted(k for steps in keys for step in steps for k in step) == wanted


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_sample_once_over_all_workers_and_ranks(world):
    for num_shards, workers, batch_size in product((1, 4), (0, 2), (1, 8)):
        check_coverage(SIZES[:num_shards], workers, world, batch_size)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_shards", range(1, 10))
def test_coverage_in_all_cells(num_shards):
    for workers, world, batch_size in product(range(5), (1, 2, 4), (1, 8)):
        check_coverage(SIZES[:num_shards], workers, world, batch_size)


STOPPED = """
import multiprocessing, os, signal, subprocess, sys, time
from tests.datamodules.test_loader import Numbers, loader

if __name__ == "__main__":
    remaining = iter(loader(num_workers=2, fetch=Numbers(seconds=0.05)))
    next(remaining)
    if sys.argv[1] == "to the end":
        for worker in multiprocessing.active_children():
            subprocess.run(["kill", str(worker.pid)], check=True)  # somebody else's signal
        time.sleep(0.5)
        print(len(list(remaining)))
"""


def stopped(tmp_path, how: str) -> subprocess.CompletedProcess:
    """A process whose workers are told to stop by another one; or one that just ends."""
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED)
    return subprocess.run(
        [sys.executable, script, how],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_workers_outlive_a_signal_to_stop_that_is_not_their_parents(tmp_path):
    done = stopped(tmp_path, "to the end")
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


def test_a_process_that_ends_within_an_epoch_ends_its_workers(tmp_path):
    began = time.perf_counter()
    assert stopped(tmp_path, "at once").returncode == 0
    assert time.perf_counter() - began < 30


def test_without_that_the_run_fails(monkeypatch):
    monkeypatch.setattr("datamodules.loader._outlive", None)
    remaining = iter(loader(num_workers=2, fetch=Numbers(seconds=0.05)))
    with pytest.raises(RuntimeError, match="worker"):
        next(remaining)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGTERM)
        time.sleep(0.2)
        list(remaining)
