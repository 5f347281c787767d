"""What a batch becomes: parts that are the whole, hidden modalities, negatives of one pattern."""

import math
from contextlib import nullcontext

import pytest
import torch

from fusion import accumulation
from fusion.losses import InfoNCE, SigmoidLoss, contrastive_loss
from fusion.subsets import parse_direction
from fusion.tasks import ContrastiveTask, pairing
from fusion.tasks.pairing import Pairing
from tests.fusion.tasks.toys import Data, Losses, make_batch, make_task, make_trainer

SHARES = {"image->text": 1.0, "image+audio->text": 1.0, "audio->image": 1.0}
BAR = 1e-10


def partial_batch(num: int = 12) -> dict:
    """Float64; sound is with some only, and with none of the last five."""
    batch = make_batch(num, shared=0.7)
    batch["inputs"] = {name: x.double() for name, x in batch["inputs"].items()}
    batch["masks"]["audio"][::3] = batch["masks"]["audio"][num - 5 :] = False
    batch["masks"]["image"][1] = False
    batch["group_id"][2] = batch["group_id"][num // 2]
    return batch


def make(tmp_path, how: Pairing | None = None, dropout: float = 0.0, loss=None) -> ContrastiveTask:
    torch.manual_seed(0)
    task = make_task(tmp_path, (), dropout, directions=SHARES, pairing=how, loss=loss).double()
    task.log = lambda *args, **options: None
    for block in task.model.blocks:  # a new one adds nothing, and so hides what is wrong in it
        torch.nn.init.normal_(block.out.weight, std=0.3)
    return task.train()


def gradients(task: ContrastiveTask, batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    task.zero_grad()
    loss = task.training_step(batch)
    loss.backward()
    found = {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}
    return found | {"the loss": loss.detach()}


def worst(one: dict, other: dict) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def at_once(module, embed, parts):
    """The same parts, every one with its graph: what accumulation must equal."""
    made = [embed(part) for part in parts]
    names = dict.fromkeys(name for one in made for name in one)
    return {name: torch.cat([one[name] for one in made if name in one]) for name in names}


@pytest.mark.parametrize("part_size", [1, 3, 5, 11])
@pytest.mark.parametrize("loss", [InfoNCE, SigmoidLoss])
def test_parts_are_the_whole_batch(part_size, loss, tmp_path):
    batch = partial_batch()
    whole, parts = (
        gradients(make(tmp_path, Pairing(size, 0.4, True), loss=loss()), batch)
        for size in (None, part_size)
    )
    assert worst(whole, parts) < BAR
    assert max(float(value.abs().max()) for value in whole.values()) > 1e-3


@pytest.mark.parametrize("part_size", [3, 5])
def test_parts_with_dropout_are_the_whole_batch(part_size, tmp_path, monkeypatch):
    how, batch = Pairing(part_size, 0.4), partial_batch()
    parts = gradients(make(tmp_path, how, 0.3), batch)
    with monkeypatch.context() as without:
        without.setattr(pairing, "embed_in_parts", at_once)
        whole = gradients(make(tmp_path, how, 0.3), batch)
    assert worst(whole, parts) < BAR
    with monkeypatch.context() as without:  # the control: other draws the second time
        without.setattr(accumulation, "_generators", lambda state: nullcontext())
        assert worst(whole, gradients(make(tmp_path, how, 0.3), batch)) > 1e-4


def test_each_part_a_batch_of_its_own_is_another_loss(tmp_path):
    """What accumulating gradients of small batches would give."""
    batch, task = partial_batch(), make(tmp_path)
    whole = gradients(task, batch)
    task.zero_grad()
    for start in (0, 6):
        rows = slice(start, start + 6)
        part = {k: {n: x[rows] for n, x in batch[k].items()} for k in ("inputs", "masks")}
        (task.training_step({**batch, **part, "group_id": batch["group_id"][rows]}) / 2).backward()
    assert (task.model.projection("text").linear.weight.grad - whole[TEXT]).abs().max() > 1e-3


TEXT = "model.projections.text.linear.weight"


def test_parts_train_under_the_trainer(tmp_path):
    found = []
    for size in (None, 7):
        torch.manual_seed(1)
        task = make_task(tmp_path, (), 0.0, directions=SHARES, pairing=Pairing(size, 0.3))
        task.step_seed.seed = 5
        torch.manual_seed(2)
        losses = Losses()
        make_trainer(tmp_path, losses, max_epochs=2).fit(task, datamodule=Data())
        found.append(losses.values)
    assert found[0] == pytest.approx(found[1], rel=1e-5) and len(set(found[0])) == 10


def test_some_of_a_side_is_hidden_and_one_is_always_left(tmp_path):
    direction, num = parse_direction("image+audio->text"), 4000
    visible = Pairing(hidden=0.4)._draw(direction, num, training=True)
    assert set(visible) == {"image", "audio"}  # a side of one modality shows it
    shown = torch.stack([visible["image"], visible["audio"]], 1)
    assert shown.any(1).all()
    for pattern, share in (((1, 1), 0.36), ((1, 0), 0.32), ((0, 1), 0.32)):
        got = (shown == torch.tensor(pattern, dtype=torch.bool)).all(1).float().mean()
        assert got == pytest.approx(share, abs=4 * math.sqrt(0.25 / num))
    state = torch.get_rng_state()
    assert Pairing(hidden=0.4)._draw(direction, 4, training=False) == {}
    assert Pairing()._draw(direction, 4, training=True) == {}
    assert state.equal(torch.get_rng_state())


def test_what_is_hidden_is_not_seen(tmp_path, monkeypatch):
    """A sample that hides its sound is embedded as if it had none."""
    task, batch, direction = make(tmp_path), make_batch(6), parse_direction("image+audio->text")
    batch["inputs"] = {name: x.double() for name, x in batch["inputs"].items()}
    hides = torch.tensor([True, False, True, False, False, True])
    visible = {"audio": ~hides, "image": torch.ones(6, dtype=torch.bool)}
    monkeypatch.setattr(Pairing, "_draw", lambda self, *args: visible)
    ((query, target),) = task.pairing(task.model, batch, [direction])
    alone, both = (task.model.embed(batch, names) for names in (["image"], ["image", "audio"]))
    torch.testing.assert_close(query.values[hides], alone[hides])
    torch.testing.assert_close(query.values[~hides], both[~hides])
    assert len(target.values) == 6  # all take part
    assert not torch.isclose(alone, both).all(1).any()


def test_a_resumed_run_hides_the_same(tmp_path):
    """The draws follow from the seed of the step."""
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        task = make_task(tmp_path, directions=SHARES, pairing=Pairing(hidden=0.5))
        data = Data()
        torch.manual_seed(len(found))  # what came before does not matter
        task.step_seed.seed, losses = 5, Losses()
        make_trainer(tmp_path, losses, max_epochs=1).fit(task, datamodule=data)
        found.append(losses.values)
    assert found[0] == found[1]


def test_samples_are_compared_with_those_of_their_pattern(tmp_path):
    batch, direction = partial_batch(), parse_direction("image->text")
    task = make(tmp_path, Pairing(same_pattern=True))
    ((query, target),) = task.pairing(task.model, batch, [direction])
    with_sound = batch["masks"]["audio"].any(1)[batch["masks"]["image"].any(1)]
    patterns = [query.pattern[kind].unique() for kind in (with_sound, ~with_sound)]
    assert [len(p) for p in patterns] == [1, 1] and patterns[0] != patterns[1]
    scale = task.loss.log_logit_scale.exp()
    parts = [
        contrastive_loss(query.values[k], target.values[k], scale, query.group_id[k]) * k.sum()
        for k in (with_sound, ~with_sound)
    ]
    torch.testing.assert_close(task.loss(query, target), sum(parts) / len(with_sound))
    plain = make(tmp_path)  # the control: all are compared, with exactly that loss
    ((query, target),) = plain.pairing(plain.model, batch, [direction])
    together = contrastive_loss(query.values, target.values, scale, query.group_id)
    torch.testing.assert_close(plain.loss(query, target), together)
    assert together > 1.2 * sum(parts) / len(with_sound)


def test_what_is_hidden_is_part_of_the_pattern(tmp_path):
    batch, task = make_batch(40), make(tmp_path, Pairing(hidden=0.5, same_pattern=True))
    batch["inputs"] = {name: x.double() for name, x in batch["inputs"].items()}
    directions = [parse_direction(name) for name in ("image->text", "image+audio->text")]
    (one, _), (pair, _) = task.pairing(task.model, batch, directions)
    assert len(one.pattern.unique()) == 1 and len(pair.pattern.unique()) == 3


def test_no_sample_at_all(tmp_path):
    task, batch = make(tmp_path, Pairing(same_pattern=True)), partial_batch(6)
    batch["masks"]["audio"][:] = False
    query, target = task.pairing(task.model, batch, [parse_direction("audio->image")])[0]
    assert query.values.shape == target.values.shape == (0, 8) and query.pattern.shape == (0,)
    assert query.values.dtype == torch.float64
    assert task.loss(query, target) == 0


@pytest.mark.parametrize("wrong", [{"part_size": 0}, {"hidden": 1.0}, {"hidden": -0.1}])
def test_wrong_numbers(wrong):
    with pytest.raises(ValueError, match="give a part at least one sample"):
        Pairing(**wrong)
