"""Random numbers of training that follow from where in the run a step is."""

import hashlib
from typing import Any, final

import torch
from lightning import Callback, LightningModule, Trainer


@final
class StepSeed(Callback):
    """Seeds torch before every training step by the run's seed, the rank, the epoch and the batch.

    Lightning's checkpoints hold no generator's state, so dropout and draws of a resumed run differ
    from those of the unbroken one. With this they are the same, to the bit, on every rank, and
    without a state to keep but the seed.

    Args:
        seed: of the run; None takes that of `seed_everything`, or one drawn by torch.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fixes the seed, unless a checkpoint brought it."""
        if self.seed is None:
            self.seed = torch.initial_seed()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds the generators of the CPU and of every accelerator."""
        place = (self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)
        digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)

    def state_dict(self) -> dict[str, Any]:
        """The seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the seed of the run that is resumed."""
        self.seed = state_dict["seed"]
