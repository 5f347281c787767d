import math

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn import functional as F

from fusion.losses import contrastive_loss, sigmoid_loss


def make(num: int = 7, dim: int = 5) -> tuple[torch.Tensor, ...]:
    """Unit rows, a scale and a bias in float64, all with gradient."""
    rows = (F.normalize(torch.randn(num, dim).double(), dim=1) for _ in range(2))
    extra = (torch.tensor(value, dtype=torch.float64) for value in (9.0, -3.0))
    return tuple(value.requires_grad_() for value in (*rows, *extra))


def assert_same(loss: torch.Tensor, expected: torch.Tensor, inputs) -> None:
    torch.testing.assert_close(loss, expected)
    grads = (torch.autograd.grad(value, inputs, retain_graph=True) for value in (loss, expected))
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted)


def test_contrastive_loss_is_that_of_open_clip():
    a, b, scale, _ = make()
    assert_same(contrastive_loss(a, b, scale), ClipLoss()(a, b, scale), (a, b, scale))


def test_sigmoid_loss_is_that_of_open_clip():
    a, b, scale, bias = make()
    expected = SigLipLoss()(a, b, scale, bias)
    assert_same(sigmoid_loss(a, b, scale, bias), expected, (a, b, scale, bias))


def test_several_positives_by_loops():
    a, b, scale, bias = make()
    group = torch.tensor([3, 1, 3, 3, 2, 1, 9])
    info_nce, sigmoid = [], []
    for query, target in ((a, b), (b, a)):
        for i in range(7):
            logits = [scale * (query[i] * target[j]).sum() for j in range(7)]
            total = torch.stack([logit.exp() for logit in logits]).sum().log()
            friends = [j for j in range(7) if group[j] == group[i]]
            info_nce.append(sum(total - logits[j] for j in friends) / len(friends))
            for j, logit in enumerate(logits):
                sign = 1 if j in friends else -1
                sigmoid.append((1 + (-sign * (logit + bias)).exp()).log())
    # Both sums run in both directions, over 7 rows.
    expected = torch.stack(info_nce).sum() / 14, torch.stack(sigmoid).sum() / 14
    assert_same(contrastive_loss(a, b, scale, group), expected[0], (a, b, scale))
    assert_same(sigmoid_loss(a, b, scale, bias, group), expected[1], (a, b, scale, bias))


def test_distinct_groups_are_the_same_as_none():
    a, b, scale, bias = make()
    group = torch.randperm(7)
    assert contrastive_loss(a, b, scale, group).equal(contrastive_loss(a, b, scale))
    assert sigmoid_loss(a, b, scale, bias, group).equal(sigmoid_loss(a, b, scale, bias))


@pytest.mark.parametrize("loss", [contrastive_loss, lambda *x: sigmoid_loss(*x, -10.0)])
def test_half_precision_is_computed_in_float32(loss):
    a, b = (F.normalize(torch.randn(9, 8), dim=1).bfloat16() for _ in range(2))
    assert loss(a, b, 50.0).equal(loss(a.float(), b.float(), 50.0))


def test_knowing_nothing_costs_the_logarithm_of_the_batch():
    row = F.normalize(torch.randn(1, 4), dim=1).expand(13, 4)
    assert contrastive_loss(row, row, 30.0).item() == pytest.approx(math.log(13), abs=1e-5)


def test_matching_rows_cost_less_than_shuffled_ones():
    rows = torch.eye(16)
    turned = rows.roll(1, dims=0)
    assert contrastive_loss(rows, rows, 20.0) < 0.1 < 5 < contrastive_loss(rows, turned, 20.0)
    assert sigmoid_loss(rows, rows, 20.0, -10.0) < 0.1 < 5 < sigmoid_loss(rows, turned, 20.0, -10.0)


def test_same_captions_are_not_pushed_apart():
    rows = F.normalize(torch.randn(2, 8), dim=1).repeat(2, 1).double().requires_grad_()
    group = torch.tensor([0, 1, 0, 1])
    assert contrastive_loss(rows, rows, 50.0, group).item() == pytest.approx(math.log(2), abs=0.01)
    assert sigmoid_loss(rows, rows, 50.0, -20.0, group) < sigmoid_loss(rows, rows, 50.0, -20.0)


@pytest.mark.parametrize("loss", [contrastive_loss, lambda *x: sigmoid_loss(*x[:3], 0.0, *x[3:])])
def test_errors(loss):
    rows = torch.eye(4)
    for wrong in [(rows, rows[:3]), (rows[0], rows[0]), (rows[:0], rows[:0]), (rows, rows[:, :2])]:
        with pytest.raises(ValueError, match=r"two of one shape \(B, D\)"):
            loss(*wrong, 1.0)
    with pytest.raises(ValueError, match="one id per sample"):
        loss(rows, rows, 1.0, torch.arange(3))
