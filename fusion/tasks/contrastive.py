"""Contrastive training over disjoint subsets of modalities."""

from typing import Any

import torch
from lightning import Callback, LightningModule
from rich.progress import track
from torch import Tensor
from torch.optim import Optimizer

from encoders.cache import TokenCache
from fusion.alignment import Alignment
from fusion.losses import ContrastiveLoss, InfoNCE
from fusion.model import FusionModel
from fusion.optimization import AdamWithCosine
from fusion.prepare import Preparation
from fusion.safeguards import clip_apart
from fusion.subsets import Direction, all_directions, parse_direction
from fusion.tasks.data_wait import DataWait
from fusion.tasks.finite_steps import FiniteSteps
from fusion.tasks.pairing import Pairing
from fusion.tasks.preemption import Preemption
from fusion.tasks.ranks import check_strategy, share_weights
from fusion.tasks.saving import check_finite, without_modules
from fusion.tasks.sharding import MESH, average_gradients, is_sharded, shard
from fusion.tasks.step_seed import StepSeed
from fusion.tasks.validation import HeldOutScores

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
        align: how pretrained encoders are brought together before the first step; None is a random
            start of all projections.
        lr: highest learning rate.
        pairing: how a batch becomes queries and targets: in parts, with modalities hidden; None is
            `Pairing` at its defaults.
        optimizer: weight decay and warm-up; None is `AdamWithCosine` at its defaults.
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
        pairing: Pairing | None = None,
        optimizer: AdamWithCosine | None = None,
        cache: str = ".cache/tokens",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = model
        shares = directions or {str(d): 1.0 for d in all_directions(model.modalities)}
        self.shares = {parse_direction(name): share for name, share in shares.items()}
        self.align, self.pairing = align, pairing or Pairing()
        self.optimizer = optimizer or AdamWithCosine()
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
        self.step_seed, self.held_out = StepSeed(), HeldOutScores(list(self.shares))
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
        """Exact resume, finite steps, held-out scores, the wait for data, saving when stopped."""
        return [self.step_seed, FiniteSteps(), DataWait(), self.held_out, Preemption()]

    def configure_model(self) -> None:
        """Splits the model over ranks, where the strategy has a mesh of them."""
        if self.device_mesh is not None and not is_sharded(self.model):
            self.to(self.trainer.strategy.root_device)  # NCCL sends nothing that is on the CPU
            share_weights(self)
            shard(self.model, self.device_mesh[MESH])

    def on_after_backward(self) -> None:
        """Averages the gradients that a split model leaves to each rank."""
        if is_sharded(self.model):
            average_gradients(self.loss)

    def on_fit_start(self) -> None:
        """Aligns the pretrained encoders, unless a checkpoint was loaded.

        Raises:
            ValueError: the data module does not have all training samples at hand, or the strategy
                does not fit the task.
        """
        check_strategy(self.trainer)
        if self.align is None or self.trainer.ckpt_path is not None:
            return
        if is_sharded(self.model):
            raise ValueError(
                "align needs all weights on each rank, and this strategy splits them; set align: "
                "null, or trainer.strategy to ddp_find_unused_parameters_true."
            )
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
        names, total = list(self.shares), torch.zeros((), device=batch["group_id"].device)
        for direction, sides in zip(drawn, self.pairing(self.model, batch, drawn), strict=True):
            loss = self.loss(*sides, names.index(direction))
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

    def validation_step(self, batch: dict[str, Any]) -> None:
        """Embeds the batch: retrieval is scored over the whole held-out set."""
        self.held_out.add(batch)

    def test_step(self, batch: dict[str, Any]) -> None:
        """Embeds the batch in all the ways that the scorecard asks for."""
        self.held_out.add(batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses weights that are not finite, and keeps the file loadable with `weights_only`."""
        check_finite(self)
        without_modules(checkpoint)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and cosine decay over the whole run."""
        return self.optimizer.make(
            self.parameters(), self.hparams["lr"], int(self.trainer.estimated_stepping_batches)
        )
