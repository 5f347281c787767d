import pytest
import torch
from torch import Tensor, nn

from encoders.trunk import Layout, survey


class Net(nn.Module):
    """Patches of 8 pixels in one of the layouts, with a head that nothing reads."""

    def __init__(self, axes: str, dim: int = 6) -> None:
        super().__init__()
        self.axes = axes
        self.embed = nn.Conv2d(3, dim, 8, 8)
        self.norm = nn.BatchNorm2d(dim)
        self.head = nn.Linear(dim, 2)

    def forward(self, pictures: Tensor) -> Tensor:
        features = self.norm(self.embed(pictures))
        if self.axes == "NC":
            tokens = features.flatten(2).transpose(1, 2)
            return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        return features if self.axes == "CHW" else features.permute(0, 2, 3, 1)


@pytest.mark.parametrize("axes", ["CHW", "HWC", "NC"])
@pytest.mark.parametrize("size", [(32, 32), (16, 40)])
def test_layout_and_held_weights(axes: str, size: tuple[int, int]):
    net = Net(axes)
    num_whole = int(axes == "NC")
    layout = survey(net, size, 6, num_whole)
    grid = (size[0] // 8, size[1] // 8)
    assert layout == Layout(6, grid, num_whole, axes)
    held = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert held == ["head.weight", "head.bias"]
    assert net.training and net.norm.num_batches_tracked == 0
    features = net(torch.randn(2, 3, *size))
    tokens = layout.tokens(features)
    assert tokens.shape == (2, len(layout.places), 6)
    assert torch.equal(layout.features(tokens), features)


def test_features_that_are_no_grid_are_refused():
    class Odd(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            return pictures.flatten(1)[:, :5]

    with pytest.raises(ValueError, match=r"features \(5,\) for pictures"):
        survey(nn.Sequential(nn.Conv2d(3, 3, 1), Odd()), (8, 8), 5)
