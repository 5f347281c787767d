"""Text through a small transformer, trained from scratch.

Letters: B batch, L text ids, N tokens (= L).
"""

from typing import final

import torch
from torch import Tensor, nn

from encoders.base import Encoder, EncoderOutput
from encoders.clip_pieces import VOCAB_SIZE, ClipPieces
from encoders.text import reading_positions
from encoders.transformer import transformer


@final
class TextTransformer(Encoder):
    """A small text encoder that reads both ways, on open_clip's own tokenizer.

    Args:
        dim: Width of the tokens.
        num_layers: Transformer layers.
        num_heads: Attention heads.
        max_tokens: Ids kept of a text, the two end markers included.
        max_chars: Characters kept of a text, before it is cut into ids.
        dropout: Share of hidden units dropped in training.

    Raises:
        ValueError: If heads do not divide the width.
    """

    def __init__(
        self,
        dim: int = 192,
        num_layers: int = 4,
        num_heads: int = 3,
        max_tokens: int = 64,
        max_chars: int = 500,
        dropout: float = 0.1,
    ) -> None:
        super().__init__("text", dim, ClipPieces(max_tokens, max_chars))
        self.num_heads = num_heads
        self.embed = nn.Embedding(VOCAB_SIZE, dim)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.places = nn.Parameter(0.02 * torch.randn(max_tokens, dim))
        self.net = transformer(dim, num_layers, num_heads, dropout)

    def extra_repr(self) -> str:
        """What the layers do not state, for the fingerprint."""
        return f"num_heads={self.num_heads}"

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode ids (B, L) int64 into L tokens; real ids come first in a row."""
        # Attention over nothing is not defined: an absent text attends to its padding instead.
        unattended = ~mask & mask.any(dim=1, keepdim=True)
        length = mask.shape[1]
        places = self.places[
            torch.arange(length, device=mask.device).clamp_max(len(self.places) - 1)
        ]
        hidden = self.embed(inputs.masked_fill(~mask, 0)) + places
        values = self.net(hidden, src_key_padding_mask=unattended)
        return EncoderOutput(
            values.masked_fill(~mask.unsqueeze(-1), 0), mask, reading_positions(mask)
        )
