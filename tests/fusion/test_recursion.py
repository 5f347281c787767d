import math

import pytest
import torch
from torch import Tensor, nn

from fusion import FixedPointSolver, FusionBlock
from fusion.accom import MeanAccom
from fusion.recursion import ContextPyramid, PyramidOutput

DIM, NUM_SLOTS = 16, 3
F64 = torch.float64


def make_pyramid(
    windows: tuple[int, ...] = (4, 2), solver: FixedPointSolver = FixedPointSolver()
) -> ContextPyramid:
    """A pyramid whose projections that start at zero are filled, so that all of it shows."""
    torch.manual_seed(0)
    blocks = [FusionBlock(DIM, 2, NUM_SLOTS, solver=solver) for _ in range(len(windows) + 1)]
    for block in blocks:
        for weight in (block.out.weight, block.mlp.shrink.weight):
            nn.init.normal_(weight, std=0.3)
    return ContextPyramid(blocks, windows)


def make_input(batch: int = 4, num_tokens: int = 18, dtype=torch.float32):
    """The last sample has no token; the others lack some, among them a whole window."""
    torch.manual_seed(1)
    mask = torch.rand(batch, num_tokens) > 0.3
    mask[:, 0], mask[0, 4:8], mask[-1] = True, False, False
    position = torch.arange(float(num_tokens)).view(1, -1, 1) * torch.tensor([0.02, 0, 0])
    values = torch.randn(batch, num_tokens, DIM, dtype=dtype)
    return values, mask, position.expand(batch, -1, -1)


def same_bits(left: PyramidOutput, right: PyramidOutput, rows: slice = slice(None)) -> bool:
    pairs = [(left.values, right.values), (left.context, right.context)]
    for a, b in zip(left.levels, right.levels, strict=True):
        pairs += zip((*a.tokens, *a.stats[:-1]), (*b.tokens, *b.stats[:-1]), strict=True)
    return all(torch.equal(a[rows], b[rows]) for a, b in pairs)


def by_hand(block: FusionBlock, values: Tensor, mask: Tensor, position: Tensor, size: int):
    """One sample window by window: refined tokens, contexts, their mask and their position."""
    refined, contexts, real, places, rounds = [], [], [], [], []
    for start in range(0, len(values), size):
        part = slice(start, start + size)
        out = block(values[None, part], mask[None, part], position[None, part])
        refined.append(out.values[0])
        contexts.append(out.context[0])
        real += [bool(mask[part].any())] * NUM_SLOTS
        place = position[part][mask[part]].mean(dim=0) if mask[part].any() else torch.zeros(3)
        places += [place] * NUM_SLOTS
        rounds.append(int(out.stats.num_iters))
    return torch.cat(refined), torch.cat(contexts), torch.tensor(real), torch.stack(places), rounds


@pytest.mark.parametrize("num_tokens", [3, 8, 18])
def test_a_pyramid_is_fusion_of_each_window_by_hand(num_tokens: int) -> None:
    pyramid = make_pyramid().double()
    values, mask, position = make_input(num_tokens=num_tokens, dtype=F64)
    out = pyramid(values, mask, position)
    assert len(out.levels) == 3 and out.context.shape == (4, NUM_SLOTS, DIM)
    for row in range(len(values)):
        tokens, real, place = values[row], mask[row], position[row].double()
        for level, (block, size) in zip(
            out.levels, zip(pyramid.blocks, (4, 2 * NUM_SLOTS, 10**6), strict=True), strict=True
        ):
            assert torch.equal(level.tokens.mask[row], real)
            assert (level.tokens.position[row] - place).abs().max() < 1e-6
            refined, tokens, real, place, rounds = by_hand(block, tokens, real, place, size)
            assert (level.tokens.values[row] - refined).abs().max() < 1e-5
            assert level.stats.num_iters[row] == max(rounds)
        assert (out.context[row] - tokens).abs().max() < 1e-5
    assert torch.equal(out.values, out.levels[0].tokens.values)


