"""A program that saves at every step and is killed while it does; `test_atomic_io.py` judges it.

`python -m tests.fusion.tasks.save_driver FOLDER KILLS [stock]` trains a network of 2 million
weights, kills it with SIGKILL at random moments and starts it again from the newest checkpoint,
with temporary files of Python on another file system if there is one. FOLDER/found.json has what
was found; with `stock` files are written by Lightning.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from fusion.checkpoint import read_plain
from fusion.tasks.preemption import Preemption
from fusion.tasks.resuming import newest_checkpoint

OTHER = "/dev/shm"  # another file system than the run's


class Net(LightningModule):
    """Notes each step whose checkpoint was written."""

    def __init__(self, folder: Path, stock: bool) -> None:
        super().__init__()
        self.folder, self.stock, self.net = folder, stock, nn.Linear(1000, 2000)

    def configure_callbacks(self):
        return [] if self.stock else [Preemption()]

    def training_step(self, batch, index):
        return self.net(batch).square().mean()

    def on_train_batch_end(self, outputs, batch, index):  # after the callbacks
        note(self.folder / "saved", self.global_step)

    def train_dataloader(self):
        return DataLoader([torch.randn(1000)] * 1000, batch_size=1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def note(path: Path, number: int) -> None:
    with path.open("a") as file:
        file.write(f"{number}\n")
        file.flush()
        os.fsync(file.fileno())


def numbers(path: Path) -> list[int]:
    return list(map(int, path.read_text().split())) if path.exists() else []


def train(folder: Path, stock: bool) -> None:
    """Goes on until it is killed."""
    net = Net(folder, stock)
    saver = ModelCheckpoint(
        folder,
        every_n_train_steps=1,
        save_top_k=0,
        save_last=True,
        enable_version_counter=False,
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1000, callbacks=[saver], **quiet)
    start = newest_checkpoint([folder], net)
    step = 0 if start is None else read_plain(start, mmap=True)["global_step"]
    note(folder / "resumed", step)
    trainer.fit(net, ckpt_path=start)


def main(folder: Path, num_kills: int, stock: bool) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    draw = random.Random(0)
    found: dict[str, Any] = {"torn": 0, "kills_in_a_save": 0, "lost": 0, "left": 0}
    for _ in range(num_kills):
        attempts, saved = len(numbers(folder / "resumed")), numbers(folder / "saved")
        child = os.fork()
        if child == 0:
            try:
                train(folder, stock)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                os._exit(1)
        wait_for(folder / "resumed", attempts, child)
        wait_for(folder / "saved", len(saved), child)
        found["lost"] += numbers(folder / "resumed")[-1] < max(saved, default=0)
        time.sleep(draw.uniform(0, 0.4))
        found["left"] += len(temporary(folder)) > 1  # its own
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found["kills_in_a_save"] += bool(temporary(folder))
        found["torn"] += any(not is_whole(path) for path in folder.glob("*.ckpt"))
    found["steps"] = max(numbers(folder / "saved"))
    (folder / "found.json").write_text(json.dumps(found))


def wait_for(path: Path, num: int, child: int) -> None:
    """Waits until there are more than that many numbers in a file.

    Raises:
        RuntimeError: the process that writes them has ended.
    """
    while len(numbers(path)) <= num:
        time.sleep(0.01)
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise RuntimeError("the run ended by itself")


def temporary(folder: Path) -> list[Path]:
    return list(folder.glob("*.saving"))


def is_whole(path: Path) -> bool:
    try:
        read_plain(path)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=OTHER if os.path.isdir(OTHER) else None) as elsewhere:
        tempfile.tempdir = elsewhere
        main(Path(sys.argv[1]), int(sys.argv[2]), "stock" in sys.argv[3:])
