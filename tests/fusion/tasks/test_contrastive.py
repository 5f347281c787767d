import math

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from fusion.alignment import Alignment
from fusion.losses import InfoNCE, SigmoidLoss, contrastive_loss
from fusion.optimization import AdamWithCosine
from fusion.subsets import Direction, all_directions, parse_direction
from fusion.tasks import ContrastiveTask
from fusion.tasks.pairing import learners
from tests.fusion.tasks.toys import NAMES, Data, Losses, make_batch, make_task, make_trainer

ALIGN = Alignment("text", num_steps=20, batch_size=32)


def mean_loss(task: ContrastiveTask, direction: Direction, num_steps: int = 100) -> float:
    """Of the second half of a training in which no sample comes twice."""
    task.shares = {direction: 1.0}
    task.log = lambda *args, **options: None  # there is no trainer
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    losses = []
    for _ in range(num_steps):
        loss = task.training_step(make_batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses[num_steps // 2 :]) / (num_steps - num_steps // 2)


@pytest.mark.slow
def test_nothing_can_be_learned_from_independent_modalities(tmp_path):
    """Over 500 steps no direction is below ln B by more than chance."""
    shares = {str(direction): 0.2 for direction in all_directions(NAMES)}
    task = make_task(tmp_path, loss=InfoNCE(5.0), directions=shares)
    seen: dict[str, list[float]] = {name: [] for name in shares}
    task.log = lambda name, value, **options: seen.get(name[5:], []).append(float(value))
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    for _ in range(500):
        optimizer.zero_grad()
        task.training_step(make_batch()).backward()
        optimizer.step()
    for name, values in seen.items():
        losses = torch.tensor(values)
        assert len(losses) > 60
        error = losses.std() / len(losses) ** 0.5
        assert losses.mean() >= math.log(32) - 3 * error, name


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("direction", [str(d) for d in all_directions(NAMES)])
def test_noise_in_the_target_leaves_the_query_as_it_is_to_the_bit(direction, training, tmp_path):
    task, batch = make_task(tmp_path).train(training), make_batch()
    noisy = {**batch, "inputs": dict(batch["inputs"])}
    _, changed = parse_direction(direction)
    for name in changed:
        noisy["inputs"][name] = torch.randn(32, 2, 8)

    def sides(batch, direction=parse_direction(direction)):
        torch.manual_seed(0)
        return task.pairing(task.model, batch, [direction])[0]

    (query, target), (same, other) = sides(batch), sides(noisy)
    assert query.values.equal(same.values) and query.group_id.equal(same.group_id)
    assert not torch.isclose(target.values, other.values).all(1).any()
    if not training:  # the control: a query that holds its target is moved
        leaky = Direction(("image", "text", "audio"), changed)
        rows = [sides(b, leaky)[0].values for b in (batch, noisy)]
        assert not rows[0].equal(rows[1])


def test_a_query_that_holds_its_target_is_learned(tmp_path):
    leaky = Direction(("image", "text"), ("text",))  # which parse_direction refuses
    assert mean_loss(make_task(tmp_path, loss=InfoNCE(5.0)), leaky) < math.log(32) - 0.5


def test_training_lowers_the_loss(tmp_path):
    losses, frozen = Losses(), ("image", "text")
    task = make_task(tmp_path, frozen, align=ALIGN, lr=1e-2, optimizer=AdamWithCosine(num_warmup=2))
    tower = {name: value.clone() for name, value in task.model.encoders["image"].named_parameters()}
    trainer = make_trainer(tmp_path, losses)
    trainer.fit(task, datamodule=Data(frozen))
    assert len(losses.values) == 40 and all(map(math.isfinite, losses.values))
    assert sum(losses.values[-5:]) < 0.9 * sum(losses.values[:5])
    assert trainer.callback_metrics["val/image->text/R@1"] > 5 / 32
    assert trainer.callback_metrics["val/image+audio->text/R@10"] > 15 / 32
    for name, value in task.model.encoders["image"].named_parameters():
        assert value.equal(tower[name])
    assert task.model.projection("text").linear.weight.equal(torch.eye(8))


def test_aligned_projections_hold_still_while_the_rest_learns(tmp_path):
    task = make_task(
        tmp_path, ("image", "text"), align=ALIGN, lr=1e-2, optimizer=AdamWithCosine(num_warmup=2)
    )
    data, seen = Data(("image", "text")), []
    task.on_train_start = lambda: seen.append({n: v.clone() for n, v in task.state_dict().items()})
    make_trainer(tmp_path).fit(task, datamodule=data)
    (before,) = seen
    assert all(before[f"model.projections.{n}.mlp.1.shrink.weight"].any() for n in task.held)
    moved = {name for name, value in task.state_dict().items() if not value.equal(before[name])}
    parts = ("model.projections.image.", "model.projections.text.", "model.encoders.")
    assert {n for n in moved if n.startswith(parts)} <= {
        n for n in moved if n.startswith("model.encoders.audio.")
    }
    assert any(n.startswith("model.blocks.") for n in moved)
    assert any(n.startswith("model.projections.audio.") for n in moved)


def test_a_checkpoint_of_the_command_line_is_plain_data(runs):
    for run in runs:
        assert "state_dict" in torch.load(run / "model.ckpt", weights_only=True)


def test_a_checkpoint_is_plain_data(tmp_path):
    task, path = make_task(tmp_path), tmp_path / "model.ckpt"
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, datamodule=Data())
    trainer.save_checkpoint(path, weights_only=True)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert state.keys() == task.state_dict().keys()
    assert all(state[name].equal(value) for name, value in task.state_dict().items())


def test_an_aligned_run_goes_on_from_its_checkpoint(tmp_path):
    frozen, path = ("image", "text"), tmp_path / "last.ckpt"
    data = Data(frozen)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(make_task(tmp_path, frozen, align=ALIGN), datamodule=data)
    trainer.save_checkpoint(path)
    losses, task = Losses(), make_task(tmp_path, frozen, align=ALIGN)
    make_trainer(tmp_path, losses, max_epochs=2).fit(
        task, datamodule=data, ckpt_path=path, weights_only=False
    )
    assert len(losses.values) == 5
    assert task.model.projection("text").linear.weight.equal(torch.eye(8))


def gradients(task: ContrastiveTask, direction: str, frozen) -> dict[str, bool]:
    """Modality to whether its tower or projection got a gradient."""
    query, target = direction.split("->")
    task.shares = {Direction((query,), (target,)): 1.0}
    task.log = lambda *args, **options: None
    task.training_step(make_batch(frozen=frozen)).backward()
    towers = {n: (task.model.encoders[n], task.model.projection(n)) for n in NAMES}
    return {
        name: any(p.grad is not None and p.grad.any() for part in parts for p in part.parameters())
        for name, parts in towers.items()
    }


@pytest.mark.parametrize("direction", ["audio->image", "image->audio"])
def test_newcomers_come_to_meet_those_that_are_aligned(direction, tmp_path):
    frozen = ("image", "text")
    got = gradients(make_task(tmp_path, frozen), direction, frozen)
    assert got == {"image": False, "text": False, "audio": True}


def test_those_that_are_aligned_train_among_themselves(tmp_path):
    frozen = ("image", "text")
    got = gradients(make_task(tmp_path, frozen), "image->text", frozen)
    assert got == {"image": True, "text": True, "audio": False}
    assert all(gradients(make_task(tmp_path), "audio->image", ())[n] for n in ("audio", "image"))


def test_samples_that_lack_a_side_take_no_part(tmp_path):
    task = make_task(tmp_path, directions={"audio->image": 1.0}).eval()
    task.log = lambda *args, **options: None
    batch = make_batch(8)
    batch["masks"]["audio"][4:] = False
    few = {k: {n: v[:4] for n, v in batch[k].items()} for k in ("inputs", "masks", "positions")}
    expected = task.training_step({**batch, **few, "group_id": batch["group_id"][:4]})
    torch.testing.assert_close(task.training_step(batch), expected)
    batch["masks"]["audio"][1:] = False
    assert task.training_step(batch) == 0  # one sample has nothing to be told from


def losses_of_a_run(task: ContrastiveTask, tmp_path) -> list[float]:
    losses = Losses()
    torch.manual_seed(3)
    data = Data()
    task.step_seed.seed = 5
    make_trainer(tmp_path, losses, max_epochs=2).fit(task, datamodule=data)
    return losses.values


def test_one_process_trains_as_with_the_plain_function(tmp_path):
    class Plain(InfoNCE):
        def forward(self, query, target, direction=0):
            scale = self.log_logit_scale.exp().clamp(max=100.0)
            return contrastive_loss(query.values, target.values, scale, query.group_id)

    found = []
    for loss in (None, Plain()):
        torch.manual_seed(1)
        task = make_task(tmp_path, loss=loss, directions={"image->text": 0.7, "audio->text": 0.5})
        found.append(losses_of_a_run(task, tmp_path))
    assert len(found[0]) == 10 and len(set(found[0])) == 10
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_other_losses_train(tmp_path):
    shares = {"image->text": 1.0, "image+audio->text": 1.0}
    task = make_task(tmp_path, loss=SigmoidLoss(num_temperatures=2), directions=shares)
    before = task.loss.log_logit_scale.detach().clone()
    losses = losses_of_a_run(task, tmp_path)
    assert all(map(math.isfinite, losses))
    assert (task.loss.log_logit_scale != before).all()  # each direction has its own
    with pytest.raises(ValueError, match="3 temperatures for 2 directions"):
        make_task(tmp_path, loss=InfoNCE(num_temperatures=3), directions=shares)


@pytest.mark.parametrize("left_out", [False, True])
def test_without_any_sample_the_loss_is_nothing(left_out, tmp_path):
    task, batch = make_task(tmp_path, directions={"audio->image": 1.0}), make_batch(8)
    task.log = lambda *args, **options: None
    if left_out:
        del batch["inputs"]["audio"]
    else:
        batch["masks"]["audio"][:] = False
    loss = task.training_step(batch)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in task.parameters())


