"""The measures on cases with known answers, and the trajectory beside the block's own solver."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import fusion.accom
import fusion.assim
from fusion import AnchoredAssim, FixedPointSolver, FusionBlock
from fusion.certificate import error_bound
from fusion.diagnostics import (
    ambiguity,
    effective_rank,
    num_clusters,
    order_parameter,
    phase_coherence,
    slot_shares,
    slot_weights,
    strongest_channel,
    trajectory,
)
from fusion.layers import masked_softmax

DIM, NUM_HEADS, NUM_SLOTS = 16, 2, 3


def leaves(package, base: type) -> list[type]:
    found = (getattr(package, name) for name in package.__all__)
    return [c for c in found if isinstance(c, type) and issubclass(c, base) and c is not base]


ASSIMS = leaves(fusion.assim, fusion.assim.Assim)
ACCOMS = leaves(fusion.accom, fusion.accom.Accom)


def make_block(solver: FixedPointSolver = FixedPointSolver(), **settings) -> FusionBlock:
    torch.manual_seed(0)
    return FusionBlock(DIM, NUM_HEADS, NUM_SLOTS, solver=solver, **settings)


def make_input(batch: int = 5, num_tokens: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    mask = torch.rand(batch, num_tokens) > 0.3
    mask[:, 0] = True
    mask[-1] = False
    return torch.randn(batch, num_tokens, DIM), mask, 5 * torch.rand(batch, num_tokens, 3)


def tokens_of(*rows: list[float]) -> tuple[Tensor, Tensor]:
    """One sample, one head."""
    return torch.tensor([[rows]]), torch.ones(1, len(rows), dtype=torch.bool)


def test_effective_rank_of_known_matrices() -> None:
    line = torch.tensor([1.0, -2.0, 3.0])[:, None] * torch.tensor([1.0, 2.0, -1.0, 0.5])
    every = torch.ones(1, 3, dtype=torch.bool)
    assert effective_rank(line[None, None], every).item() == pytest.approx(1, abs=1e-6)
    square = torch.eye(4)[None, None]
    assert effective_rank(7 * square, torch.ones(1, 4, dtype=torch.bool)).item() == pytest.approx(4)
    half = torch.tensor([[True, True, False, False]])
    assert effective_rank(square, half).item() == pytest.approx(2)
    # Singular values 2 and 1: the entropy of (2/3, 1/3).
    uneven, mask = tokens_of([2.0, 0.0], [0.0, 1.0])
    known = math.exp(-2 / 3 * math.log(2 / 3) - 1 / 3 * math.log(1 / 3))
    assert effective_rank(uneven, mask).item() == pytest.approx(known)
    heads = torch.stack([torch.eye(2), torch.eye(2).flip(0)])[None]  # H d = 4 wide, rank 2
    assert effective_rank(heads, torch.ones(1, 2, dtype=torch.bool)).item() == pytest.approx(2)


@pytest.mark.parametrize("size", [1e-40, 1e-20, 1.0, 1e30])
def test_measures_of_direction_do_not_depend_on_size(size: float) -> None:
    tokens, mask = tokens_of([1.0, 0.0], [1.0, 0.1], [0.0, 1.0])
    assert num_clusters(size * tokens, mask).item() == 2
    wanted = effective_rank(tokens, mask).item()
    assert effective_rank(size * tokens, mask).item() == pytest.approx(wanted, rel=1e-4)


def test_clusters_of_known_directions() -> None:
    two, mask = tokens_of([1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.1, 5.0])
    assert num_clusters(two, mask).item() == 2
    assert num_clusters(two, mask, degrees=0.5).item() == 3  # the last is 1.1 degrees aside
    assert num_clusters(two, mask, degrees=90.1).item() == 1
    opposite, mask = tokens_of([1.0, 0.0], [-1.0, 0.0])
    assert num_clusters(opposite, mask).item() == 2


def test_a_chain_of_links_is_one_cluster_in_any_order() -> None:
    angle = torch.deg2rad(20.0 * torch.arange(17))[torch.randperm(17)]
    fan = torch.stack([angle.cos(), angle.sin()], dim=-1)[None, None]
    every = torch.ones(1, 17, dtype=torch.bool)
    assert num_clusters(fan, every, degrees=21).item() == 1
    assert num_clusters(fan, every, degrees=19).item() == 17


def test_coherence_of_known_phases() -> None:
    phase = torch.tensor([0.3, -1.0])  # of two channels
    modulus = torch.rand(1, 1, 6, 2) + 0.1
    same = torch.cat([modulus * phase.cos(), modulus * phase.sin()], dim=-1)
    every = torch.ones(1, 6, dtype=torch.bool)
    assert phase_coherence(same, every).item() == pytest.approx(1)
    assert phase_coherence(same[:, :, :1], every[:, :1]).item() == pytest.approx(1)
    turn = 2 * math.pi * torch.arange(6) / 6  # evenly around the circle
    around = torch.stack([turn.cos(), turn.sin()], dim=-1)[None, None]
    assert phase_coherence(around, every).item() == pytest.approx(0, abs=1e-6)
    assert phase_coherence(around, every & (turn < 0.1)).item() == pytest.approx(1)


def test_order_parameter_and_strongest_channel_of_a_known_context() -> None:
    start = torch.zeros(1, 1, 2, 4)
    end = torch.tensor([[[[3.0, 0.0, 4.0, 1.0], [0.0, 0.0, 0.0, -2.0]]]])  # moduli 5, 1 and 0, 2
    context = torch.stack([start, end])
    assert order_parameter(context).tolist() == [[0.0], [2.0]]
    path = strongest_channel(context)
    assert path[1].tolist() == [[[[3.0, 4.0], [0.0, -2.0]]]] and not path[0].any()


class Averages:
    """A gathering with known weights and a constant."""

    def __init__(self, pool: Tensor, constant: float) -> None:
        self.pool, self.constant = pool, constant

    def gather(self, latents: Tensor) -> Tensor:
        return self.pool @ latents + self.constant

    def read(self, slots: Tensor) -> Tensor:
        return self.pool.mT @ slots


@pytest.mark.parametrize("num_tokens", [1, 4, 5, 11])
def test_slot_weights_are_those_of_the_gathering(num_tokens: int) -> None:
    mask = torch.ones(2, num_tokens, dtype=torch.bool)
    mask[0, -1] = num_tokens == 1
    logits = torch.randn(2, NUM_HEADS, NUM_SLOTS, num_tokens)
    pool = masked_softmax(logits, mask[:, None, None])
    like = torch.randn(2, NUM_HEADS, num_tokens, 4)
    found = slot_weights(Averages(pool, 3.0), like, mask)
    assert torch.allclose(found, pool, atol=1e-6)
    assert not found[~mask[:, None, None].expand_as(found)].any()
    assert torch.allclose(slot_shares(found).sum(2)[mask[:, None].expand(-1, NUM_HEADS, -1)],
                          torch.ones(()))  # fmt: skip


def test_ambiguity_of_known_weights() -> None:
    every = torch.ones(1, 4, dtype=torch.bool)
    one_each = torch.eye(4)[None, None]
    assert ambiguity(one_each, every).tolist() == [[0.0]]
    assert ambiguity(-one_each, every).tolist() == [[0.0]]  # a negative weight is a weight
    assert ambiguity(torch.ones(1, 1, 4, 4), every).item() == pytest.approx(1)
    assert ambiguity(torch.rand(1, 1, 1, 4), every).tolist() == [[0.0]]  # a single slot
    half = torch.cat([torch.eye(4)[:2], torch.full((2, 4), 0.0)])
    half[:2, 2:] = 0.5
    assert ambiguity(half[None, None], every).item() == pytest.approx(0.25)
    assert ambiguity(torch.ones(1, 1, 4, 4), ~every).tolist() == [[0.0]]


@pytest.mark.parametrize("junk", [math.nan, math.inf, 0.0])
def test_measures_of_nothing_are_zero_and_do_not_touch_the_neighbour(junk: float) -> None:
    tokens = torch.randn(3, 2, 5, 4)
    mask = torch.ones(3, 5, dtype=torch.bool)
    dirty = tokens.clone()
    dirty[1] = junk
    mask[2] = False
    for measure in (effective_rank, num_clusters, phase_coherence):
        clean, found = measure(tokens, mask), measure(dirty, mask)
        assert torch.equal(found[0], clean[0]) and found[1:].tolist() == [0, 0]
    assert order_parameter(dirty)[1] == 0 and order_parameter(dirty)[0] > 0
    assert strongest_channel(dirty[None]).isfinite().all()


@pytest.mark.parametrize("memory", [0.0, 0.3])
def test_the_trajectory_is_what_the_solver_does(memory: float) -> None:
    block = make_block(assim=partial(AnchoredAssim, memory=memory, kappa=0.5))
    values, mask, position = make_input()
    found, stats = trajectory(block, values, mask, position), block(values, mask, position).stats
    num_rounds = int(stats.num_iters.max())
    assert torch.equal(found.num_iters, stats.num_iters) and torch.equal(found.q, stats.q)
    assert torch.equal(found.residual, stats.trace[:num_rounds])
    assert found.converged.all() and found.num_iters[-1] == 0
    assert torch.equal(found.error_bound, error_bound(found.q, found.residual))
    assert found.context.shape == (num_rounds + 1, 5, NUM_HEADS, NUM_SLOTS, DIM // NUM_HEADS)
    assert found.coherence.shape == (num_rounds + 1, 5)
    assert found.weights.shape == (5, NUM_HEADS, NUM_SLOTS, 11)


def test_the_trajectory_ends_within_its_bound_of_the_fixed_point() -> None:
    block = make_block(assim=partial(AnchoredAssim, kappa=0.9)).double()
    values, mask, position = make_input()
    found = trajectory(block, values.double(), mask, position)
    exact = block(values.double(), mask, position).slots  # three rounds more
    distance = (found.context - exact).norm(dim=-1).amax(dim=(2, 3))
    slack = error_bound(found.q, found.residual[-1])  # how far the other may be
    assert (distance[1:] <= found.error_bound + slack + 1e-9).all()
    assert distance[-1].max() < distance[0].max()


def test_recorded_rounds_belong_together() -> None:
    block = make_block()
    values, mask, position = make_input()
    found = trajectory(block, values, mask, position)
    choice = block.choose(values, mask, position)
    assert torch.equal(found.context[0], choice.start())
    assert torch.equal(found.anchors, choice.anchors)
    gathered = found.weights @ found.latents
    assert torch.allclose(gathered, found.context[-1], atol=1e-6)
    assert torch.allclose(found.coherence[-1], phase_coherence(found.latents, mask))


@pytest.mark.parametrize("assim", ASSIMS, ids=lambda leaf: leaf.__name__)
@pytest.mark.parametrize("accom", ACCOMS, ids=lambda leaf: leaf.__name__)
def test_every_variant_can_be_recorded(assim, accom) -> None:
    block = make_block(assim=assim, accom=accom)
    values, mask, position = make_input()
    found = trajectory(block, values, mask, position)
    stats = block(values, mask, position).stats
    num_rounds = len(found.residual)
    assert torch.equal(found.num_iters, stats.num_iters)
    assert torch.equal(found.residual, stats.trace[:num_rounds])
    weights = found.weights
    assert weights.isfinite().all() and weights.shape[:2] == (5, NUM_HEADS)
    assert not weights[~mask[:, None, None].expand_as(weights)].any()
    assert weights[:-1].abs().sum() > 0
    assert 1 <= effective_rank(found.latents, mask)[0] <= 11
    assert ((ambiguity(weights, mask) >= 0) & (ambiguity(weights, mask) < 1 + 1e-6)).all()
    if found.energy is not None and found.energy.isfinite().all():
        rise = (found.energy[1:] - found.energy[:-1]) / found.energy.abs().clamp(min=1)[:-1]
        assert found.energy.shape == (num_rounds + 1, 5) and rise.max() < 1e-5


def test_a_sample_that_fails_says_so_and_keeps_to_itself() -> None:
    block = make_block()
    values, mask, position = make_input()
    mask[:-1, 0] = True
    clean = trajectory(block, values, mask, position)
    values[1, 0] = math.nan
    found = trajectory(block, values, mask, position)
    assert not found.converged[1] and found.residual[-1, 1] == math.inf
    assert found.error_bound[-1, 1] == math.inf
    for name in ("coherence", "residual", "error_bound"):
        assert not getattr(found, name).isnan().any()
    keep = torch.tensor([0, 2, 3, 4])
    num_rounds = int(clean.num_iters[keep].max())
    assert torch.equal(found.context[: num_rounds + 1, keep], clean.context[: num_rounds + 1, keep])
    assert torch.equal(found.weights[keep], clean.weights[keep])
    assert not ambiguity(found.weights, mask).isnan().any()


def test_a_batch_without_any_token_has_a_start_and_no_round() -> None:
    block = make_block()
    values, mask, position = make_input()
    found = trajectory(block, values, torch.zeros_like(mask), position)
    assert len(found.residual) == 0 and len(found.context) == 1
    assert found.converged.all() and not found.num_iters.any() and not found.weights.any()


def test_a_map_that_does_not_settle_runs_out_of_rounds() -> None:
    block = make_block(FixedPointSolver(max_iters=3, tol=1e-6))
    nn.init.constant_(block.gain, 0.3)
    values, mask, position = make_input()
    found = trajectory(block, values, mask, position)
    assert found.num_iters.tolist() == [3, 3, 3, 3, 0] and not found.converged[:-1].any()
    assert (found.residual[-1, :-1] >= found.tol).all()


def test_nothing_recorded_carries_a_gradient() -> None:
    found = trajectory(make_block(), *make_input())
    assert not any(isinstance(v, Tensor) and v.requires_grad for v in vars(found).values())
