import copy

import pytest
import torch

from encoders import TimmImage
from fusion.model import FusionModel
from fusion.tasks import ContrastiveTask
from fusion.tasks.recomputed_towers import RecomputedTowers
from tests.fusion.tasks.toys import Data, Losses, Toy, make_trainer, small_block


def make_task(tmp_path, **towers) -> ContrastiveTask:
    encoders = {"image": TimmImage("test_vit", train="scratch"), "text": Toy("text"), **towers}
    model = FusionModel(encoders, dim=8, block=small_block, hidden=16)
    return ContrastiveTask(model, directions={"image->text": 1.0}, cache=str(tmp_path))


def make_batch() -> dict:
    side = 160  # what test_vit was made for
    inputs = {
        "image": torch.randint(0, 256, (4, 1, 3, side, side), dtype=torch.uint8),
        "text": torch.randn(4, 2, 8),
    }
    masks = {
        name: torch.ones(4, values.shape[1], dtype=torch.bool) for name, values in inputs.items()
    }
    return {
        "keys": list("abcd"),
        "inputs": inputs,
        "masks": masks,
        "positions": {},
        "group_id": torch.arange(4),
        "weight": torch.ones(4),
    }


def kept_bytes(task, data, tmp_path, *callbacks) -> tuple[int, list[float]]:
    """Bytes that backward passes keep, and the losses of the steps."""
    storages, losses = {}, Losses()

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    trainer = make_trainer(tmp_path, losses, *callbacks, max_epochs=1, limit_val_batches=0)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        trainer.fit(task, datamodule=data)
    return sum(storages.values()), losses.values


def test_a_step_keeps_less_and_learns_the_same(tmp_path):
    torch.manual_seed(0)
    plain, data = make_task(tmp_path), Data(batches=[make_batch() for _ in range(2)])
    recomputing = copy.deepcopy(plain)
    size, losses = kept_bytes(plain, data, tmp_path)
    less, same = kept_bytes(recomputing, data, tmp_path, RecomputedTowers(["image"]))
    assert less < 0.8 * size, (less, size)
    # Adam makes steps of full size from gradients that are nothing but rounding.
    assert same[0] == losses[0] and same == pytest.approx(losses, rel=5e-3)
    assert recomputing.state_dict().keys() == plain.state_dict().keys()


def test_what_cannot_be_recomputed_is_named(tmp_path):
    task = make_task(tmp_path)
    with pytest.raises(ValueError, match="recompute depth; those with .* are image, text"):
        RecomputedTowers(["image", "depth"]).setup(make_trainer(tmp_path), task, "fit")
    with pytest.raises(ValueError, match="Toy cannot recompute"):
        RecomputedTowers().setup(make_trainer(tmp_path), task, "fit")
    frozen = make_task(tmp_path, text=Toy("text", frozen=True))
    RecomputedTowers().setup(make_trainer(tmp_path), frozen, "fit")
    with pytest.raises(ValueError, match="recompute text; those"):
        RecomputedTowers(["text"]).setup(make_trainer(tmp_path), frozen, "fit")
