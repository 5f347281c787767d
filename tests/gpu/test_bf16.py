"""Training in bfloat16: it learns, stays finite, and goes on from a checkpoint as if unbroken."""

from pathlib import Path

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.module import ShardDataModule
from fusion.tasks import contrastive
from tests.fusion.tasks.toys import Losses
from tests.gpu.towers import DEVICE, make_task, make_trainer

BATCH = 24  # four steps an epoch
STEPS = 32
SAVED_AT, BROKEN_STEPS, BAD_STEP = 6, 12, 2  # in the middle of an epoch
SAME_LOSS = 1e-2  # relative; sums of a GPU are not in one order, and bfloat16 has 8 bits


class Watch(Losses):
    """Also the last batch, weights after every step, and in which dtype the first tower works."""

    def __init__(self) -> None:
        super().__init__()
        self.batch: dict = {}
        self.after: list[torch.Tensor] = []
        self.dtypes: set[torch.dtype] = set()

    def on_fit_start(self, trainer, pl_module) -> None:
        layer = pl_module.model.encoders["image"].embed
        layer.register_forward_hook(lambda module, given, out: self.dtypes.add(out.dtype))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.batch = batch
        self.after.append(torch.cat([p.detach().flatten().cpu() for p in pl_module.parameters()]))


class Plant(Callback):
    """A NaN in one frame of one sound."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == BAD_STEP:
            batch["inputs"]["audio"][3, 0, 0] = torch.nan


def fit(
    folder: Path,
    shard: str,
    *callbacks: Callback,
    resume: Path | None = None,
    num_workers: int = 0,
    **options,
):
    """Trains; returns the task and what was seen."""
    task, watch = make_task(folder, lr=2e-3), Watch()
    settings = {"precision": "bf16-mixed", "max_steps": BROKEN_STEPS, "limit_val_batches": 0}
    trainer = make_trainer(folder, watch, *callbacks, **(settings | options))
    data = ShardDataModule([shard], [shard], batch_size=BATCH, num_workers=num_workers)
    trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    return task, watch, trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shard):
    folder = tmp_path_factory.mktemp("bf16")
    options = {"max_steps": STEPS, "limit_val_batches": None, "check_val_every_n_epoch": 4}
    return fit(folder, shard, num_workers=2, **options)


def test_it_learns_and_stays_finite(trained):
    task, watch, trainer = trained
    first, last = (sum(part) / 4 for part in (watch.values[:4], watch.values[-4:]))
    logged = trainer.callback_metrics
    print(f"loss {first:.3f} -> {last:.3f} in {STEPS} steps; rounds {logged['val/num_iters']:.1f}")
    assert len(watch.values) == STEPS and watch.dtypes == {torch.bfloat16}
    assert last < 0.7 * first
    assert all(weights.isfinite().all() for weights in watch.after)
    assert {p.dtype for p in task.parameters()} == {torch.float32}
    assert logged["val/image+audio->text/R@10"] > 3 * 10 / 96  # three times chance


@pytest.mark.parametrize("names", [["image"], ["text"], ["audio"], ["image", "text", "audio"]])
def test_embeddings_are_those_of_float32(trained, names):
    task, watch, _ = trained
    model = task.model.to(DEVICE).eval()
    with torch.no_grad():
        full = model.embed(watch.batch, names)
        with torch.autocast(DEVICE, torch.bfloat16):
            low = model.embed(watch.batch, names)
        moved = {
            kind: {n: x.cpu() for n, x in watch.batch[kind].items()}
            for kind in ("inputs", "masks", "positions")
        }
        on_cpu = model.cpu().embed(moved, names)
    cosines = (full * low.float()).sum(1)
    print(f"{'+'.join(names)}: cosine with float32 {float(cosines.min()):.5f} and above")
    assert cosines.min() > 0.99 and not low.float().equal(full)
    assert (full.cpu() * on_cpu).sum(1).min() > 0.9999
    assert full.shape[0] == BATCH and (full @ full.T).fill_diagonal_(0).min() < 0.9  # they differ


def test_a_planted_nan_changes_no_weight_and_is_named(tmp_path, shard):
    with pytest.warns(UserWarning, match=rf"Step {BAD_STEP}: .*Samples: \S+ \(audio\)\.$"):
        _, watch, trainer = fit(tmp_path, shard, Plant(), max_steps=5)
    assert watch.after[BAD_STEP].equal(watch.after[BAD_STEP - 1])
    assert not watch.after[-1].equal(watch.after[BAD_STEP])
    assert all(weights.isfinite().all() for weights in watch.after)
    assert trainer.callback_metrics["skipped_steps"] == 1


def test_without_the_guard_the_weights_are_lost(tmp_path, shard, monkeypatch):
    monkeypatch.setattr(contrastive, "FiniteSteps", Callback)
    _, watch, _ = fit(tmp_path, shard, Plant(), max_steps=BAD_STEP + 1)
    assert watch.after[BAD_STEP - 1].isfinite().all() and watch.after[BAD_STEP].isnan().any()


def test_a_resumed_run_has_the_losses_of_the_unbroken_one(tmp_path, shard):
    keep = ModelCheckpoint(
        tmp_path,
        "{step}",
        every_n_train_steps=SAVED_AT,
        save_top_k=-1,
        auto_insert_metric_name=False,
    )
    _, unbroken, _ = fit(tmp_path / "a", shard, keep, enable_checkpointing=True)
    saved = tmp_path / f"{SAVED_AT}.ckpt"
    _, resumed, _ = fit(tmp_path / "b", shard, resume=saved)
    _, anew, _ = fit(tmp_path / "c", shard)
    wanted = unbroken.values[SAVED_AT:]
    print(f"unbroken {wanted}, resumed {resumed.values}")
    assert resumed.values == pytest.approx(wanted, rel=SAME_LOSS)
    # The bar bites: other steps of the same run differ by more.
    assert anew.values[:SAVED_AT] != pytest.approx(wanted, rel=5 * SAME_LOSS)
    assert unbroken.values[SAVED_AT - 1 : -1] != pytest.approx(wanted, rel=SAME_LOSS)


def test_the_scorecard_is_made(trained, tmp_path, shard):
    task, _, _ = trained
    trainer = make_trainer(tmp_path, precision="bf16-mixed")
    data = ShardDataModule([shard], [shard], batch_size=BATCH, num_workers=0)
    trainer.test(task, datamodule=data, verbose=False)
    assert (tmp_path / "scorecard.json").stat().st_size > 1000
