"""The contrastive task with its weights split over two ranks, and on one process.

`python -m tests.fusion.tasks.sharding_driver FOLDER DEVICE`, which Lightning starts a second time
for the second rank, leaves FOLDER/CASE-RANK.pt, or what went wrong in FOLDER/CASE.txt;
`test_sharding.py` judges. DEVICE is cpu (gloo) or gpu (NCCL).
"""

import os
import sys
from pathlib import Path

import torch
from lightning import seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from fusion.alignment import Alignment
from fusion.losses import InfoNCE
from fusion.optimization import AdamWithCosine
from fusion.tasks import contrastive
from fusion.tasks.pairing import Pairing
from tests.fusion.tasks.ranks_driver import (
    DIRECTIONS,
    Parts,
    Record,
    local_rank,
    whole,
    whole_batches,
)
from tests.fusion.tasks.toys import make_task, make_trainer

CLIP = 0.05
CASES = ("two", "resumed", "bad", "apart", "aligned", "parts", "columns", "folder")


class Watch(Record):
    """Also gradients before clipping, and how many of the weights are on this rank."""

    def on_train_start(self, trainer, pl_module) -> None:
        local = [getattr(p, "to_local", lambda p=p: p)() for p in pl_module.model.parameters()]
        self.num_local = sum(x.numel() for x in local)
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        named = pl_module.named_parameters()
        self.gradients.append({n: whole(p.grad) for n, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.case == "two" and batch_idx == 1:
            trainer.save_checkpoint(self.path / "middle.ckpt")

    def on_train_end(self, trainer, pl_module) -> None:
        super().on_train_end(trainer, pl_module)
        more = {"num_local": self.num_local, "gradients": self.gradients}
        torch.save(more, self.path / f"more_{self.case}-{trainer.global_rank}.pt")


def make(folder: Path, case: str):
    """The task of a case, in float64."""
    torch.manual_seed(0 if case == "one" else int(os.environ.get("LOCAL_RANK", "0")))
    task = make_task(
        folder,
        ("text",) if case == "aligned" else (),
        dropout=0.0,
        loss=InfoNCE(num_temperatures=3),
        directions=DIRECTIONS,
        optimizer=AdamWithCosine(num_warmup=1),
        align=Alignment("text") if case == "aligned" else None,
        pairing=Pairing(part_size=2) if case == "parts" else None,
    ).double()
    for block in task.model.blocks:
        nn.init.normal_(block.out.weight, std=0.3)
    task.step_seed.seed = 7
    return task


def run(folder: Path, case: str, ranks: int, device: str) -> None:
    """Trains one case; "resumed" goes on from the middle of "two"."""
    seed_everything(7, verbose=False)
    batches = whole_batches()
    if case == "resumed":  # the loader starts anew; the last batch is the one that is left
        batches = [batches[-1], *batches[:-1]]
    if case == "bad":
        batches[1]["inputs"]["image"][-1] = torch.nan
    strategy = ModelParallelStrategy(
        data_parallel_size=ranks if case != "columns" else 1,
        tensor_parallel_size=1 if case != "columns" else ranks,
        save_distributed_checkpoint=case == "folder",
        process_group_backend="gloo" if device == "cpu" else "nccl",
    )
    options = {"devices": ranks, "strategy": strategy} if ranks > 1 else {"devices": 1}
    trainer = make_trainer(
        folder,
        Watch(folder, case),
        max_epochs=1,
        limit_val_batches=0,
        use_distributed_sampler=False,
        accelerator=device,
        gradient_clip_val=CLIP,
        **options,
    )
    trainer.fit(
        make(folder, case),
        datamodule=Parts(batches, ranks),
        ckpt_path=folder / "middle.ckpt" if case == "resumed" else None,
        weights_only=True,
    )


def main(folder: Path, device: str) -> None:
    rank = local_rank()
    if rank == 0:  # before there are two: a process group lasts as long as its process
        run(folder, "one", 1, device)
    for case in CASES:
        average = contrastive.average_gradients
        if case == "apart":  # temperatures of each rank's own
            contrastive.average_gradients = lambda module: None
        try:
            run(folder, case, 2, device)
        except Exception as error:
            (folder / f"{case}-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        contrastive.average_gradients = average


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
