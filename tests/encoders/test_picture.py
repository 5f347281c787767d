import numpy as np
import open_clip
import pytest
import timm.data
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision import models

from encoders.picture import FitPicture, Normalise, RandomCrop, cell_positions, place_tokens
from encoders.timm_backbone import TimmImage
from encoders.torchvision_backbone import TorchvisionImage


def test_positions_are_cell_centres_row_by_row():
    expected = [[0, 0.25, 1 / 6], [0, 0.25, 0.5], [0, 0.25, 5 / 6]]
    torch.testing.assert_close(cell_positions(2, 3)[:3], torch.tensor(expected))
    assert cell_positions(2, 3)[3, 1] == 0.75


@pytest.mark.parametrize("height, width", [(1, 1), (160, 160), (1, 500), (700, 3)])
def test_transform_scales_the_whole_picture(height: int, width: int):
    left_dark = torch.zeros(3, height, width, dtype=torch.uint8)
    left_dark[:, :, width // 2 :] = 255
    square = FitPicture((160, 160))(left_dark)
    assert square.shape == (1, 3, 160, 160) and square.dtype == torch.uint8
    assert square[..., -1].min() == 255
    if width > 1:
        assert square[..., 0].max() == 0


def test_fine_detail_is_averaged_when_scaled_down():
    stripes = torch.zeros(3, 320, 320, dtype=torch.uint8)
    stripes[:, :, torch.arange(320) % 8 < 4] = 255
    inside = FitPicture((32, 32))(stripes)[..., 4:-4, 4:-4].float()
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
        FitPicture((32, 32))(raw)


def photo(height: int, width: int) -> torch.Tensor:
    """Smooth, as photos are, with some noise."""
    draw = torch.Generator().manual_seed(height * width)
    coarse = torch.rand(1, 3, 6, 6, generator=draw) * 255
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return (smooth + 20 * torch.randn(3, height, width, generator=draw)).clamp(0, 255).byte()


def as_pil(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray(np.asarray(picture.permute(1, 2, 0)))


SIZES = [(100, 150), (301, 200), (64, 64), (31, 220), (500, 333)]


def check_close(got: torch.Tensor, normalise: Normalise, expected: torch.Tensor) -> None:
    """Equal but for rounding between the two passes of a resize, in levels of 255."""
    distance = ((normalise(got[None])[0] - expected) * normalise.std * 255).abs()
    assert distance.max() < 5 and distance.mean() < 0.5, (distance.max(), distance.mean())


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_evaluation_transform_is_that_of_open_clip(mode: str, height: int, width: int):
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    theirs = image_transform(64, False, mean, std, resize_mode=mode, fill_color=7)
    ours = FitPicture((64, 64), None, mode, fill=(7, 7, 7))  # type: ignore[arg-type]
    picture = photo(height, width)
    got = ours(picture)[0]
    check_close(got, Normalise(mean, std), theirs(as_pil(picture)))


@pytest.mark.parametrize(
    "settings", [{}, {"crop_mode": "squash"}, {"crop_mode": "border"}, {"crop_pct": 1.0}]
)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_evaluation_transform_is_that_of_timm(settings: dict, height: int, width: int, monkeypatch):
    cfg = timm.get_pretrained_cfg("test_vit")
    for name, value in settings.items():
        setattr(cfg, name, value)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: cfg)
    encoder = TimmImage("test_vit", train="scratch")
    config = timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict())
    theirs, picture = timm.data.create_transform(**config), photo(height, width)
    got = encoder.transform(picture)[0]
    check_close(got, encoder.normalise, theirs(as_pil(picture)))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_evaluation_transform_is_that_of_torchvision(height: int, width: int):
    encoder = TorchvisionImage("resnet18", "IMAGENET1K_V1", "scratch")
    theirs = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    picture = photo(height, width)
    got = encoder.transform(picture)[0]
    check_close(got, encoder.normalise, theirs(as_pil(picture)))


@pytest.mark.parametrize("fit", ["shortest", "longest", "squash"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 30_000), (30_000, 2), (3, 5)])
def test_extreme_pictures_keep_the_size_and_cost_little(fit, height: int, width: int):
    picture = torch.full((3, height, width), 200, dtype=torch.uint8)
    out = FitPicture((64, 48), (70, 60), fit)(picture)
    assert out.shape == (1, 3, 64, 48) and (out == 200).any()


def test_random_crops_are_large_parts_and_follow_the_seed():
    crop, picture = RandomCrop((32, 32)), photo(60, 90)
    torch.manual_seed(0)
    first = [crop(picture) for _ in range(4)]
    torch.manual_seed(0)
    assert all(torch.equal(crop(picture), one) for one in first)
    assert not torch.equal(first[0], first[1])
    assert all(one.shape == (1, 3, 32, 32) and one.dtype == torch.uint8 for one in first)
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 200, 200)
    for _ in range(50):
        seen = RandomCrop((100, 100))(ramp)
        assert int(seen.max()) - int(seen.min()) > 160  # 0.9 of the area at 3:4 is 0.82 of a side
        assert seen[..., -1].float().mean() > seen[..., 0].float().mean()  # never mirrored


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5_000), (5_000, 1), (2, 3)])
def test_random_crops_of_extreme_pictures(height: int, width: int):
    picture = torch.full((3, height, width), 9, dtype=torch.uint8)
    assert (RandomCrop((16, 24))(picture) == 9).all()


def test_tokens_are_placed_where_pictures_are_real():
    tokens = torch.arange(6.0).view(2, 1, 3)
    out = place_tokens(tokens, torch.tensor([[False, True], [True, False]]), torch.zeros(1, 3))
    assert out.values.tolist() == [[[0, 0, 0], [0, 1, 2]], [[3, 4, 5], [0, 0, 0]]]
    assert out.mask.tolist() == [[False, True], [True, False]]
    nothing = place_tokens(tokens[:1], torch.zeros(2, 2, dtype=torch.bool), torch.zeros(1, 3))
    assert not nothing.values.any()
