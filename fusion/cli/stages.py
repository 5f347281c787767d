"""The stages of the quickstart, on the public parts: tasks, data module, LightningCLI."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch.cli import LightningCLI

from datamodules.memory import MemoryDataModule
from datamodules.samples import Sample, collate
from datamodules.shards import read_shards
from encoders.base import bare
from fusion.alignment import Alignment
from fusion.block import FusionBlock
from fusion.checkpoint import restore
from fusion.cli.index import entry_of
from fusion.cli.quickstart import sample_shards
from fusion.evaluation import (
    Embedded,
    LinearBaseline,
    embed_subsets,
    needed_subsets,
    score_directions,
)
from fusion.metrics import RetrievalScores
from fusion.model import FusionModel
from fusion.report import Picture, Recording
from fusion.retrieval import LanceIndex
from fusion.subsets import all_directions
from fusion.tasks import CaptionTask, ContrastiveTask

INDEXED_TOGETHER = 1024  # samples


def keep_freed_memory() -> None:
    """Lets glibc keep large blocks instead of giving them back to the system at once.

    Training on the CPU asks for the same few large blocks at every step; getting them anew, page
    by page, took a quarter of the time. Elsewhere than on glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


class Results(NamedTuple):
    """Evaluation on the held-out samples.

    Attributes:
        trained: recall of each direction.
        baseline: recall of the linear baseline.
        shuffled: recall on shuffled pairs.
        embedded: embeddings of each subset.
        groups: (S,) caption groups of the samples.
    """

    trained: Mapping[str, RetrievalScores]
    baseline: Mapping[str, RetrievalScores]
    shuffled: Mapping[str, RetrievalScores]
    embedded: Mapping[tuple[str, ...], Embedded]
    groups: torch.Tensor


