"""The optimizer that all tasks share."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

from torch.nn import Parameter
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


@final
@dataclass(frozen=True)
class AdamWithCosine:
    """AdamW with linear warm-up and cosine decay to zero; all but the learning rate.

    Matrices decay; vectors and scalars (gains, biases, the temperature) do not.

    Args:
        weight_decay: of matrices.
        num_warmup: steps of warm-up.

    Raises:
        ValueError: if a number is negative.
    """

    weight_decay: float = 0.01
    num_warmup: int = 20

    def __post_init__(self) -> None:
        if min(self.weight_decay, self.num_warmup) < 0:
            raise ValueError(f"Got {self}; give numbers of at least 0.")

    def make(self, parameters: Iterable[Parameter], lr: float, num_steps: int) -> dict[str, Any]:
        """The optimizer and its schedule, in the form Lightning takes.

        Args:
            parameters: those that train; others are skipped.
            lr: highest learning rate.
            num_steps: steps in all.
        """
        groups: dict[tuple[bool, bool], list[Parameter]] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                # One kernel updates a group, and takes no weights that are split over ranks
                # together with whole ones.
                kind = parameter.dim() >= 2, hasattr(parameter, "device_mesh")
                groups.setdefault(kind, []).append(parameter)
        settings = [
            {"params": groups[kind], "weight_decay": self.weight_decay if kind[0] else 0.0}
            for kind in sorted(groups, reverse=True)
        ]
        # One pass over memory instead of many: six times as fast on a CPU.
        optimizer = AdamW(settings, lr=lr, betas=(0.9, 0.98), fused=True)

        def factor(step: int) -> float:
            progress = min(1.0, step / max(1, num_steps))
            warm = min(1.0, (step + 1) / max(1, self.num_warmup))
            return warm * (1 + math.cos(math.pi * progress)) / 2

        schedule = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}
