"""Contrastive training over disjoint subsets of modalities."""

import math
from typing import Any

import torch
from lightning import Callback, LightningModule
from rich.progress import track
from torch import Tensor, nn

from encoders.cache import TokenCache
from fusion.alignment import Alignment
from fusion.evaluation import embed_subsets, needed_subsets, score_directions
from fusion.losses import contrastive_loss
from fusion.model import FusionModel
from fusion.optimization import adamw_with_cosine
from fusion.prepare import Preparation
from fusion.subsets import Direction, all_directions, parse_direction
from fusion.tasks.data_wait import DataWait
from fusion.tasks.saving import without_modules
from fusion.tasks.step_seed import StepSeed
from fusion.tokens import Tokens, select

MAX_LOGIT_SCALE = 100.0
LOGGED_EVERY = 5  # steps of the alignment


class ContrastiveTask(LightningModule):
    """Brings the embeddings of disjoint subsets of a sample's modalities together.

    Query and target are fused in separate passes, so that neither has seen the other. A sample
    that lacks a modality takes no part in directions that ask for it, neither as query nor as
    negative.

    Args:
        model: the model.
        directions: direction, such as "image+audio->text", to the share of steps that train it;
            None trains every direction of single modalities and of pairs at every step.
        align: how frozen encoders are brought together before the first step; None is a random
            start of all projections.
        lr: highest learning rate.
        weight_decay: of weight matrices.
        num_warmup: steps of warm-up.
        logit_scale: first multiplier of the cosines; it is learned, up to 100.
        cache: folder for the tokens of frozen encoders.
    """

    def __init__(
        self,
        model: FusionModel,
        directions: dict[str, float] | None = None,
        align: Alignment | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        num_warmup: int = 20,
        logit_scale: float = 20.0,
        cache: str = ".cache/tokens",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = model
        shares = directions or {str(d): 1.0 for d in all_directions(model.modalities)}
        self.shares = {parse_direction(name): share for name, share in shares.items()}
        self.align = align
        for name in model.frozen if align is not None else ():
            # The linear part stays: training it too gained nothing (docs/log.md).
            model.projection(name).linear.requires_grad_(False)
        for name in self.held:
            model.projection(name).requires_grad_(False)
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale)))
        self.prepare = Preparation(model.encoders, TokenCache(cache))
        self.transform, self.augment = self.prepare.transform, self.prepare.augment

    @property
    def held(self) -> tuple[str, ...]:
        """Modalities whose projections were trained by the alignment and hold still after it."""
        return self.model.frozen if self.align is not None and self.align.num_steps else ()

    def train(self, mode: bool = True) -> "ContrastiveTask":
        """Sets the mode; projections that hold still drop nothing out."""
        super().train(mode)
        for name in self.held:
            self.model.projection(name).eval()
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that have a tower."""
        return self.model.modalities

    def configure_callbacks(self) -> list[Callback]:
        """Steps that resume exactly, and the share of time that waits for data."""
        return [StepSeed(), DataWait()]

    def on_fit_start(self) -> None:
        """Aligns the frozen encoders, unless a checkpoint was loaded.

        Raises:
            ValueError: the data module does not have all training samples at hand.
        """
        if self.align is None or self.trainer.ckpt_path is not None:
            return
        datamodule: Any = getattr(self.trainer, "datamodule")  # noqa: B009
        if not hasattr(datamodule, "train_batches"):
            raise ValueError(
                f"align reads all training samples before the first step, and "
                f"{type(datamodule).__name__} streams them; use MemoryDataModule, or align: null"
            )
        steps = self.align.fit(self.model, list(datamodule.train_batches()), self.log_logit_scale)
        quiet = self.trainer.progress_bar_callback is None
        bar = track(steps, "Aligning", total=self.align.num_steps, disable=quiet)
        for step, loss in enumerate(bar):
            if self.logger is not None and step % LOGGED_EVERY == 0:
                self.logger.log_metrics({"loss/alignment": float(loss)}, step)

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        """Sums the losses of the directions drawn for this step."""
        drawn = self._draw()
        names = [m for m in self.model.modalities if any(m in d.query + d.target for d in drawn)]
        tokens = self.model.encode(batch, [name for name in names if name in batch["inputs"]])
        fixed = {name: tokens[name].detach() for name in tokens}
        total = self.log_logit_scale.new_zeros(())
        for direction in drawn:
            learning = self._learning(direction)
            seen = {name: tokens[name] if name in learning else fixed[name] for name in tokens}
            loss = self._loss(direction, seen, batch["group_id"])
            if loss is not None:
                self.log(f"loss/{direction}", loss, batch_size=len(batch["group_id"]))
                total = total + loss
        self.log("loss", total, prog_bar=True, batch_size=len(batch["group_id"]))
        self.log("logit_scale", self._logit_scale(), batch_size=1)
        return total

    def _draw(self) -> list[Direction]:
        """The directions of one step, each with its share as probability, at least one."""
        draws = torch.rand(len(self.shares)).tolist()
        drawn = [d for (d, s), u in zip(self.shares.items(), draws, strict=True) if u < s]
        return drawn or [max(self.shares, key=lambda d: self.shares[d])]

    def _learning(self, direction: Direction) -> set[str]:
        """The modalities whose towers a direction trains.

        Those that train from scratch, if the direction has any: they come to meet the modalities
        that are aligned already, which would else be pulled about by the newcomers' noise.
        """
        names = set(direction.query + direction.target)
        scratch = names.difference(self.model.frozen)
        return scratch or names

    def _loss(
        self, direction: Direction, tokens: dict[str, Tokens], group_id: Tensor
    ) -> Tensor | None:
        """InfoNCE among the samples that have all modalities of both sides; None below two."""
        needed = direction.query + direction.target
        if not set(needed) <= set(tokens):
            return None
        rows = torch.stack([tokens[name].mask.any(1) for name in needed]).all(0)
        if rows.sum() < 2:
            return None
        query, target = (
            self.model.embed_tokens({name: select(tokens[name], rows) for name in subset})
            for subset in direction
        )
        return contrastive_loss(query, target, self._logit_scale(), group_id[rows])

    def _logit_scale(self) -> Tensor:
        return self.log_logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)

    def on_validation_epoch_start(self) -> None:
        """Forgets the batches of the last validation."""
        self._held_out: list[dict[str, Any]] = []

    def validation_step(self, batch: dict[str, Any]) -> None:
        """Keeps the batch: retrieval is scored over the whole held-out set."""
        self._held_out.append(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs recall of every direction and what the iteration did."""
        directions = all_directions(self.model.modalities)
        embedded, groups = embed_subsets(self.model, self._held_out, needed_subsets(directions))
        for name, scores in score_directions(embedded, groups, directions).items():
            self.log(f"val/{name}/R@1", scores.recall_at_1)
            self.log(f"val/{name}/R@10", scores.recall_at_10)
        stats = next(iter(embedded.values())).stats
        self.log("val/num_iters", stats.num_iters.float().mean())
        self.log("val/converged", stats.converged.float().mean())
        self._held_out = []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the file loadable with `weights_only=True`; see `without_modules`."""
        without_modules(checkpoint)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and cosine decay over the whole run."""
        return adamw_with_cosine(
            self.parameters(),
            self.hparams["lr"],
            self.hparams["weight_decay"],
            self.hparams["num_warmup"],
            int(self.trainer.estimated_stepping_batches),
        )
