"""A contrastive run and a captioning run, trained by the real command line; a folder of media."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
from PIL import Image

from fusion.cli.main import main

CONFIG = Path(__file__).parents[2] / "configs" / "scratch.yaml"


class Runs(NamedTuple):
    contrastive: Path
    captioning: Path


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(scope="session")
def runs(tiny_shard, tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    common = ["fit", "--config", str(CONFIG), f"--data.train=['{tiny_shard}']", *quiet]
    common += ["--trainer.max_epochs=1", "--trainer.logger=false"]
    describe = ["--model=CaptionTask", "--model.init_from=runs/scratch/model.ckpt"]
    describe += ["--model.vocabulary_size=300", "--trainer.callbacks.dirpath=runs/captioning"]
    with working_in(folder):
        assert main(common) == 0
        assert main([*common, *describe]) == 0
    return Runs(folder / "runs" / "scratch", folder / "runs" / "captioning")


@pytest.fixture
def media(tmp_path) -> Path:
    """Pictures and recordings in every format a user is promised, and files that are not."""
    folder = tmp_path / "media"
    (folder / "sounds").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "c.webp"):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / "a.txt").write_text("A [bold]red\x1b[31m ball.")
    for name in ("d.wav", "e.ogg", "f.flac"):
        soundfile.write(folder / "sounds" / name, rng.normal(size=4000) * 0.1, 16000)
    return folder
