"""The energy of the tied mean field: it falls in every round, for a coupling of any strength.

Shapes: B batch, H heads, N tokens, K slots, d width of a head.
"""

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from fusion.accom import FrozenMixing, SlotAccom
from fusion.accom.mean import MeanMixing
from fusion.assim.anchored import AnchoredUpdate
from fusion.choice import Choice
from fusion.tokens import Place

F64 = torch.float64
BATCH, NUM_HEADS, NUM_TOKENS, DIM_HEAD = 4, 2, 6, 8
MASK = torch.ones(BATCH, NUM_TOKENS, dtype=torch.bool)
ONES = torch.ones(BATCH, NUM_HEADS, 1, 1, dtype=F64)


def draw() -> Tensor:
    """Anchors of norm about 1."""
    return torch.randn(BATCH, NUM_HEADS, NUM_TOKENS, DIM_HEAD, dtype=F64) / DIM_HEAD**0.5


def mean() -> MeanMixing:
    return MeanMixing(MASK.unsqueeze(1), NUM_TOKENS * ONES[..., 0])


def with_coupling(
    coupling: Tensor, anchors: Tensor, mixing: FrozenMixing, radius: float = 1.0
) -> Choice:
    """A choice with a given coupling and strengths between 1/2 and 1."""
    strength = 0.5 + 0.5 * torch.rand_like(ONES)
    update = AnchoredUpdate(anchors, strength, coupling, ONES[:, 0, 0, 0], radius=radius)
    return Choice(anchors, MASK, None, update, mixing)


@dataclass(frozen=True)
class TiedSlots(FrozenMixing):
    """C_k = sum_i a_ik z_i and c_i = sum_k t_k a_ik C_k: pool (B, H, K, N) a, tie (B, H, K) t."""

    pool: Tensor
    tie: Tensor

    def gather(self, latents: Tensor) -> Tensor:
        return self.pool @ latents

    def read(self, slots: Tensor) -> Tensor:
        return self.pool.mT @ (self.tie.unsqueeze(-1) * slots)


def tied_slots() -> TiedSlots:
    pool = torch.randn(BATCH, NUM_HEADS, 3, NUM_TOKENS, dtype=F64).softmax(dim=-1)
    return TiedSlots(pool, 1 + torch.rand(BATCH, NUM_HEADS, 3, dtype=F64))


def positive(kappa: float, *lead: int) -> Tensor:
    """Symmetric positive semidefinite matrices of norm kappa and half the full rank."""
    raw = torch.randn(*lead, DIM_HEAD, DIM_HEAD // 2, dtype=F64)
    matrix = raw @ raw.mT
    return kappa * matrix / torch.linalg.matrix_norm(matrix, ord=2)[..., None, None]


def climb(choice: Choice, latents: Tensor) -> Tensor:
    """F of T5, as it is written there."""
    update, mixing, radius = choice.update, choice.mixing, choice.update.radius
    context = mixing.gather(latents)
    drive = (update.coupling @ (update.strength * context).mT).mT
    shared = mixing.tie / 2 * (context * drive).sum(-1)
    room = radius * (radius**2 - latents.square().sum(-1)).sqrt()
    room = room + (choice.anchors * latents).sum(-1)
    return room.sum(dim=(1, 2)) + shared.sum(dim=(1, 2))


@pytest.mark.parametrize("kappa", [0.5, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("make_mixing", [mean, tied_slots])
@pytest.mark.parametrize("lead", [(NUM_HEADS,), (BATCH, NUM_HEADS)])
def test_energy_never_rises_however_strong_the_coupling(kappa, make_mixing, lead) -> None:
    """A9: each round lowers it by at least half the squared step, from any start."""
    least = math.inf
    for seed, radius in enumerate((0.3, 1.0, 4.0)):
        torch.manual_seed(seed)
        choice = with_coupling(positive(kappa, *lead), draw(), make_mixing(), radius)
        state = torch.randn_like(choice.start())
        energy, latents = choice.energy(state), choice.read_out(state)[0]
        constant = energy + climb(choice, latents)
        for _ in range(100):
            state = choice.step(state)
            before, previous = energy, latents
            energy, latents = choice.energy(state), choice.read_out(state)[0]
            gained = 0.5 * (latents - previous).square().sum(dim=(1, 2, 3))
            rounding = 1e-12 * (1 + energy.abs())
            assert (before - energy >= gained - rounding).all()
            assert (energy + climb(choice, latents) - constant).abs().max() < rounding.max()
            moving = gained > 1e-9 * (1 + energy.abs())
            if moving.any():
                least = min(least, ((before - energy) / gained)[moving].min().item())
    assert least >= 1


@pytest.mark.parametrize("kappa", [5.0, 100.0])
def test_energy_is_not_claimed_where_it_would_rise(kappa: float) -> None:
    """Negative control of A9: a negative coupling runs into cycles, F up and down."""
    torch.manual_seed(0)
    choice = with_coupling(-positive(kappa, NUM_HEADS), draw(), mean())
    state, heights = torch.randn_like(choice.start()), []
    for _ in range(50):
        state = choice.step(state)
        heights.append(climb(choice, choice.read_out(state)[0]))
    assert torch.stack(heights).diff(dim=0).min() < -0.01
    assert choice.energy(state) is None


def test_padding_has_no_energy() -> None:
    torch.manual_seed(0)
    choice = with_coupling(positive(0.9, NUM_HEADS), draw(), mean())
    energy = choice.energy(choice.start())
    anchors, mask = pad(choice.anchors, (0, 0, 0, 3)), pad(MASK, (0, 3))
    update = dataclasses.replace(choice.update, anchors=anchors)
    mixing = MeanMixing(mask.unsqueeze(1), choice.mixing.tie)
    padded = Choice(anchors, mask, None, update, mixing)
    assert torch.allclose(padded.energy(padded.start()), energy)


def test_energy_is_none_outside_its_theorem() -> None:
    torch.manual_seed(0)
    good = with_coupling(positive(0.9, NUM_HEADS), draw(), mean())
    state = good.start()
    assert good.energy(state) is not None
    skew = torch.randn(NUM_HEADS, DIM_HEAD, DIM_HEAD, dtype=F64)
    for changes in ({"memory": 0.5}, {"rotation": 0.5}, {"coupling": skew}, {"coupling": -ONES[0]}):
        update = dataclasses.replace(good.update, **changes)
        assert update.energy(*good.read_out(state), good.mixing) is None
    place = Place(torch.zeros(*MASK.shape, 3), torch.zeros(MASK.shape))
    slots = SlotAccom(DIM_HEAD, NUM_HEADS, 3).double()(good.anchors, MASK, place)
    untied = dataclasses.replace(good, mixing=slots)
    assert untied.energy(untied.start()) is None
