"""How much of training is waiting for data."""

import time
from typing import Any, cast, final

from lightning import Callback, LightningModule, Trainer


@final
class DataWait(Callback):
    """Logs `data_wait`, the share of time between steps, as often as the trainer logs.

    It is what a step waits for the next batch, with what Lightning does in between. Above some
    0.1 more workers, or `fusion bench-data`, are worth a try.

    Attributes:
        share: of the whole run so far, without its first batch, which waits for workers to start.
    """

    def __init__(self) -> None:
        self._waited = self._worked = 0.0
        self._all_waited = self._all_worked = 0.0
        self._since: float | None = None

    @property
    def share(self) -> float:
        """Time between steps over all time."""
        return self._all_waited / max(self._all_waited + self._all_worked, 1e-9)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation and the start of workers are no waiting for data."""
        self._since = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ends the wait."""
        now = time.perf_counter()
        if self._since is not None:
            self._waited += now - self._since
        self._since = now

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Begins the wait for the next batch; logs."""
        now = time.perf_counter()
        self._worked += now - (self._since or now)
        self._since = now
        if (batch_idx + 1) % cast(Any, trainer).log_every_n_steps == 0:
            share = self._waited / max(self._waited + self._worked, 1e-9)
            pl_module.log("data_wait", share, batch_size=1)
            self._all_waited += self._waited
            self._all_worked += self._worked
            self._waited = self._worked = 0.0
