"""The contrastive task on two ranks and on one process with the rows of both, in float64.

`python -m tests.fusion.tasks.ranks_driver FOLDER DEVICE`, which Lightning starts a second time for
the second rank, leaves FOLDER/CASE-RANK.pt, or what went wrong in FOLDER/CASE.txt, which
`test_ranks.py` judges. DEVICE is cpu (gloo) or gpu (NCCL).
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, seed_everything
from torch.utils.data import DataLoader

from fusion.alignment import Alignment
from fusion.losses import InfoNCE
from fusion.losses.exchange import Alone, Ring
from fusion.optimization import AdamWithCosine
from fusion.tasks.pairing import Pairing
from tests.fusion.tasks.toys import Data, make_batch, make_task, make_trainer

STEPS = 3
SIZES = 6, 10  # samples of each rank
DIRECTIONS = {
    "image->text": 0.7,
    "audio->text": 0.7,
    "image+audio->text": 0.7,
}

PAIRINGS = {  # the same, on two ranks and on one
    "parts": Pairing(part_size=4, same_pattern=True),
    "patterns": Pairing(same_pattern=True),
}


def whole_batches() -> list[dict[str, Any]]:
    """Rank 0 has no audio; of rank 1 none has a picture at first, half of it after that."""
    torch.manual_seed(1)
    made = []
    for step in range(STEPS):
        batch, first = make_batch(sum(SIZES), shared=0.8), SIZES[0]
        batch["masks"]["audio"][:first] = False
        batch["masks"]["image"][first : first + 5 if step else None] = False
        batch["group_id"][first] = batch["group_id"][0]  # a positive of another rank
        made.append(in_float64(batch))
    return made


def in_float64(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "inputs": {name: x.double() for name, x in batch["inputs"].items()}}


def part(batch: dict[str, Any], rank: int) -> dict[str, Any]:
    """What a rank holds; a modality that none of its samples has is left out, as collate does."""
    rows = slice(0, SIZES[0]) if rank == 0 else slice(SIZES[0], None)
    masks = {n: mask[rows] for n, mask in batch["masks"].items() if rank or n != "audio"}
    return {
        "keys": [f"rank{rank}-{key}" for key in batch["keys"][rows]],
        "inputs": {name: batch["inputs"][name][rows] for name in masks},
        "masks": masks,
        "positions": {},
        "group_id": batch["group_id"][rows],
    }


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """A copy in float64 on the CPU, of all ranks if it is split over them."""
    full = getattr(parameter, "full_tensor", lambda: parameter)
    return full().detach().cpu().double().clone()


class Parts(Data):
    """The batches of the rank that asks."""

    def __init__(self, batches, ranks: int, frozen=()) -> None:
        super().__init__(batches=batches)
        self.ranks, self.frozen = ranks, frozen

    def train_dataloader(self):
        rank = self.trainer.global_rank
        parts = [part(b, rank) if self.ranks > 1 else b for b in self.batches]
        positions = {n: torch.zeros(len(parts[0]["group_id"]), 2, 3) for n in self.frozen}
        return DataLoader([{**p, "positions": positions} for p in parts], batch_size=None)

    def train_batches(self):
        return iter([in_float64(make_batch(64, shared=0.8, frozen=self.frozen))])


class Record(Callback):
    """What each step drew and cost, and the weights in the end."""

    def __init__(self, path: Path, case: str) -> None:
        self.path, self.case = path, case
        self.drawn: list[list[str]] = []
        self.own_draws: list[float] = []
        self.losses: list[float] = []
        self.weights: list[dict[str, torch.Tensor]] = []  # after each step

    def on_fit_start(self, trainer, pl_module) -> None:
        draw = pl_module._draw

        def drawn():
            found = draw()
            self.drawn.append([str(direction) for direction in found])
            self.own_draws.append(float(torch.rand(())))
            return found

        pl_module._draw = drawn

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))
        self.weights.append({n: whole(v) for n, v in pl_module.named_parameters()})

    def on_train_end(self, trainer, pl_module) -> None:
        record = {
            "drawn": self.drawn,
            "own_draws": self.own_draws,
            "losses": self.losses,
            "weights": self.weights,
            "skipped": float(trainer.callback_metrics["skipped_steps"]),
            "logged": float(trainer.callback_metrics["loss"]),
        }
        torch.save(record, self.path / f"{self.case}-{trainer.global_rank}.pt")


def run(folder: Path, case: str, ranks: int, device: str) -> None:
    """Trains one case."""
    seed_everything(7, verbose=False)
    batches = whole_batches()
    if case == "bad":
        batches[1]["inputs"]["image"][-1] = torch.nan  # on the second rank alone
    frozen = ("image", "text") if case == "aligned" else ()
    exchange = {"alone": Alone(), "ring": Ring()}.get(case)
    align = Alignment("text", num_steps=5, batch_size=32) if frozen else None
    torch.manual_seed(0)
    task = make_task(
        folder,
        frozen,
        dropout=0.0,
        loss=InfoNCE(exchange=exchange),
        directions=DIRECTIONS,
        align=align,
        pairing=PAIRINGS.get(case),
        optimizer=AdamWithCosine(num_warmup=1),
    ).double()
    if case == "unseeded":  # without seed_everything every rank starts at a seed of its own
        task.setup = lambda stage: torch.manual_seed(50 + task.global_rank)
    else:
        task.step_seed.seed = 7
    kind = "ddp" if case == "waits" else "ddp_find_unused_parameters_true"
    options = {"devices": ranks, "strategy": kind} if ranks > 1 else {"devices": 1}
    trainer = make_trainer(
        folder,
        Record(folder, case),
        max_epochs=1,
        limit_val_batches=0,
        use_distributed_sampler=False,
        accelerator=device,
        **options,
    )
    trainer.fit(task, datamodule=Parts(batches, ranks, frozen))


def local_rank() -> int:
    """Keeps what ranks say on this machine; the rank of this process."""
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    return int(os.environ.get("LOCAL_RANK", "0"))


def main(folder: Path, device: str) -> None:
    if local_rank() == 0:  # before there are two: a process group lasts as long as its process
        for case in ("one", "patterns"):
            run(folder, case, 1, device)
    for case in ("two", "ring", "parts", "alone", "bad", "aligned", "unseeded", "waits"):
        try:
            run(folder, case, 2, device)
        except Exception as error:
            (folder / f"{case}.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
