"""What the data modules share: training that goes on where a checkpoint was made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning import LightningDataModule

from datamodules.loader import ResumableLoader


class ResumableDataModule(LightningDataModule, ABC):
    """A data module whose place in the training data is part of a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self._loader: ResumableLoader | None = None
        self._state: dict[str, Any] = {}

    @abstractmethod
    def make_train_loader(self) -> ResumableLoader:
        """A loader of the training data, at its start; called after `setup`."""

    def train_dataloader(self) -> ResumableLoader:
        """Training batches, others in each epoch; after a restart those that were left."""
        self._loader = self.make_train_loader()
        if self._state:
            self._loader.load_state_dict(self._state)
            self._state = {}
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        """Where training is in the data."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes there once the trainer asks for batches.

        Lightning keeps a loader's state too, but forgets to load it for models that ask for
        `estimated_stepping_batches` when they make their optimizer, as most schedules do.
        """
        self._state = state_dict
