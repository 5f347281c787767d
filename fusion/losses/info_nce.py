"""InfoNCE with several positives.

Shapes: R rows, C columns, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from fusion.losses.base import ContrastiveLoss
from fusion.losses.exchange import Exchange
from fusion.losses.rows import Block


class InfoNCETally(NamedTuple):
    """What some columns contribute to the cross-entropy of each row, all (R,).

    Attributes:
        log_sum: logarithm of the sum of the exponentials of the logits.
        positive_sum: sum of the logits of positives, times 1 - smoothing.
        even_sum: sum of all logits, times the smoothing.
        num_positives: number of positives.
        num_columns: number of columns compared with; 0 without smoothing, which alone needs it.
    """

    log_sum: Tensor
    positive_sum: Tensor
    even_sum: Tensor
    num_positives: Tensor
    num_columns: Tensor

    def merge(self, other: "InfoNCETally") -> "InfoNCETally":
        """See `Tally.merge`."""
        sums = (x + y for x, y in zip(self[1:], other[1:], strict=True))
        return InfoNCETally(self.log_sum.logaddexp(other.log_sum), *sums)

    def cost(self) -> Tensor:
        """See `Tally.cost`; 0 for rows without a positive."""
        return self._against(self.log_sum, self)

    def share(self, whole: "InfoNCETally") -> Tensor:
        """See `Tally.share`."""
        return self._against((self.log_sum - whole.log_sum).exp(), whole)

    def _against(self, log_sum: Tensor, whole: "InfoNCETally") -> Tensor:
        wanted = self.positive_sum / whole.num_positives.clamp(min=1)
        even = self.even_sum / whole.num_columns.clamp(min=1)
        return (log_sum - wanted - even).where(whole.num_positives > 0, 0)


def info_nce_tally(
    logits: Tensor, compared: Tensor | None, positive: Tensor, label_smoothing: float = 0.0
) -> InfoNCETally:
    """The tally of logits (R, C).

    Args:
        logits: scaled cosines.
        compared: (R, C) bool; None is all.
        positive: (R, C) bool.
        label_smoothing: see `InfoNCE`.
    """
    # Not -inf, whose differences are NaN where a row is compared with nothing.
    floor = torch.finfo(logits.dtype).min
    seen = logits if compared is None else logits.masked_fill(~compared, floor)
    even_sum = num_columns = logits.new_zeros(len(logits))
    if label_smoothing:
        every = torch.ones_like(positive) if compared is None else compared
        even_sum, num_columns = label_smoothing * logits.where(every, 0).sum(1), every.sum(1)
    return InfoNCETally(
        seen.logsumexp(1),
        (1 - label_smoothing) * logits.where(positive, 0).sum(1),
        even_sum,
        positive.sum(1),
        num_columns,
    )


@final
class InfoNCE(ContrastiveLoss):
    """Cross-entropy of finding a row's positives among all it is compared with, in both directions
    (van den Oord et al. 2018, arXiv:1807.03748, eq. 4; Radford et al. 2021, arXiv:2103.00020,
    figure 3). The target is uniform over the positives; rows without one are columns only.

    It is the logarithm of the number of columns for embeddings that know nothing.

    Args:
        logit_scale: first multiplier of the cosines; it is learned, up to 100.
        label_smoothing: share of the target that is spread over all columns.
        num_temperatures: 1 for all directions, or one for each.
        widths: prefixes of the embedding over which the loss is averaged; empty takes it whole.
        exchange: how rows meet columns.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        logit_scale: float = 20.0,
        label_smoothing: float = 0.0,
        num_temperatures: int = 1,
        widths: Sequence[int] = (),
        exchange: Exchange | None = None,
    ) -> None:
        super().__init__(logit_scale, num_temperatures, widths, exchange)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"Got label_smoothing={label_smoothing}; give a share in [0, 1).")
        self.label_smoothing = label_smoothing

    def compare(self, query: Block, target: Block, direction: int) -> Tensor:
        """See `ContrastiveLoss.compare`."""
        scale = [self.logit_scale(direction)]
        forth = self.exchange.total(self._tally, query, target, scale).mean()
        back = self.exchange.total(self._tally, target, query, scale).mean()
        return (forth + back) / 2

    def _tally(self, rows: Block, columns: Block, scale: Tensor) -> InfoNCETally:
        logits = (scale * rows.values) @ columns.values.T
        return info_nce_tally(logits, *rows.relate(columns), self.label_smoothing)
