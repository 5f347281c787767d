"""The alignment before training, of a model on a GPU: it is computed there, and is the CPU's."""

import pytest
import torch
from lightning import Callback

from datamodules.memory import MemoryDataModule
from fusion.alignment import Alignment
from tests.fusion.tasks.toys import Losses
from tests.gpu.towers import ACCELERATOR, DEVICE, make_encoders, make_task, make_trainer

SAME = 1e-3  # relative Euclidean difference of the linear maps, in float32
STEPS = 4


class Start(Callback):
    """The projections where training starts, and where they are in the end."""

    def on_train_start(self, trainer, pl_module) -> None:
        model = pl_module.model
        self.devices = {value.device.type for value in model.state_dict().values()}
        self.maps = {n: x.detach().cpu().clone() for n, x in model.projections.state_dict().items()}

    def on_train_end(self, trainer, pl_module) -> None:
        state = pl_module.model.projections.state_dict()
        self.moved = {n.split(".")[0] for n, x in state.items() if not x.cpu().equal(self.maps[n])}


def towers():
    """A frozen one, the reference, also frozen, and one that trains on by a few weights."""
    torch.manual_seed(0)
    made = make_encoders(dropout=0.0)
    made["image"].freeze()
    made["text"].freeze()
    made["audio"].pretrained = True
    made["audio"].requires_grad_(False)
    made["audio"].norm.requires_grad_(True)  # as adapters are
    return made


def fit(folder, shard, align, accelerator=ACCELERATOR, **options):
    """Aligns and trains for some steps."""
    task, start, losses = make_task(folder, towers(), align=align), Start(), Losses()
    settings = {"accelerator": accelerator, "max_steps": STEPS, "limit_val_batches": 0}
    trainer = make_trainer(folder, start, losses, **(settings | options))
    trainer.fit(task, datamodule=MemoryDataModule([shard], batch_size=24))
    return task, start, losses.values


def test_the_closed_form_is_that_of_the_cpu(tmp_path, shard):
    align = Alignment("text", num_steps=0)
    _, start, losses = fit(tmp_path / "gpu", shard, align)
    _, wanted, _ = fit(tmp_path / "cpu", shard, align, "cpu")
    _, bare, _ = fit(tmp_path / "bare", shard, None)
    assert start.devices == {DEVICE} and wanted.devices == {"cpu"}
    assert len(losses) == STEPS and torch.tensor(losses).isfinite().all()
    for name in ("image", "audio"):
        for part in ("linear.weight", "center"):
            got, right, random = (s.maps[f"{name}.{part}"] for s in (start, wanted, bare))
            deviation = float((got - right).norm() / right.norm())
            print(f"{name}.{part}: {deviation:.1e} from the CPU's")
            assert deviation < SAME
            assert (random - right).norm() > 100 * SAME * right.norm()
    assert start.maps["text.linear.weight"].equal(torch.eye(64))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_its_steps_run_on_the_device_and_hold_frozen_towers_projections(tmp_path, shard, precision):
    align = Alignment("text", num_steps=40, batch_size=64, lr=1e-2)
    task, start, losses = fit(tmp_path, shard, align, precision=precision)
    for name in ("image", "audio"):
        assert start.maps[f"{name}.mlp.1.shrink.weight"].any()
    assert start.devices == {DEVICE} and start.moved == {"audio"}
    assert task.model.frozen == ("image", "text")
    assert torch.tensor(losses).isfinite().all()


def test_its_loss_falls_on_the_device(tmp_path, shard):
    align = Alignment("text", num_steps=60, batch_size=64, lr=1e-2)
    task = make_task(tmp_path, towers())
    data = MemoryDataModule([shard])
    data.prepare = task.prepare
    data.setup()
    model = task.model.to(DEVICE)
    scale = torch.tensor([1.0], device=DEVICE, requires_grad=True)
    losses = torch.stack(list(align.fit(model, list(data.train_batches()), scale)))
    print(f"alignment: loss {float(losses[:10].mean()):.3f} -> {float(losses[-10:].mean()):.3f}")
    assert losses.device.type == DEVICE
    assert losses[-10:].mean() < losses[:10].mean() - 0.1
    assert float(scale.detach()) != 1.0
