import random

import pytest

from datamodules.splits import hold_out, may_be_held_out

GOLDEN = [1, 7, 10, 17, 30, 52, 67, 73, 81]
GROUPS = [group * 7919 for group in range(-50, 50)]


def test_hold_out_does_not_depend_on_order_or_repeats():
    shuffled = random.Random(0).sample(GROUPS, len(GROUPS)) + GROUPS[:20]
    held = hold_out(GROUPS, 30, seed=3)
    assert held == hold_out(shuffled, 30, seed=3)
    assert len(held) == 30 and held < set(GROUPS)


def test_hold_out_depends_on_the_seed():
    assert hold_out(GROUPS, 30, seed=0) != hold_out(GROUPS, 30, seed=1)


def test_hold_out_grows_with_num_and_moves_little_with_the_data():
    held = hold_out(GROUPS, 30, seed=0)
    assert held < hold_out(GROUPS, 31, seed=0)
    assert len(held & hold_out([*GROUPS, 10**6], 30, seed=0)) >= 29


def test_hold_out_is_uniform():
    counts = dict.fromkeys(range(20), 0)
    for seed in range(2000):
        for group in hold_out(range(20), 5, seed):
            counts[group] += 1
    assert all(400 < count < 600 for count in counts.values())  # 500 expected, sd 19


def test_hold_out_is_the_same_in_every_process():
    assert sorted(hold_out(range(99), 9, 1)) == GOLDEN


def test_hold_out_leaves_something_to_train_on():
    assert hold_out([], 0, 0) == set()
    for num in (-1, 3, 4):
        with pytest.raises(ValueError, match=f"cannot hold out {num} of 3"):
            hold_out([1, 2, 3, 3], num, 0)


@pytest.mark.parametrize(
    ("meta", "source", "expected"),
    [
        ({"source": "stamps", "symbol": False}, "stamps", True),
        ({"source": "stamps"}, "stamps", True),
        ({"source": "stamps", "symbol": True}, "stamps", False),
        ({"source": "clipart"}, "stamps", False),
        ({}, "stamps", False),
        ({"source": ["stamps"]}, "stamps", False),
        ({}, None, True),
        ({"symbol": True}, None, False),
    ],
)
def test_may_be_held_out(meta, source, expected):
    assert may_be_held_out(meta, source) is expected
