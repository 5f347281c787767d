"""Accoms that read along a relation, and what they promise where it has no circles."""

import pytest
import torch
from torch import Tensor

from fusion import AnchoredAssim, FusionBlock
from fusion.accom import Accom, DeltaAccom, RelationalAccom
from fusion.choice import Choice
from fusion.relations import (
    Causal,
    Earlier,
    Edges,
    Everyone,
    Fixed,
    SameModality,
    Strided,
    TimeWindow,
    Window,
)
from fusion.tokens import Place

F64 = torch.float64


def anchors_and_place(num_tokens: int, batch: int = 2) -> tuple[Tensor, Tensor, Place]:
    anchors = torch.randn(batch, 2, num_tokens, 6, dtype=F64)
    mask = torch.ones(batch, num_tokens, dtype=torch.bool)
    place = Place(4 * torch.rand(batch, num_tokens, 3), torch.randint(2, (batch, num_tokens)))
    return anchors, mask, place


def random_graph(num_tokens: int) -> Edges:
    """About a third of all pairs, and no empty row."""
    graph = torch.rand(num_tokens, num_tokens) < 0.3
    graph[torch.arange(num_tokens), torch.randint(num_tokens, (num_tokens,))] = True
    return Edges(graph.nonzero())


@pytest.mark.parametrize("seed", range(5))
def test_attention_under_a_rule_is_softmax_with_the_log_of_the_relation(seed: int) -> None:
    torch.manual_seed(seed)
    num_tokens = 12
    rules = [Everyone(), Causal(), Strided(3), Fixed(4), random_graph(num_tokens), Window(2)]
    for rule in [*rules, Causal() & (SameModality() | TimeWindow(0.5))]:
        accom = RelationalAccom(6, 2, 1, rule=rule).double()
        anchors, mask, place = anchors_and_place(num_tokens)
        mixing = accom(anchors, mask, place)
        values = torch.randn_like(anchors)
        query = torch.einsum("bhnd,hde->bhne", anchors, accom.attention.query)
        key = torch.einsum("bhnd,hde->bhne", anchors, accom.attention.key)
        relation = rule(place, mask).to(F64).unsqueeze(1)
        assert relation.any(dim=-1).all()
        logits = query @ key.transpose(-2, -1) / 6**0.5 + relation.log()
        wanted = logits.softmax(dim=-1) @ values
        assert (mixing.gather(values) - wanted).abs().max() < 1e-12
        assert torch.equal(mixing.read(values), values)


def test_who_may_read_nobody_reads_zero() -> None:
    anchors, mask, place = anchors_and_place(5)
    mask[0, 3:] = False
    mixing = RelationalAccom(6, 2, 1, rule=Earlier() & Window(2)).double()(anchors, mask, place)
    context = mixing.gather(anchors)
    assert not context[:, :, 0].any() and not context[0, :, 3:].any()
    assert (mixing.weights.sum(-1)[0, :, 1:3] - 1).abs().max() < 1e-12
    assert mixing.depth is not None and mixing.depth.tolist() == [2, 4]
    circles = RelationalAccom(6, 2, 1).double()(anchors, mask, place)
    assert circles.depth is None


def strong_choice(accom: Accom, kappa: float, num_tokens: int) -> Choice:
    """A random coupling of norm kappa, whatever that does to contraction."""
    assim = AnchoredAssim(6, 2, kappa)
    for part in (assim.coupling_real, assim.coupling_imag):
        torch.nn.init.normal_(part)
    anchors, mask, place = anchors_and_place(num_tokens)
    update = assim.double()(anchors, mask)
    return Choice(anchors, mask, None, update, accom.double()(anchors, mask, place))


