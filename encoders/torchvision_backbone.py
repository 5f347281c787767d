"""Pictures through any classification backbone of torchvision.

Letters: B batch, L pictures of a sample, P real pictures, N tokens of a picture.
"""

from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from encoders.base import Encoder, EncoderOutput, TrainMode, reads_weights
from encoders.picture import FitPicture, Normalise, Recipe, place_tokens, real_pictures, recipe
from encoders.pretrained import fetching, fill, find_weights, read_state
from encoders.trunk import survey

_HEADS = ("avgpool", "dropout", "classifier", "fc", "head")  # the first of them ends the features
_PLAIN = (
    0.5,
    0.5,
    0.5,
)  # mean and deviation of the Inception networks, which rescale by themselves


@final
class TorchvisionImage(Encoder):
    """The last features of a torchvision model as tokens; a class token comes first.

    Where the model has batch normalisation its statistics hold still, except in training from
    scratch, where samples of a batch then see each other.

    Args:
        name: Of the model in torchvision, such as "resnet50" or "vit_b_16".
        weights: Tag of published weights, such as "IMAGENET1K_V2", or a local file. It decides
            the size and the normalisation of pictures; None is torchvision's default.
        train: How the weights take part in training.

    Raises:
        ValueError: If torchvision has no such model, or its features are no tokens on a grid.
        FileNotFoundError: If `weights` is neither a tag nor a file.
        ConnectionError: If tagged weights cannot be fetched.
    """

    def __init__(self, name: str, weights: str | None = None, train: TrainMode = "frozen") -> None:
        from timm.layers.norm_act import freeze_batch_norm_2d
        from torchvision import models

        if name not in models.list_models(module=models):
            raise ValueError(
                f"torchvision has no classification model {name}; "
                "torchvision.models.list_models(module=torchvision.models) names them."
            )
        published: Any = models.get_model_weights(name)
        known = published.__members__
        given = _recipe(published[weights if weights in known else "DEFAULT"])
        net = _build_net(name, given.transform.size[0])
        if reads_weights(train):
            fill(net, _read(name, weights, published), str(weights))
        if hasattr(net, "transform_input"):
            given = given._replace(mean=_PLAIN, std=_PLAIN)
        num_whole = int(hasattr(net, "class_token"))
        trunk = _Transformer(net) if num_whole else _convolutions(net)
        if train != "scratch":
            freeze_batch_norm_2d(trunk)
        layout = survey(trunk, given.transform.size, num_whole=num_whole)
        super().__init__("image", layout.dim, given.transform, given.augment)
        self.name = name
        self.normalise = Normalise(given.mean, given.std)
        self.trunk, self.layout = trunk, layout
        self.register_buffer("places", layout.places, persistent=False)
        self.set_train_mode(train)

    def extra_repr(self) -> str:
        """What the layers do not state, for the fingerprint."""
        return f"name={self.name}"

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode pictures (B, L, 3, H, W) uint8 into L times the tokens of one."""
        features = self.trunk(self.normalise(real_pictures(inputs, mask)))
        return place_tokens(self.layout.tokens(features), mask, self.get_buffer("places"))


class _Transformer(nn.Module):
    """The vision transformer without its head, its class token kept."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        self.net.heads = nn.Identity()

    def forward(self, pictures: Tensor) -> Tensor:
        tokens = self.net._process_input(pictures)
        first = self.net.class_token.expand(len(tokens), -1, -1)
        return self.net.encoder(torch.cat([first, tokens], dim=1))


def _convolutions(net: nn.Module) -> nn.Sequential:
    """The layers before pooling; all of torchvision's other networks apply them one by one."""
    layers: list[nn.Module] = []
    for name, layer in net.named_children():
        if name.startswith(_HEADS):
            break
        layers += layer if isinstance(layer, nn.ModuleList) else [layer]
    return nn.Sequential(*layers)


def _build_net(name: str, size: int) -> nn.Module:
    from torchvision import models

    if name in ("googlenet", "inception_v3"):
        return models.get_model(name, weights=None, aux_logits=False, init_weights=False)
    if name.startswith("vit_"):
        return models.get_model(name, weights=None, image_size=size)
    return models.get_model(name, weights=None)


def _read(name: str, weights: str | None, published: Any) -> dict[str, Tensor]:
    source = find_weights(weights, list(published.__members__), f"The model {name}")
    if isinstance(source, Path):
        state = read_state(source)
    else:
        with fetching(f"{name} {source}"):
            state = published[source].get_state_dict(
                progress=False, check_hash=True, weights_only=True, map_location="cpu"
            )
    return {key: value for key, value in state.items() if not key.lower().startswith("aux")}


def _recipe(weights: Any) -> Recipe:
    """The transform that the weights name as theirs."""
    preset = weights.transforms()
    crop, scaled = preset.crop_size[0], preset.resize_size[0]
    transform = FitPicture((crop, crop), (scaled, scaled), "shortest", preset.interpolation.value)
    return recipe(transform, preset.mean, preset.std)
