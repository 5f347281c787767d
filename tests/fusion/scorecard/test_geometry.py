import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from fusion.diagnostics import effective_rank as of_tokens
from fusion.scorecard import geometry
from fusion.scorecard.geometry import effective_rank, gap_between, gaps, spreads, uniformity
from tests.fusion.scorecard.made import embedded, held_out, unit


@pytest.mark.parametrize("num", [6, 8, 40])
def test_effective_rank_is_that_of_the_singular_values(num):
    rows = unit(num, 8) * torch.linspace(0.1, 2, 8)
    mask = torch.ones(1, num, dtype=torch.bool)
    assert effective_rank(rows) == pytest.approx(float(of_tokens(rows[None, None], mask)), rel=1e-5)


def test_effective_rank_by_hand():
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(30, 8)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(4, 8)) == 0
    p = torch.tensor([3.0, 1.0]) / 4
    by_hand = math.exp(-float((p * p.log()).sum()))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(by_hand)


def test_uniformity_is_that_of_wang_and_isola(monkeypatch):
    rows = unit(50)
    oracle = torch.pdist(rows.double()).pow(2).mul(-2).exp().mean().log()  # their code
    assert uniformity(rows) == pytest.approx(float(oracle))
    monkeypatch.setattr(geometry, "ROWS_TOGETHER", 7)
    assert uniformity(rows) == pytest.approx(float(oracle))
    monkeypatch.setattr(geometry, "MAX_ROWS", 25)
    assert uniformity(rows) == uniformity(rows[::2]) != pytest.approx(float(oracle))
    assert uniformity(rows[:1].expand(9, -1)) == pytest.approx(0, abs=1e-6)
    assert uniformity(rows[:1]) is None


def test_the_gap_by_hand():
    a, b = unit(30), unit(30)
    gap = gap_between("a", "b", a, b)
    assert gap.centroid_distance == pytest.approx(float((a.mean(0) - b.mean(0)).norm()), rel=1e-5)
    cosine = a @ b.T
    assert gap.paired_cosine == pytest.approx(float(cosine.diag().mean()), abs=1e-6)
    others = cosine[~torch.eye(30).bool()].mean()
    assert gap.unpaired_cosine == pytest.approx(float(others), abs=1e-6)
    assert gap.alignment == pytest.approx(2 - 2 * gap.paired_cosine, abs=1e-5)
    assert gap.num == 30


def test_modalities_that_lie_apart_are_told_apart():
    rows, other = unit(200), unit(200)
    aside = torch.zeros(16)
    aside[0] = 3.0
    apart = gap_between("a", "b", F.normalize(rows + aside, dim=1), F.normalize(rows, dim=1))
    assert apart.separability > 0.9 and apart.centroid_distance > 0.8
    mixed = gap_between("a", "b", rows, other)
    assert 0.35 < mixed.separability < 0.65  # on samples whose means were not fitted
    same = gap_between("a", "b", rows, rows)
    assert same.separability == 0.5 and same.centroid_distance == same.alignment == 0


def test_a_linear_rule_agrees():
    shift = torch.zeros(16)
    shift[0] = 0.8
    a, b = F.normalize(unit(400) + shift, dim=1), unit(400)
    x = torch.cat([a, b]).numpy()
    y = [0] * 400 + [1] * 400
    fitted = LogisticRegression().fit(x[::2], y[::2]).score(x[1::2], y[1::2])
    assert gap_between("a", "b", a, b).separability == pytest.approx(fitted, abs=0.06)


def test_only_samples_that_have_both_count():
    rows = unit(6)
    samples = held_out(
        {("a",): embedded(rows, [1, 1, 1, 0, 0, 0]), ("b",): embedded(rows, [0, 1, 1, 1, 0, 0])}
    )
    (gap,) = gaps(samples, ("a", "b"))
    assert gap.num == 2 and gap.paired_cosine == pytest.approx(1)
    assert [(s.modality, s.num) for s in spreads(samples, ("a", "b"))] == [("a", 3), ("b", 3)]


def test_one_sample_and_none():
    one = gap_between("a", "b", unit(1), unit(1))
    assert one.unpaired_cosine is None and one.separability is None
    nobody = held_out({("a",): embedded(unit(3), [0, 0, 0]), ("b",): embedded(unit(3))})
    assert [s.modality for s in spreads(nobody, ("a", "b"))] == ["b"]
    assert gaps(nobody, ("a", "b")) == ()
