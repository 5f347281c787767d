"""The coupling that is chosen, sample by sample, from learned sets."""

import pytest
import torch
from torch import Tensor

from fusion.assim import AnchoredAssim, ChoiceAssim
from fusion.assim.coupling import bounded_coupling

F64 = torch.float64
BATCH, NUM_HEADS, NUM_TOKENS, DIM_HEAD, NUM_SETS = 8, 2, 5, 8, 4


@torch.no_grad()
def make(scale: float = 1.0, **settings) -> ChoiceAssim:
    """Sets that differ, with parameters of the given spread."""
    assim = ChoiceAssim(DIM_HEAD, NUM_HEADS, **settings).double()
    for part in (assim.coupling_real, assim.coupling_imag):
        torch.nn.init.normal_(part, std=scale)
    return assim


def draw() -> tuple[Tensor, Tensor]:
    mask = torch.rand(BATCH, NUM_TOKENS) > 0.3
    anchors = torch.randn(BATCH, NUM_HEADS, NUM_TOKENS, DIM_HEAD, dtype=F64)
    return torch.where(mask[:, None, :, None], anchors, 0), mask


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 1e3])
def test_the_chosen_norm_is_at_most_the_declared_one_and_that_at_most_kappa(scale) -> None:
    tightest = 0.0
    for seed in range(50):
        torch.manual_seed(seed)
        assim = make(scale, num_sets=1 + seed % 4, kappa=0.7)
        update = assim(*draw())
        norm = torch.linalg.matrix_norm(update.coupling, ord=2)
        exact = (update.strength[..., 0, 0] * norm).amax(dim=1)
        assert (exact <= update.gain * (1 + 1e-9)).all()
        assert (norm <= 0.7 * (1 + 1e-9)).all() and (update.gain <= 0.7).all()
        tightest = max(tightest, (exact / update.gain).max().item())
    assert tightest > 0.99  # equal where there is one set


def test_shares_that_are_not_convex_would_exceed_the_bound() -> None:
    """Negative control: the sum of the sets is a combination, too, but not a convex one."""
    torch.manual_seed(0)
    assim = ChoiceAssim(DIM_HEAD, NUM_HEADS)
    matrices, norms = bounded_coupling(assim.coupling_real, assim.coupling_imag, assim.kappa)
    assert (norms <= 0.9 * (1 + 1e-6)).all()
    assert (torch.linalg.matrix_norm(matrices.sum(dim=0), ord=2) > 0.9).all()


def test_each_sample_and_head_chooses_and_a_strong_preference_takes_one_set() -> None:
    torch.manual_seed(0)
    assim, (anchors, mask) = make(), draw()
    matrices, _ = bounded_coupling(assim.coupling_real, assim.coupling_imag, assim.kappa)
    coupling = assim(anchors, mask).coupling
    assert coupling.shape == (BATCH, NUM_HEADS, DIM_HEAD, DIM_HEAD)
    assert all((coupling[0] - other).abs().max() > 1e-3 for other in coupling[1:])
    torch.nn.init.zeros_(assim.set_query)
    assert torch.allclose(assim(anchors, mask).coupling[0], matrices.mean(dim=0))
    pooled = anchors[0].sum(dim=1) / mask[0].sum()
    with torch.no_grad():
        assim.set_query[2] = 1e4 * pooled
    assert torch.allclose(assim(anchors, mask).coupling[0], matrices[2])


def test_one_set_is_the_anchored_assim() -> None:
    torch.manual_seed(0)
    choice, (anchors, mask) = make(num_sets=1), draw()
    anchored = AnchoredAssim(DIM_HEAD, NUM_HEADS).double()
    with torch.no_grad():
        anchored.coupling_real.copy_(choice.coupling_real[0])
        anchored.coupling_imag.copy_(choice.coupling_imag[0])
    anchored.strength.load_state_dict(choice.strength.state_dict())
    context = torch.randn(BATCH, NUM_HEADS, 1, DIM_HEAD, dtype=F64)
    ends = [
        assim(anchors, mask)(anchors, context, lambda slots: slots) for assim in (choice, anchored)
    ]
    assert (ends[0] - ends[1]).abs().max() < 1e-14


def test_every_set_learns() -> None:
    torch.manual_seed(0)
    assim = make()
    update = assim(*draw())
    (update.strength[..., None] * update.coupling.unsqueeze(2)).square().sum().backward()
    for name, parameter in assim.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.flatten(1) if parameter.dim() > 1 else parameter.grad).any(), name
    assert assim.coupling_real.grad is not None
    assert (assim.coupling_real.grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize(
    "wrong", [{"dim_head": 7}, {"num_sets": 0}, {"kappa": 0.0}, {"radius": -1.0}]
)
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="Got "):
        ChoiceAssim(**{"dim_head": 8, "num_heads": 2, **wrong})
