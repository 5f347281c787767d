"""Sparse updates: they end where dense rounds do, as close as is promised, with less work."""

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import fusion.assim
import fusion.solver.lazy
from fusion.accom import NeighbourMixing
from fusion.accom.mean import MeanMixing
from fusion.accom.relational import RelationalMixing
from fusion.accom.responsibilities import ResponsibilityAccom
from fusion.accom.slots import SlotMixing
from fusion.assim import AnchoredAssim, Assim, Update
from fusion.assim.anchored import AnchoredUpdate
from fusion.assim.phase import PhaseAssim
from fusion.choice import Choice
from fusion.solver import FixedPointSolver, LazySolver
from fusion.tokens import Place

F64 = torch.float64
BATCH, NUM_HEADS, NUM_TOKENS, DIM_HEAD, BLOCK, NUM_READ = 2, 2, 96, 8, 8, 5
TOL, KAPPA = 1e-6, 0.9


def averages(*shape: int) -> Tensor:
    return torch.rand(BATCH, NUM_HEADS, *shape, dtype=F64).softmax(dim=-1)


def mean(mask: Tensor) -> MeanMixing:
    return MeanMixing(mask.unsqueeze(1), mask.sum(1)[:, None, None].expand(-1, NUM_HEADS, 1))


def slots(mask: Tensor) -> SlotMixing:
    real = mask[:, None, None]
    pool = averages(3, NUM_TOKENS) * real
    feed = averages(NUM_TOKENS, 3) * real.mT
    return SlotMixing(pool / pool.sum(-1, keepdim=True), feed)


def causal(mask: Tensor) -> RelationalMixing:
    relation = torch.ones(NUM_TOKENS, NUM_TOKENS, dtype=torch.bool).tril() & mask.unsqueeze(1)
    weights = torch.randn(BATCH, NUM_HEADS, NUM_TOKENS, NUM_TOKENS, dtype=F64)
    weights = weights.masked_fill(~relation.unsqueeze(1), -math.inf).softmax(dim=-1)
    return RelationalMixing(weights * mask[:, None, :, None], relation, stretch=1.0)


def listed(lists: Tensor, mask: Tensor) -> NeighbourMixing:
    weights = averages(NUM_TOKENS, NUM_READ) * mask[:, lists].unsqueeze(1)
    total = weights.sum(-1, keepdim=True).clamp(min=1e-9)
    return NeighbourMixing.of(lists, weights / total * mask[:, None, :, None])


def block(mask: Tensor) -> NeighbourMixing:
    first = torch.arange(NUM_TOKENS) // BLOCK * BLOCK
    return listed(first[:, None] + torch.randint(BLOCK, (NUM_TOKENS, NUM_READ)), mask)


def graph(mask: Tensor) -> NeighbourMixing:
    return listed(torch.randint(NUM_TOKENS, (NUM_TOKENS, NUM_READ)), mask)