def test_a_token_sees_its_window_and_the_top_sees_all() -> None:
    pyramid = make_pyramid()
    values, mask, position = make_input()
    mask[0] = True
    values.requires_grad_()
    out = pyramid(values, mask, position)
    out.values[0, 5].sum().backward(retain_graph=True)
    assert values.grad is not None
    assert values.grad[0].abs().sum(dim=-1).nonzero().flatten().tolist() == [4, 5, 6, 7]
    values.grad = None
    (out.context[0] * torch.randn_like(out.context[0])).sum().backward()
    assert (values.grad[0].abs().sum(dim=-1) > 0).all() and not values.grad[1:].any()


def test_no_window_is_one_block_and_no_position_is_position_zero() -> None:
    pyramid = make_pyramid(windows=())
    values, mask, position = make_input()
    modality = torch.arange(18) % 2
    out, flat = pyramid(values, mask, position, modality), pyramid.blocks[0](values, mask, position)
    assert torch.equal(out.values, flat.values) and torch.equal(out.context, flat.context)
    for got, want in zip(out.levels[0].stats, flat.stats, strict=True):
        assert torch.equal(got[..., :-1], want[..., :-1])
    deep = make_pyramid()
    assert same_bits(deep(values, mask), deep(values, mask, torch.zeros(4, 18, 3)))
    assert not torch.equal(deep(values, mask).context, deep(values, mask, position).context)


def test_what_padding_holds_changes_no_bit_and_more_of_it_nothing() -> None:
    pyramid = make_pyramid()
    values, mask, position = make_input()
    clean = pyramid(values.masked_fill(~mask[..., None], 0), mask, position)
    for junk in (1e6, math.nan, math.inf):
        out = pyramid(
            values.masked_fill(~mask[..., None], junk),
            mask,
            position.masked_fill(~mask[..., None], junk),
        )
        assert torch.equal(out.values[mask], clean.values[mask])
        assert torch.equal(out.context, clean.context)
        assert all(map(torch.equal, out.levels[-1].stats, clean.levels[-1].stats))
    pyramid = pyramid.double()
    short = pyramid(values.double(), mask, position)
    padding = torch.full((4, 23, DIM), math.nan, dtype=F64)
    long = pyramid(
        torch.cat([values.double(), padding], dim=1),
        torch.cat([mask, torch.zeros(4, 23, dtype=torch.bool)], dim=1),
        torch.cat([position, torch.zeros(4, 23, 3)], dim=1),
    )
    assert (long.values[:, :18] - short.values).abs().max() < 1e-12
    assert (long.context - short.context).abs().max() < 1e-12
    for a, b in zip(long.levels, short.levels, strict=True):
        for got, want in zip(a.stats[:-1], b.stats[:-1], strict=True):
            assert torch.allclose(got, want, atol=1e-12)


def test_a_nan_window_changes_nothing_but_its_own_sample() -> None:
    pyramid = make_pyramid()
    values, mask, position = make_input()
    mask[1] = True
    clean = pyramid(values, mask, position)
    values[1, 9] = math.nan
    out = pyramid(values, mask, position)
    for rows in (slice(0, 1), slice(2, None)):
        assert same_bits(out, clean, rows)
    elsewhere = [i for i in range(18) if not 8 <= i < 12]
    assert torch.equal(out.values[1, elsewhere], clean.values[1, elsewhere])
    for level in out.levels:
        assert level.stats.converged.tolist() == [True, False, True, True]
        assert level.stats.error_bound[1] == math.inf
        assert not any(entry.isnan().any() for entry in level.stats)


