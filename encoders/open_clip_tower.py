"""The two towers of an open_clip transformer, giving all their tokens.

Letters: B batch, L pictures or text ids, N tokens, S picture side.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.base import Encoder, EncoderOutput
from encoders.image import SquarePicture, cell_positions
from encoders.text import clean_text, reading_positions

_VOCAB_SIZE = 49408  # of open_clip's own tokenizer
# The tower that is not wanted is built as small as it gets, and dropped.
_NO_VISION: dict[str, Any] = {"layers": 1, "width": 64, "image_size": 1, "patch_size": 1}
_NO_TEXT: dict[str, Any] = {"layers": 1, "width": 8, "heads": 1, "vocab_size": 1}


@final
class OpenClipImage(Encoder):
    """Patch tokens of an open_clip vision transformer, random weights.

    Args:
        config: Name of an open_clip model, or its config as a dict with `embed_dim` and
            `vision_cfg`.
        frozen: Keep the weights as they are.

    Raises:
        ValueError: If the model is unknown or its vision tower is no plain transformer.
    """

    def __init__(self, config: str | dict[str, Any], frozen: bool = False) -> None:
        import open_clip

        config = _model_config(config)
        vision = open_clip.CLIPVisionCfg(**{**config["vision_cfg"], "output_tokens": True})
        plain = not vision.timm_model_name and not vision.attentional_pool
        if not plain or not isinstance(vision.layers, int):
            raise ValueError(
                "OpenClipImage reads patch tokens from open_clip's own vision transformer; choose "
                "a config without timm_model_name, attentional_pool or a list of layers."
            )
        net: Any = open_clip.CustomTextCLIP(
            config["embed_dim"],
            vision,
            open_clip.CLIPTextCfg(**_NO_TEXT),
            quick_gelu=config.get("quick_gelu", False),
        ).visual
        super().__init__("image", net.ln_post.normalized_shape[0], SquarePicture(net.image_size[0]))
        self.net = net
        self.net.proj = None  # of the pooled embedding: nothing here would train it
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.register_buffer("cells", cell_positions(*net.grid_size), persistent=False)
        if frozen:
            self.freeze()

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode pictures (B, L, 3, S, S) uint8 into L times the patches of one."""
        pictures = (inputs.flatten(0, 1) / 255 - self.get_buffer("mean")) / self.get_buffer("std")
        _, tokens = self.net(pictures)  # (B * L, patches, dim)
        cells = self.get_buffer("cells")
        token_mask = mask.repeat_interleave(len(cells), dim=1)
        values = tokens.reshape(*token_mask.shape, self.dim)
        return EncoderOutput(
            values.masked_fill(~token_mask.unsqueeze(-1), 0),
            token_mask,
            cells.float().repeat(*mask.shape, 1),
        )


@final
@dataclass(frozen=True)
class ClipPieces:
    """Cuts a text into the ids of open_clip's own tokenizer.

    Args:
        context_length: Ids kept, the two end markers included.
        max_chars: Characters kept, before cutting: its cleaning is quadratic in the length.
    """

    context_length: int
    max_chars: int

    def __call__(self, raw: str) -> Tensor:
        """Turn a text into (L,) int64 ids, start and end marker included.

        Raises:
            ValueError: If `raw` is not a str.
        """
        import open_clip

        ids = open_clip.tokenize(clean_text(raw, self.max_chars), self.context_length)[0]
        return ids[: int(ids.argmax()) + 1]  # the end marker has the highest id


@final
class OpenClipText(Encoder):
    """Token states of an open_clip text transformer, random weights.

    Args:
        config: Name of an open_clip model, or its config as a dict with `embed_dim` and
            `text_cfg`.
        max_chars: Characters kept of a text.
        frozen: Keep the weights as they are.

    Raises:
        ValueError: If the model is unknown or its text tower is not open_clip's own.
    """

    def __init__(
        self, config: str | dict[str, Any], max_chars: int = 500, frozen: bool = False
    ) -> None:
        import open_clip

        config = _model_config(config)
        text = open_clip.CLIPTextCfg(**{**config["text_cfg"], "output_tokens": True})
        foreign = text.hf_model_name or text.hf_tokenizer_name
        if foreign or text.vocab_size != _VOCAB_SIZE:
            raise ValueError(
                "OpenClipText uses open_clip's own text tower and tokenizer; choose a config with "
                f"vocab_size {_VOCAB_SIZE} and without hf_model_name or hf_tokenizer_name."
            )
        net: Any = open_clip.CustomTextCLIP(
            config["embed_dim"],
            open_clip.CLIPVisionCfg(**_NO_VISION),
            text,
            quick_gelu=config.get("quick_gelu", False),
        ).text
        super().__init__(
            "text", net.ln_final.normalized_shape[0], ClipPieces(net.context_length, max_chars)
        )
        self.net = net
        self.net.text_projection = None  # of the pooled embedding: nothing here would train it
        if frozen:
            self.freeze()

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode ids (B, L) int64 into L tokens; real ids come first in a row."""
        length = mask.shape[1]
        ids = F.pad(inputs.masked_fill(~mask, 0), (0, self.net.context_length - length))
        _, tokens = self.net(ids)  # the tower wants rows of its full length
        values = tokens[:, :length].masked_fill(~mask.unsqueeze(-1), 0)
        return EncoderOutput(values, mask, reading_positions(mask))


def _model_config(config: str | dict[str, Any]) -> dict[str, Any]:
    import open_clip

    if isinstance(config, dict):
        return config
    found = open_clip.get_model_config(config) if config in open_clip.list_models() else None
    if found is None:
        raise ValueError(f"open_clip knows no model {config}; open_clip.list_models() names them.")
    return found
