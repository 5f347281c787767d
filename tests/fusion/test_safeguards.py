"""What stands between gradients and the optimizer; over ranks in `test_parity.py`."""

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from fusion.losses import InfoNCE, SigmoidLoss
from fusion.safeguards import all_finite, clip_apart


def make(scale_slope: float) -> nn.ModuleDict:
    model = nn.ModuleDict({"tower": nn.Linear(3, 3), "loss": SigmoidLoss(), "other": InfoNCE()})
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    model["loss"].log_logit_scale.grad.fill_(scale_slope)
    return model


def test_the_temperature_does_not_shorten_the_step_of_the_towers():
    small, large = make(0.1), make(1e4)
    norms = clip_apart(small, 0.2), clip_apart(large, 0.2)
    assert small["tower"].weight.grad.equal(large["tower"].weight.grad)
    assert norms[0].towers == norms[1].towers == pytest.approx(0.1 * 12**0.5)
    assert norms[1].losses == pytest.approx(1e4)
    assert large["loss"].log_logit_scale.grad.item() == pytest.approx(0.2, rel=1e-4)
    small, large = make(0.1), make(1e4)  # the control: one norm for all
    for model in (small, large):
        clip_grad_norm_(model.parameters(), 0.2)
    assert large["tower"].weight.grad.norm() < 1e-3 * small["tower"].weight.grad.norm()


def test_what_is_below_the_norm_is_left_alone():
    model = make(0.1)
    clip_apart(model, 1.0)
    assert all((p.grad == 0.1).all() for p in model.parameters())


def test_a_model_without_a_contrastive_loss_is_clipped_as_ever():
    tower, same = nn.Linear(3, 3), nn.Linear(3, 3)
    for model in (tower, same):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
    clip_apart(tower, 0.5)
    clip_grad_norm_(same.parameters(), 0.5)
    assert tower.weight.grad.equal(same.weight.grad)
    with pytest.raises(ValueError, match="positive norm"):
        clip_apart(tower, 0.0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_bad_number_is_enough(bad):
    model, fine = make(1.0), torch.tensor(1.0)
    assert all_finite(model, fine)
    assert not all_finite(model, torch.tensor(bad))
    model["tower"].weight.grad[1, 2] = bad
    assert not all_finite(model, fine)
    model["tower"].weight.grad = None
    assert all_finite(model, fine)


def test_finite_numbers_whose_norm_is_not_are_finite():
    model = make(1.0)
    model["tower"].weight.grad.fill_(3e38)
    assert all_finite(model, torch.tensor(1.0))