def test_towers_and_the_temperature_are_clipped_apart(tmp_path):
    task = make_task(tmp_path)
    for parameter in task.parameters():
        parameter.grad = torch.ones_like(parameter)
    task.loss.log_logit_scale.grad.fill_(1e6)
    task.configure_gradient_clipping(torch.optim.SGD(task.parameters()), 0.5, "norm")
    towers = [p.grad for p in task.model.parameters()]
    assert torch.cat([g.flatten() for g in towers]).norm() == pytest.approx(0.5, rel=1e-4)
    task.configure_gradient_clipping(torch.optim.SGD(task.parameters()), None)
    assert torch.cat([g.flatten() for g in towers]).norm() == pytest.approx(0.5, rel=1e-4)
    task.loss.log_logit_scale.grad.fill_(1e6)  # the control: one norm for all
    clip_grad_norm_(task.parameters(), 0.5)
    assert torch.cat([g.flatten() for g in towers]).norm() < 1e-5


def test_the_trainer_asks_the_task_to_clip(tmp_path, monkeypatch):
    norms = []
    monkeypatch.setattr(
        "fusion.tasks.contrastive.clip_apart", lambda task, norm: norms.append(norm)
    )
    trainer = make_trainer(tmp_path, max_epochs=1, gradient_clip_val=0.5)
    trainer.fit(make_task(tmp_path), datamodule=Data())
    assert norms == [0.5] * 5


def test_pretrained_towers_learn_from_each_other_and_newcomers_come_to_them(tmp_path):
    """Whether a pretrained tower trains, in full or by adapters, does not make it a newcomer."""
    task = make_task(tmp_path, frozen=["image"])
    task.model.encoders["text"].pretrained = True
    learning = {str(d): learners(task.model, d) for d in task.shares}
    assert task.model.newcomers == ("audio",)
    assert learning["image->text"] == {"image", "text"}
    assert learning["text->audio"] == {"audio"}
    task.model.encoders["text"].pretrained = False
    assert learners(task.model, parse_direction("image->text")) == {"text"}
