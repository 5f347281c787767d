import math

import pytest
import torch

from fusion.layers import MLP, Dropout, masked_mean, masked_softmax


def test_masked_mean_equals_the_mean_of_the_real_tokens() -> None:
    values = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True, False], [False] * 5])
    mean = masked_mean(values, mask.unsqueeze(1))
    assert torch.allclose(mean[0], values[0][:, [0, 2, 3]].mean(dim=1))
    assert torch.equal(mean[1], torch.zeros(3, 4, dtype=torch.float64))


def test_masked_softmax_equals_softmax_over_the_real_entries() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64)
    mask = torch.tensor([True, False, True, True, False])
    weights = masked_softmax(logits, mask)
    assert torch.allclose(weights[:, mask], logits[:, mask].softmax(dim=-1))
    assert not weights[:, ~mask].any()
    assert torch.allclose(masked_softmax(logits.T, mask[:, None], dim=0), weights.T)


def test_hidden_junk_and_empty_rows_give_zero_and_finite_gradients() -> None:
    junk = torch.tensor([[1.0, math.nan, math.inf], [math.nan, -math.inf, 3e38]])
    mask = torch.tensor([[True, False, False], [False, False, False]])
    junk.requires_grad_()
    weights = masked_softmax(junk, mask)
    mean = masked_mean(junk.unsqueeze(-1), mask)
    assert weights.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert mean.tolist() == [[1], [0]]
    (weights.sum() + mean.sum()).backward()
    assert junk.grad is not None and junk.grad.isfinite().all()


def test_softmax_over_minus_infinity_would_give_nan() -> None:
    """Negative control: what the finite fill protects from."""
    assert torch.full((1, 3), -math.inf).softmax(dim=-1).isnan().all()


def test_mlp_starts_at_zero_and_learns() -> None:
    mlp = MLP(4, 8)
    values = torch.randn(2, 3, 4)
    assert not mlp(values).any()
    mlp(values).sum().backward()
    assert mlp.shrink.weight.grad is not None and mlp.shrink.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(share: float) -> None:
    torch.manual_seed(0)
    values = torch.ones(1000, 999, requires_grad=True)
    out = Dropout(share)(values)
    assert abs((out == 0).float().mean().item() - share) < 0.004
    assert abs(out.mean().item() - 1) < 0.02
    out.sum().backward()
    assert torch.equal(values.grad, out.detach())  # the gradient passes where the value does
    neighbours = (out[:, 1:] == 0) & (out[:, :-1] == 0)
    assert abs(neighbours.float().mean().item() - share**2) < 0.01


def test_dropout_is_silent_in_eval_and_refuses_other_shares() -> None:
    values = torch.randn(3, 5)
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)
    with pytest.raises(ValueError, match="give a share"):
        Dropout(1.0)
