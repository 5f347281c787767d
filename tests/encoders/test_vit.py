import pytest
import torch

from encoders.vit import ViT


def test_one_token_for_each_patch_row_by_row():
    encoder = ViT(16, 1, 2, size=32, patch=8).eval()
    inputs, mask = torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8), torch.ones(1, 2, dtype=bool)
    out = encoder(inputs, mask)
    assert out.values.shape == (1, 32, 16)
    assert out.position[0, 1].tolist() == [0, 0.125, 0.375]
    before = encoder.embed(encoder.normalise(inputs[0])).flatten(2).transpose(1, 2)
    inputs[0, 1, :, 8:16, 24:] = 255  # the patch of row 1, column 3
    after = encoder.embed(encoder.normalise(inputs[0])).flatten(2).transpose(1, 2)
    changed = (before != after).any(dim=-1).nonzero().tolist()
    assert changed == [[1, 7]]


def test_it_learns_to_tell_two_pictures_apart():
    torch.manual_seed(0)
    encoder = ViT(16, 1, 2, size=16, patch=8, dropout=0.0)
    inputs = torch.stack([torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 255.0)]).byte()
    mask, wanted = torch.ones(2, 1, dtype=torch.bool), torch.tensor([0.0, 1.0])
    optimizer = torch.optim.Adam(encoder.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = (encoder(inputs, mask).values[..., 0].mean(dim=1) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="Patches of 12 do not fill 32 pixels"):
        ViT(16, 1, 2, size=32, patch=12)
    with pytest.raises(ValueError, match="3 heads for a width of 16"):
        ViT(16, 1, 3)
