"""Pictures through any backbone of timm.

Letters: B batch, L pictures of a sample, P real pictures, N tokens of a picture.
"""

from pathlib import Path
from typing import Any, Literal, final

from torch import Tensor, nn

from encoders.base import Encoder, EncoderOutput, TrainMode, reads_weights
from encoders.picture import FitPicture, Normalise, Recipe, place_tokens, real_pictures, recipe
from encoders.pretrained import fetching, find_weights
from encoders.trunk import survey

_FITS: dict[str, Literal["squash", "shortest", "longest"]] = {  # by timm's crop mode
    "squash": "squash",
    "border": "longest",
    "center": "shortest",
}


@final
class TimmImage(Encoder):
    """The last features of a timm model as tokens; class and register tokens come first.

    Where the model has batch normalisation its statistics hold still, except in training from
    scratch, where samples of a batch then see each other.

    Args:
        name: Of the model in timm, without a tag, such as "vit_small_patch16_224".
        weights: Tag of published weights, such as "augreg_in21k", or a local file. It decides the
            size and the normalisation of pictures; None is timm's default for the model.
        train: How the weights take part in training.

    Raises:
        ValueError: If timm has no such model, or its features are no tokens on a grid.
        FileNotFoundError: If `weights` is neither a tag nor a file.
        ConnectionError: If tagged weights cannot be fetched.
    """

    def __init__(self, name: str, weights: str | None = None, train: TrainMode = "frozen") -> None:
        import timm
        from timm.layers.norm_act import freeze_batch_norm_2d

        if not timm.is_model(name) or "." in name:
            raise ValueError(f"timm has no model {name}; timm.list_models() names them, untagged.")
        tags = [found.partition(".")[2] for found in timm.list_pretrained(f"{name}.*")]
        net = _build_net(name, weights, tags) if reads_weights(train) else _bare_net(name)
        given = _recipe(f"{name}.{weights}" if weights in tags else name)
        super().__init__("image", net.num_features, given.transform, given.augment)
        if train != "scratch":
            freeze_batch_norm_2d(net)
        self.name = name
        self.normalise = Normalise(given.mean, given.std)
        self.trunk = _Trunk(net)
        num_whole = getattr(net, "num_prefix_tokens", 0)
        self.layout = survey(self.trunk, given.transform.size, self.dim, num_whole)
        self.register_buffer("places", self.layout.places, persistent=False)
        self.set_train_mode(train)

    def extra_repr(self) -> str:
        """What the layers do not state, for the fingerprint."""
        return f"name={self.name}"

    def checkpoint_gradients(self) -> None:
        """Recompute hidden states in the backward pass instead of keeping them all.

        Raises:
            ValueError: If timm does not offer it for this model.
        """
        try:
            self.trunk.net.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):
            super().checkpoint_gradients()

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode pictures (B, L, 3, H, W) uint8 into L times the tokens of one."""
        features = self.trunk(self.normalise(real_pictures(inputs, mask)))
        return place_tokens(self.layout.tokens(features), mask, self.get_buffer("places"))


class _Trunk(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net

    def forward(self, pictures: Tensor) -> Tensor:
        return self.net.forward_features(pictures)


def _bare_net(name: str) -> Any:
    import timm

    return timm.create_model(name, num_classes=0)


def _build_net(name: str, weights: str | None, tags: list[str]) -> Any:
    import timm

    source = find_weights(weights, tags, f"The model {name}")
    if isinstance(source, Path):
        # timm reads tensors only, and renames those of older files.
        given = {"file": str(source)}
        return timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=given)
    with fetching(f"{name}.{source}"):
        return timm.create_model(f"{name}.{source}", pretrained=True, num_classes=0)


def _recipe(name: str) -> Recipe:
    """The data config of the weights, as timm's own evaluation reads it."""
    import timm
    from timm.data.config import resolve_data_config

    published = timm.get_pretrained_cfg(name)
    config = resolve_data_config({}, published.to_dict() if published else {"input_size": None})
    size, mean = tuple(config["input_size"][1:]), config["mean"]
    transform = FitPicture(
        size,
        (int(size[0] / config["crop_pct"]), int(size[1] / config["crop_pct"])),
        _FITS[config["crop_mode"]],
        "bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        tuple(round(255 * value) for value in mean),
    )
    return recipe(transform, mean, config["std"])
