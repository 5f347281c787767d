import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from torchmetrics.classification import BinaryCalibrationError

from fusion.scorecard.calibration import (
    PENALTY,
    calibrate,
    draw_pairs,
    fit_logistic,
    reliability,
)
from fusion.scorecard.calibration import _judged as judged
from fusion.subsets import parse_direction
from tests.fusion.scorecard.made import embedded, held_out, unit

A_TO_B = [parse_direction("a->b")]


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_pairs(num: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    cosine = torch.rand(num, dtype=torch.float64) * 2 - 1
    return cosine, torch.rand(num, dtype=torch.float64) < torch.sigmoid(4 * cosine - 1)


def test_the_fit_is_logistic_regression():
    cosine, matched = some_pairs()
    slope, bias = fit_logistic(cosine, matched)
    x = ((cosine - cosine.mean()) / cosine.std(correction=0))[:, None].numpy()
    oracle = LogisticRegression(C=1 / (PENALTY * len(cosine)), tol=1e-10).fit(x, matched.numpy())
    scale = float(cosine.std(correction=0))
    assert slope == pytest.approx(float(oracle.coef_[0, 0]) / scale, rel=1e-4)
    shift = float(oracle.intercept_[0]) - slope * float(cosine.mean())
    assert bias == pytest.approx(shift, rel=1e-4)
    assert slope == pytest.approx(4, abs=0.6) and bias == pytest.approx(-1, abs=0.3)


@pytest.mark.parametrize("sign", [1, -1])
def test_separable_and_constant_scores_have_finite_fits(sign):
    cosine = torch.cat([torch.full((50,), 0.9), torch.full((50,), -0.2)]).double() * sign
    matched = torch.arange(100) < 50
    slope, bias = fit_logistic(cosine, matched)
    probability = torch.sigmoid(slope * cosine + bias)
    assert 0 < abs(slope) < 1e3 and ((probability > 0.5) == matched).all()
    slope, bias = fit_logistic(torch.zeros(100, dtype=torch.float64), matched)
    assert abs(bias) < 1e-6 and abs(slope) < 1e3


def test_errors_are_those_of_torchmetrics_and_sklearn():
    cosine, matched = some_pairs()
    found = judged("a->b", 2.0, 0.5, cosine, matched)
    probability = torch.sigmoid(2.0 * cosine + 0.5)
    oracle = BinaryCalibrationError(n_bins=10, norm="l1")(probability, matched)
    assert found.error == pytest.approx(float(oracle), abs=1e-6)
    assert found.brier == pytest.approx(brier_score_loss(matched.numpy(), probability.numpy()))
    assert sum(b.num for b in found.bins) == found.num_pairs == 2000


def test_the_edges_of_probability_have_bins():
    bins = reliability(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([False, True, False]))
    assert [(b.predicted, b.observed, b.num) for b in bins] == [(0, 0, 1), (1, 0.5, 2)]


def test_unlike_pairs_are_of_other_groups_and_evenly_drawn():
    groups = torch.tensor([5, 5, 5, 7, 8, 8])
    seen = torch.zeros(6, 6)
    for seed in range(400):
        pairs, matched = draw_pairs(groups, draw(seed))
        assert pairs.shape == (2, 12) and matched.tolist() == [True] * 6 + [False] * 6
        left, right = groups[pairs]
        assert (left == right).equal(matched)
        seen.index_put_(tuple(pairs[:, ~matched]), torch.ones(6), accumulate=True)
    unlike = groups[:, None] != groups[None]
    assert not seen[~unlike].any()
    expected = (400 * unlike / unlike.sum(1, keepdim=True))[unlike]
    assert (seen[unlike] - expected).abs().max() < 5 * 10
    assert draw_pairs(torch.tensor([3, 3]), draw())[1].tolist() == [True, True]
    assert draw_pairs(torch.zeros(0, dtype=torch.int64), draw())[0].shape == (2, 0)


def test_a_model_that_matches_by_its_cosine_is_calibrated_on_groups_it_was_not_fitted_on():
    a = unit(600)
    b = torch.nn.functional.normalize(a + 0.8 * unit(600), dim=1)
    samples = held_out({("a",): embedded(a), ("b",): embedded(b)}, torch.arange(600) // 2)
    (found,) = calibrate(samples, A_TO_B, draw())
    assert found.error < 0.06 and found.brier < 0.1 and found.slope > 1
    assert found.num_pairs == 600  # half of the groups


def test_a_collapsed_model_knows_nothing():
    rows = torch.ones(60, 8) / 8**0.5
    (found,) = calibrate(held_out({("a",): embedded(rows), ("b",): embedded(rows)}), A_TO_B, draw())
    assert found.brier == pytest.approx(0.25, abs=1e-3) and found.error < 0.02


def test_too_few_groups_give_no_calibration():
    samples = held_out({("a",): embedded(unit(4)), ("b",): embedded(unit(4))}, [1, 1, 2, 2])
    assert calibrate(samples, A_TO_B, draw()) == ()
