"""Going on from the newest checkpoint that is whole and of this model."""

import pickle
import random
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import nn

from fusion.checkpoint import read_plain
from fusion.tasks.atomic_io import AtomicCheckpointIO
from fusion.tasks.resuming import checkpoint_folders, newest_checkpoint
from tests.fusion.tasks.checkpoints import NET, checkpoint


def bit_flipped(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(8 * len(data))
    return data[: place // 8] + bytes([data[place // 8] ^ 1 << place % 8]) + data[place // 8 + 1 :]


@pytest.fixture
def two(tmp_path) -> Path:
    """A folder with a checkpoint of step 2, and of step 1 before it."""
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint(checkpoint(step), tmp_path / "last.ckpt")
    return tmp_path


def test_a_cut_file_is_passed_over(two):
    path = two / "last.ckpt"
    whole = path.read_bytes()
    for part in (0, 1, *range(10, 100, 10), 99.99):
        path.write_bytes(whole[: int(len(whole) * part / 100)])
        with pytest.warns(UserWarning, match="Passed over: .*last.ckpt is not a checkpoint"):
            assert newest_checkpoint([two], NET) == two / "last-before.ckpt"


@pytest.mark.filterwarnings("ignore:Passed over")
def test_a_flipped_bit_is_found_or_harmless(two):
    path, draw = two / "last.ckpt", random.Random(1)
    whole, found = path.read_bytes(), 0
    for _ in range(200):
        path.write_bytes(bit_flipped(whole, draw))
        if newest_checkpoint([two], NET) == path:  # padding between the parts of the file
            content = read_plain(path)
            assert content["global_step"] == 2 and len(content) == 5
            more = content["optimizer_states"][0]["state"]["more"]
            for tensor in (content["state_dict"]["net.weight"], more):
                assert (tensor == 2).all()
        else:
            found += 1
    assert found > 190


def test_torch_does_not_find_it(two):
    """Negative control for the test of a file's checksums."""
    path = two / "last.ckpt"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(bytes(whole))
    assert torch.load(path, weights_only=True)["global_step"] == 2
    with pytest.raises(ValueError, match="damaged"):
        AtomicCheckpointIO().load_checkpoint(path)


def pickled(path: Path) -> None:
    torch.save({"state_dict": nn.Linear(2, 2)}, path)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"global_step": 3}))


def weights_only(path: Path) -> None:
    torch.save({"state_dict": checkpoint(3)["state_dict"]}, path)


def another_model(path: Path) -> None:
    torch.save(checkpoint(3) | {"state_dict": {"net.weight": torch.zeros(3, 3)}}, path)


def a_tensor(path: Path) -> None:
    torch.save(torch.zeros(3), path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (pickled, "something else than tensors"),
        (plain_pickle, "not a checkpoint"),
        (weights_only, "lacks loops, lr_schedulers, optimizer_states"),
        (another_model, "net.weight is .3, 3., and this model has .100, 100."),
        (a_tensor, "lacks"),
    ],
)
def test_a_foreign_file_is_passed_over(two, make, reason):
    make(two / "last.ckpt")
    with pytest.warns(UserWarning, match=f"last.ckpt .*{reason}"):
        assert newest_checkpoint([two], NET) == two / "last-before.ckpt"
    (two / "last-before.ckpt").unlink()
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="no checkpoint to go on from among the 1 in"),
    ):
        newest_checkpoint([two], NET)


def test_a_new_run_has_none(tmp_path):
    assert newest_checkpoint([tmp_path, tmp_path / "missing"], NET) is None


def test_where_a_trainer_saves(tmp_path):
    """The folder is known before Lightning chooses it, with and without a logger."""
    for logger in (False, True):
        trainer = Trainer(default_root_dir=tmp_path, logger=logger)
        before = checkpoint_folders(trainer)
        trainer.checkpoint_callbacks[0].setup(trainer, NET, "fit")
        assert checkpoint_folders(trainer) == before and len(before) == 1
    assert checkpoint_folders(Trainer(logger=False, enable_checkpointing=False)) == []