def test_statistics_are_those_of_the_worst_real_window() -> None:
    pyramid = make_pyramid(solver=FixedPointSolver(max_iters=3))
    values, mask, position = make_input()
    values[0, :4] = values[0, :1]  # equal tokens: a window that is done at once
    stats = pyramid(values, mask, position).levels[0].stats
    alone = [
        pyramid.blocks[0](values[:1, i : i + 4], mask[:1, i : i + 4], position[:1, i : i + 4]).stats
        for i in (0, 8, 12, 16)  # the one at 4 has no token
    ]
    for name in ("num_iters", "residual", "q", "error_bound"):
        worst = max(float(getattr(entry, name)) for entry in alone)
        assert float(getattr(stats, name)[0]) == pytest.approx(worst, rel=1e-4)
    assert stats.trace.shape == (len(stats.trace), 4)
    assert bool(stats.converged[0]) == all(bool(entry.converged) for entry in alone)
    assert stats.converged[-1] and stats.num_iters[-1] == 0 and stats.error_bound[-1] == 0


def test_sample_without_tokens_comes_back_as_it_was() -> None:
    values, mask, position = make_input()
    out = make_pyramid()(values, mask, position)
    assert torch.equal(out.values[-1], values[-1]) and not out.context[-1].any()
    assert not any(level.tokens.mask[-1].any() for level in out.levels)


def test_gradient_reaches_every_parameter_that_can_show() -> None:
    pyramid = make_pyramid()
    values, mask, position = make_input()
    values = values.masked_fill(~mask[..., None], math.nan).requires_grad_()
    out = pyramid(values, mask, position)
    loss = sum(
        (level.tokens.values[level.tokens.mask] * torch.randn(DIM)).sum() for level in out.levels
    )
    assert isinstance(loss, Tensor)
    loss.backward()
    for name, parameter in pyramid.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert values.grad is not None and values.grad.isfinite().all()
    assert (values.grad[mask].abs().sum(dim=-1) > 0).all()


def test_gradients_are_those_of_finite_differences() -> None:
    pyramid = make_pyramid((2, 2), FixedPointSolver(max_iters=0)).double()
    values, mask, position = make_input(2, 7, dtype=F64)
    place = position.double().clone().requires_grad_()

    def function(values: Tensor, place: Tensor) -> tuple[Tensor, ...]:
        out = pyramid(values, mask, place)
        return out.context, *(level.tokens.values for level in out.levels)

    inputs = (values.requires_grad_(), place)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_blocks_may_make_other_numbers_of_slots() -> None:
    torch.manual_seed(0)
    low, high = FusionBlock(DIM, 2, 5), FusionBlock(DIM, 2, accom=MeanAccom)
    values, mask, position = make_input()
    out = ContextPyramid([low, high, high], (4, 2))(values, mask, position)
    assert [level.tokens.values.shape[1] for level in out.levels] == [18, 5 * 5, 3]
    assert out.context.shape == (4, 1, DIM)


def test_autocast_solves_in_float32() -> None:
    pyramid = make_pyramid()
    values, mask, position = make_input()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = pyramid(values.bfloat16(), mask, position)
    assert out.values.dtype == torch.bfloat16 and out.context.dtype == torch.float32
    assert (out.context - pyramid(values, mask, position).context).abs().max() < 5e-2


def test_wrong_arguments_are_refused_with_one_sentence() -> None:
    block, other = FusionBlock(DIM, 2), FusionBlock(2 * DIM, 2)
    for blocks, windows, message in (
        ([], [], "one block more"),
        ([block], [4], "one block more"),
        ([block, block], [0], "must be positive"),
        ([block, other], [4], r"widths \[16, 32\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ContextPyramid(blocks, windows)
    pyramid = make_pyramid()
    values, mask, position = make_input()
    for wrong in (
        (values[0], mask),
        (values[:, :0], mask[:, :0]),
        (values, mask[:, :-1]),
        (values, mask, position[..., :2]),
        (values, mask, position, torch.zeros(5)),
    ):
        with pytest.raises(ValueError, match="with N >= 1") as caught:
            pyramid(*wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="float64 for a block of torch.float32"):
        pyramid(values.double(), mask)
