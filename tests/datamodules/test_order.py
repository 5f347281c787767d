import subprocess
import sys
from collections import Counter
from itertools import product

import pytest

from datamodules.order import Deal, Order


def rows(order: Order, epoch: int) -> list[tuple[int, int]]:
    return [draw[:2] for draw in order.draws(epoch, 0, len(order))]


@pytest.mark.parametrize("window", [None, 1, 3, 50])
def test_every_sample_once_in_every_epoch(window):
    order = Order([3, 0, 11, 1, 6], window=window)
    wanted = [(s, r) for s, n in enumerate([3, 0, 11, 1, 6]) for r in range(n)]
    for epoch in range(4):
        assert sorted(rows(order, epoch)) == wanted
    assert (rows(order, 0) == wanted) == (window is None)


def test_epochs_and_seeds_differ():
    order = Order([50, 50], window=2)
    epochs = [tuple(rows(order, epoch)) for epoch in range(5)]
    assert len(set(epochs)) == 5
    assert rows(Order([50, 50], window=2, seed=1), 0) != rows(order, 0)
    assert len({draw.seed for draw in order.draws(0, 0, 100) + order.draws(1, 0, 100)}) == 200


def test_the_same_in_every_process():
    program = (
        "from datamodules.order import Order;"
        "o = Order([40, 9, 30], [1, 2, 0.5], 2, 3); print(o.draws(2, 0, len(o)), o.fingerprint)"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in range(3)
    }
    assert len(runs) == 1


def test_any_slice_is_that_part_of_the_epoch():
    order = Order([5, 7, 2, 9, 4], [1, 0.5, 3, 1, 1], window=2)
    whole = order.draws(1, 0, len(order))
    for start, stop in product(range(0, len(order), 3), range(0, len(order) + 1, 4)):
        fresh = Order([5, 7, 2, 9, 4], [1, 0.5, 3, 1, 1], window=2)
        assert fresh.draws(1, start, stop) == (whole[start:stop] if start < stop else [])


def test_weights_are_whole_passes_over_epochs():
    order = Order([20, 6], [0.25, 2.0], window=2)
    assert len(order) == 5 + 12
    per_epoch = [Counter(rows(order, epoch)) for epoch in range(4)]
    assert all(c[1, row] == 2 for c in per_epoch for row in range(6))
    quarters = sum(
        (Counter({k: n for k, n in c.items() if k[0] == 0}) for c in per_epoch), Counter()
    )
    assert quarters == Counter({(0, row): 1 for row in range(20)})


def test_a_window_keeps_its_shards_together():
    order = Order([10] * 12, window=3)
    shards = [draw.shard for draw in order.draws(0, 0, 120)]
    for first in range(0, 120, 30):
        assert len(set(shards[first : first + 30])) == 3
    assert len({tuple(shards[i : i + 30]) for i in range(0, 120, 30)}) == 4


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (([3], [0.0]), "weight 0.0"),
        (([3], [float("nan")]), "weight nan"),
        (([3], None, 0), "window of 0"),
        (([0, 0],), "no sample"),
    ],
)
def test_order_refuses(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        Order(*arguments)


def test_every_draw_goes_to_one_rank_once_in_equal_steps():
    for num, batch, world in product(range(1, 60), (1, 2, 8), (1, 2, 3, 4)):
        if num < world:
            with pytest.raises(ValueError, match="fewer ranks"):
                Deal(num, batch, 0, world)
            continue
        deals = [Deal(num, batch, rank, world) for rank in range(world)]
        assert len({deal.num_steps for deal in deals}) == 1
        dealt = []
        for step in range(deals[0].num_steps):
            for deal in deals:
                start, stop = deal.bounds(step)
                assert 1 <= stop - start <= batch + 1
                assert stop - start <= batch or num % (batch * world)
                dealt += range(start, stop)
        assert dealt == list(range(num))


def test_all_ranks_together_get_the_same_whatever_their_number():
    for step in range(Deal(100, 8).num_steps):
        whole = Deal(100, 8).bounds(step)
        for world in (2, 4):
            parts = [Deal(100, 8 // world, rank, world).bounds(step) for rank in range(world)]
            assert (parts[0][0], parts[-1][1]) == whole


@pytest.mark.parametrize("arguments", [(10, 0), (10, 1, 2, 2), (10, 1, -1, 2)])
def test_deal_refuses(arguments):
    with pytest.raises(ValueError, match="wanted a batch of at least 1"):
        Deal(*arguments)
