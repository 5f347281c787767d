"""`fusion quickstart`: train, evaluate, caption, index and report on the sample data."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

SOURCES = ("stamps", "clipart", "emoji")
MARK = ".quickstart"  # a folder with this file may be cleared


def quickstart(
    out: str = "runs/quickstart",
    seed: int = 0,
    cache: str = ".cache/tokens",
    overwrite: bool = False,
) -> None:
    """Trains on the sample pictures, captions and speech, then evaluates and writes a report.

    Takes about seven minutes on two cores the first time. Opens nothing on the network.
    Example: fusion quickstart --out runs/quickstart --seed 0

    Args:
        out: run folder: model.ckpt, metrics.jsonl, summary.json, report.html, scorecard.html
            and the index.
        seed: of the split by caption, the weights and the order of training.
        cache: folder that keeps the tokens of the frozen towers between runs.
        overwrite: replace a quickstart run that is in the folder already.

    Raises:
        ValueError: if the run folder holds something that is not a run, or may not be replaced.
    """
    run = Path(out)
    _make_room(run, overwrite)
    seconds: dict[str, float] = {}
    with _stage("load", seconds):
        from fusion.cli.stages import Session

        for name in ("lightning.pytorch", "lightning.fabric"):  # after the import, which resets it
            logging.getLogger(name).setLevel(logging.WARNING)
        session = Session(_settings(), run, seed, Path(cache))
    with _stage("prepare", seconds):
        session.data.setup("fit")
    with _stage("train", seconds):
        session.train()
    with _stage("train captions", seconds):
        session.train_captions()
    with _stage("evaluate", seconds):
        results = session.evaluate()
    with _stage("caption", seconds):
        captions = session.caption()
    with _stage("index", seconds):
        session.index()
    with _stage("report", seconds):
        from fusion.cli.findings import write_findings

        _write_jsonl(run)
        write_findings(session, results, captions, seconds)
    print(f"\nReport: {run / 'report.html'}\nScorecard: {run / 'scorecard.html'}")
    print(f'Search: fusion search {run} "a red flower"')


def _settings() -> dict[str, Any]:
    text = resources.files("fusion.cli").joinpath("quickstart.yaml").read_text()
    return yaml.safe_load(text)


def sample_shards() -> list[str]:
    """Paths of the shards that come with the package."""
    folder = resources.files("datamodules") / "sample_data"
    return [str(folder / f"{source}-000000.tar.gz") for source in SOURCES]


def _make_room(run: Path, overwrite: bool) -> None:
    """Makes the run folder, clearing an earlier quickstart and nothing else."""
    if run.exists() and not (run.is_dir() and ((run / MARK).exists() or not any(run.iterdir()))):
        raise ValueError(f"{run} exists and is not a run of the quickstart; give another --out.")
    if (run / MARK).exists():
        if not overwrite:
            raise ValueError(f"{run} holds a run already; give another --out, or --overwrite.")
        shutil.rmtree(run)
    run.mkdir(parents=True, exist_ok=True)
    (run / MARK).touch()


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"-- {name}", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)


def _write_jsonl(run: Path) -> None:
    """The metrics of both trainings, a line for each logged step, as metrics.jsonl."""
    lines = []
    for stage in ("contrastive", "captioning"):
        with open(run / "logs" / stage / "metrics.csv", newline="") as file:
            for row in csv.DictReader(file):
                values = {k: float(v) for k, v in row.items() if v not in ("", None)}
                lines.append(json.dumps({"stage": stage, **values, "step": int(values["step"])}))
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
