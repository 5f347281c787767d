import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from encoders.timm_backbone import TimmImage

sys.path.append(str(Path(__file__).parent))
from towers import timm_model

ONE = torch.ones(1, 1, dtype=torch.bool)
NAMES = ["test_vit", "test_vit2", "test_resnet", "test_efficientnet", "test_convnext", "test_nfnet"]


def picture(size: tuple[int, int]) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 1, 3, *size), dtype=torch.uint8, generator=draw)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_the_features_of_timm(name: str):
    net, path = timm_model(name)
    encoder = TimmImage(name, path)
    inputs = picture(encoder.transform.size)
    out = encoder(inputs, ONE)
    with torch.no_grad():
        features = net.forward_features(encoder.normalise(inputs[:, 0]))  # type: ignore[operator]
    expected = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
    assert expected.std() > 1e-4
    torch.testing.assert_close(out.values, expected, atol=1e-5, rtol=1e-5)
    back = encoder.layout.features(out.values)
    torch.testing.assert_close(back, features, atol=1e-5, rtol=1e-5)


def test_features_with_channels_last_lie_row_by_row():
    encoder = TimmImage("swin_tiny_patch4_window7_224", train="scratch").eval()
    assert encoder.layout.axes == "HWC" and encoder.layout.grid == (7, 7)
    inputs = picture((224, 224))
    with torch.no_grad():
        out = encoder(inputs, ONE)
        features = encoder.trunk(encoder.normalise(inputs[:, 0]))
    row, column = 2, 5
    assert torch.equal(out.values[0, 7 * row + column], features[0, row, column])
    place = out.position[0, 7 * row + column]
    torch.testing.assert_close(place, torch.tensor([0, 2.5 / 7, 5.5 / 7]))


def test_class_and_register_tokens_have_places_of_their_own():
    encoder = TimmImage("test_vit2", train="scratch")
    assert encoder.layout.num_whole == encoder.trunk.net.num_prefix_tokens == 1
    places = encoder.layout._replace(num_whole=5).places
    assert len(places.unique(dim=0)) == len(places) and (places[:5, 1] == 0).all()


def test_heads_are_held_and_not_adapted():
    encoder = TimmImage("test_vit", timm_model("test_vit")[1], "lora")
    learning = [n for n, p in encoder.named_parameters() if p.requires_grad]
    assert learning and all("lora_" in name for name in learning)
    assert not any("head" in name for name in learning)


def test_normalisation_holds_still_but_in_training_from_scratch():
    path = timm_model("test_resnet")[1]
    for train, moves in (("full", False), ("scratch", True)):
        encoder = TimmImage("test_resnet", path, train).train()  # type: ignore[arg-type]
        assert moves == any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())


def test_recipe_is_that_of_the_weights():
    first = TimmImage("resnet18", "tv_in1k", "scratch")
    second = TimmImage("resnet18", "a1_in1k", "scratch")
    assert (first.transform.interpolation, first.transform.scaled) == ("bilinear", (256, 256))
    assert (second.transform.interpolation, second.transform.scaled) == ("bicubic", (235, 235))
    clip = TimmImage("vit_tiny_patch16_224", "augreg_in21k", "scratch")
    assert "mean=(0.5, 0.5, 0.5)" in repr(clip.normalise)


@pytest.mark.parametrize("name", ["resnet", "resnet18.a1_in1k"])
def test_unknown_models_are_refused(name: str):
    with pytest.raises(ValueError, match="timm has no model"):
        TimmImage(name)


def test_features_of_several_sizes_are_refused():
    with pytest.raises(ValueError, match="features of several sizes"):
        TimmImage("crossvit_tiny_240", train="scratch")


def test_a_model_that_cannot_recompute_says_so(monkeypatch: pytest.MonkeyPatch):
    encoder = TimmImage("test_resnet", train="scratch")

    def unsupported(enable: bool) -> None:
        assert not enable, "gradient checkpointing not supported"

    monkeypatch.setattr(encoder.trunk.net, "set_grad_checkpointing", unsupported)
    with pytest.raises(ValueError, match="TimmImage cannot recompute"):
        encoder.checkpoint_gradients()


def test_without_the_hub_the_error_says_how_to_give_a_file(monkeypatch: pytest.MonkeyPatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConnectionError, match=r"r160_in1k \(no network\).*path as weights"):
        TimmImage("test_vit", "r160_in1k")
    with pytest.raises(ValueError, match="to start from; give weights: one of r160_in1k"):
        TimmImage("test_vit")
