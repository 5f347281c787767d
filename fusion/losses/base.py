"""What contrastive losses share: the temperature, the widths and the exchange.

Shapes: D width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion.losses.exchange import Exchange, Gathered
from fusion.losses.rows import Block, Rows

MAX_LOGIT_SCALE = 100.0  # as Radford et al. 2021, arXiv:2103.00020, section 2.5


class ContrastiveLoss(nn.Module, ABC):
    """Brings positives together and pushes negatives apart; see `Rows` for who is which.

    What a rank gets back is scaled so that its mean over ranks is the loss of one process with the
    rows of all, and the same holds for every gradient, that of the temperature too, once
    data-parallel training has averaged it.

    A leaf says what rows of one width cost.

    Args:
        logit_scale: first multiplier of the cosines; it is learned, up to 100.
        num_temperatures: 1 for all directions, or one for each.
        widths: prefixes of the embedding, each made a unit vector again, over which the loss is
            averaged (Kusupati et al. 2022, arXiv:2205.13147); empty takes the rows as they are.
        exchange: how rows meet columns.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        logit_scale: float,
        num_temperatures: int = 1,
        widths: Sequence[int] = (),
        exchange: Exchange | None = None,
    ) -> None:
        super().__init__()
        if not 0 < logit_scale <= MAX_LOGIT_SCALE or num_temperatures < 1:
            raise ValueError(
                f"Got logit_scale={logit_scale} and num_temperatures={num_temperatures}; give a "
                f"scale in (0, {MAX_LOGIT_SCALE:g}] and at least one temperature."
            )
        if any(width < 1 for width in widths):
            raise ValueError(f"Got widths {list(widths)}; give each at least 1.")
        self.log_logit_scale = nn.Parameter(torch.full((num_temperatures,), math.log(logit_scale)))
        self.widths = tuple(widths)
        self.exchange = Gathered() if exchange is None else exchange

    @abstractmethod
    def compare(self, query: Block, target: Block, direction: int) -> Tensor:
        """The loss of rows of one width.

        Args:
            query: rows that take part.
            target: rows that take part.
            direction: index of its temperature.

        Returns:
            Scalar; see `Total.mean`.
        """

    def forward(self, query: Rows, target: Rows, direction: int = 0) -> Tensor:
        """The loss of one direction.

        Args:
            query: of this rank.
            target: of this rank.
            direction: index of its temperature, where each has its own.

        Returns:
            Scalar, 0 with gradients of 0 if no query has a positive on any rank. Every rank must
            call it, also one without rows.

        Raises:
            ValueError: if shapes do not fit, or there is no such temperature.
        """
        if query.values.shape[1:] != target.values.shape[1:]:
            raise ValueError(
                f"Got queries of shape {tuple(query.values.shape)} and targets of shape "
                f"{tuple(target.values.shape)}; give rows of one width."
            )
        if (query.pattern is None) != (target.pattern is None):
            raise ValueError("Got patterns for one side only; give both sides theirs, or neither.")
        # Logits of half precision are off by up to 0.4 at a scale of 100.
        with torch.autocast(query.values.device.type, enabled=False):
            left, right = query.block(), target.block()
            if not self.widths:
                return self.compare(left, right, direction)
            if max(self.widths) > query.values.shape[1]:
                raise ValueError(
                    f"Got widths {list(self.widths)} for embeddings of width "
                    f"{query.values.shape[1]}; give none above it."
                )
            costs = [
                self.compare(left.cut(width), right.cut(width), direction) for width in self.widths
            ]
            return torch.stack(costs).mean()

    def logit_scale(self, direction: int = 0) -> Tensor:
        """The multiplier of the cosines of a direction, a scalar."""
        if self.training:
            # Clamped in the graph it would have no gradient beyond the ceiling, and stay there.
            with torch.no_grad():
                self.log_logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        scale = self.of_direction(self.log_logit_scale, direction).exp()
        return scale if self.training else scale.clamp(max=MAX_LOGIT_SCALE)

    def of_direction(self, parameter: Tensor, direction: int) -> Tensor:
        """The entry of a direction, in float32 at least.

        Raises:
            ValueError: if there is none.
        """
        index = direction if len(parameter) > 1 else 0
        if not 0 <= index < len(parameter):
            raise ValueError(
                f"Got direction {direction} of a loss with {len(parameter)} temperatures; give "
                "num_temperatures=1 or one for each direction."
            )
        return parameter[index].float() if parameter.dtype.itemsize < 4 else parameter[index]
