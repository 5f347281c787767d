"""Captioning: a decoder on top of a trained, frozen model."""

from typing import Any

import torch
from lightning import Callback, LightningModule
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from encoders.cache import TokenCache
from fusion.captioner import Captioner
from fusion.model import FusionModel
from fusion.optimization import AdamWithCosine
from fusion.prepare import Preparation
from fusion.tasks.data_wait import DataWait
from fusion.tasks.finite_steps import FiniteSteps
from fusion.tasks.preemption import Preemption
from fusion.tasks.saving import check_finite, without_modules
from fusion.tasks.step_seed import StepSeed
from fusion.vocabulary import PAD


class CaptionTask(LightningModule):
    """Learns to write the caption of what a frozen model has fused.

    Freezing keeps retrieval as it was: captioning cannot spoil it.

    Args:
        model: the model; its weights usually come from `init_from`.
        init_from: checkpoint of a trained `ContrastiveTask` with the same model; None keeps the
            weights as they are.
        source: modalities that are described, such as "image" or "image+audio".
        cut_at: captions end before this mark; what follows it are search words, not a sentence.
        lr: highest learning rate.
        weight_decay: of weight matrices.
        vocabulary_size: word pieces of the decoder.
        cache: folder for the tokens of frozen encoders.
    """

    def __init__(
        self,
        model: FusionModel,
        init_from: str | None = None,
        source: str = "image",
        cut_at: str = " : ",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        vocabulary_size: int = 4096,
        cache: str = ".cache/tokens",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.captioner = Captioner(model.requires_grad_(False), source, vocabulary_size)
        self.prepare = Preparation(model.encoders, TokenCache(cache))
        self.transform, self.augment = self.prepare.transform, self.prepare.augment
        if init_from is not None:
            self._load(init_from)

    def _load(self, path: str) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        prefix = "model."
        self.captioner.model.load_state_dict(
            {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
        )

    def train(self, mode: bool = True) -> "CaptionTask":
        """Sets the mode of the decoder; the frozen model stays in eval mode."""
        super().train(mode)
        self.captioner.model.eval()
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that have a tower."""
        return self.captioner.model.modalities

    def configure_callbacks(self) -> list[Callback]:
        """Steps that resume exactly and are finite, the wait for data, saving when told to stop."""
        return [StepSeed(), FiniteSteps(), DataWait(), Preemption()]

    def on_fit_start(self) -> None:
        """Learns the vocabulary from the training captions, unless a checkpoint brought one."""
        if self.trainer.ckpt_path is None:
            datamodule: Any = getattr(self.trainer, "datamodule")  # noqa: B009
            captions = set(datamodule.captions())
            self.captioner.vocabulary.learn(self.sentence(caption) for caption in captions)

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        """Cross-entropy of the next piece."""
        loss = self._loss(batch, label_smoothing=0.1)
        self.log("caption_loss", loss, prog_bar=True, batch_size=len(batch["captions"]))
        return loss

    def validation_step(self, batch: dict[str, Any]) -> None:
        """Cross-entropy on held-out captions."""
        loss = self._loss(batch, label_smoothing=0.0)
        self.log("val/caption_loss", loss, batch_size=len(batch["captions"]))

    def _loss(self, batch: dict[str, Any], label_smoothing: float) -> Tensor:
        with torch.no_grad():
            memory, rows = self.captioner.memory(batch)
        wanted = [c for c, kept in zip(batch["captions"], rows.tolist(), strict=True) if kept]
        decoder, vocabulary = self.captioner.decoder, self.captioner.vocabulary
        coded = [vocabulary.encode(self.sentence(text), decoder.max_pieces) for text in wanted]
        pieces = pad_sequence([torch.tensor(ids) for ids in coded], batch_first=True)
        pieces = pieces.to(memory.values.device)
        following = pieces[:, 1:]
        real = following != PAD  # scoring a vocabulary at padding would be most of the work
        logits = decoder.logits(decoder.states(pieces[:, :-1], memory)[real])
        return F.cross_entropy(logits, following[real], label_smoothing=label_smoothing)

    def sentence(self, caption: str) -> str:
        """The part of a caption that is learned and written."""
        return caption.split(self.hparams["cut_at"])[0] if self.hparams["cut_at"] else caption

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses weights that are not finite, and keeps the file loadable with `weights_only`."""
        check_finite(self)
        without_modules(checkpoint)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and cosine decay over the whole run."""
        return AdamWithCosine(self.hparams["weight_decay"]).make(
            self.captioner.decoder.parameters(),
            self.hparams["lr"],
            int(self.trainer.estimated_stepping_batches),
        )
