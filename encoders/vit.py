"""Pictures through a small vision transformer, trained from scratch.

Letters: B batch, L pictures of a sample, P real pictures, N patches, S picture side.
"""

from typing import final

import torch
from torch import Tensor, nn

from encoders.base import Encoder, EncoderOutput
from encoders.picture import (
    FitPicture,
    Normalise,
    RandomCrop,
    cell_positions,
    place_tokens,
    real_pictures,
)
from encoders.transformer import transformer

_GREY = (0.5, 0.5, 0.5)


@final
class ViT(Encoder):
    """A vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929) without class token.

    Args:
        dim: Width of the tokens.
        num_layers: Transformer layers.
        num_heads: Attention heads.
        size: Side S in pixels that pictures are scaled to.
        patch: Side in pixels of the patch that makes a token.
        dropout: Share of hidden units dropped in training.

    Raises:
        ValueError: If patches do not fill the picture, or heads do not divide the width.
    """

    def __init__(
        self,
        dim: int = 192,
        num_layers: int = 6,
        num_heads: int = 3,
        size: int = 128,
        patch: int = 16,
        dropout: float = 0.1,
    ) -> None:
        if size % patch:
            raise ValueError(f"Patches of {patch} do not fill {size} pixels; choose a divisor.")
        super().__init__("image", dim, FitPicture((size, size)), RandomCrop((size, size)))
        self.num_heads = num_heads
        side = size // patch
        self.normalise = Normalise(_GREY, _GREY)
        self.embed = nn.Conv2d(3, dim, patch, patch)
        self.places = nn.Parameter(0.02 * torch.randn(side * side, dim))
        self.net = transformer(dim, num_layers, num_heads, dropout)
        self.register_buffer("cells", cell_positions(side, side), persistent=False)

    def extra_repr(self) -> str:
        """What the layers do not state, for the fingerprint."""
        return f"num_heads={self.num_heads}"

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode pictures (B, L, 3, S, S) uint8 into L * N tokens."""
        pictures = self.normalise(real_pictures(inputs, mask))
        patches = self.embed(pictures).flatten(2).transpose(1, 2)
        return place_tokens(self.net(patches + self.places), mask, self.get_buffer("cells"))
