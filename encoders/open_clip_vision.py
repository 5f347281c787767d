"""open_clip's vision networks, split into features and the pooling that follows them.

Letters: P pictures, N tokens, C channels, E embedding width.
"""

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor, nn


class Vision(nn.Module, ABC):
    """A vision network of open_clip; calling it turns pictures (P, 3, H, W) into features.

    Args:
        net: The network.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net

    @abstractmethod
    def pool(self, features: Tensor) -> Tensor:
        """Pooled embeddings (P, E), from the features alone."""


@final
class TransformerVision(Vision):
    """open_clip's own transformer: features (P, 1 + patches, C), the class token first."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Features, normalised unless pooling comes before the normalisation."""
        found = self.net.forward_intermediates(
            pictures,
            indices=1,
            normalize_intermediates=self._is_plain,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        return torch.cat(
            [found["image_intermediates_prefix"][0], found["image_intermediates"][0]], dim=1
        )

    @property
    def _is_plain(self) -> bool:
        return self.net.attn_pool is None and not self.net.final_ln_after_pool

    def pool(self, features: Tensor) -> Tensor:
        """Pooled embeddings (P, E)."""
        step = self.net._global_pool if self._is_plain else self.net._pool
        pooled, _ = step(features)
        return pooled if self.net.proj is None else pooled @ self.net.proj


@final
class ResNetVision(Vision):
    """open_clip's own residual network: features (P, C, H, W)."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Features of the last stage."""
        found = self.net.forward_intermediates(pictures, indices=1, intermediates_only=True)
        return found["image_intermediates"][0]

    def pool(self, features: Tensor) -> Tensor:
        """Pooled embeddings (P, E)."""
        return self.net.attnpool(features)


@final
class TimmVision(Vision):
    """A timm network inside open_clip: features as timm lays them out."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Features before timm's head."""
        return self.net.trunk.forward_features(pictures)

    def pool(self, features: Tensor) -> Tensor:
        """Pooled embeddings (P, E)."""
        return self.net.head(self.net.trunk.forward_head(features))


def split(net: Any) -> Vision:
    """The wrapper that fits a vision network of open_clip."""
    if hasattr(net, "trunk"):
        return TimmVision(net)
    return ResNetVision(net) if hasattr(net, "attnpool") else TransformerVision(net)
