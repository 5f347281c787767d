"""A program that trains, is killed, and resumes; `test_resume.py` runs it and judges its logs.

It reads {"runs": [...]} from the file named on the command line. Each run trains a small network
with dropout on augmented pictures from shards, in a process of its own (one for each rank), which
kills itself with SIGKILL in the steps named and is started again until it gets to the end.
Lightning is imported once, and forked, which saves most of the time.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from datamodules.module import ShardDataModule
from datamodules.reading import Reading
from fusion.tasks.step_seed import StepSeed

warnings.filterwarnings("ignore")
torch.set_num_threads(1)


def augment(samples):
    """Random in three libraries, as users' transforms are."""
    made = []
    for sample in samples:
        picture = sample.inputs["image"].float().mean((1, 2)) / 255
        picture = picture + torch.rand(3) + float(np.random.rand()) + random.random()
        made.append({"inputs": {"image": picture[None]}})
    return made


class Net(LightningModule):
    """Learns nothing in particular, but with dropout."""

    def __init__(self, run: dict[str, Any]) -> None:
        super().__init__()
        self.run = run
        self.net = nn.Sequential(nn.Linear(3, 32), nn.Dropout(0.5), nn.Linear(32, 1))

    def configure_callbacks(self):
        return [StepSeed()] if self.run.get("step_seed", True) else []

    def training_step(self, batch, index):
        loss = self.net(batch["inputs"]["image"]).square().mean()
        line = {
            "attempt": self.run["attempt"],
            "step": self.global_step,
            "epoch": self.current_epoch,
            "keys": [f"{k} {c}" for k, c in zip(batch["keys"], batch["captions"], strict=True)],
            "loss": loss.item().hex(),
        }
        with Path(self.run["folder"], f"log{self.global_rank}.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
            log.flush()
            os.fsync(log.fileno())
        self.die()
        return loss

    def die(self):
        """Kills this process in a step in which it has not been killed before."""
        mark = Path(self.run["folder"], f"killed{self.global_step}")
        if self.global_step in self.run["kills"] and self.global_rank == 0 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def configure_optimizers(self):
        # Whoever asks for the number of steps has Lightning build the loader early.
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(run: dict[str, Any], rank: int) -> None:
    """One attempt: from the last checkpoint, or from the start."""
    torch.manual_seed(run.get("seed", 7))
    folder, (ranks, workers) = Path(run["folder"]), layout(run)
    data = ShardDataModule(
        run["shards"],
        batch_size=run["batch_size"] // ranks,
        num_workers=workers,
        window=run["window"],
        reading=Reading(max_rejected=0.5),
    )
    data.augment = augment
    saved = ModelCheckpoint(
        folder, "step{step}", save_top_k=-1, every_n_train_steps=3, auto_insert_metric_name=False
    )
    trainer = Trainer(
        max_epochs=run["epochs"],
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        callbacks=[saved],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    latest = max(folder.glob("step*.ckpt"), key=_step_of, default=None)
    net = Net(run)
    if run.get("stock"):
        trainer.fit(net, stock_loader(run), ckpt_path=latest)
    else:
        trainer.fit(net, data, ckpt_path=latest)
    weights = b"".join(value.numpy().tobytes() for value in net.state_dict().values())
    Path(folder, f"weights{rank}").write_text(hashlib.sha256(weights).hexdigest())


def stock_loader(run: dict[str, Any]) -> Any:
    """What WebDataset's own documentation does; its length is the true one."""
    import webdataset as wds
    from torch.utils.data import DataLoader

    def prepared(sample):
        picture = torch.tensor(list(sample["png"][-3:])) / 255
        return sample["__key__"], sample["txt"].decode(), picture[None]

    def batched(samples):
        keys, captions, pictures = zip(*samples, strict=True)
        return {"keys": keys, "captions": captions, "inputs": {"image": torch.stack(pictures)}}

    shards = wds.WebDataset(run["shards"], shardshuffle=False, empty_check=False).map(prepared)

    class Sized(DataLoader):
        def __len__(self):
            return run["length"]

    cls = Sized if run["length"] else DataLoader
    return cls(shards, run["batch_size"], num_workers=0, collate_fn=batched)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step"))


def layout(run: dict[str, Any]) -> tuple[int, int]:
    """Ranks and workers of this attempt: the last layout stays."""
    return tuple(run["layouts"][min(run["attempt"], len(run["layouts"]) - 1)])


def attempt(run: dict[str, Any]) -> bool:
    """Forks the ranks; True when all came to the end."""
    ranks, _ = layout(run)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            if ranks > 1:
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NODE_RANK="0")
                os.environ["LOCAL_RANK"] = str(rank)
            code = 1
            try:
                train(run, rank)
                code = 0
            except BaseException as error:
                print(f"{run['folder']}: {type(error).__name__}: {error}", file=sys.stderr)
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    _, status = os.waitpid(children[0], 0)
    for child in children[1:]:
        if status:  # the machine is gone, not one process of it
            os.kill(child, signal.SIGKILL)
        _, other = os.waitpid(child, 0)
        status = status or other
    if status and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        raise SystemExit(f"a run failed: {run}")
    return status == 0


if __name__ == "__main__":
    for wanted in json.loads(Path(sys.argv[1]).read_text())["runs"]:
        Path(wanted["folder"]).mkdir(parents=True)
        began = time.time()
        wanted["attempt"] = 0
        while not attempt(wanted):
            wanted["attempt"] += 1
        print(f"{wanted['folder']} {time.time() - began:.1f} s", flush=True)
