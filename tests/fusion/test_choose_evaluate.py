"""Choose once, then evaluate (arXiv 2403.18415), and the symmetry of what is evaluated.

Shapes: B batch, H heads, N tokens, d width of a head.
"""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu

from fusion import FixedPointSolver, FusionBlock
from fusion.accom import Accom, MeanAccom, SlotAccom
from fusion.assim import AnchoredAssim, Assim, ChoiceAssim
from fusion.choice import Choice
from fusion.phase import multiply
from fusion.tokens import Place

F64 = torch.float64
BATCH, NUM_HEADS, NUM_TOKENS, DIM_HEAD = 4, 2, 6, 8
MASK = torch.ones(BATCH, NUM_TOKENS, dtype=torch.bool)


def draw() -> Tensor:
    """Anchors of norm about 1."""
    return torch.randn(BATCH, NUM_HEADS, NUM_TOKENS, DIM_HEAD, dtype=F64) / DIM_HEAD**0.5


@torch.no_grad()
def choose(assim: Assim, accom: type[Accom]) -> Choice:
    """A choice with random couplings of the largest norm allowed."""
    for part in (assim.coupling_real, assim.coupling_imag):
        torch.nn.init.normal_(part)
    mixing, anchors = accom(DIM_HEAD, NUM_HEADS, 3).double(), draw()
    place = Place(torch.zeros(*MASK.shape, 3), torch.zeros(MASK.shape))
    return Choice(anchors, MASK, None, assim.double()(anchors, MASK), mixing(anchors, MASK, place))


def solve(choice: Choice) -> Tensor:
    start = choice.start()
    solver = FixedPointSolver(max_iters=5000, tol=1e-13)
    state, stats = solver(choice.step, start, choice.real(start))
    assert stats.converged.all()
    return state


# Symmetry.


def turned(choice: Choice, angle: float) -> Choice:
    """The same choice for anchors that are all turned by one phase."""
    anchors = turn(choice.anchors, angle)
    update = dataclasses.replace(choice.update, anchors=anchors)
    return dataclasses.replace(choice, anchors=anchors, update=update)


def turn(pairs: Tensor, angle: float) -> Tensor:
    phase = torch.full((pairs.shape[-1] // 2,), angle, dtype=F64)
    return multiply(pairs, torch.cat([phase.cos(), phase.sin()]))


@pytest.mark.parametrize("assim", [AnchoredAssim, ChoiceAssim])
@pytest.mark.parametrize("accom", [MeanAccom, SlotAccom])
def test_a_global_phase_passes_through(assim, accom) -> None:
    """A16: at rotation 0 turning all anchors turns the fixed point, and nothing else."""
    torch.manual_seed(0)
    choice = choose(assim(DIM_HEAD, NUM_HEADS), accom)
    for angle in (0.3, 2.0, math.pi):
        gap = solve(turned(choice, angle)) - turn(solve(choice), angle)
        assert gap.abs().max() < 1e-6


def test_a_rotor_and_a_coupling_of_reals_do_not_commute_with_it() -> None:
    """Negative control of A16."""
    torch.manual_seed(0)
    rotor = choose(AnchoredAssim(DIM_HEAD, NUM_HEADS, 0.5, rotation=0.2), MeanAccom)
    plain = choose(AnchoredAssim(DIM_HEAD, NUM_HEADS), MeanAccom)
    flip = torch.ones(DIM_HEAD, dtype=F64)
    flip[: DIM_HEAD // 2] = -1  # of the real parts: no multiplication by a complex number
    update = dataclasses.replace(plain.update, coupling=flip * plain.update.coupling)
    for choice in (rotor, dataclasses.replace(plain, update=update)):
        assert (solve(turned(choice, 2.0)) - turn(solve(choice), 2.0)).abs().max() > 1e-3


# Choose, then evaluate (arXiv 2403.18415).


def make_block(**settings) -> FusionBlock:
    torch.manual_seed(0)
    block = FusionBlock(16, 2, 3, assim=ChoiceAssim, **settings).double()
    for weight in (block.out.weight, block.mlp.shrink.weight):
        torch.nn.init.normal_(weight, std=0.3)
    return block


def test_parameters_are_chosen_once_however_long_the_loop() -> None:
    block = make_block(solver=FixedPointSolver(tol=1e-12, max_iters=100))
    calls = []
    for part in (block.assim, block.accom):
        part.register_forward_hook(lambda module, *_: calls.append(type(module)))
    out = block(torch.randn(2, 5, 16, dtype=F64), torch.ones(2, 5, dtype=torch.bool))
    assert out.stats.num_iters.min() > 5
    assert calls == [ChoiceAssim, SlotAccom]


def test_the_chosen_map_is_affine_in_the_anchors() -> None:
    """Before the normalisation; with it (E = 1) it is not."""
    torch.manual_seed(0)
    bends = []
    for radius in (math.inf, 1.0):
        choice = choose(ChoiceAssim(DIM_HEAD, NUM_HEADS, radius=radius), SlotAccom)

        def evaluate(anchors: Tensor, choice: Choice = choice) -> Tensor:
            update = dataclasses.replace(choice.update, anchors=anchors)
            moved = dataclasses.replace(choice, anchors=anchors, update=update)
            return moved.read_out(solve(moved))[0]

        left, right = draw(), draw()
        middle = evaluate((left + right) / 2)
        bends.append((evaluate(left) + evaluate(right) - 2 * middle).abs().max().item())
    assert bends[0] < 1e-10 < 1e-2 < bends[1]


def bend(function: Callable[[Tensor], Tensor], here: Tensor, length: float) -> float:
    """Second difference along a random line over the squared length."""
    way = length * torch.randn_like(here)
    ends = function(here + way) + function(here - way)
    return ((ends - 2 * function(here)).abs().max() / length**2).item()


def test_the_block_is_not_piecewise_linear() -> None:
    """It bends at generic points at every scale; a ReLU network (control) only at its kinks."""
    block = make_block(solver=FixedPointSolver(tol=1e-13, max_iters=200))
    mask = torch.ones(1, 5, dtype=torch.bool)
    weights = torch.randn(16, 64, dtype=F64), torch.randn(64, 16, dtype=F64)
    for _ in range(10):
        here = torch.randn(1, 5, 16, dtype=F64)
        for length in (1e-2, 1e-3, 1e-4):
            assert bend(lambda values: block(values, mask).values, here, length) > 0.1
        assert bend(lambda values: relu(values @ weights[0]) @ weights[1], here, 1e-6) < 1