class Session:
    """One quickstart: its data, its trained tasks and where they go.

    Args:
        settings: content of quickstart.yaml.
        run: run folder.
        seed: of everything.
        cache: folder of the token cache.
    """

    def __init__(self, settings: dict[str, Any], run: Path, seed: int, cache: Path) -> None:
        self.settings, self.run, self.seed, self.cache = settings, run, seed, cache
        self._cli = self._build(ContrastiveTask, "contrastive", settings["model"], {})
        self.data: MemoryDataModule = self._cli.datamodule
        self.data.prepare = self._cli.model.prepare
        self.captioner: CaptionTask | None = None  # after train_captions

    def _build(
        self, task: type, stage: str, model: Mapping[str, Any], extra: Mapping[str, Any]
    ) -> LightningCLI:
        """A task with its trainer, made from a plain config as `fusion fit` would."""
        config = {
            "seed_everything": self.seed,
            "model": {"model": model, "cache": str(self.cache), **self.settings[stage], **extra},
            "data": {"train": sample_shards(), "seed": self.seed, **self.settings["data"]},
            "trainer": {
                "accelerator": "cpu",
                "devices": 1,
                "enable_model_summary": False,
                "enable_checkpointing": False,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 5,
                "default_root_dir": str(self.run),
                "logger": {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": {"save_dir": str(self.run), "name": "logs", "version": stage},
                },
                "callbacks": [{"class_path": "lightning.pytorch.callbacks.RichProgressBar"}],
                **self.settings[f"{stage}_trainer"],
            },
        }
        return LightningCLI(
            task, MemoryDataModule, args=config, run=False, save_config_callback=None
        )

    @property
    def model(self) -> FusionModel:
        """The trained model."""
        return self._cli.model.model

    @property
    def align(self) -> Alignment:
        """How pictures and words were brought together before anything was fused."""
        return self._cli.model.align

    @property
    def tol(self) -> float:
        """Residual at which the first block's iteration stops."""
        return cast(FusionBlock, self.model.blocks[0]).solver.tol

    def train(self) -> None:
        """Contrastive training; leaves contrastive.ckpt."""
        keep_freed_memory()
        self._cli.trainer.fit(self._cli.model, datamodule=self.data)
        self._cli.trainer.save_checkpoint(self.run / "contrastive.ckpt", weights_only=True)

    def train_captions(self) -> None:
        """Trains the decoder on the frozen model; leaves model.ckpt with both in it."""
        first = self.run / "contrastive.ckpt"
        with bare():  # the checkpoint brings the towers' weights
            cli = self._build(
                CaptionTask, "captioning", self.settings["model"], {"init_from": str(first)}
            )
        self.data.batch_size = self.settings["captioning_batch_size"]
        cli.trainer.fit(cli.model, datamodule=self.data)
        cli.trainer.save_checkpoint(self.run / "model.ckpt", weights_only=True)
        first.unlink()  # model.ckpt holds all of it
        self.captioner = cli.model.eval()

    def evaluate(self) -> Results:
        """Every direction on the held-out samples, the baseline and the control."""
        directions = all_directions(self.model.modalities)
        held_out = list(self.data.val_dataloader())
        embedded, groups = embed_subsets(self.model, held_out, needed_subsets(directions))
        generator = torch.Generator().manual_seed(self.seed)
        return Results(
            score_directions(embedded, groups, directions),
            LinearBaseline("image", "text").score(self.data.train_batches(), held_out),
            score_directions(embedded, groups, directions, generator),
            embedded,
            groups,
        )

    def caption(self) -> list[str]:
        """A caption for each held-out sample."""
        assert self.captioner is not None
        written: list[str] = []
        for batch in self.data.val_dataloader():
            written += [text or "" for text in self.captioner.captioner.write(batch)]
        return written

    def index(self) -> None:
        """All pictures of the sample data, by the tokens that are there already."""
        samples = [
            s for s in (*self.data.train_samples, *self.data.val_samples) if "image" in s["inputs"]
        ]
        rows = []
        with torch.no_grad():
            for start in range(0, len(samples), INDEXED_TOGETHER):
                batch = collate(samples[start : start + INDEXED_TOGETHER])
                rows.append(self.model.embed(batch, ("image",)))
        shown = [
            Sample(s["key"], s.get("shard", ""), {"image": b""}, (s["caption"],)) for s in samples
        ]
        entries = [entry_of(sample, ("image",)) for sample in shown]
        fingerprint = restore(self.run / "model.ckpt").fingerprint
        LanceIndex(self.run / "index", self.model.dim, fingerprint).add(
            [entry.key for entry in entries], torch.cat(rows), [entry.metadata for entry in entries]
        )

    def sentence(self, caption: str) -> str:
        """The part of a caption that the decoder learns to write."""
        assert self.captioner is not None
        return self.captioner.sentence(caption)

    def references(self) -> list[list[str]]:
        """For each held-out sample, the true captions of all held-out samples of its group."""
        by_group: dict[int, list[str]] = {}
        for sample in self.data.val_samples:
            by_group.setdefault(sample["group_id"], []).append(self.sentence(sample["caption"]))
        return [sorted(set(by_group[sample["group_id"]])) for sample in self.data.val_samples]

    def pictures(self) -> dict[str, Picture]:
        """The picture files of the held-out samples by key."""
        return {
            key: Picture(data, sample.caption)
            for key, sample in self._raw_held_out.items()
            if isinstance(data := sample.inputs.get("image"), bytes)
        }

    def recordings(self) -> dict[str, Recording]:
        """The speech files of the held-out samples by key."""
        return {
            key: Recording(data, sample.meta.get("caption", {}).get("fr", sample.caption))
            for key, sample in self._raw_held_out.items()
            if isinstance(data := sample.inputs.get("audio"), bytes)
        }

    @cached_property
    def _raw_held_out(self) -> dict[str, Sample]:
        wanted = {sample["key"] for sample in self.data.val_samples}
        shards = sample_shards()[:1]  # stamps, the only source that is held out
        return {s.key: s for s in read_shards(shards, rejected=[]) if s.key in wanted}
