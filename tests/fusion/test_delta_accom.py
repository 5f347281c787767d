import pytest
import torch
from torch import Tensor

from fusion.accom import DeltaAccom
from fusion.relations import Earlier, SameModality, Window
from fusion.tokens import Place

F64 = torch.float64


def make_mixing(rule=Earlier(), num_tokens: int = 9):
    accom = DeltaAccom(6, 2, 1, rule=rule).double()
    anchors = torch.randn(3, 2, num_tokens, 6, dtype=F64)
    mask = torch.ones(3, num_tokens, dtype=torch.bool)
    mask[1, 2:5] = False
    mask[2] = False
    anchors = torch.where(mask[:, None, :, None], anchors, 0)
    place = Place(torch.zeros(*mask.shape, 3), torch.arange(num_tokens).expand(mask.shape) % 2)
    return accom, anchors, mask, place


@torch.no_grad()
@pytest.mark.parametrize("rule", [Earlier(), Window(2), SameModality()], ids=repr)
def test_the_accom_is_its_recurrence_token_by_token(rule) -> None:
    accom, anchors, mask, place = make_mixing(rule)
    mixing = accom(anchors, mask, place)
    latents = torch.randn_like(anchors) * mask[:, None, :, None]
    relation = (rule & Earlier())(place, mask)
    write, read = accom.write(anchors, relation), accom.read(anchors, relation)
    beta = accom.beta(anchors)
    left, seen = torch.zeros_like(latents), torch.zeros_like(latents)
    for i in range(mask.shape[1]):
        written = torch.einsum("bhj,bhjd->bhd", write[:, :, i], left)
        left[:, :, i] = latents[:, :, i] - beta[:, :, i, None] * written
        seen[:, :, i] = torch.einsum("bhj,bhjd->bhd", read[:, :, i], left)
    assert (mixing.read(mixing.gather(latents)) - seen).abs().max() < 1e-12
    assert not mixing.gather(latents)[2].any() and mixing.depth is not None
    assert mixing.depth.tolist() == ([4, 2, 0] if isinstance(rule, SameModality) else [8, 5, 0])


@torch.no_grad()
def test_the_declared_stretch_is_reached_and_never_exceeded() -> None:
    worst = 0.0
    for seed in range(20):
        torch.manual_seed(seed)
        accom, anchors, mask, place = make_mixing()
        mixing = accom(anchors, mask, place)
        assert isinstance(mixing.stretch, Tensor) and not mixing.stretch.requires_grad
        latents = torch.randn_like(anchors)
        size = latents.norm(dim=-1).amax(dim=(1, 2))
        seen = mixing.gather(latents).norm(dim=-1).amax(dim=(1, 2))
        assert (seen <= mixing.stretch * size + 1e-12).all()
        row = mixing.weights.abs().sum(dim=-1)[0].flatten().argmax()
        signs = mixing.weights[0].flatten(0, 1)[row].sign()
        attained = mixing.weights[0].flatten(0, 1)[row] @ signs
        assert abs(attained - mixing.stretch[0]) < 1e-12
        worst = max(worst, mixing.stretch.max().item())
    assert worst > 1  # so a stretch of 1 would have been a lie


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, 1e30])
def test_beta_stays_strictly_between_0_and_1_for_any_weights(dtype, scale: float) -> None:
    accom = DeltaAccom(6, 2, 1)
    for parameter in (accom.beta_weight, accom.beta_bias):
        parameter.copy_(scale * torch.randn_like(parameter))
    beta = accom.to(dtype).beta(torch.randn(50, 2, 4, 6, dtype=dtype))
    assert (beta > 0).all() and (beta < 1).all()


@torch.no_grad()
def test_without_writing_back_it_is_attention_to_earlier_tokens() -> None:
    accom, anchors, mask, place = make_mixing()
    torch.nn.init.constant_(accom.beta_bias, -1e3)
    mixing = accom(anchors, mask, place)
    plain = accom.read(anchors, Earlier()(place, mask))
    assert (mixing.weights - plain).abs().max() < 1e-12
    torch.nn.init.constant_(accom.beta_bias, 1e3)
    assert (accom(anchors, mask, place).weights - plain).abs().max() > 0.1
