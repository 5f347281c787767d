"""The layers of transformers that are trained from scratch."""

from torch import nn


def transformer(dim: int, num_layers: int, num_heads: int, dropout: float) -> nn.TransformerEncoder:
    """Pre-normalised transformer layers with a last normalisation, batch first.

    Args:
        dim: Width of the tokens.
        num_layers: Layers.
        num_heads: Attention heads; they share the width.
        dropout: Share of hidden units dropped in training.

    Raises:
        ValueError: If the heads cannot share the width evenly.
    """
    if dim % num_heads:
        raise ValueError(f"Got {num_heads} heads for a width of {dim}; choose a divisor of it.")
    layer = nn.TransformerEncoderLayer(
        dim, num_heads, 4 * dim, dropout, "gelu", batch_first=True, norm_first=True
    )
    norm = nn.LayerNorm(dim)
    return nn.TransformerEncoder(layer, num_layers, norm, enable_nested_tensor=False)
