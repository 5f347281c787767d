"""Validation on two gloo ranks with uneven parts of the held-out set, and on one process.

`python -m tests.fusion.tasks.validation_driver FOLDER` leaves FOLDER/CASE-RANK.pt, scorecards in
FOLDER/CASE, and FOLDER/split-RANKS.json, which `test_validation.py` judges.
"""

import os
import sys
from pathlib import Path

import torch
from lightning import Callback
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import start_processes
from torch.utils.data import DataLoader

from fusion.scorecard import score
from fusion.tasks.sharding import shard
from tests.fusion.tasks.toys import NAMES, Data, make_batch, make_task, make_trainer

SIZES = 7, 12, 5  # samples of the held-out batches; the second rank has only the one in the middle


def held_out() -> list[dict]:
    """The second batch has no audio, and shares a group with the first; keys are out of order."""
    torch.manual_seed(1)
    batches = [make_batch(size, shared=0.7) for size in SIZES]
    for index, batch in enumerate(batches):
        batch["keys"] = [f"{(7 * i) % 11:02d}-{2 - index}" for i in range(SIZES[index])]
    for name in ("inputs", "masks"):
        del batches[1][name]["audio"]
    batches[0]["masks"]["text"][0] = False
    batches[1]["group_id"][0] = batches[0]["group_id"][3]
    return batches


class Parts(Data):
    """The held-out batches of the rank that asks; or all, which Lightning is to deal."""

    def __init__(self, dealt: bool) -> None:
        super().__init__(batches=[make_batch(16, shared=0.7)])
        self.dealt = dealt

    def val_dataloader(self):
        batches, rank = held_out(), self.trainer.global_rank
        if self.dealt and self.trainer.world_size > 1:
            batches = batches[rank::2]
        return DataLoader(batches, batch_size=None)

    test_dataloader = val_dataloader


class Record(Callback):
    """What was logged."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer, pl_module) -> None:
        logged = {n: float(v) for n, v in trainer.callback_metrics.items() if n[:4] == "val/"}
        torch.save(logged, f"{self.path}-{trainer.global_rank}.pt")


def run(folder: Path, case: str, ranks: int) -> None:
    """Validates before a step whose learning rate is zero, and after it; then tests."""
    torch.manual_seed(0)
    task = make_task(folder, dropout=0.0, lr=0.0, directions={"image->text+audio": 1.0})
    task.step_seed.seed = 7
    kind = "ddp_fork_find_unused_parameters_true"
    options = {"devices": ranks, "strategy": kind} if ranks > 1 else {"devices": 1}
    filled = case == "filled"
    trainer = make_trainer(
        folder / case,
        Record(folder / case),
        max_epochs=1,
        use_distributed_sampler=filled,
        **options,
    )
    trainer.fit(task, datamodule=Parts(dealt=not filled))
    if not filled:
        trainer.test(task, datamodule=Parts(dealt=True), verbose=False)


def split(rank: int, folder: Path, ranks: int) -> None:
    """Scores two batches, with the weights of the model split over ranks if there are several."""
    torch.manual_seed(0)
    task = make_task(folder, dropout=0.0)
    batches, scores = held_out()[:2], task.held_out
    if ranks > 1:
        where = f"file://{folder}/meet"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=ranks)
        shard(task.model, init_device_mesh("cpu", (ranks,)))
        batches = batches[rank : rank + 1]
    scores.on_test_epoch_start(None, task)  # type: ignore[arg-type]
    with torch.inference_mode():
        for batch in batches:
            scores.add(batch)
        found = scores._finish(None)
    if rank == 0:
        (folder / f"split-{ranks}.json").write_text(score(found, NAMES).to_json())
    if ranks > 1:
        dist.destroy_process_group()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
    start_processes(split, (folder, 2), nprocs=2, start_method="fork")
    split(0, folder, 1)
    run(folder, "dealt", ranks=2)
    run(folder, "filled", ranks=2)
    run(folder, "whole", ranks=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
