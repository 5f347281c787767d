import pytest
import torch
from scipy.stats import spearmanr

from fusion.scorecard.iterations import binned, iterations, spearman
from fusion.subsets import parse_direction
from tests.fusion.scorecard.made import embedded, held_out, unit


@pytest.mark.parametrize("kinds", [3, 10, 1000])
def test_spearman_is_that_of_scipy(kinds):
    first, second = torch.randint(kinds, (200,)), torch.randint(kinds, (200,))
    second = second + first // 2
    oracle = spearmanr(first.numpy(), second.numpy()).statistic
    assert spearman(first, second) == pytest.approx(float(oracle))


def test_spearman_by_hand():
    rising = torch.arange(5)
    assert spearman(rising, rising**3) == pytest.approx(1)
    assert spearman(rising, -rising) == pytest.approx(-1)
    assert spearman(rising, torch.ones(5)) is None
    assert spearman(torch.tensor([1]), torch.tensor([2])) is None


def test_bins_hold_about_a_fifth_and_every_query_once():
    rounds = torch.arange(100) // 2  # 50 kinds
    rank = torch.where(rounds < 25, 1, 7)
    bins = binned(rounds, rank)
    assert [b.num for b in bins] == [20] * 5
    assert [b.recall_at_1 for b in bins] == [1, 1, pytest.approx(0.5), 0, 0]
    assert [(b.fewest, b.most) for b in bins][:2] == [(0, 9), (10, 19)]
    few = binned(torch.tensor([4, 4, 4, 9]), torch.tensor([1, 1, 3, 2]))
    assert [(b.fewest, b.most, b.num, b.median_rank) for b in few] == [(4, 4, 3, 1), (9, 9, 1, 2)]


def test_hard_queries_that_take_more_rounds_show():
    eye = torch.eye(20)
    turned = torch.cat([eye[:10], eye[10:].roll(1, 0)])
    query = embedded(turned, rounds=[4] * 10 + [9] * 10)
    samples = held_out({("a",): query, ("b",): embedded(eye)})
    (found,) = iterations(samples, [parse_direction("a->b")])
    assert found.correlation == pytest.approx(1)
    assert (found.mean, found.most, found.share_converged, found.q) == (6.5, 9, 1, 0.5)
    assert [(b.num, b.recall_at_1) for b in found.bins] == [(10, 1), (10, 0)]


def test_what_is_not_declared_or_not_finite_is_none():
    query = embedded(unit(6))
    stats = query.stats._replace(
        q=torch.full((6,), torch.inf), residual=torch.full((6,), torch.inf)
    )
    samples = held_out({("a",): query._replace(stats=stats), ("b",): embedded(unit(6))})
    (found,) = iterations(samples, [parse_direction("a->b")])
    assert found.q is found.residual is found.correlation is None
