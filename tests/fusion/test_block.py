import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fusion
from fusion import AnchoredAssim, FixedPointSolver, FusionBlock
from fusion.accom import MeanAccom
from fusion.phase import rotate

DIM = 32


def make_block(seed: int = 0, **settings) -> FusionBlock:
    torch.manual_seed(seed)
    block = FusionBlock(DIM, num_slots=4, **settings)
    for weight in (block.out.weight, block.mlp.shrink.weight):
        nn.init.normal_(weight, std=0.2)
    return block


def make_input(batch: int = 6, num_tokens: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    mask = torch.rand(batch, num_tokens) > 0.25
    mask[:, 0] = True
    return torch.randn(batch, num_tokens, DIM), mask, 9 * torch.rand(batch, num_tokens, 3)


def test_public_names_are_sorted_and_there() -> None:
    assert fusion.__all__ == sorted(fusion.__all__)
    assert all(hasattr(fusion, name) for name in fusion.__all__)


def test_the_block_is_evaluate_after_choose_to_the_bit() -> None:
    block = make_block()
    values, mask, position = make_input()
    whole = block(values, mask, position)
    parts = block.evaluate(block.choose(values, mask, position), values)
    assert torch.equal(whole.values, parts.values) and torch.equal(whole.context, parts.context)
    for a, b in zip(whole.stats, parts.stats, strict=True):
        assert torch.equal(a, b)


def test_the_chosen_map_is_affine_in_the_anchor_and_the_block_is_not() -> None:
    """Before the normalisation N_E a chosen round is affine; the choice itself bends the block."""
    block = make_block(assim=partial(AnchoredAssim, radius=math.inf)).double()
    values, mask, position = make_input()
    values = values.double()
    choice = block.choose(values, mask, position)
    a, b = torch.randn_like(choice.start()), torch.randn_like(choice.start())
    middle = choice.step((a + b) / 2)
    assert (choice.step(a) + choice.step(b) - 2 * middle).abs().max() < 1e-12
    ahead, here, back = (block(values + t, mask, position).values for t in (0.1, 0.0, -0.1))
    assert (ahead + back - 2 * here).abs().max() > 1e-4


def test_context_is_gathered_from_the_refined_tokens_and_bounded() -> None:
    block = make_block()
    values, mask, position = make_input()
    out = block(values, mask, position)
    assert out.stats.converged.all() and (out.stats.q < 0.9).all()
    heads = out.context.unflatten(-1, (block.num_heads, -1))
    assert heads.norm(dim=-1).max() < 1
    assert out.context.std(dim=1).max() > 1e-3  # the slots differ


def test_no_position_is_position_zero_and_positions_matter() -> None:
    block = make_block()
    values, mask, position = make_input()
    without, zero = block(values, mask), block(values, mask, torch.zeros_like(position))
    assert torch.equal(without.values, zero.values)
    assert not torch.allclose(block(values, mask, position).values, without.values, atol=1e-4)


def test_tokens_leave_in_the_frame_they_came_in() -> None:
    """At one place for all of them, the rotation of latents and of what they read is undone."""
    block = make_block(assim=partial(AnchoredAssim, kappa=1e-9), accom=MeanAccom).double()
    values, mask, position = make_input()
    position = position[:, :1].expand_as(position)
    choice = block.choose(values.double(), mask, position)
    straight = block.choose(values.double(), mask)
    back = rotate(choice.anchors, position, sign=-1)
    assert torch.allclose(back, straight.anchors, atol=1e-12)
    with_position = block(values.double(), mask, position).values
    assert torch.allclose(with_position, block(values.double(), mask).values, atol=1e-6)


def test_sample_without_tokens_comes_back_as_it_was() -> None:
    block = make_block()
    values, mask, position = make_input()
    mask[2] = False
    out = block(values, mask, position)
    assert torch.equal(out.values[2], values[2]) and not out.context[2].any()
    assert out.stats.num_iters[2] == 0 and out.stats.converged[2] and out.stats.error_bound[2] == 0
    everything_missing = block(values, torch.zeros_like(mask))
    assert torch.equal(everything_missing.values, values)
    assert everything_missing.stats.converged.all()


def test_an_absent_modality_changes_nothing() -> None:
    """Masked tokens and no tokens agree (shapes differ, so to rounding only)."""
    block = make_block().double()
    values, mask, position = make_input()
    mask[:, 5:] = False
    padded = block(values.double(), mask, position)
    short = block(values[:, :5].double(), mask[:, :5], position[:, :5])
    assert (padded.values[:, :5] - short.values).abs().max() < 1e-12
    assert (padded.context - short.context).abs().max() < 1e-12


def test_256_samples_are_bit_equal_alone_and_in_a_hard_crowd() -> None:
    block = make_block(
        assim=partial(AnchoredAssim, kappa=1.5), solver=FixedPointSolver(max_iters=18)
    )
    nn.init.constant_(block.gain, 0.5)  # weak anchors under a strong coupling: slow
    values, mask, position = make_input(batch=256)
    values[1::8], values[2::8], values[3::8] = 0.0, 1e-20, 1e8
    values[5::16] = math.nan
    with torch.no_grad():
        crowd = block(values, mask, position)
        assert crowd.stats.num_iters.unique().numel() > 3 and not crowd.stats.converged.all()
        # Alone, and in crowds of about half of the others, which differ from turn to turn.
        crowds = [torch.arange(256) == index for index in range(0, 256, 7)]
        crowds += [torch.rand(256) > 0.5 for _ in range(12)]
        for some in crowds:
            kept = torch.where(some[:, None, None], values, 0.0)
            part = block(kept, mask & some[:, None], position)
            got, want = part.values[some], crowd.values[some]
            assert torch.equal(got.nan_to_num(), want.nan_to_num())
            assert torch.equal(got.isnan(), want.isnan())
            for a, b in zip(part.stats[:-1], crowd.stats[:-1], strict=True):
                assert torch.equal(a[some], b[some])
    assert torch.stack(crowds).any(dim=0).all()


def test_nan_sample_is_reported() -> None:
    block = make_block()
    values, mask, position = make_input()
    clean = block(values, mask, position)
    values[1, 0] = math.nan
    out = block(values, mask, position)
    assert not out.stats.converged[1] and out.stats.error_bound[1] == math.inf
    assert torch.equal(out.values[2:], clean.values[2:])
    assert not any(entry.isnan().any() for entry in out.stats)


MAGNITUDES = torch.cat([torch.zeros(1), torch.logspace(-45, 3, 97, dtype=torch.float64).float()])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rotation", [0.0, 0.5])
def test_any_magnitude_gives_finite_values_and_gradients(dtype, rotation: float) -> None:
    block = make_block(assim=partial(AnchoredAssim, rotation=rotation, eta=0.1))
    torch.manual_seed(2)
    values = torch.randn(98, 4, DIM) * MAGNITUDES[:, None, None]
    values.requires_grad_()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        out = block(values, torch.ones(98, 4, dtype=torch.bool), torch.rand(98, 4, 3))
        loss = out.values.float().square().mean() + out.context.square().mean()
    loss.backward()
    assert out.values.isfinite().all() and out.values.dtype == torch.float32
    assert out.context.dtype == torch.float32 and out.context.isfinite().all()
    assert out.stats.residual.isfinite().all()
    for tensor in (values, *block.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


def test_layers_of_tiny_weights_give_finite_gradients() -> None:
    block = make_block()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(1e-20)
    values, mask, position = make_input()
    out = block(values.requires_grad_(), mask, position)
    (out.values.sum() + out.context.sum()).backward()
    for tensor in (values, *block.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


def test_autocast_solves_in_float32() -> None:
    block = make_block()
    values, mask, position = make_input()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = block(values.bfloat16(), mask, position)
    assert out.values.dtype == torch.bfloat16 and out.context.dtype == torch.float32
    assert out.stats.converged.all()
    assert (out.context - block(values, mask, position).context).abs().max() < 3e-2


def test_low_precision_parameters_need_a_tolerance_they_can_resolve() -> None:
    values, mask, position = make_input()
    with pytest.raises(ValueError, match="raise tol"):
        make_block().bfloat16()(values.bfloat16(), mask, position)
    coarse = make_block(solver=FixedPointSolver(tol=1e-2)).bfloat16()
    assert coarse(values.bfloat16(), mask, position).values.dtype == torch.bfloat16


def test_wrong_inputs_are_refused_with_one_sentence() -> None:
    block = make_block()
    values, mask, position = make_input()
    for wrong, message in (
        ((values[0], mask), r"values of shape \(8, 32\)"),
        ((values[..., :-1], mask), r"give \(B, N, 32\)"),
        ((values[:, :0], mask[:, :0]), "N >= 1"),
        ((values.double(), mask), "float64 for a block of torch.float32"),
        ((values.long(), mask), "int64"),
        ((values, mask.float()), "give torch.bool"),
        ((values, mask[:, :-1]), r"of shape \(6, 8\), True = real"),
        ((values, mask, position[..., :2]), r"give \(6, 8, 3\)"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            block(*wrong)
        assert "\n" not in str(caught.value)
    for settings in ({"dim": 30}, {"dim": 32, "num_heads": 0}, {"dim": 32, "num_slots": 0}):
        with pytest.raises(ValueError, match="multiple of 2"):
            FusionBlock(**settings)


def test_importing_fusion_needs_torch_only() -> None:
    heavy = ("lightning", "webdataset", "timm", "transformers", "open_clip", "matplotlib")
    program = f"import sys, fusion; print([name for name in {heavy} if name in sys.modules])"
    root = Path(fusion.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert run.stdout.strip() == "[]", run.stderr


def test_a_warm_start_reaches_the_same_context_in_fewer_rounds() -> None:
    """The next frame of a stream, the next query: close inputs have close contexts."""
    block = make_block(solver=FixedPointSolver(max_iters=200, tol=1e-10)).double()
    nn.init.constant_(block.gain, 0.3)
    values, mask, position = make_input(batch=16)
    values = values.double()
    before = block(values, mask, position)
    moved = values + 0.01 * torch.randn_like(values)
    cold = block(moved, mask, position)
    warm = block(moved, mask, position, slots=before.slots)
    assert (warm.context - cold.context).abs().max() < 1e-8
    assert (warm.stats.num_iters <= cold.stats.num_iters).all()
    assert warm.stats.num_iters.sum() < cold.stats.num_iters.sum()


def test_slots_that_are_not_finite_start_anew_and_other_shapes_are_refused() -> None:
    block = make_block()
    values, mask, position = make_input()
    cold = block(values, mask, position)
    slots = torch.zeros_like(cold.slots)
    slots[1] = math.nan
    warm = block(values, mask, position, slots=slots)
    assert torch.equal(warm.values[1], cold.values[1])
    with pytest.raises(ValueError, match="to start from; give"):
        block(values, mask, position, slots=slots[:, :, :1])


def test_a_block_adds_what_its_tokens_read_of_the_context() -> None:
    """Not the latents alone: where they are tied to their anchors, the context still arrives."""
    block = make_block(assim=partial(AnchoredAssim, kappa=1e-9)).double()
    values, mask, _ = make_input()
    moved = values.clone()
    moved[:, 0] += torch.randn(len(values), DIM)
    first, second = (block(v.double(), mask).values[:, 1:] for v in (values, moved))
    assert ((first - second).abs().amax(dim=2) > 1e-3)[mask[:, 1:]].all()
    nn.init.zeros_(block.out.weight[:, DIM:].data)  # the control: nothing is read of the context
    first, second = (block(v.double(), mask).values[:, 1:] for v in (values, moved))
    assert (first - second).abs().max() < 1e-6
