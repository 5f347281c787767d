import math

import pytest
import torch
from torch import Tensor

from fusion.delta import MAX_ROUNDS, solve_chunked, solve_delta, solve_jacobi, solve_sequential

F64 = torch.float64
SOLVERS = {
    "sequential": solve_sequential,
    "jacobi": lambda coupling, values: solve_jacobi(coupling, values).values,
    "chunked": lambda coupling, values: solve_chunked(coupling, values, chunk_size=5),
    "one chunk": solve_chunked,
    "delta": solve_delta,
}
each_solver = pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)


def softmax_coupling(num_tokens: int, peakedness: float = 1.0, batch: int = 2) -> Tensor:
    """Random attention to earlier tokens, times a random beta in (0, 1)."""
    logits = peakedness * torch.randn(batch, num_tokens, num_tokens, dtype=F64)
    earlier = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril(-1)
    weights = logits.masked_fill(~earlier, -math.inf).softmax(dim=-1).nan_to_num()
    return torch.rand(batch, num_tokens, 1, dtype=F64) * weights


def chain(num_tokens: int, beta: float) -> Tensor:
    """Each token reads the one before: the longest chain there is."""
    return beta * torch.eye(num_tokens, dtype=F64).roll(1, dims=0).tril(-1)


@pytest.mark.parametrize("num_tokens", [2, 5, 23])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@each_solver
def test_all_ways_agree_in_results_and_gradients(solve, scale: float, num_tokens: int) -> None:
    """Also for couplings of any size, and whatever stands on the diagonal and above it."""
    torch.manual_seed(num_tokens)
    coupling = scale * softmax_coupling(num_tokens) + torch.randn(num_tokens, num_tokens).triu()
    values, probe = torch.randn(2, 2, num_tokens, 3, dtype=F64)
    found = []
    for way in (solve, solve_sequential):
        inputs = [tensor.clone().requires_grad_() for tensor in (coupling, values)]
        solved = way(*inputs)
        (solved * probe).sum().backward()
        found.append([solved.detach(), *(tensor.grad for tensor in inputs)])
    for got, want in zip(*found, strict=True):
        assert (got - want).abs().max() <= 1e-10 * want.abs().max()
    system = torch.eye(num_tokens, dtype=F64) + coupling.tril(-1)
    residual = system @ found[0][0] - values
    assert residual.abs().max() <= 1e-12 * found[0][0].abs().max() * scale


@each_solver
def test_gradients_are_those_of_finite_differences(solve) -> None:
    inputs = softmax_coupling(6).requires_grad_(), torch.randn(2, 6, 3, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(solve, inputs)
    assert torch.autograd.gradgradcheck(solve, inputs)


@each_solver
def test_one_token_is_its_value(solve) -> None:
    values = torch.randn(2, 1, 3, dtype=F64)
    assert torch.equal(solve(torch.ones(2, 1, 1, dtype=F64), values), values)


@each_solver
def test_batch_neighbours_change_no_bit(solve) -> None:
    coupling = torch.cat([softmax_coupling(40), chain(40, 1.0)[None], softmax_coupling(40, 9.0)])
    values = torch.randn(5, 40, 3, dtype=F64)
    values[-1] = math.nan
    crowd = solve(coupling, values)
    for index in range(5):
        only = (torch.arange(5) == index)[:, None, None]
        alone = solve(torch.where(only, coupling, 0), torch.where(only, values, 0))
        assert torch.equal(alone[index].nan_to_num(), crowd[index].nan_to_num())
    assert crowd[:-1].isfinite().all() and crowd[-1].isnan().any()


@pytest.mark.parametrize("peakedness", [0.1, 1.0, 5.0, 50.0])
def test_jacobi_needs_few_rounds_for_attention_of_any_peakedness(peakedness: float) -> None:
    """14 to 23 rounds instead of 1024 sequential steps."""
    torch.manual_seed(0)
    coupling, values = softmax_coupling(1024, peakedness, 1), torch.randn(1, 1024, 4, dtype=F64)
    found = solve_jacobi(coupling, values, tol=1e-6)
    exact = solve_chunked(coupling, values)
    assert found.converged.all() and 8 <= int(found.num_iters) <= 24
    assert (found.values - exact).abs().max() < 1e-5


@pytest.mark.parametrize(("beta", "rounds"), [(1.0, 256), (0.9, 143), (0.5, 22)])
def test_the_longest_chain_needs_as_many_rounds_as_its_contraction_allows(beta, rounds) -> None:
    torch.manual_seed(0)
    values = torch.randn(256, 4, dtype=F64)
    found = solve_jacobi(chain(256, beta), values, tol=1e-6)
    assert found.converged and abs(int(found.num_iters) - rounds) <= 0.1 * rounds
    exact = solve_jacobi(chain(256, beta), values, tol=0.0)
    assert exact.converged and int(exact.num_iters) <= 256  # one more than the 255 steps
    assert beta < 1 or int(exact.num_iters) == 256  # moves of 0.5^62 are lost in rounding
    assert (exact.values - solve_sequential(chain(256, beta), values)).abs().max() < 1e-12


def test_past_the_limit_of_rounds_the_chunked_solve_takes_over() -> None:
    coupling, values = chain(256, 1.0), torch.randn(256, 4, dtype=F64)
    short = solve_jacobi(coupling, values, max_rounds=MAX_ROUNDS)
    exact = solve_sequential(coupling, values)
    assert not short.converged and int(short.num_iters) == MAX_ROUNDS
    assert (short.values - exact).abs().max() > 0.1  # negative control: unfinished is wrong
    assert (solve_delta(coupling, values) - exact).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-20, 1.0, 1e3])
