"""Runs that are told to stop: they save, and end together."""

import sys
from types import FrameType
from typing import Any, cast, final

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from fusion.losses.exchange.ranks import count_ranks, sum_over_ranks
from fusion.tasks.atomic_io import LAST, AtomicCheckpointIO

STOPPED = 143  # exit code of a shell's command that SIGTERM ended: 128 + signal


@final
class Preemption(Checkpoint):
    """Saves `last.ckpt` when SIGTERM comes to any rank, and ends all ranks with exit code 143.

    The signal is noted, no more. After each step of the optimizer the ranks add up their notes
    (one number; a single rank asks nobody), so all stop after the same step, save together and end.
    The last step of an epoch waits for the epoch's validation and its own checkpoint, which a
    resumed run would skip; a run that is at its end ends as ever. Signals that follow change
    nothing. A run without `ModelCheckpoint` ends without saving. Before training begins the signal
    ends a process as it does any other.

    Lightning's own handler, which speaks to other ranks while it handles the signal, and may hang,
    is not used. It also has checkpoints written by `AtomicCheckpointIO`, unless the trainer was
    given another.

    It is a `Checkpoint`, so that Lightning calls it after those that save at the same step.
    """

    def __init__(self) -> None:
        self._told = False
        self._step = 0  # of the optimizer, when ranks last asked

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the place of Lightning's handler, and of its way to write files."""
        strategy = trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = AtomicCheckpointIO()
        if stage == "fit":
            self._told, self._step = False, trainer.global_step
            # What Lightning registers when training starts, and takes back when it ends.
            cast(Any, trainer)._signal_connector._sigterm_notifier_fn = self._note

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stops after a step; not after the last one of an epoch."""
        step = trainer.global_step
        if step == self._step:  # gradients are still being accumulated
            return
        self._step = step
        if not trainer.is_last_batch:
            self._stop_if_told(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops after an epoch; not after the last one."""
        if trainer.current_epoch + 1 != trainer.max_epochs:
            self._stop_if_told(trainer, pl_module)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._told = True

    def _stop_if_told(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.should_stop or trainer.global_step == trainer.max_steps:
            return  # training ends here
        told = self._told
        if count_ranks() > 1:
            told = bool(sum_over_ranks(torch.tensor(float(told), device=pl_module.device)))
        if not told:
            return
        path = _last_path(trainer)
        if path is not None:
            trainer.save_checkpoint(path)
        _leave_children(trainer)
        if trainer.is_global_zero:
            where = "nothing was saved" if path is None else f"{path} holds its state"
            print(f"Stopped by SIGTERM after step {trainer.global_step}; {where}.", file=sys.stderr)
        raise SystemExit(STOPPED)


def _last_path(trainer: Trainer) -> str | None:
    """`last.ckpt` where the run saves it, or beside its other checkpoints."""
    savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    if not savers or cast(Any, trainer).fast_dev_run:
        return None
    saver = next((c for c in savers if c.save_last), savers[0])
    return f"{saver.dirpath}/{LAST}{saver.FILE_EXTENSION}"


def _leave_children(trainer: Trainer) -> None:
    """Has Lightning watch ranks no longer that the first one started.

    It kills the first when another one ends with an exit code, as all are about to.
    """
    started = getattr(trainer.strategy.launcher, "procs", None)
    if isinstance(started, list):
        started.clear()
