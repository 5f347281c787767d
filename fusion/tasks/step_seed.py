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

    Attributes:
        shared: a generator of the CPU for what all ranks must draw alike; its seed is that of the
            step without the rank.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self.shared = torch.Generator()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fixes the seed, unless a checkpoint brought it."""
        if self.seed is None:  # without `seed_everything` every rank has drawn another
            self.seed = trainer.strategy.broadcast(torch.initial_seed())

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds `shared`, and the generators of the CPU and of every accelerator."""
        where = trainer.current_epoch, batch_idx
        torch.manual_seed(_seed_of(self.seed, trainer.global_rank, *where))
        self.shared.manual_seed(_seed_of(self.seed, *where))

    def state_dict(self) -> dict[str, Any]:
        """The seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the seed of the run that is resumed."""
        self.seed = state_dict["seed"]


def _seed_of(*place: int | None) -> int:
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