def make_choice(couple, heterogeneous: bool, seed: int = 0) -> Choice:
    """Anchors of norm .3, or of norms log-uniform in .1 .. 30 from block to block."""
    torch.manual_seed(seed)
    mask = torch.rand(BATCH, NUM_TOKENS) > 0.1
    norms = torch.full((NUM_TOKENS // BLOCK,), 0.3, dtype=F64)
    if heterogeneous:
        norms = norms.uniform_(math.log(0.1), math.log(30)).exp()
    anchors = torch.randn(BATCH, NUM_HEADS, NUM_TOKENS, DIM_HEAD, dtype=F64)
    anchors = anchors / anchors.norm(dim=-1, keepdim=True)
    anchors = anchors * (norms.repeat_interleave(BLOCK) * mask.unsqueeze(1)).unsqueeze(-1)
    coupling = torch.randn(NUM_HEADS, DIM_HEAD, DIM_HEAD, dtype=F64)
    coupling = KAPPA * coupling / torch.linalg.matrix_norm(coupling, ord=2)[:, None, None]
    strength = torch.ones(BATCH, NUM_HEADS, 1, 1, dtype=F64)
    gain = torch.full((BATCH,), KAPPA, dtype=F64)
    update = AnchoredUpdate(anchors, strength, coupling, gain)
    return Choice(anchors, mask, None, update, couple(mask))


def dense(choice: Choice, num_rounds: int = 400) -> tuple[Tensor, Tensor]:
    state = choice.start()
    for _ in range(num_rounds):
        state = choice.step(state)
    return choice.read_out(state)


def residual(choice: Choice, latents: Tensor) -> Tensor:
    """How far a round of all tokens moves each sample's latents: (B,)."""
    weights = choice.mixing.weigh(latents, latents)
    again = choice.update(latents, weights.gather(latents), weights.read)
    return (again - latents).norm(dim=-1).amax(dim=(1, 2))


@pytest.fixture
def always_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds update the due tokens alone, however many these are."""
    monkeypatch.setattr(fusion.solver.lazy, "MOST", 1.0)


sparse = pytest.mark.usefixtures("always_sparse")
couplings = pytest.mark.parametrize("couple", [mean, slots, causal, block, graph])
local = pytest.mark.parametrize("couple", [block, graph])


@sparse
@couplings
@pytest.mark.parametrize("heterogeneous", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_it_ends_within_tol_of_a_standstill_where_dense_rounds_do(
    couple, heterogeneous: bool, seed: int
) -> None:
    """A11."""
    choice = make_choice(couple, heterogeneous, seed)
    found = LazySolver(500, TOL)(choice)
    assert found.converged.all()
    left = residual(choice, found.latents)
    assert (left <= found.residual + 1e-15).all() and (left <= TOL).all()
    wanted, context = dense(choice)
    bound = 2 * TOL * KAPPA / (1 - KAPPA)
    assert (found.latents - wanted).norm(dim=-1).max() <= bound
    assert (found.context - context).norm(dim=-1).max() <= bound
    gathered = choice.mixing.weigh(wanted, context).gather(found.latents)
    assert (found.context - gathered).abs().max() < 1e-12


@sparse
@local
@pytest.mark.parametrize("seed", range(3))
def test_a_rule_a_hundred_times_looser_would_end_too_soon(couple, seed: int) -> None:
    """Negative control of A11: the rule as if the gain were a hundredth of what it is."""
    choice = make_choice(couple, True, seed)
    update = dataclasses.replace(choice.update, gain=choice.update.gain / 100)
    found = LazySolver(500, TOL)(dataclasses.replace(choice, update=update))
    assert found.converged.all()
    assert residual(choice, found.latents).max() > TOL


@dataclass(frozen=True)
class Counted(Update):
    """An update that notes how many real tokens it is called for."""

    anchors: Tensor
    inner: AnchoredUpdate
    calls: list[int]
    memory: float = 0.0

    @property
    def gain(self) -> Tensor:
        return self.inner.gain

    def __call__(self, latents, context, read) -> Tensor:
        self.calls.append(int((self.anchors[:, 0] != 0).any(dim=-1).sum()))
        return dataclasses.replace(self.inner, anchors=self.anchors)(latents, context, read)


@sparse
@local
def test_work_is_saved_where_tokens_settle_at_different_times(couple) -> None:
    choice = make_choice(couple, True)
    calls: list[int] = []
    counted = Counted(choice.anchors, choice.update, calls)
    found = LazySolver(500, TOL)(dataclasses.replace(choice, update=counted))
    assert sum(calls) == found.num_updates.sum() and len(calls) == found.num_iters
    assert found.num_updates.sum() < 0.9 * found.num_iters * choice.mask.sum()


@sparse
def test_where_all_tokens_read_one_context_nothing_is_saved() -> None:
    for heterogeneous in (False, True):
        choice = make_choice(mean, heterogeneous)
        found = LazySolver(500, TOL)(choice)
        assert (found.num_updates > 0.98 * found.num_iters * choice.mask.sum(dim=1)).all()


def test_picking_tokens_is_left_where_most_are_due() -> None:
    choice = make_choice(graph, False)
    assert LazySolver(3, TOL)(choice).num_updates.sum() == 3 * choice.mask.sum()


def test_only_the_block_of_a_token_that_changed_is_updated_again() -> None:
    choice = make_choice(block, False)
    solver = LazySolver(500, TOL)
    settled = solver(choice)
    assert solver(choice, settled.context).num_iters <= 2
    anchors = choice.anchors.clone()
    anchors[:, :, 0] = 1
    update = dataclasses.replace(choice.update, anchors=anchors)
    again = solver(dataclasses.replace(choice, anchors=anchors, update=update), settled.context)
    assert again.converged.all() and again.num_iters > 3
    touched = again.num_updates - choice.mask.sum(dim=1)  # the first round is of all tokens
    assert (touched <= BLOCK * (again.num_iters - 1)).all()


def test_the_solution_starts_closing_rounds_that_carry_a_gradient() -> None:
    choice = make_choice(graph, True)
    anchors = choice.anchors.requires_grad_()
    state = choice.start(LazySolver(500, TOL)(choice).context)
    closing = FixedPointSolver(max_iters=0, tol=TOL)
    state, stats = closing(choice.step, state, choice.real(state), choice.q)
    choice.read_out(state)[0].square().sum().backward()
    assert stats.converged.all() and anchors.grad is not None and anchors.grad.abs().sum() > 0


def test_a_sample_with_nan_says_so_and_its_neighbour_is_solved() -> None:
    choice = make_choice(graph, True)
    anchors = choice.anchors.clone()
    anchors[0, :, choice.mask[0].nonzero()[0]] = math.nan
    update = dataclasses.replace(choice.update, anchors=anchors)
    found = LazySolver(100, TOL)(dataclasses.replace(choice, anchors=anchors, update=update))
    assert found.converged.tolist() == [False, True]
    assert found.residual[0] == math.inf
    assert (found.latents[1] - dense(choice)[0][1]).abs().max() < 1e-5


def test_running_out_of_rounds_is_said() -> None:
    found = LazySolver(3, TOL)(make_choice(graph, False))
    assert found.num_iters == 3 and not found.converged.any()
    assert (found.residual > TOL).all()


def test_neighbour_lists_mix_as_their_matrix_does() -> None:
    torch.manual_seed(0)
    mixing = graph(torch.ones(BATCH, NUM_TOKENS, dtype=torch.bool))
    matrix = torch.zeros(BATCH, NUM_HEADS, NUM_TOKENS, NUM_TOKENS, dtype=F64)
    lists = mixing.neighbours.expand_as(mixing.weights)
    matrix.scatter_add_(-1, lists, mixing.weights)
    latents = torch.randn(BATCH, NUM_HEADS, NUM_TOKENS, DIM_HEAD, dtype=F64)
    assert (mixing.gather(latents) - matrix @ latents).abs().max() < 1e-14
    moved = torch.tensor([0, 7, NUM_TOKENS - 1])
    readers, context = mixing.refresh(latents, moved)
    assert torch.equal(readers, (matrix[0, 0, :, moved] > 0).any(dim=1).nonzero().squeeze(1))
    assert torch.equal(context, mixing.gather(latents)[:, :, readers])


@pytest.mark.parametrize(
    "assim",
    [leaf for leaf in map(fusion.assim.__dict__.get, fusion.assim.__all__)
     if isinstance(leaf, type) and issubclass(leaf, Assim) and leaf is not Assim],
)  # fmt: skip
def test_memoryless_updates_are_made_of_their_tokens(assim: type[Assim]) -> None:
    """`of` gives the update of some tokens alone."""
    choice = make_choice(slots, True)
    update = assim(DIM_HEAD, NUM_HEADS).double()(choice.anchors, choice.mask)
    if update.memory:
        pytest.skip("has a memory")
    some = torch.tensor([1, 5, 6])
    context = torch.randn(BATCH, NUM_HEADS, 3, DIM_HEAD, dtype=F64)
    weights = choice.mixing.weigh(choice.anchors, context)
    every = update(choice.anchors, context, weights.read)
    alone = update.of(some)(every[:, :, some], weights.read(context)[:, :, some], lambda own: own)
    assert (alone - every[:, :, some]).abs().max() < 1e-13


def test_what_it_cannot_do_is_refused() -> None:
    choice = make_choice(slots, True)
    place = Place(torch.zeros(BATCH, NUM_TOKENS, 3), choice.mask.long())
    for assim in (AnchoredAssim(DIM_HEAD, NUM_HEADS, memory=0.5), PhaseAssim(DIM_HEAD, NUM_HEADS)):
        update = assim.double()(choice.anchors, choice.mask)
        with pytest.raises(ValueError, match="Use FixedPointSolver"):
            LazySolver()(dataclasses.replace(choice, update=update))
    thawed = ResponsibilityAccom(DIM_HEAD, NUM_HEADS, 3).double()
    mixing = thawed(choice.anchors, choice.mask, place)
    with pytest.raises(ValueError, match="ResponsibilityMixing; sparse updates need"):
        LazySolver()(dataclasses.replace(choice, mixing=mixing))
    with pytest.raises(ValueError, match="below what torch.float32 latents resolve"):
        LazySolver(tol=1e-8)(choice.to(torch.float32))


@pytest.mark.parametrize("settings", [{"max_iters": 0}, {"tol": 0.0}, {"tol": math.nan}])
def test_settings_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="Got .*; give"):
        LazySolver(**settings)
