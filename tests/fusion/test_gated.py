"""GatedAssim: exact gates, bounded latents, and what travels along a chain of any length."""

from functools import partial

import pytest
import torch

from fusion import FixedPointSolver, FusionBlock
from fusion.accom import RelationalAccom, SlotAccom
from fusion.assim import GatedAssim
from fusion.relations import Earlier, Window

F64 = torch.float64


def chain(num_tokens: int, gates: torch.Tensor, kappa: float = 1.0):
    """A choice in which every token reads its left neighbour through the gate given for it."""
    torch.manual_seed(0)
    accom = partial(RelationalAccom, rule=Earlier() & Window(1))
    block = FusionBlock(8, 1, 1, partial(GatedAssim, kappa=kappa), accom).double()
    values = torch.randn(1, num_tokens, 8, dtype=F64)
    choice = block.choose(values, torch.ones(1, num_tokens, dtype=torch.bool))
    update = choice.update
    return update.__class__(
        update.anchors, gates.view(1, 1, -1, 1).to(F64), kappa, update.gain
    ), choice


@pytest.mark.parametrize("num_tokens", [2, 33, 300])
def test_an_anchor_arrives_unchanged_at_any_distance(num_tokens):
    gates = torch.ones(num_tokens)
    gates[0] = 0
    update, choice = chain(num_tokens, gates)
    latents = torch.zeros_like(choice.anchors)
    for number in range(num_tokens):
        before = latents
        latents = update(latents, choice.mixing.gather(latents), choice.mixing.read)
        assert not torch.equal(latents, before), number
    again = update(latents, choice.mixing.gather(latents), choice.mixing.read)
    assert torch.equal(again, latents)  # it ended by itself, after as many rounds as tokens
    assert torch.equal(latents, choice.anchors[:, :, :1].expand_as(latents))


def test_with_a_gain_below_one_it_fades():
    """Negative control: a certified factor of 0.9 forgets what is far away."""
    gates = torch.ones(100)
    gates[0] = 0
    update, choice = chain(100, gates, kappa=0.9)
    latents = torch.zeros_like(choice.anchors)
    for _ in range(100):
        latents = update(latents, choice.mixing.gather(latents), choice.mixing.read)
    share = latents.detach()[0, 0, -1].norm() / choice.anchors.detach()[0, 0, 0].norm()
    assert float(share) == pytest.approx(0.9**99, rel=1e-9)


def test_gates_reach_both_ends_and_latents_stay_small():
    torch.manual_seed(0)
    assim = GatedAssim(8, 2, kappa=1.0)
    with torch.no_grad():
        assim.weight.mul_(20)
    anchors = torch.randn(3, 2, 50, 8)
    mask = torch.ones(3, 50, dtype=torch.bool)
    update = assim(anchors, mask)
    assert (update.gate == 0).any() and (update.gate == 1).any()
    assert ((update.gate > 0) & (update.gate < 1)).any()
    accom = SlotAccom(8, 2, 4)
    block = FusionBlock(16, 2, 4, partial(GatedAssim, kappa=1.0), lambda *_: accom)
    choice = block.choose(torch.randn(3, 50, 16), mask)
    start = choice.start()
    latents, _ = choice.read_out(FixedPointSolver(64)(choice.step, start, choice.real(start))[0])
    largest = choice.anchors.norm(dim=-1).amax()
    assert latents.norm(dim=-1).amax() <= largest * (1 + 1e-5)


def test_the_factor_is_that_of_the_widest_gate():
    assim = GatedAssim(4, 1, kappa=0.8)
    anchors = torch.randn(2, 1, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()
    update = assim(anchors, mask)
    assert update.gain[0] == 0.8 * update.gate[0].max()
    assert update.gain[1] == 0.8 * update.gate[1, 0, 0, 0]  # what is not real does not count
    with pytest.raises(ValueError, match="kappa=0"):
        GatedAssim(4, 1, kappa=0)