def random_dag(num_tokens: int) -> Edges:
    """Each token reads two others that come before it in an order of their own."""
    order = torch.randperm(num_tokens).tolist()
    edges = [(order[i], order[int(torch.randint(i, ()))]) for i in range(1, num_tokens)]
    return Edges([*edges, *((order[i], order[i // 2]) for i in range(1, num_tokens))])


ACYCLIC = {
    "earlier": lambda: RelationalAccom(6, 2, 1, rule=Earlier()),
    "near": lambda: RelationalAccom(6, 2, 1, rule=Earlier() & Window(3)),
    "graph": lambda: RelationalAccom(6, 2, 1, rule=random_dag(12)),
    "delta": lambda: DeltaAccom(6, 2, 1),
    "delta near": lambda: DeltaAccom(6, 2, 1, rule=~Window(2)),
}


@torch.no_grad()
@pytest.mark.parametrize("kappa", [0.9, 50.0, 500.0])
@pytest.mark.parametrize("make", ACYCLIC.values(), ids=ACYCLIC)
def test_acyclic_coupling_ends_after_its_depth_for_any_strength(make, kappa: float) -> None:
    choice = strong_choice(make(), kappa, num_tokens=12)
    assert choice.mixing.depth is not None and choice.mixing.depth.unique().numel() == 1
    depth = int(choice.mixing.depth[0])
    assert 1 < depth < 12
    state, moves = choice.start() + 1, []  # from anywhere
    for _ in range(depth + 12):
        before, state = state, choice.step(state)
        moves.append((state - before).abs().max().item())
    assert moves[depth + 1 :] == [0.0] * 11  # round depth + 2 sees no move, and none comes after
    assert moves[0] > 0
    exact = state
    state = choice.start() + 1
    for _ in range(depth + 1):
        state = choice.step(state)
    assert torch.equal(state, exact)


@torch.no_grad()
def test_strong_coupling_in_circles_does_not_end() -> None:
    """Negative control: the same strength where tokens read each other in circles."""
    moving = 0
    for seed in range(5):
        torch.manual_seed(seed)
        choice = strong_choice(RelationalAccom(6, 2, 1, rule=~Earlier()), 50.0, num_tokens=12)
        state = choice.start()
        for _ in range(40):
            before, state = state, choice.step(state)
        moving += bool((state - before).abs().max() > 1e-6)
    assert moving == 5


def test_a_rule_bounds_what_a_block_mixes() -> None:
    def accom(dim_head: int, num_heads: int, num_slots: int) -> Accom:
        return RelationalAccom(dim_head, num_heads, num_slots, rule=SameModality())

    block = FusionBlock(16, 2, accom=accom)
    values, mask = torch.randn(2, 6, 16), torch.ones(2, 6, dtype=torch.bool)
    modality = torch.tensor([0, 0, 0, 1, 1, 1])
    noisy = torch.where((modality == 1)[:, None], torch.randn_like(values), values)
    clean, changed, free = (
        block.choose(tokens, mask, modality=which).start()
        for tokens, which in ((values, modality), (noisy, modality), (noisy, None))
    )
    assert torch.equal(clean[:, :, :3], changed[:, :, :3])
    assert not torch.allclose(clean[:, :, :3], free[:, :, :3])
    assert block(values, mask, modality=modality).context.shape == (2, 6, 16)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("accom", [RelationalAccom, DeltaAccom])
def test_any_magnitude_gives_finite_values_and_gradients(accom, dtype) -> None:
    magnitudes = torch.cat([torch.zeros(1), torch.logspace(-45, 3, 49, dtype=F64).float()])
    block = FusionBlock(16, 2, accom=accom)
    torch.nn.init.normal_(block.out.weight)
    values = (torch.randn(50, 5, 16) * magnitudes[:, None, None]).requires_grad_()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        out = block(values, torch.ones(50, 5, dtype=torch.bool), torch.rand(50, 5, 3))
        loss = out.values.float().square().mean() + out.context.square().mean()
    loss.backward()
    assert out.values.isfinite().all() and out.context.isfinite().all()
    assert out.stats.q.isfinite().all()
    for tensor in (values, *block.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
