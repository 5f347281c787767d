"""One slot for all tokens, tied to the way they read it."""

import pytest
import torch
from torch import Tensor

from fusion import FixedPointSolver, FusionBlock
from fusion.accom import MeanAccom
from fusion.accom.mean import MeanMixing
from fusion.assim import ChoiceAssim, LiteralAssim
from fusion.solver import Full
from fusion.tokens import Place

F64 = torch.float64
BATCH, NUM_HEADS, NUM_TOKENS, DIM_HEAD = 4, 2, 5, 8


@pytest.fixture
def mask() -> Tensor:
    torch.manual_seed(0)
    mask = torch.rand(BATCH, NUM_TOKENS) > 0.4
    mask[0], mask[-1] = True, False
    return mask


def choose(mask: Tensor) -> MeanMixing:
    anchors = torch.randn(BATCH, NUM_HEADS, NUM_TOKENS, DIM_HEAD, dtype=F64)
    place = Place(torch.zeros(*mask.shape, 3), torch.zeros(mask.shape))
    return MeanAccom(DIM_HEAD, NUM_HEADS, num_slots=7)(anchors, mask, place)


def test_the_context_is_the_mean_of_the_real_tokens_and_all_of_them_read_it(mask) -> None:
    mixing = choose(mask)
    latents = torch.randn(BATCH, NUM_HEADS, NUM_TOKENS, DIM_HEAD, dtype=F64)
    junk = torch.where(mask[:, None, :, None], latents, float("nan"))
    context = mixing.gather(junk)
    assert context.shape == (BATCH, NUM_HEADS, 1, DIM_HEAD)
    for index, real in enumerate(mask[:-1]):
        assert torch.allclose(context[index, :, 0], latents[index][:, real].mean(dim=1))
    assert not context[-1].any()
    seen = mixing.read(context)
    assert torch.equal(seen, torch.where(mask[:, None, :, None], context, 0))


def test_reading_is_tie_times_the_transpose_of_gathering(mask) -> None:
    mixing = choose(mask)
    tokens = torch.eye(NUM_TOKENS, dtype=F64).expand(BATCH, NUM_HEADS, -1, -1)
    pool = mixing.gather(tokens)  # (B, H, 1, N)
    feed = mixing.read(torch.ones(BATCH, NUM_HEADS, 1, 1, dtype=F64))
    assert torch.equal(mixing.tie[:, 0, 0], mask.sum(dim=1).double())
    assert mixing.tie.shape == (BATCH, NUM_HEADS, 1)
    assert torch.allclose(feed, (mixing.tie.unsqueeze(-1) * pool).mT, atol=1e-15)


def test_it_has_nothing_to_learn_and_chooses_once(mask) -> None:
    assert not list(MeanAccom(DIM_HEAD, NUM_HEADS).parameters())
    mixing = choose(mask)
    latents = torch.randn(BATCH, NUM_HEADS, NUM_TOKENS, DIM_HEAD, dtype=F64)
    assert mixing.frozen and mixing.weigh(latents, mixing.first(latents)) is mixing


@pytest.mark.parametrize("assim", [ChoiceAssim, LiteralAssim])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_any_magnitude_gives_finite_values_and_gradients(assim, dtype) -> None:
    torch.manual_seed(2)
    solver = FixedPointSolver()
    if assim is LiteralAssim:  # its gradients double in every round: 32 are too many for float16
        solver = FixedPointSolver(max_iters=4, gradient=Full())
    block = FusionBlock(32, assim=assim, accom=MeanAccom, solver=solver)
    torch.nn.init.normal_(block.out.weight, std=0.2)
    sizes = torch.cat([torch.zeros(1), torch.logspace(-45, 3, 97, dtype=F64).float()])
    values = (torch.randn(98, 4, 32) * sizes[:, None, None]).requires_grad_()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        out = block(values, torch.ones(98, 4, dtype=torch.bool), torch.rand(98, 4, 3))
        loss = out.values.float().square().mean() + out.context.square().mean()
    loss.backward()
    assert out.values.isfinite().all() and out.context.isfinite().all()
    for tensor in (values, *block.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
