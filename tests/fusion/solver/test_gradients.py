"""Gradients through the iteration: the three modes against each other, and their memory."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from fusion import AnchoredAssim, FixedPointSolver, FusionBlock
from fusion.solver import Full, Implicit, Unrolled

F64 = torch.float64
EXACT = FixedPointSolver(max_iters=500, tol=1e-13, gradient=Implicit(max_iters=500, tol=1e-14))
BPTT = FixedPointSolver(max_iters=500, tol=1e-13, gradient=Full())


def make_block(solver: FixedPointSolver, memory: float = 0.0) -> FusionBlock:
    torch.manual_seed(1)

    def assim(dim_head: int, num_heads: int) -> AnchoredAssim:
        return AnchoredAssim(dim_head, num_heads, kappa=0.9 - memory, memory=memory)

    block = FusionBlock(32, 4, 4, assim=assim, solver=solver).double()
    nn.init.constant_(block.gain, 0.3)  # weak anchors: the context matters
    nn.init.normal_(block.out.weight, std=0.2)
    return block


def gradients(solver: FixedPointSolver, memory: float = 0.0) -> list[Tensor]:
    torch.manual_seed(0)
    values, mask = torch.randn(6, 8, 32, dtype=F64), torch.rand(6, 8) > 0.2
    mask[0] = False
    block = make_block(solver, memory)
    wanted = [*block.anchor.parameters(), *block.assim.parameters(), *block.accom.parameters()]
    out = block(values, mask)
    assert out.stats.converged.all()
    loss = (out.values - torch.randn_like(values)).square().mean() + out.context.square().mean()
    return list(torch.autograd.grad(loss, wanted))


@pytest.mark.parametrize("memory", [0.0, 0.3])
def test_the_implicit_gradient_is_that_of_the_full_unroll(memory: float) -> None:
    for implicit, full in zip(gradients(EXACT, memory), gradients(BPTT, memory), strict=True):
        assert full.abs().max() > 1e-6
        assert (implicit - full).abs().max() <= 1e-8 * full.abs().max()


def test_without_the_adjoint_the_gradient_is_another() -> None:
    """Negative control: one round's gradient is close, and not the same."""
    one_round = FixedPointSolver(max_iters=500, tol=1e-13, gradient=Unrolled(1))
    errors = [
        ((one - full).norm() / full.norm()).item()
        for one, full in zip(gradients(one_round), gradients(BPTT), strict=True)
    ]
    assert max(errors) > 1e-3


def test_the_error_of_unrolled_rounds_shrinks_with_their_number() -> None:
    full = gradients(BPTT)
    worst = []
    for num_rounds in (1, 3, 8, 20):
        solver = FixedPointSolver(max_iters=500, tol=1e-13, gradient=Unrolled(num_rounds))
        pairs = zip(gradients(solver), full, strict=True)
        worst.append(max(((short - long).norm() / long.norm()).item() for short, long in pairs))
    assert worst == sorted(worst, reverse=True)
    assert worst[0] > 1e-3 and worst[-1] < 1e-6


def test_implicit_gradients_are_those_of_finite_differences() -> None:
    block = make_block(EXACT)
    values, mask = torch.randn(2, 3, 32, dtype=F64), torch.ones(2, 3, dtype=torch.bool)
    names, parameters = zip(*block.named_parameters(), strict=True)

    def function(values: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        weights = dict(zip(names, parameters, strict=True))
        out = torch.func.functional_call(block, weights, (values, mask))
        return out.values, out.context

    inputs = [tensor.detach().requires_grad_() for tensor in (values, *parameters)]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_a_sample_without_a_fixed_point_gets_the_gradient_of_one_round() -> None:
    """And the adjoint of its neighbours stays what it was."""
    scale = torch.tensor([0.5, 3.0, 0.5], dtype=F64).view(3, 1, 1, 1).requires_grad_()
    real = torch.ones(3, 2, dtype=torch.bool)
    start = torch.ones(3, 1, 2, 2, dtype=F64)
    solver = FixedPointSolver(max_iters=40, tol=1e-12, gradient=Implicit(tol=1e-13))
    state, stats = solver(lambda s: scale * s + 1, start, real)
    state.sum().backward()
    assert stats.converged.tolist() == [True, False, True]
    assert scale.grad is not None and scale.grad.isfinite().all()
    # s = 1 / (1 - a): four entries of ds/da = 1 / (1 - a)^2
    assert (scale.grad.flatten()[[0, 2]] - 16).abs().max() < 1e-9


def saved_bytes(solver: FixedPointSolver) -> int:
    """Bytes that a forward pass with gradient keeps for the backward pass."""
    block = make_block(solver)
    values, mask = torch.randn(4, 64, 32, dtype=F64), torch.ones(4, 64, dtype=torch.bool)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = block(values, mask)
    assert out.values.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("gradient", [Unrolled(3), Implicit()])
def test_memory_does_not_grow_with_the_rounds(gradient) -> None:
    used = [
        saved_bytes(FixedPointSolver(rounds, tol=1e-14, gradient=gradient))
        for rounds in (4, 16, 64)
    ]
    assert max(used) < 1.02 * min(used)


def test_memory_of_the_full_unroll_grows() -> None:
    """Negative control of the measurement."""
    used = [saved_bytes(FixedPointSolver(rounds, tol=1e-14, gradient=Full())) for rounds in (4, 16)]
    assert used[1] > 1.5 * used[0]


def test_one_round_points_the_right_way_when_the_rate_is_small() -> None:
    """Cosine with the exact gradient at least .98."""
    one_round = FixedPointSolver(max_iters=500, tol=1e-13, gradient=Unrolled(1))
    for short, long in zip(gradients(one_round), gradients(BPTT), strict=True):
        assert cosine_similarity(short.flatten(), long.flatten(), dim=0) >= 0.98


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 closing round"):
        Unrolled(0)
    with pytest.raises(ValueError, match="give both above zero"):
        Implicit(tol=0.0)
    with pytest.raises(ValueError, match="plain rounds in full precision"):
        FixedPointSolver(gradient=Full(), search_dtype="bfloat16")
