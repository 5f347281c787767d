"""Which open_clip model is meant, and the weights of one of its towers."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from encoders.picture import FitPicture, Recipe, Size, recipe
from encoders.pretrained import fetching, fill, find_weights, read_state

Part = Literal["visual", "text"]
# The tower that is not wanted is built as small as it gets, and dropped.
_NO_VISION: dict[str, Any] = {"layers": 1, "width": 64, "image_size": 1, "patch_size": 1}
_NO_TEXT: dict[str, Any] = {"layers": 1, "width": 8, "heads": 1, "vocab_size": 1}


def model_config(config: str | Mapping[str, Any], weights: str | None) -> dict[str, Any]:
    """The config of a model, with the activation that tagged weights were trained with.

    Args:
        config: Name of an open_clip model, or its config.
        weights: Tag or file of its weights.

    Raises:
        ValueError: If open_clip knows no such model.
    """
    import open_clip

    if not isinstance(config, str):
        return dict(config)
    if config not in open_clip.list_models():
        raise ValueError(f"open_clip knows no model {config}; open_clip.list_models() names them.")
    return {**(open_clip.get_model_config(config) or {}), **_activation(_tagged(config, weights))}


def _activation(tagged: Mapping[str, Any]) -> dict[str, Any]:
    return {"quick_gelu": bool(tagged.get("quick_gelu", False))} if tagged else {}


def _tagged(config: str | Mapping[str, Any], weights: str | None) -> Mapping[str, Any]:
    """What open_clip knows about tagged weights; nothing about others."""
    import open_clip

    if (
        isinstance(config, str)
        and weights
        and weights in open_clip.list_pretrained_tags_by_model(config)
    ):
        return open_clip.get_pretrained_cfg(config, weights)
    return {}


def build_tower(config: Mapping[str, Any], part: Part) -> Any:
    """One tower of a model, with random weights.

    Args:
        config: With `embed_dim` and the part's settings.
        part: Of the model.
    """
    import open_clip

    vision = open_clip.CLIPVisionCfg(**(config["vision_cfg"] if part == "visual" else _NO_VISION))
    text = open_clip.CLIPTextCfg(**(config["text_cfg"] if part == "text" else _NO_TEXT))
    # Tokens are neither dropped at random nor fetched weights' own.
    vision.patch_dropout, vision.timm_model_pretrained = 0.0, False
    vision.output_tokens = text.output_tokens = True
    quick = config.get("quick_gelu", False)
    return getattr(open_clip.CustomTextCLIP(config["embed_dim"], vision, text, quick), part)


def read_tower(
    net: nn.Module, part: Part, config: str | Mapping[str, Any], weights: str | None
) -> None:
    """Fill a tower with weights of a whole model, or of that tower alone.

    Raises:
        ValueError: If the weights do not fit, or none are named.
        FileNotFoundError: If `weights` is neither a tag nor a file.
        ConnectionError: If tagged weights cannot be fetched.
    """
    import open_clip

    named = isinstance(config, str)
    tags = open_clip.list_pretrained_tags_by_model(config) if named else []
    source = find_weights(weights, tags, f"The model {config if named else 'of this config'}")
    path = source
    if not isinstance(source, Path):
        with fetching(f"{config} {source}"):
            path = open_clip.download_pretrained(dict(_tagged(config, weights)))
    state = read_state(Path(path))
    fill(net, _part_of(state, part), str(path))


def _part_of(state: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    """Weights of one tower; older files keep those of the text tower without a prefix."""
    prefix = f"{part}."
    if any(name.startswith(prefix) for name in state):
        return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    rest = ("visual.", "logit_", "input_resolution", "context_length", "vocab_size")
    return {name: value for name, value in state.items() if not name.startswith(rest)}


def picture_recipe(config: str | Mapping[str, Any], weights: str | None, size: Size) -> Recipe:
    """How open_clip makes pictures ready for these weights."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    defaults = dataclasses.asdict(PreprocessCfg())
    given = merge_preprocess_dict(defaults, dict(_tagged(config, weights)))
    transform = FitPicture(
        size,
        None,
        given["resize_mode"],
        "bilinear" if given["interpolation"] == "bilinear" else "bicubic",
        (given["fill_color"],) * 3,
    )
    return recipe(transform, given["mean"], given["std"])
