import math

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from encoders.base import Encoder, EncoderOutput
from fusion.block import FusionBlock
from fusion.model import FusionModel
from fusion.tasks import CaptionTask

COLOURS, THINGS = ("red", "green", "blue", "grey"), ("ball", "boat", "tree", "house")


class Toy(Encoder):
    """Has dropout, so that a model left in training mode is noticed."""

    def __init__(self, modality: str) -> None:
        super().__init__(modality, 8, torch.as_tensor)
        self.linear = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))

    def forward(self, inputs, mask):
        return EncoderOutput(self.linear(inputs), mask, torch.zeros(*mask.shape, 3))


def make_model() -> FusionModel:
    encoders = {name: Toy(name) for name in ("image", "audio")}
    block = lambda dim: FusionBlock(dim, num_heads=2, num_slots=2)  # noqa: E731
    return FusionModel(encoders, dim=8, block=block, hidden=8)


def make_task(tmp_path, model: FusionModel | None = None, **options) -> CaptionTask:
    options = {"vocabulary_size": 300, "lr": 3e-3, "cache": str(tmp_path)} | options
    return CaptionTask(model or make_model(), **options)


class Data(LightningDataModule):
    """Sixteen pictures, each a colour and a thing; the first has no picture."""

    def __init__(self) -> None:
        super().__init__()
        captions = [f"A {colour} {thing} : toys" for colour in COLOURS for thing in THINGS]
        rows = torch.stack([torch.eye(8)[[i // 4, 4 + i % 4]] for i in range(16)])
        mask = torch.ones(16, 2, dtype=torch.bool)
        mask[0] = False
        self.written = captions
        self.batch = {
            "inputs": {"image": 3 * rows},
            "masks": {"image": mask},
            "positions": {},
            "captions": captions,
        }

    def captions(self) -> list[str]:
        return self.written

    def train_dataloader(self):
        return DataLoader([self.batch] * 10, batch_size=None)

    def val_dataloader(self):
        return DataLoader([self.batch], batch_size=None)


class Losses(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(float(outputs["loss"]))


def fit(task: CaptionTask, tmp_path, max_epochs: int) -> tuple[Trainer, list[float]]:
    losses = Losses()
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[losses],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, datamodule=Data())
    return trainer, losses.values


def test_training_lowers_the_loss_and_leaves_the_model_alone(tmp_path):
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task = make_task(tmp_path, model)
    trainer, losses = fit(task, tmp_path, max_epochs=6)
    assert len(losses) == 60 and all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert trainer.callback_metrics["val/caption_loss"] < 0.5 * losses[0]
    for name, value in model.state_dict().items():
        assert value.equal(before[name])
    captioner = task.eval().captioner
    written = captioner.write(Data().batch)
    assert written[0] is None and all(isinstance(text, str) for text in written[1:])
    sentences = {f"A {colour} {thing}" for colour in COLOURS for thing in THINGS}
    assert len(set(written[1:]) & sentences) > 3


def test_the_state_dict_brings_the_vocabulary(tmp_path):
    task, path = make_task(tmp_path), tmp_path / "state.pt"
    fit(task, tmp_path, max_epochs=1)
    torch.save(task.state_dict(), path)
    other = make_task(tmp_path)
    other.load_state_dict(torch.load(path, weights_only=True))
    batch = Data().batch
    assert other.eval().captioner.write(batch) == task.eval().captioner.write(batch)


def test_a_checkpoint_is_plain_data(tmp_path):
    task, path = make_task(tmp_path), tmp_path / "model.ckpt"
    fit(task, tmp_path, max_epochs=1)[0].save_checkpoint(path, weights_only=True)
    assert "state_dict" in torch.load(path, weights_only=True)


def test_the_model_comes_from_a_contrastive_run(tmp_path):
    trained = make_model()
    state = {f"model.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"state_dict": state | {"log_logit_scale": torch.ones(())}}, tmp_path / "a.ckpt")
    task = make_task(tmp_path, init_from=str(tmp_path / "a.ckpt"))
    for name, value in task.captioner.model.state_dict().items():
        assert value.equal(trained.state_dict()[name])


def test_the_model_never_trains(tmp_path):
    task = make_task(tmp_path).train()
    assert task.captioner.decoder.training and not task.captioner.model.training
    assert not any(module.training for module in task.captioner.model.modules())
    assert not any(p.requires_grad for p in task.captioner.model.parameters())


@pytest.mark.parametrize(("cut_at", "expected"), [(" : ", "A cat"), ("", "A cat : pets : fur")])
def test_search_words_are_cut(cut_at, expected, tmp_path):
    assert make_task(tmp_path, cut_at=cut_at).sentence("A cat : pets : fur") == expected


def test_a_picture_that_is_not_finite_changes_no_weight_and_is_named(tmp_path):
    data, task = Data(), make_task(tmp_path)
    data.batch["keys"] = [f"picture{index}" for index in range(16)]
    data.batch["inputs"]["image"][3] = torch.nan
    data.train_dataloader = lambda: DataLoader([data.batch] * 3, batch_size=None)
    before = {n: p.clone() for n, p in task.captioner.decoder.named_parameters()}
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
    )
    with pytest.warns(UserWarning, match=r"no weight was changed\. Samples: picture3 \(image\)"):
        trainer.fit(task, datamodule=data)
    for name, parameter in task.captioner.decoder.named_parameters():
        assert parameter.equal(before[name])
