"""Contrastive training over disjoint subsets of modalities."""

from typing import Any

import torch
from lightning import Callback, LightningModule
from rich.progress import track
from torch import Tensor
from torch.optim import Optimizer

from encoders.cache import TokenCache
from fusion.alignment import Alignment
from fusion.evaluation import embed_subsets, needed_subsets, score_directions
from fusion.losses import ContrastiveLoss, InfoNCE, Rows
from fusion.model import FusionModel
from fusion.optimization import adamw_with_cosine
from fusion.prepare import Preparation
from fusion.safeguards import clip_apart
from fusion.subsets import Direction, all_directions, parse_direction
from fusion.tasks.data_wait import DataWait
from fusion.tasks.finite_steps import FiniteSteps
from fusion.tasks.ranks import check_strategy, share_weights
from fusion.tasks.saving import without_modules
from fusion.tasks.step_seed import StepSeed
from fusion.tokens import Tokens, select

LOGGED_EVERY = 5  # steps of the alignment


class ContrastiveTask(LightningModule):
    """Brings the embeddings of disjoint subsets of a sample's modalities together.

    Query and target are fused in separate passes, so that neither has seen the other. A sample
    that lacks a modality takes no part in directions that ask for it, neither as query nor as
    negative. On several ranks all of them draw the same directions, and the samples of all are each
    other's negatives, whichever modalities each rank has.

    Args:
        model: the model.
        loss: what brings embeddings together, with one temperature or one for each direction; None
            is `InfoNCE` at its defaults.
        directions: direction, such as "image+audio->text", to the share of steps that train it;
            None trains every direction of single modalities and of pairs at every step.
        align: how frozen encoders are brought together before the first step; None is a random
            start of all projections.
        lr: highest learning rate.
        weight_decay: of weight matrices.
        num_warmup: steps of warm-up.
        cache: folder for the tokens of frozen encoders.

    Raises:
        ValueError: if the loss has another number of temperatures.
    """

    def __init__(
        self,
        model: FusionModel,
        loss: ContrastiveLoss | None = None,
        directions: dict[str, float] | None = None,
        align: Alignment | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        num_warmup: int = 20,
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
        self.loss = InfoNCE() if loss is None else loss
        if (num := len(self.loss.log_logit_scale)) not in (1, len(self.shares)):
            raise ValueError(
                f"Got a loss with {num} temperatures for {len(self.shares)} directions; give "
                "num_temperatures: 1, or one for each direction."
            )
        self.step_seed = StepSeed()
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
        """Steps that resume exactly and are finite, and the share of time that waits for data."""
        return [self.step_seed, FiniteSteps(), DataWait()]

    def on_fit_start(self) -> None:
        """Aligns the frozen encoders, unless a checkpoint was loaded.

        Raises:
            ValueError: the data module does not have all training samples at hand, or the strategy
                waits for gradients that are not made.
        """
        check_strategy(self.trainer)
        if self.align is None or self.trainer.ckpt_path is not None:
            return
        datamodule: Any = getattr(self.trainer, "datamodule")  # noqa: B009
        if not hasattr(datamodule, "train_batches"):
            raise ValueError(
                f"align reads all training samples before the first step, and "
                f"{type(datamodule).__name__} streams them; use MemoryDataModule, or align: null"
            )
        scales, batches = self.loss.log_logit_scale, list(datamodule.train_batches())
        steps = self.align.fit(self.model, batches, scales)
        quiet = self.trainer.progress_bar_callback is None
        bar = track(steps, "Aligning", total=self.align.num_steps, disable=quiet)
        for step, loss in enumerate(bar):
            if self.logger is not None and step % LOGGED_EVERY == 0:
                self.logger.log_metrics({"loss/alignment": float(loss)}, step)
        share_weights(self)  # each rank drew its own samples

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        """Sums the losses of the directions drawn for this step."""
        drawn, num = self._draw(), len(batch["group_id"])
        needed = {name for direction in drawn for side in direction for name in side}
        names = [m for m in self.model.modalities if m in needed and m in batch["inputs"]]
        tokens = self.model.encode(batch, names)
        fixed = {name: tokens[name].detach() for name in tokens}
        total = torch.zeros((), device=batch["group_id"].device)
        for index, direction in enumerate(self.shares):
            if direction in drawn:
                learning = self._learning(direction)
                seen = {name: tokens[name] if name in learning else fixed[name] for name in tokens}
                loss = self.loss(*self.sides(direction, seen, batch["group_id"]), index)
                self.log(f"loss/{direction}", loss, batch_size=num, sync_dist=True)
                total = total + loss
        self.log("loss", total, prog_bar=True, batch_size=num, sync_dist=True)
        self.log("logit_scale", self.loss.log_logit_scale.detach().exp().mean(), batch_size=1)
        return total

    def _draw(self) -> list[Direction]:
        """The directions of one step, each with its share as probability, at least one."""
        draws = torch.rand(len(self.shares), generator=self.step_seed.shared).tolist()
        drawn = [d for (d, s), u in zip(self.shares.items(), draws, strict=True) if u < s]
        return drawn or [max(self.shares, key=lambda d: self.shares[d])]

    def _learning(self, direction: Direction) -> set[str]:
        """The modalities whose towers a direction trains.

        Those that train from scratch, if the direction has any: they come to meet the modalities
        that are aligned already, which would else be pulled about by the newcomers' noise.
        """
        names = set(direction.query + direction.target)
        return names.intersection(self.model.newcomers) or names

    def sides(
        self, direction: Direction, tokens: dict[str, Tokens], group_id: Tensor
    ) -> tuple[Rows, Rows]:
        """Query and target embeddings of the samples that have all modalities of both.

        Args:
            direction: the direction.
            tokens: modality to encoded tokens of B samples; one that no sample has may be missing.
            group_id: (B,) equal ids are positives.

        Returns:
            Two sides of one number of rows, 0 if there is no such sample.
        """
        needed = direction.query + direction.target
        rows = torch.zeros_like(group_id, dtype=torch.bool)
        if set(needed) <= set(tokens):
            rows = torch.stack([tokens[name].mask.any(1) for name in needed]).all(0)
        if not rows.any():
            weight = self.model.projection(needed[0]).linear.weight
            nothing = Rows(weight.new_zeros(0, self.model.dim), group_id[:0])
            return nothing, nothing
        ids = group_id[rows]
        query, target = (
            self.model.embed_tokens({name: select(tokens[name], rows) for name in side})
            for side in direction
        )
        return Rows(query, ids), Rows(target, ids)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips towers and loss apart, each to the trainer's `gradient_clip_val`."""
        if gradient_clip_algorithm == "value":  # entry by entry: apart as it is
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip_apart(self, gradient_clip_val)

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
