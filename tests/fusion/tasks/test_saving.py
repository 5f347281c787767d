"""What is not saved: weights that are not finite."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from fusion.checkpoint import read_plain
from fusion.tasks import contrastive
from tests.fusion.tasks.toys import Data, make_task, make_trainer


class Poisoned(Data):
    """Batches of which one makes the weights NaN, past the guard against bad gradients."""

    def __init__(self, task, step: int) -> None:
        super().__init__()
        self.task, self.step = task, step

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.global_step == self.step and self.trainer.training:
            self.task.model.projection("text").linear.weight.data[0, 0] = torch.nan
        return batch


def train_poisoned(folder: Path) -> int:
    """Saves at every step; the weights turn NaN after the second. Returns the last step saved."""
    torch.manual_seed(0)
    task = make_task(folder)
    saver = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=0, save_last=True)
    trainer = make_trainer(
        folder, saver, max_epochs=1, enable_checkpointing=True, limit_val_batches=0
    )
    try:
        trainer.fit(task, datamodule=Poisoned(task, 2))
    finally:
        saved = read_plain(folder / "last.ckpt")
    assert not all(value.isfinite().all() for value in saved["state_dict"].values())
    return saved["global_step"]


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"text.*weight is not finite after step 3, so no check"):
        train_poisoned(tmp_path / "guarded")
    good = read_plain(tmp_path / "guarded" / "last.ckpt")
    assert good["global_step"] == 2
    assert all(value.isfinite().all() for value in good["state_dict"].values())
    # Negative control: without the guard they take the place of the good ones.
    monkeypatch.setattr(contrastive, "check_finite", lambda task: None)
    assert train_poisoned(tmp_path / "open") > 2
