"""The two towers of an open_clip model, giving all their tokens.

Letters: B batch, L pictures or text ids, N tokens of a picture, E embedding width.
"""

from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.base import Encoder, EncoderOutput, TrainMode, reads_weights
from encoders.clip_pieces import VOCAB_SIZE, ClipPieces
from encoders.open_clip_vision import TransformerVision, split
from encoders.open_clip_weights import build_tower, model_config, picture_recipe, read_tower
from encoders.picture import Normalise, place_tokens, real_pictures
from encoders.text import reading_positions
from encoders.trunk import survey


@final
class OpenClipImage(Encoder):
    """The patch tokens of an open_clip vision tower, its class token first where it has one.

    Where the tower has batch normalisation its statistics hold still, except in training from
    scratch, where samples of a batch then see each other.

    Args:
        config: Name of an open_clip model, or its config as a dict with `embed_dim` and
            `vision_cfg`.
        weights: Tag of published weights, such as "laion2b_s34b_b79k", or a local file. It
            decides the normalisation of pictures; None is open_clip's default.
        train: How the weights take part in training.

    Raises:
        ValueError: If the model is unknown, or no weights are named that fit it.
        FileNotFoundError: If `weights` is neither a tag nor a file.
        ConnectionError: If tagged weights cannot be fetched.
    """

    def __init__(
        self,
        config: str | dict[str, Any],
        weights: str | None = None,
        train: TrainMode = "frozen",
    ) -> None:
        from timm.layers.norm_act import freeze_batch_norm_2d

        net = build_tower(model_config(config, weights), "visual")
        if reads_weights(train):
            read_tower(net, "visual", config, weights)
        if train != "scratch":
            freeze_batch_norm_2d(net)
        side = net.image_size
        size = (side, side) if isinstance(side, int) else tuple(side)
        trunk, inner = split(net), getattr(net, "trunk", None)
        width = None if inner is None else inner.num_features
        num_whole = 1 if inner is None else getattr(inner, "num_prefix_tokens", 0)
        layout = survey(trunk, size, width, num_whole)
        given = picture_recipe(config, weights, size)
        super().__init__("image", layout.dim, given.transform, given.augment)
        self.trunk, self.layout, self.config = trunk, layout, config
        self.normalise = Normalise(given.mean, given.std)
        self.register_buffer("places", layout.places, persistent=False)
        self.set_train_mode(train)

    def extra_repr(self) -> str:
        """What the layers do not state, for the fingerprint."""
        return f"config={self.config}"

    def checkpoint_gradients(self) -> None:
        """Recompute hidden states in the backward pass instead of keeping them all.

        Raises:
            ValueError: If the tower is no transformer of open_clip's own.
        """
        if not isinstance(self.trunk, TransformerVision):
            super().checkpoint_gradients()
        self.trunk.net.set_grad_checkpointing(True)

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode pictures (B, L, 3, H, W) uint8 into L * N tokens."""
        features = self.trunk(self.normalise(real_pictures(inputs, mask)))
        return place_tokens(self.layout.tokens(features), mask, self.get_buffer("places"))

    def pool(self, tokens: EncoderOutput) -> Tensor:
        """Embeddings (B, L, E) of the pictures as open_clip's `encode_image` has them.

        Args:
            tokens: What `forward` gave; an absent picture has zeros.
        """
        num_tokens = len(self.get_buffer("places"))
        pictures = tokens.values.unflatten(1, (-1, num_tokens))
        features = self.layout.features(pictures.flatten(0, 1))
        pooled = self.trunk.pool(features).unflatten(0, pictures.shape[:2])
        return pooled * tokens.mask[:, ::num_tokens, None]


@final
class OpenClipText(Encoder):
    """The token states of an open_clip text transformer.

    Args:
        config: Name of an open_clip model, or its config as a dict with `embed_dim` and
            `text_cfg`.
        weights: Tag of published weights, such as "laion2b_s34b_b79k", or a local file.
        max_chars: Characters kept of a text.
        train: How the weights take part in training.

    Raises:
        ValueError: If the model is unknown, its text tower is not open_clip's own, or no weights
            are named that fit it.
        FileNotFoundError: If `weights` is neither a tag nor a file.
        ConnectionError: If tagged weights cannot be fetched.
    """

    def __init__(
        self,
        config: str | dict[str, Any],
        weights: str | None = None,
        max_chars: int = 500,
        train: TrainMode = "frozen",
    ) -> None:
        settings = model_config(config, weights)
        _check_text(settings["text_cfg"])
        net = build_tower(settings, "text")
        if reads_weights(train):
            read_tower(net, "text", config, weights)
        super().__init__("text", net.width, ClipPieces(net.context_length, max_chars))
        self.net, self.config = net, config
        if net.text_projection is not None:  # of the pooled embedding: nothing would train it
            net.text_projection.requires_grad_(False)
        self.set_train_mode(train)

    def extra_repr(self) -> str:
        """What the layers do not state, for the fingerprint."""
        return f"config={self.config}"

    def checkpoint_gradients(self) -> None:
        """Recompute hidden states in the backward pass instead of keeping them all."""
        self.net.set_grad_checkpointing(True)

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode ids (B, L) int64 into L tokens; real ids come first in a row."""
        length = mask.shape[1]
        ids = F.pad(inputs.masked_fill(~mask, 0), (0, self.net.context_length - length))
        _, tokens = self.net(ids)  # the tower wants rows of its full length
        values = tokens[:, :length].masked_fill(~mask.unsqueeze(-1), 0)
        return EncoderOutput(values, mask, reading_positions(mask))

    def pool(self, tokens: EncoderOutput) -> Tensor:
        """Embeddings (B, E) of the texts as open_clip's `encode_text` has them.

        Args:
            tokens: What `forward` gave; an absent text has zeros.
        """
        last = (tokens.mask.sum(dim=1) - 1).clamp_min(0)  # the end marker
        state: Any = tokens.values[torch.arange(len(last), device=last.device), last]
        projection: Any = self.net.text_projection
        if projection is not None:
            linear = callable(projection)
            state = projection(state) if linear else state @ projection
        return state * tokens.mask.any(dim=1, keepdim=True)


def _check_text(text: dict[str, Any]) -> None:
    foreign = text.get("hf_model_name") or text.get("hf_tokenizer_name")
    if foreign or text.get("vocab_size", VOCAB_SIZE) != VOCAB_SIZE or text.get("embed_cls"):
        raise ValueError(
            "OpenClipText reads open_clip's own text tower and tokenizer; choose a config with "
            f"vocab_size {VOCAB_SIZE} and without hf_model_name, hf_tokenizer_name or embed_cls, "
            "or HuggingFaceText on a local folder."
        )
    if text.get("pool_type", "argmax") != "argmax":
        raise ValueError("OpenClipText pools at the end marker; choose a config with that.")
