"""fusion doctor: what can be told of a run before it starts."""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from fusion.alignment import Alignment
from fusion.cli.display import printable
from fusion.cli.intake import Taken, choose, take
from fusion.doctor import Patient, Result, State, visit
from fusion.doctor.visit import CHECKS
from fusion.tasks import ContrastiveTask

NUM_SAMPLES, BATCH = 192, 12
ALIGN_STEPS = 20
_COLOURS = {State.OK: "green", State.WARNING: "yellow", State.FAIL: "red"}


def doctor(args: Sequence[str]) -> None:
    """Examines a run before it starts, in about a minute on a CPU.

    Reads some samples; looks whether queries see their targets, samples mix or parts differ from
    the whole, whether numbers are finite and the iteration converges; trains copies of the model
    on one small batch. Weights and files stay as they are.

    Raises:
        SystemExit: 1 if a check fails, 2 if the arguments do not fit.
        ValueError: the configuration is none of a contrastive run, or there are no samples.
    """
    parser = _parser()
    own, rest = parser.parse_known_args(args)
    if rest and not rest[0].startswith("-"):
        rest = ["--config", *rest]
    if not rest:
        parser.error("give a configuration, such as configs/contrastive.yaml")
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    cli = _build(rest)
    results = examine(cli.model, cli.datamodule, own.num_samples)
    if own.report is not None:
        _write(own.report, results)
    _print(results)
    if any(result.finding.state is State.FAIL for result in results):
        raise SystemExit(1)


def examine(task: Any, data: Any, num_samples: int = NUM_SAMPLES) -> list[Result]:
    """Runs all checks, with a bar on stderr.

    Args:
        task: a `ContrastiveTask`.
        data: its data module.
        num_samples: how many samples are read.

    Raises:
        ValueError: the task is another one, or there are no samples.
    """
    if not isinstance(task, ContrastiveTask):
        raise ValueError(
            f"The model is a {type(task).__name__}; fusion doctor examines a ContrastiveTask."
        )
    from rich.console import Console
    from rich.progress import track

    batch_size = data.batch_size
    taken = take(task, data, num_samples)
    if taken.pool is None:
        why = f": {taken.intake.example}" if taken.intake.example else ""
        raise ValueError(f"None of {taken.intake.num_read} samples can be trained on{why}.")
    patient = _patient(task, taken, batch_size)
    checks = visit(patient)
    bar = track(checks, "Examining", len(CHECKS), console=Console(stderr=True), transient=True)
    return list(bar)


def _patient(task: ContrastiveTask, taken: Taken, batch_size: int) -> Patient:
    assert taken.pool is not None
    if task.align is not None and taken.batches:
        _align(task, task.align, taken.batches)
    batch = choose(taken.pool, BATCH)
    num_parts = max(1, len(batch["group_id"]) // 3)
    return Patient(
        model=task.model,
        loss=task.loss,
        directions=list(task.shares),
        pair=replace(task.pairing, part_size=None),
        pair_in_parts=replace(task.pairing, part_size=num_parts),
        batch=batch,
        batch_size=batch_size,
        lr=task.hparams["lr"],
        intake=taken.intake,
    )


def _align(task: ContrastiveTask, align: Alignment, batches: Sequence[dict[str, Any]]) -> None:
    """Starts the model where a run would, from the few samples there are."""
    few = replace(align, num_steps=min(align.num_steps, ALIGN_STEPS), batch_size=64)
    for _ in few.fit(task.model, batches, task.loss.log_logit_scale):
        pass


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fusion doctor",
        usage="fusion doctor CONFIG [--report FILE] [--num_samples N] [OVERRIDES OF fusion fit]",
        description=(doctor.__doc__ or "").partition("\n    Raises:")[0].replace("    ", ""),
        epilog="example: fusion doctor configs/contrastive.yaml --data.train \"['shards/*.tar']\"",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--report", type=Path, help="write what was found there, as JSON")
    parser.add_argument(
        "--num_samples", type=int, default=NUM_SAMPLES, help="samples to read (%(default)s)"
    )
    return parser


class _Settings(LightningCLI):
    """The task and the data of a configuration, without a trainer: it may ask for many GPUs."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What `fusion fit` takes beside them."""
        for name in ("ckpt_path", "weights_only"):
            parser.add_argument(f"--{name}", type=Any, default=None)

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """None."""
        return cast(Trainer, None)


def _build(args: Sequence[str]) -> LightningCLI:
    # Imported for their short names: a configuration may say `class_path: ContrastiveTask`.
    for module in ("datamodules.memory", "datamodules.module", "encoders", "fusion.tasks"):
        import_module(module)
    before, sys.argv = sys.argv, ["fusion doctor", *args]  # what LightningCLI reads
    try:
        return _Settings(
            LightningModule,
            LightningDataModule,
            save_config_callback=None,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
        )
    finally:
        sys.argv = before


def _write(path: Path, results: Sequence[Result]) -> None:
    found = [
        {"check": title, **finding._asdict(), "seconds": round(seconds, 3)}
        for title, finding, seconds in results
    ]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    partial.replace(path)


def _print(results: Sequence[Result]) -> None:
    """A table for people, and one line of what it comes to."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "check", "found")
    for title, finding, _ in results:
        colour = _COLOURS[finding.state]
        found = Text(printable(finding.what))
        if finding.advice:
            found.append(f"\n{printable(finding.advice)}", style=colour)
        table.add_row(Text(finding.state, style=colour), title, found)
    Console().print(table)
    states = [result.finding.state for result in results]
    failed, warned = states.count(State.FAIL), states.count(State.WARNING)
    total = sum(result.seconds for result in results)
    print(f"{len(results)} checks in {total:.0f} s: {failed} failed, {warned} warned.")
