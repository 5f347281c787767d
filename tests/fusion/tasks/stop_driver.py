"""A program that trains, is told to stop or killed, and goes on; `test_preemption.py` judges it.

`python -m tests.fusion.tasks.stop_driver FILE` reads {"runs": [...]}. Each run trains the network
of `tests/datamodules/kill_driver.py` in processes of its own, forked from one that has imported
Lightning. `signals` are lists [step, rank, signal number]: the rank sends itself the signal in that
step, once. A run is started again until it gets to the end; `codes.json` has what each attempt of
each rank ended with, and `seconds.json` how long after the first signal the last rank ended.
"""

import hashlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.module import ShardDataModule
from datamodules.reading import Reading
from fusion.tasks.preemption import Preemption
from fusion.tasks.resuming import checkpoint_folders, newest_checkpoint
from fusion.tasks.step_seed import StepSeed
from tests.datamodules.kill_driver import Net, augment

TOO_LONG = 40  # seconds for a run: it hangs


class Told(Net):
    """Sends itself the signals of its run."""

    def configure_callbacks(self):
        return [StepSeed(), *([Preemption()] if self.run.get("preemption", True) else [])]

    def die(self):
        folder = Path(self.run["folder"])
        for step, rank, number in self.run["signals"]:
            mark = folder / f"sent-{step}-{rank}-{number}"
            if (step, rank) == (self.global_step, self.global_rank) and not mark.exists():
                mark.write_text(str(time.time()))
                send = os.killpg if self.run.get("group") else os.kill
                send(os.getpid(), number)

    def on_save_checkpoint(self, checkpoint):
        if self.run.get("again") and not self.run["attempt"]:  # while it saves
            os.kill(os.getpid(), signal.SIGTERM)

    def validation_step(self, batch, index):
        self.log("val", self.net(batch["inputs"]["image"]).square().mean(), batch_size=1)

    def on_validation_epoch_end(self):
        with Path(self.run["folder"], f"validated{self.global_rank}").open("a") as file:
            file.write(f"{self.global_step}\n")


def train(run: dict[str, Any], rank: int) -> None:
    """One attempt: from the newest checkpoint, or from the start."""
    torch.manual_seed(7)
    folder, ranks = Path(run["folder"]), run["ranks"]
    data = ShardDataModule(
        run["shards"],
        run["shards"][:1] if run.get("validate", True) else None,
        batch_size=run["batch_size"] // ranks,
        num_workers=run["workers"],
        reading=Reading(max_rejected=0.5),
    )
    data.augment = data.transform = augment
    trainer = Trainer(
        max_epochs=run["epochs"],
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        callbacks=[ModelCheckpoint(folder, "model", enable_version_counter=False)],
        accumulate_grad_batches=run.get("accumulate", 1),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    net = Told(run)
    trainer.fit(net, data, ckpt_path=newest_checkpoint(checkpoint_folders(trainer), net))
    weights = b"".join(value.numpy().tobytes() for value in net.state_dict().values())
    Path(folder, f"weights{rank}").write_text(hashlib.sha256(weights).hexdigest())


def fork(run: dict[str, Any], rank: int, port: int) -> int:
    """Starts a rank; returns its process."""
    child = os.fork()
    if child:
        return child
    if run["ranks"] > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NODE_RANK="0")
        os.environ.update(LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    os.setpgid(0, 0)  # with its workers
    code = 1
    try:
        train(run, rank)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    except BaseException as error:
        print(f"{run['folder']}: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def attempt(run: dict[str, Any]) -> list[int]:
    """Exit codes of all ranks; minus the signal of those that a signal ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    left = {fork(run, rank, port): rank for rank in range(run["ranks"])}
    codes, began = [0] * run["ranks"], time.time()
    while left:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            codes[left.pop(child)] = os.waitstatus_to_exitcode(status)
        elif time.time() - began > TOO_LONG:
            for child in left:
                os.kill(child, signal.SIGKILL)
        else:
            time.sleep(0.02)
    return codes


def drive(run: dict[str, Any]) -> None:
    """Attempts until one gets to the end."""
    folder = Path(run["folder"])
    folder.mkdir(parents=True)
    codes: list[list[int]] = []
    seconds: list[float] = []
    while not codes or (any(codes[-1]) and len(codes) < 4):
        run["attempt"] = len(codes)
        codes.append(attempt(run))
        sent = [float(path.read_text()) for path in folder.glob("sent-*")]
        if any(codes[-1]) and sent:
            seconds.append(time.time() - max(sent))
    (folder / "codes.json").write_text(json.dumps(codes))
    (folder / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    for wanted in json.loads(Path(sys.argv[1]).read_text())["runs"]:
        drive(wanted)