def test_any_magnitude_and_dtype_gives_finite_values_and_gradients(dtype, scale) -> None:
    for solve in (solve_chunked, solve_delta):
        coupling = softmax_coupling(20).to(dtype).requires_grad_()
        values = (scale * torch.randn(2, 20, 3)).to(dtype).requires_grad_()
        solved = solve(coupling, values)
        solved.sum().backward()
        assert solved.dtype == dtype and solved.isfinite().all()
        for tensor in (coupling, values):
            assert tensor.grad is not None and tensor.grad.isfinite().all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    for solve in SOLVERS.values():
        for coupling, values in (((3, 3), (4, 2)), ((3, 4), (3, 2)), ((2, 3, 3), (3, 2))):
            with pytest.raises(ValueError, match="same leading dimensions"):
                solve(torch.zeros(coupling), torch.zeros(values))
    with pytest.raises(ValueError, match="Got chunk_size=0; give"):
        solve_chunked(torch.zeros(3, 3), torch.zeros(3, 2), chunk_size=0)


# What an average of the past cannot do: follow a state.

WIDTH = 128


def near_orthogonal_keys(num_keys: int) -> Tensor:
    """Unit vectors of R^128, of inner products at most 1/sqrt(128) < 1/8: the columns of the
    identity and of a Hadamard matrix, turned at random."""
    hadamard = torch.ones(1, 1, dtype=F64)
    while len(hadamard) < WIDTH:
        hadamard = torch.kron(torch.tensor([[1, 1], [1, -1]], dtype=F64), hadamard)
    keys = torch.cat([torch.eye(WIDTH, dtype=F64), hadamard / WIDTH**0.5])
    turn, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=F64))
    return keys[torch.randperm(2 * WIDTH)[:num_keys]] @ turn


def swap_errors(num_keys: int, solve, kernel=torch.round, beta: float = 1.0) -> Tensor:
    """Largest error after each of 400 swaps of the values of two keys.

    Theorem 1 of DeltaFormer: n pairs (k_i, v_i) are written; to swap the values of a and b, append
    the key k_a - k_b with the value 0. What a key reads is sum_i kernel(q . k_i) u_i.
    """
    keys, values = near_orthogonal_keys(num_keys), torch.randn(num_keys, 4, dtype=F64)
    gram = keys @ keys.T - torch.eye(num_keys, dtype=F64)
    assert gram.abs().max() < 1 / 8
    state, states, swaps = list(range(num_keys)), [], []
    for _ in range(400):
        a, b = torch.randperm(num_keys)[:2].tolist()
        state[a], state[b] = state[b], state[a]
        states.append(list(state))
        swaps.append(keys[a] - keys[b])
    written = torch.cat([keys, torch.stack(swaps)])
    source = torch.cat([values, torch.zeros(400, 4, dtype=F64)])
    solved = solve(beta * kernel(written @ written.T), source)
    read = kernel(keys @ written.T).T[..., None] * solved[:, None]  # (T, n, d), summed over time
    seen = read.cumsum(dim=0)[num_keys:]
    return (seen - values[torch.tensor(states)]).abs().amax(dim=(1, 2))


@pytest.mark.parametrize("solve", [solve_sequential, solve_chunked, solve_delta])
@pytest.mark.parametrize("num_keys", [5, 32, 128])
def test_400_swaps_are_tracked_exactly(num_keys: int, solve) -> None:
    assert swap_errors(num_keys, solve).max() <= 1e-9


def test_more_keys_than_dimensions_are_tracked_too() -> None:
    assert swap_errors(200, solve_chunked).max() <= 1e-9


@pytest.mark.parametrize(("kernel", "beta"), [(lambda x: x, 1.0), (torch.round, 0.5)])
def test_a_linear_kernel_or_half_a_beta_loses_track(kernel, beta: float) -> None:
    """Negative control, with the same keys."""
    assert swap_errors(128, solve_chunked, kernel, beta).max() > 0.1


def test_reachability_in_1000_random_forests() -> None:
    """u = e_1 + Parent u: which of 32 nodes are in the first node's tree."""
    num_graphs, num_nodes = 1000, 32
    parent = torch.zeros(num_graphs, num_nodes, num_nodes, dtype=F64)
    inside = torch.zeros(num_graphs, num_nodes, dtype=torch.bool)
    inside[:, 0] = True  # nodes 0 and 1 are the roots
    graphs = torch.arange(num_graphs)
    for node in range(2, num_nodes):
        chosen = torch.randint(node, (num_graphs,))
        parent[graphs, node, chosen] = 1
        inside[:, node] = inside[graphs, chosen]
    start = torch.zeros(num_graphs, num_nodes, 1, dtype=F64)
    start[:, 0] = 1
    found = solve_jacobi(-parent, start)
    assert torch.equal(found.values.squeeze(-1), inside.to(F64))
    assert 4 < found.num_iters.double().mean() < 7 and found.num_iters.max() <= 13
