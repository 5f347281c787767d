"""A small text decoder over the tokens and the context of a fused sample.

Shapes: B batch, T caption pieces, P places of the memory (tokens and slots), D width of the
memory, V vocabulary.
"""

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from fusion.layers import Dropout
from fusion.model import Fused
from fusion.vocabulary import PAD


class Memory(NamedTuple):
    """What a decoder attends to.

    Attributes:
        values: (B, P, D).
        mask: (B, P) bool, True = real.
    """

    values: Tensor
    mask: Tensor


def memory_of(fused: Fused, embedding: Tensor) -> Memory:
    """The embedding, the context slots and the tokens of a fused sample, side by side."""
    tokens = fused.tokens
    slots = fused.context.new_ones(fused.context.shape[:2], dtype=torch.bool)
    return Memory(
        torch.cat([embedding.unsqueeze(1), fused.context, tokens.values], dim=1),
        torch.cat([slots[:, :1], slots, tokens.mask], dim=1),
    )


@final
class CaptionDecoder(nn.Module):
    """Predicts the next piece of a caption from the pieces so far and a memory.

    A pre-norm transformer decoder (Vaswani et al. 2017, arXiv:1706.03762) with learned positions
    and shared input and output embeddings.

    Args:
        dim_memory: D.
        vocabulary_size: V.
        dim: width of the decoder.
        num_layers: layers.
        num_heads: heads of both attentions.
        dropout: dropout share in training, of the memory's channels too.
        max_pieces: longest caption, T.
    """

    def __init__(
        self,
        dim_memory: int,
        vocabulary_size: int,
        dim: int = 192,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.2,
        max_pieces: int = 16,
    ) -> None:
        super().__init__()
        self.max_pieces = max_pieces
        self.embedding = nn.Embedding(vocabulary_size, dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.place = nn.Parameter(0.02 * torch.randn(max_pieces, dim))
        self.memory = nn.Sequential(
            nn.RMSNorm(dim_memory), Dropout(dropout), nn.Linear(dim_memory, dim)
        )
        layer = nn.TransformerDecoderLayer(
            dim, num_heads, 4 * dim, dropout, "gelu", batch_first=True, norm_first=True
        )
        layer.dropout = Dropout(dropout)  # of the widest values
        self.layers = nn.TransformerDecoder(layer, num_layers, norm=nn.LayerNorm(dim))
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def forward(self, pieces: Tensor, memory: Memory) -> Tensor:
        """Scores of the piece that follows each of `pieces`.

        Args:
            pieces: (B, T) int64, PAD after the end.
            memory: what to describe.

        Returns:
            Logits (B, T, V).
        """
        return self.logits(self.states(pieces, memory))

    def states(self, pieces: Tensor, memory: Memory) -> Tensor:
        """States (B, T, dim) from which `logits` scores; see `forward`."""
        length = pieces.shape[1]
        hidden = self.embedding(pieces) + self.place[:length]
        later = torch.ones(length, length, dtype=torch.bool, device=pieces.device).triu(1)
        return self.layers(
            hidden,
            self.memory(memory.values),
            tgt_mask=later,
            tgt_key_padding_mask=pieces == PAD,
            memory_key_padding_mask=~memory.mask,
        )

    def logits(self, states: Tensor) -> Tensor:
        """Scores (..., V) of the next piece from states (..., dim)."""
        return states @ self.embedding.weight.T + self.bias
