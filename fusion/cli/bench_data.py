"""fusion bench-data: how fast shards are read and prepared, and what would make it faster."""

import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.module import ShardDataModule
from datamodules.samples import Sample
from datamodules.timing import StageTimer, time_loader
from fusion.cli.bench_report import Report, print_json, print_table

BATCH_SIZE, WORKERS = 64, 2
_OFF = (
    *("trainer.logger", "trainer.enable_checkpointing"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary"),
)


def bench_data(
    *shards: str,
    batch_size: int | None = None,
    workers: int | None = None,
    config: str | None = None,
    num_batches: int = 20,
    json: bool = False,
) -> None:
    """Measures how fast shards are read, decoded, transformed and collated.

    Each stage is timed by itself on one core, then the loader with its workers. With a config its
    model also trains for a few steps, to see how much of the time it waits for data; nothing is
    saved. Without one, samples are transformed as common towers do: pictures of 224 pixels, texts
    in 77 pieces, sound at 16 kHz.

    Examples:
        fusion bench-data "shards/*.tar" --workers 4
        fusion bench-data --config configs/streaming.yaml

    Args:
        shards: paths, globs, brace lists or URLs; with a config those that it trains on.
        batch_size: samples of a batch; without this option as in the config, or 64.
        workers: processes that load; without this option as in the config, or 2.
        config: what `fusion fit` takes, with a ShardDataModule.
        num_batches: how many batches are timed.
        json: print JSON instead of a table.
    """
    if num_batches < 1:
        raise ValueError(f"got num_batches={num_batches}; wanted at least 1")
    if not shards and config is None:
        raise ValueError("There is no shard to read; give paths or URLs of shards, or --config.")
    given = {"train": list(shards) or None, "batch_size": batch_size, "num_workers": workers}
    settings = {name: value for name, value in given.items() if value is not None}
    wait = None
    if config is None:
        data = ShardDataModule(**{"batch_size": BATCH_SIZE, "num_workers": WORKERS, **settings})
        data.augment = common_transform
    else:
        data, wait = _train(config, settings, num_batches)
    report = _measure(data, num_batches, wait)
    (print_json if json else print_table)(report)


def _train(
    config: str, settings: dict[str, Any], num_batches: int
) -> tuple[ShardDataModule, float]:
    """A few steps of `fusion fit`; its data, with what prepares them, and the share of waiting."""
    import yaml
    from rich.console import Console

    from fusion.cli.fit import run
    from fusion.tasks.data_wait import DataWait

    try:
        content = yaml.safe_load(Path(config).read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is not YAML ({error}).") from error
    kind = (content.get("data") or {}).get("class_path") if isinstance(content, dict) else None
    if str(kind).rpartition(".")[2] != "ShardDataModule":
        raise ValueError(f"{config} takes its data from {kind}; wanted a ShardDataModule.")
    with tempfile.TemporaryDirectory() as folder, Console(stderr=True).status("Training"):
        overrides = {
            **{f"data.{name}": value for name, value in settings.items()},
            "trainer.default_root_dir": folder,
            "trainer.max_epochs": -1,
            "trainer.max_steps": num_batches + 1,
            "trainer.limit_val_batches": 0,
            "trainer.log_every_n_steps": 1,
            "trainer.callbacks": [{"class_path": f"{DataWait.__module__}.{DataWait.__name__}"}],
            **dict.fromkeys(_OFF, False),
        }
        cli = run(
            "fit",
            ["--config", config, *(f"--{name}={value}" for name, value in overrides.items())],
        )
    data, model = cli.datamodule, cli.model
    data.trainer, data.augment = None, model.augment
    callbacks = getattr(cli.trainer, "callbacks")  # noqa: B009
    (callback,) = (found for found in callbacks if isinstance(found, DataWait))
    return data, callback.share


def _measure(data: ShardDataModule, num_batches: int, data_wait: float | None) -> Report:
    data.setup()
    loader = data.train_dataloader()
    timer = StageTimer(loader)
    with _one_thread():
        _finish(timer.run(num_batches), "Timing the stages", num_batches)
    whole = _finish(time_loader(loader, num_batches), "Timing the loader", num_batches)
    stages = [*timer.stages.values()]
    return Report(
        stages, timer.rate, whole, loader.num_workers, _num_cores(), loader.ledger, data_wait
    )


def _num_cores() -> int:
    """Cores that this process may use; some systems do not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _finish(steps: Iterator[Any], what: str, num_steps: int) -> Any:
    """Runs through all steps with a bar on stderr; returns what the last gave."""
    from rich.console import Console
    from rich.progress import track

    bar = track(steps, what, num_steps, console=Console(stderr=True), transient=True)
    return deque(bar, maxlen=1).pop()


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def common_transform(samples: Sequence[Sample]) -> list[dict[str, dict[str, Tensor]]]:
    """What common towers do with samples: see `bench_data`."""
    return [
        {"inputs": {name: _transform_one(name, raw) for name, raw in sample.inputs.items()}}
        for sample in samples
    ]


def _transform_one(name: str, raw: Any) -> Tensor:
    from encoders.open_clip_tower import ClipPieces
    from encoders.picture import FitPicture
    from encoders.waveform import Waveform

    fit = FitPicture((224, 224))
    if name == "image":
        return fit(raw)
    if name == "text":
        return ClipPieces(77, 500)(raw)
    if name == "audio":
        return Waveform(10.0)(raw)
    if name == "video":
        return torch.cat([fit(frame) for frame in raw[0]])
    return raw
