"""fusion fit, validate, test, predict: Lightning's command line over our tasks and data."""

import logging
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI

_NOISE = (
    r"`isinstance\(treespec, LeafSpec\)`",
    r"Found \d+ module\(s\) in eval mode",  # frozen encoders are meant to be
    r".*does not have many workers",  # samples are prepared before training
    r"find_unused_parameters=True was specified",  # on one rank; several need it
    r"Total length of `list` across ranks is zero",  # no validation shards were given
)


def fit(args: Sequence[str]) -> None:
    """Trains a task."""
    run("fit", args)


def validate(args: Sequence[str]) -> None:
    """Evaluates a checkpoint on held-out data."""
    run("validate", args)


def test(args: Sequence[str]) -> None:
    """Evaluates a checkpoint on test data."""
    run("test", args)


def predict(args: Sequence[str]) -> None:
    """Runs a checkpoint over data."""
    run("predict", args)


def run(verb: str, args: Sequence[str]) -> "LightningCLI":
    """Runs Lightning's command line, and returns it with the model, the data and the trainer."""
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    from lightning import LightningDataModule, LightningModule

    from fusion.cli.training import TrainingCLI

    # Imported for their short names: a configuration may say `class_path: ContrastiveTask`.
    for module in ("datamodules.memory", "datamodules.module", "encoders", "fusion.tasks"):
        import_module(module)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    before, sys.argv = sys.argv, ["fusion", verb, *args]  # what LightningCLI reads
    try:
        return TrainingCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
        )
    finally:
        sys.argv = before
