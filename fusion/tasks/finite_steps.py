"""No update from numbers that are not finite."""

from collections.abc import Iterator
from typing import Any, final

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch import distributed as dist
from torch.optim import Optimizer

from fusion.losses.exchange.ranks import count_ranks
from fusion.safeguards import all_finite

MAX_IN_A_ROW = 10  # steps without an update, then the run stops
MAX_NAMED = 8  # samples in a message


@final
class FiniteSteps(Callback):
    """Makes no update from a loss or gradient that is not finite on any rank, and says so.

    One such update makes every weight NaN, for good. The message names the samples whose inputs are
    not finite, or those of the whole batch where all are. After ten such steps in a row the run
    stops; it stops at once if a buffer, such as the running mean of a BatchNorm, is NaN by then.

    Logs `skipped_steps`. Asking makes an accelerator wait for the backward pass at every step.

    Attributes:
        num_skipped: steps without an update so far.
    """

    def __init__(self) -> None:
        self.num_skipped = self._in_a_row = 0
        self._batches: list[dict[str, Any]] = []  # since the last step of the optimizer
        self._loss: Tensor | float = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the batch, to name its samples."""
        self._batches.append(batch)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Keeps the loss."""
        self._loss = self._loss + loss.detach()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Drops the gradients, without which no optimizer changes a weight, if one is bad.

        Raises:
            ValueError: after ten bad steps in a row, or if a buffer is NaN.
        """
        batches, loss = self._batches, torch.as_tensor(self._loss, device=pl_module.device)
        self._batches, self._loss = [], 0.0
        if all_finite(pl_module, loss):
            self._in_a_row = 0
        else:
            optimizer.zero_grad()
            self.num_skipped += 1
            self._in_a_row += 1
            self._tell(trainer, pl_module, batches)
        pl_module.log("skipped_steps", float(self.num_skipped), batch_size=1)

    def _tell(
        self, trainer: Trainer, pl_module: LightningModule, batches: list[dict[str, Any]]
    ) -> None:
        names = _of_all_ranks([key for batch in batches for key in _keys_of_bad_inputs(batch)])
        names = names or _of_all_ranks([key for batch in batches for key in batch["keys"]])
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        listed = ", ".join(names[:MAX_NAMED]) + more
        spoilt = _of_all_ranks([n for n, b in pl_module.named_buffers() if b.isnan().any()])
        if spoilt:
            raise ValueError(
                f"Buffer {spoilt[0]} became NaN in step {trainer.global_step} (samples: {listed}); "
                "mend or leave out these samples, and go on from the last checkpoint."
            )
        if self._in_a_row >= MAX_IN_A_ROW:
            raise ValueError(
                f"The last {MAX_IN_A_ROW} steps had a loss or gradient that is not finite, and "
                f"changed no weight (samples of the last one: {listed}); mend or leave out these "
                "samples, or lower the learning rate."
            )
        rank_zero_warn(
            f"Step {trainer.global_step}: the loss or a gradient is not finite; no weight was "
            f"changed. Samples: {listed}."
        )

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"num_skipped": self.num_skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self.num_skipped, self._in_a_row = state_dict["num_skipped"], state_dict["in_a_row"]


def _keys_of_bad_inputs(batch: dict[str, Any]) -> Iterator[str]:
    for name, values in batch["inputs"].items():
        finite = values.flatten(1).isfinite().all(1).tolist()
        yield from (f"{k} ({name})" for k, ok in zip(batch["keys"], finite, strict=True) if not ok)


def _of_all_ranks(names: list[str]) -> list[str]:
    if count_ranks() == 1:
        return names
    gathered: list[list[str]] = [[] for _ in range(count_ranks())]
    dist.all_gather_object(gathered, names)
    return [name for part in gathered for name in part]
