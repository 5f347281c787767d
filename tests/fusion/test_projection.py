import torch
from torch.nn import functional as F

from fusion.projection import Projection, unit_means


def readable(projection: Projection, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sample by sample: tokens over the norm of their mean, `W (token - center) + MLP(mean)`."""
    rows = []
    for tokens, real in zip(values, mask, strict=True):
        out = torch.zeros(len(tokens), projection.linear.out_features, dtype=values.dtype)
        if real.any():
            scale = tokens[real].mean(dim=0).norm()
            mean = tokens[real].mean(dim=0) / scale - projection.center
            standard = mean / mean.norm() * len(mean) ** 0.5
            residual = projection.mlp(standard)
            moved = (tokens[real] / scale - projection.center) @ projection.linear.weight.T
            out = out.index_put((real.nonzero().flatten(),), moved + residual)
        rows.append(out)
    return torch.stack(rows)


def make(dim_in: int = 6, dim: int = 4) -> Projection:
    projection = Projection(dim_in, dim, hidden=10, dropout=0.5).double().eval()
    with torch.no_grad():
        projection.center.normal_(std=0.3)
        for parameter in projection.parameters():
            parameter.normal_(std=0.5)
    return projection


def make_tokens(num: int = 5, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.rand(num, 7) > 0.4
    mask[0], mask[1] = False, True
    return torch.randn(num, 7, dim, dtype=torch.float64) * mask.unsqueeze(-1), mask


def test_the_fast_form_is_the_formula():
    projection, (values, mask) = make(), make_tokens()
    values.requires_grad_()
    probe = torch.randn(5, 7, 4, dtype=torch.float64)
    wanted = [values, *projection.parameters()]
    grads, outs = [], []
    for form in (projection, lambda v, m: readable(projection, v, m)):
        out = form(values, mask)
        outs.append(out)
        grads.append(torch.autograd.grad((out * probe).sum(), wanted))
    torch.testing.assert_close(*outs)
    real = mask.unsqueeze(-1)  # at padding the reference has no gradient
    torch.testing.assert_close(grads[0][0] * real, grads[1][0] * real)
    for fast, slow in zip(grads[0][1:], grads[1][1:], strict=True):
        torch.testing.assert_close(fast, slow)


def test_a_wrong_center_is_noticed():
    projection, (values, mask) = make(), make_tokens()
    expected = readable(projection, values, mask)
    with torch.no_grad():
        projection.center[0] += 0.01
    assert not torch.allclose(projection(values, mask), expected, atol=1e-4)


def test_the_mean_of_a_new_projection_is_linear():
    projection = Projection(6, 4, hidden=10, dropout=0.1)
    weight, center = torch.randn(4, 6), torch.randn(6)
    projection.align(weight, center)
    values, mask = make_tokens()
    values = values.float()
    latents = projection(values, mask)
    mean = latents.sum(dim=1)[1:] / mask.sum(dim=1, keepdim=True)[1:]
    expected = (unit_means(values, mask)[1:] - center) @ weight.T
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)


def test_aligning_sets_the_linear_part_only():
    projection, weight, center = Projection(6, 4, 10, dropout=0.1), torch.randn(4, 6), torch.rand(6)
    before = [p.clone() for p in projection.mlp.parameters()]
    projection.align(weight, center)
    assert torch.equal(projection.linear.weight, weight) and torch.equal(projection.center, center)
    assert all(map(torch.equal, before, projection.mlp.parameters()))


def test_scale_and_padding_change_nothing():
    projection, (values, mask) = make(), make_tokens()
    latents = projection(values, mask)
    torch.testing.assert_close(projection(7 * values, mask), latents)
    wider = projection(F.pad(values, (0, 0, 0, 3)), F.pad(mask, (0, 3)))
    torch.testing.assert_close(wider[:, :7], latents)
    assert not wider[:, 7:].any() and not latents[0].any()


def test_unit_means():
    values, mask = make_tokens()
    means = unit_means(values, mask)
    expected = F.normalize(values[1].mean(dim=0), dim=0)
    torch.testing.assert_close(means[1], expected)
    torch.testing.assert_close(means[1:].norm(dim=1), torch.ones(4, dtype=torch.float64))
    assert not means[0].any()


def test_projected_means_are_the_means_of_projected_tokens():
    projection, (values, mask) = make(), make_tokens()
    latents = projection(values, mask)[2:]
    expected = latents.sum(1) / mask[2:].sum(1, keepdim=True).clamp_min(1)
    means = unit_means(values, mask)[2:]
    assert mask[2:].any(1).all()
    torch.testing.assert_close(projection.project_means(means), expected)
