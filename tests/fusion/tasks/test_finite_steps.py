"""NaN in a sample, a loss or a gradient changes no weight; over ranks in `test_ranks.py`."""

import re

import pytest
import torch
from torch import nn

from fusion.losses import InfoNCE
from fusion.tasks.finite_steps import MAX_IN_A_ROW, FiniteSteps
from tests.fusion.tasks.toys import Data, Losses, make_batch, make_task, make_trainer

BAD_STEP = 2


class Sick(InfoNCE):
    """Its loss, or only its gradient, is NaN at one step."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.step = what, -1

    def forward(self, query, target, direction=0):
        self.step += 1
        loss = super().forward(query, target, direction)
        if self.step != BAD_STEP:
            return loss
        if self.what == "loss":
            return loss * torch.nan
        return loss + (0 * query.values.sum()).sqrt()  # 0, with a slope of 0 / 0


class Weights(Losses):
    """Also the weights after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.after: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        weights = [p.detach().flatten() for p in pl_module.parameters()]
        self.after.append(torch.cat(weights))


def train(tmp_path, bad: str, **options) -> Weights:
    loss = Sick(bad) if bad in ("loss", "gradient") else None
    task = make_task(tmp_path, loss=loss, directions={"image+audio->text": 1.0})
    data, weights = Data(), Weights()
    if bad in ("image", "audio"):
        data.batches[BAD_STEP]["inputs"][bad][3, 1, 4] = torch.nan
    make_trainer(tmp_path, weights, max_epochs=1, **options).fit(task, datamodule=data)
    return weights


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ("image", r"Samples: sample3 \(image\)\.$"),
        ("audio", r"Samples: sample3 \(audio\)\.$"),
        ("loss", "Samples: sample0, sample1, .* and 24 more"),
        ("gradient", "Samples: sample0, sample1, .* and 24 more"),
    ],
)
def test_a_bad_step_changes_no_weight_and_names_the_sample(bad, named, tmp_path):
    with pytest.warns(UserWarning, match=f"Step {BAD_STEP}: the loss or a gradient") as told:
        weights = train(tmp_path, bad)
    about = [str(w.message) for w in told if "no weight was" in str(w.message)]
    assert len(about) == 1 and re.search(named, about[0])
    assert weights.after[BAD_STEP].equal(weights.after[BAD_STEP - 1])
    assert all(after.isfinite().all() for after in weights.after)
    assert not weights.after[-1].equal(weights.after[BAD_STEP])  # and it goes on


@pytest.mark.parametrize("bad", ["image", "audio", "loss", "gradient"])
def test_without_the_guard_one_bad_step_ends_the_model(bad, tmp_path, monkeypatch):
    monkeypatch.setattr("fusion.tasks.finite_steps.all_finite", lambda module, loss: True)
    # One step more, and the coupling has no norm any more: the run dies of it.
    weights = train(tmp_path, bad, max_steps=BAD_STEP + 1, limit_val_batches=0)
    assert weights.after[1].isfinite().all() and weights.after[-1].isnan().any()


def test_a_bad_part_of_an_accumulated_step_is_named(tmp_path):
    with pytest.warns(UserWarning, match=r"Samples: sample3 \(image\)\."):
        weights = train(tmp_path, "image", accumulate_grad_batches=4)
    assert weights.after[3].equal(weights.after[0])  # the first four batches are one step
    assert not weights.after[4].equal(weights.after[0])


def test_bad_steps_are_counted_and_too_many_in_a_row_end_the_run(tmp_path):
    def batches(num_good: int, num_bad: int) -> list[dict]:
        made = [make_batch(8) for _ in range(num_good + num_bad)]
        for batch in made[num_good:]:
            batch["inputs"]["image"][0] = torch.inf
        return made

    few = batches(1, MAX_IN_A_ROW - 1) + batches(1, MAX_IN_A_ROW - 1)
    trainer = make_trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    with pytest.warns(UserWarning, match="no weight was changed"):
        trainer.fit(make_task(tmp_path), datamodule=Data(batches=few))
    assert trainer.callback_metrics["skipped_steps"] == 2 * (MAX_IN_A_ROW - 1)

    weights, task = Weights(), make_task(tmp_path)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"last 10 steps.*sample0 \(im"):
        make_trainer(tmp_path, weights, max_epochs=1).fit(
            task, datamodule=Data(batches=batches(2, MAX_IN_A_ROW + 5))
        )
    assert len(weights.after) == MAX_IN_A_ROW + 1
    assert weights.after[-1].equal(weights.after[1])


def test_a_spoilt_buffer_ends_the_run_at_once(tmp_path):
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

        def forward(self, values):
            return self.norm(values.flatten(0, 1)).view_as(values)

    task, data = make_task(tmp_path), Data()
    linear = task.model.encoders["image"].linear
    task.model.encoders["image"].linear = nn.Sequential(Counting(), linear)
    data.batches[1]["inputs"]["image"][3] = torch.nan
    with pytest.raises(ValueError, match=r"running_mean became NaN in step 1 .*sample3 \(image\)"):
        make_trainer(tmp_path, max_epochs=1).fit(task, datamodule=data)


def test_the_counts_are_resumed():
    steps, other = FiniteSteps(), FiniteSteps()
    steps.num_skipped, steps._in_a_row = 7, 3
    other.load_state_dict(steps.state_dict())
    assert other.num_skipped == 7 and other._in_a_row == 3
