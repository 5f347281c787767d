import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from encoders.torchvision_backbone import TorchvisionImage

sys.path.append(str(Path(__file__).parent))
from towers import saved, shaken, torchvision_model

ONE = torch.ones(1, 1, dtype=torch.bool)
# Model to the module whose input are its last features.
POOLS = {
    "resnet18": "avgpool",
    "squeezenet1_1": "classifier",
    "mobilenet_v3_small": "avgpool",
    "regnet_y_400mf": "avgpool",
    "mnasnet0_5": None,
    "shufflenet_v2_x0_5": None,
}


def picture(size: tuple[int, int]) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 1, 3, *size), dtype=torch.uint8, generator=draw)


@pytest.mark.parametrize("name", POOLS)
def test_tokens_are_the_features_that_torchvision_pools(name: str):
    net, path = torchvision_model(name)
    encoder = TorchvisionImage(name, path)
    inputs = picture(encoder.transform.size)
    out, seen = encoder(inputs, ONE), []
    if POOLS[name]:
        layer = net.get_submodule(POOLS[name])
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    else:
        net.get_submodule("fc" if hasattr(net, "fc") else "classifier").register_forward_pre_hook(
            lambda module, args: seen.append(args[0])
        )
    with torch.no_grad():
        net(encoder.normalise(inputs[:, 0]))
    if POOLS[name]:
        torch.testing.assert_close(
            out.values, seen[0].flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4
        )
    else:  # these pool by a mean that is no module
        torch.testing.assert_close(out.values.mean(dim=1), seen[0], atol=1e-5, rtol=1e-4)
    assert out.values.std() > 1e-6


def test_tokens_of_a_transformer_are_those_before_its_head():
    torch.manual_seed(0)
    net = shaken(models.VisionTransformer(224, 32, 1, 2, 768, 64))
    encoder = TorchvisionImage("vit_b_32", train="scratch").eval()
    assert (encoder.layout.grid, encoder.layout.num_whole) == ((7, 7), 1)
    encoder.trunk.net = net  # type: ignore[assignment]
    seen = []
    net.get_submodule("encoder.ln").register_forward_hook(lambda m, args, out: seen.append(out))
    with torch.no_grad():
        values = encoder(picture((224, 224)), ONE).values
    torch.testing.assert_close(values, seen[0], atol=1e-5, rtol=0)


def test_inception_rescales_its_pictures_by_itself():
    """Published weights of these rescale what ImageNet's mean and deviation have made."""
    torch.manual_seed(0)
    net = shaken(models.googlenet(weights=None, init_weights=False, transform_input=True))
    encoder = TorchvisionImage("googlenet", saved(net, "googlenet"))
    inputs = picture((224, 224))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    given = (inputs[:, 0] / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        expected = net._transform_input(given)  # type: ignore[operator]
    torch.testing.assert_close(encoder.normalise(inputs[:, 0]), expected, atol=1e-5, rtol=0)


def test_recipe_is_that_of_the_weights():
    first = TorchvisionImage("regnet_x_400mf", "IMAGENET1K_V1", "scratch").transform
    second = TorchvisionImage("regnet_x_400mf", "IMAGENET1K_V2", "scratch").transform
    assert (first.scaled, second.scaled) == ((256, 256), (232, 232))
    assert first.interpolation == "bilinear" and first.fit == "shortest"


def test_normalisation_holds_still_but_in_training_from_scratch():
    path = torchvision_model("resnet18")[1]
    for train, moves in (("full", False), ("scratch", True)):
        encoder = TorchvisionImage("resnet18", path, train).train()  # type: ignore[arg-type]
        assert moves == any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())


def test_adapters_of_windowed_attention_all_learn():
    """Its attention reads the weights of its layers and never calls them."""
    encoder = TorchvisionImage("swin_t", torchvision_model("swin_t")[1], "lora")
    encoder(picture(encoder.transform.size), ONE).values.square().sum().backward()
    adapters = {n: p for n, p in encoder.named_parameters() if p.requires_grad}
    assert adapters and all(p.grad is not None for p in adapters.values())


def test_convolutions_have_nothing_for_lora():
    with pytest.raises(ValueError, match="no attention or MLP layers"):
        TorchvisionImage("resnet18", torchvision_model("resnet18")[1], "lora")


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="torchvision has no classification model s3d"):
        TorchvisionImage("s3d")
    with pytest.raises(ValueError, match="give weights: one of IMAGENET1K_V1"):
        TorchvisionImage("resnet18")
    with pytest.raises(ValueError, match="do not fit ResNet"):
        TorchvisionImage("resnet34", torchvision_model("resnet18")[1])

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nowhere/at/all")
    with pytest.raises(ConnectionError, match="weights resnet18 IMAGENET1K_V1.*path as weights"):
        TorchvisionImage("resnet18", "IMAGENET1K_V1")
