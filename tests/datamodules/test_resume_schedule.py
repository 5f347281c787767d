"""Resuming a model whose schedule asks Lightning for the number of steps, in one process.

To answer, Lightning makes the loader before it has read the checkpoint's state of it, which it then
forgets: the data module has to bring that state itself.
"""

import io

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch.optim.lr_scheduler import LambdaLR

from datamodules.memory import MemoryDataModule
from datamodules.module import ShardDataModule

SAMPLES, BATCH, SAVED, STOPPED = 12, 2, 3, 4


class Net(LightningModule):
    """Notes the keys of each batch; its schedule spans the run."""

    def __init__(self, stop=None):
        super().__init__()
        self.net, self.stop, self.keys = torch.nn.Linear(3, 1), stop, []

    def training_step(self, batch, index):
        if index == self.stop:
            raise KeyboardInterrupt
        self.keys.append(batch["keys"])
        return self.net(batch["inputs"]["image"]).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [LambdaLR(optimizer, lambda step: 1 - step / steps)]


def colours(samples):
    return [{"inputs": {"image": s.inputs["image"].float().mean((1, 2))[None]}} for s in samples]


def streamed(shard, workers):
    data = ShardDataModule([shard], batch_size=BATCH, num_workers=workers)
    data.augment = colours
    return data


def remembered(shard, workers):
    data = MemoryDataModule([shard], batch_size=BATCH)
    data.prepare = colours
    return data


@pytest.fixture
def shard(make_shard) -> str:
    members = []
    for number in range(SAMPLES):
        picture = io.BytesIO()
        Image.new("RGB", (4, 4), (number,) * 3).save(picture, "PNG")
        members += [(f"s{number}.png", picture.getvalue()), (f"s{number}.txt", b"thing")]
    return str(make_shard(members))


def train(data, folder, stop=None):
    """The keys of the batches of one epoch, or of what is left of it."""
    net, last = Net(stop), folder / "last.ckpt"
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[ModelCheckpoint(folder, "last", every_n_train_steps=SAVED)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    if stop is None:
        trainer.fit(net, data, ckpt_path=last if last.exists() else None, weights_only=True)
    else:
        with pytest.raises(SystemExit):
            trainer.fit(net, data)
    return net.keys


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [streamed, remembered])
def test_it_goes_on_with_the_batches_that_were_left(make, shard, tmp_path):
    wanted = train(make(shard, 0), tmp_path / "unbroken")
    assert train(make(shard, 0), tmp_path / "broken", STOPPED) == wanted[:STOPPED]
    assert train(make(shard, 0), tmp_path / "broken") == wanted[SAVED:]
    if make is streamed:
        train(make(shard, 1), tmp_path / "workers", STOPPED)
        assert train(make(shard, 2), tmp_path / "workers") == wanted[SAVED:]


@pytest.mark.filterwarnings("ignore")
def test_lightning_alone_forgets_them(shard, tmp_path, monkeypatch):
    """Negative control: without our hook the epoch starts over."""
    wanted = train(streamed(shard, 0), tmp_path / "unbroken")
    train(streamed(shard, 0), tmp_path / "broken", STOPPED)
    monkeypatch.setattr(ShardDataModule, "load_state_dict", lambda self, state: None)
    assert train(streamed(shard, 0), tmp_path / "broken") == wanted[: len(wanted) - SAVED]
