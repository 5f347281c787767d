"""What a data module asks of the trainer it serves; without a trainer there is one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Trainer

from datamodules.ledger import Ledger


def ranks_of(trainer: Trainer | None) -> tuple[int, int]:
    """Rank of this process and number of ranks."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def ledger_of(trainer: Trainer | None, name: str, max_rejected: float) -> Ledger:
    """The ledger `NAME.jsonl` in the run's folder, one for each rank; in memory without a run."""
    if trainer is None:
        return Ledger(None, max_rejected)
    rank = trainer.global_rank
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    return Ledger(folder / f"{name}{f'.rank{rank}' if rank else ''}.jsonl", max_rejected)


def function_of(trainer: Trainer | None, given: Callable[..., Any] | None, name: str) -> Any:
    """What prepares samples: the function that was set, or the method of the module in training.

    Raises:
        ValueError: there is neither.
    """
    found = given or getattr(getattr(trainer, "lightning_module", None), name, None)
    if found is None:
        raise ValueError(f"nothing prepares the samples; set the data module's `{name}`")
    return found


def modalities_of(trainer: Trainer | None) -> tuple[str, ...] | None:
    """The modalities that the module in training has towers for; None if it does not say."""
    return getattr(getattr(trainer, "lightning_module", None), "modalities", None)
