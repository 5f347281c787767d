"""The space-time towers of torchvision, without what pools and classifies.

Letters: P clips, D width.
"""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from encoders.base import TrainMode, reads_weights
from encoders.folding import fold_norms
from encoders.pretrained import fetching, find_weights, read_state

_STEPS = {"r3d_18": 8, "mc3_18": 1, "r2plus1d_18": 8, "s3d": 8}  # frames of a token; others 2
_MVIT = (224, 16)  # pixels and frames that it is built for
_HEADS = ("fc.", "classifier.", "head.")  # of classification; a token needs none


class Recipe(NamedTuple):
    """How frames were made ready for some weights.

    Attributes:
        size: Side in pixels of the square that is cut out.
        scaled: Height and width that frames are scaled to before, or their shorter side alone.
        mean: RGB mean, of pixels in [0, 1].
        std: RGB deviation.
    """

    size: int
    scaled: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def video_recipe(name: str, weights: str | None, size: int | None) -> Recipe:
    """The recipe of published weights, or of the default ones, at another size if one is given.

    Raises:
        ValueError: If torchvision has no such video model.
    """
    from torchvision import models

    known = models.list_models(models.video)
    if name not in known:
        raise ValueError(
            f"torchvision has no video model {name!r}; choose one of {', '.join(known)}."
        )
    published: Any = models.get_model_weights(name)
    preset = published[weights if weights in published.__members__ else "DEFAULT"].transforms()
    crop = preset.crop_size[0]
    side = size or crop
    scaled = tuple(round(n * side / crop) for n in preset.resize_size)
    return Recipe(side, scaled, tuple(preset.mean), tuple(preset.std))


def video_trunk(name: str, weights: str | None, train: TrainMode) -> tuple[nn.Module, int]:
    """A tower that turns clips (P, 3, frames, S, S) into a map (P, time, row, column, D), and D.

    Batch normalisation is folded into the convolutions or, from scratch, replaced by group
    normalisation with one group.

    Raises:
        ValueError: If the weights do not fit, or the tower takes no adapters.
        FileNotFoundError: If `weights` is neither a tag nor a file.
        ConnectionError: If tagged weights cannot be fetched.
    """
    from torchvision import models

    if train == "lora" and name.startswith("swin3d"):
        raise ValueError(
            f"{name} reads the weights of its attention past any adapter; choose train: full or "
            "frozen, or mvit_v2_s."
        )
    net: Any = models.get_model(name, weights=None)
    if reads_weights(train):
        _load(net, name, weights)
    trunk, dim = _cut_head(net)
    (_replace_norms if train == "scratch" else fold_norms)(trunk)
    return trunk, dim


def check_clip(name: str, size: int, clip_frames: int) -> None:
    """Refuse clips that a tower cannot take.

    Raises:
        ValueError: If it cannot; the message says what it can.
    """
    step = _STEPS.get(name, 2)
    fixed = name.startswith("mvit")
    if clip_frames < 1 or clip_frames % step or (fixed and (size, clip_frames) != _MVIT):
        takes = "16 of 224 pixels" if fixed else f"a multiple of {step}"
        raise ValueError(
            f"Got clips of {clip_frames} frames of {size} pixels; {name} takes {takes}."
        )


def _load(net: nn.Module, name: str, weights: str | None) -> None:
    from torchvision import models

    published: Any = models.get_model_weights(name)
    source = find_weights(weights, list(published.__members__), f"The model {name}")
    if isinstance(source, Path):
        state = read_state(source)
    else:
        with fetching(f"{name} {source}"):
            state = published[source].get_state_dict(weights_only=True, map_location="cpu")
    own = {key for key in net.state_dict() if not key.startswith(_HEADS)}
    try:
        if own - state.keys():
            raise RuntimeError(f"lacking {min(own - state.keys())}")
        net.load_state_dict({key: state[key] for key in own}, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"The weights {weights} are not of {name} ({' '.join(str(error).split())[:120]} ...); "
            "give those that are."
        ) from error


def _cut_head(net: Any) -> tuple[nn.Module, int]:
    """The part before the pooling, and the width of its feature map."""
    kind = type(net).__name__
    if kind == "VideoResNet":
        layers = (net.stem, net.layer1, net.layer2, net.layer3, net.layer4)
        return nn.Sequential(*layers, _WidthLast()), net.fc.in_features
    if kind == "S3D":
        return nn.Sequential(net.features, _WidthLast()), net.classifier[1].in_channels
    if kind == "MViT":
        return _MViTTrunk(net), net.head[1].in_features
    trunk = nn.Sequential(net.patch_embed, net.pos_drop, net.features, net.norm)
    return trunk, net.num_features


class _WidthLast(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.movedim(1, -1)


class _MViTTrunk(nn.Module):
    """MViT up to its last norm, without the token of the class."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.conv_proj = net.conv_proj
        self.pos_encoding = net.pos_encoding
        self.blocks = net.blocks
        self.norm = net.norm

    def forward(self, clips: Tensor) -> Tensor:
        hidden = self.pos_encoding(self.conv_proj(clips).flatten(2).transpose(1, 2))
        place: Any = self.pos_encoding
        sizes = (place.temporal_size, *place.spatial_size)
        for block in self.blocks:
            hidden, sizes = block(hidden, sizes)
        return self.norm(hidden)[:, 1:].unflatten(1, sizes)


def _replace_norms(net: nn.Module) -> None:
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm3d):
            net.set_submodule(name, nn.GroupNorm(1, module.num_features))
