"""Lightning's command line, with runs that go on from the newest checkpoint that is whole."""

import csv
import signal
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_only

from fusion.checkpoint import read_plain
from fusion.tasks.atomic_io import is_remote
from fusion.tasks.resuming import check_resumable, checkpoint_folders, newest_checkpoint

_CHOSEN_LATER = ("best", "hpc", "last")  # by Lightning, or by `fit`


class TrainingCLI(LightningCLI):
    """What `fusion fit` runs; see `LightningCLI`."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, and refuses a damaged `ckpt_path`.

        Raises:
            ValueError: it is damaged, or there is no such file.
        """
        super().parse_arguments(parser, args)
        given = self.config.get(str(self.config.get("subcommand")), {}).get("ckpt_path")
        if given is None or str(given) in _CHOSEN_LATER or is_remote(given):
            return
        path = Path(given)
        if not path.exists():
            raise ValueError(
                f"There is no checkpoint {path}; give the path of one, or --ckpt_path last for the "
                "newest of the run."
            )
        if path.is_file():
            read_plain(path, mmap=True)

    def instantiate_classes(self) -> None:
        """Builds everything; only training leaves its configuration in the run's folder."""
        if self.subcommand != "fit":
            self.save_config_callback = None
        super().instantiate_classes()

    def before_validate(self) -> None:
        """Keeps what training logged."""
        _add_to_metrics(self.trainer.loggers)

    before_test = before_predict = before_validate

    def fit(self, model: Any, ckpt_path: str | Path | None = None, **settings: Any) -> None:
        """Trains, from a checkpoint if one is given; `last` is the newest that is whole.

        Raises:
            ValueError: training cannot go on from what is there.
        """
        if ckpt_path == "last":
            folders = checkpoint_folders(self.trainer)
            ckpt_path = newest_checkpoint(folders, model)
            _say(
                f"Going on from {ckpt_path}."
                if ckpt_path
                else f"No checkpoint in {', '.join(map(str, folders))} yet: starting at step 0."
            )
        elif ckpt_path is not None and Path(ckpt_path).is_file():
            check_resumable(Path(ckpt_path), model)
        if ckpt_path is not None:
            _add_to_metrics(self.trainer.loggers)
        try:
            self.trainer.fit(model, ckpt_path=ckpt_path, **settings)
        except Exception:
            self._end_children()
            raise

    def _end_children(self) -> None:
        """Ends the ranks that this process started, which would wait for it for many minutes."""
        launcher: Any = self.trainer.strategy.launcher
        if hasattr(launcher, "procs") and hasattr(launcher, "kill"):
            launcher.kill(signal.SIGKILL)


@rank_zero_only
def _add_to_metrics(loggers: Iterable[Logger]) -> None:
    """Has loggers go on with the metrics.csv of their folder, which they would delete."""
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            path = Path(logger.log_dir, "metrics.csv")
            if path.is_file():
                kept = path.with_suffix(".kept")
                path.replace(kept)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of files that would be deleted
                    writer = logger.experiment
                kept.replace(path)
                with path.open(newline="") as file:
                    writer.metrics_keys = next(csv.reader(file), [])


@rank_zero_only
def _say(message: str) -> None:
    print(message, file=sys.stderr)
