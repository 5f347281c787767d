"""Captioning: a decoder on top of a trained, frozen model."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from encoders.cache import TokenCache
from fusion.decoder import CaptionDecoder, Memory, memory_of
from fusion.decoding import beam_search
from fusion.model import FusionModel
from fusion.prepare import Preparation
from fusion.tasks.optimization import adamw_with_cosine
from fusion.tokens import select
from fusion.vocabulary import PAD, Vocabulary


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
        self.model = model.requires_grad_(False)
        self.source = tuple(source.split("+"))
        self.vocabulary = Vocabulary(vocabulary_size)
        self.decoder = CaptionDecoder(model.dim, vocabulary_size)
        self.prepare = Preparation(model.encoders, TokenCache(cache))  # pyright: ignore
        if init_from is not None:
            self._load(init_from)

    def _load(self, path: str) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        prefix = "model."
        self.model.load_state_dict(
            {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
        )

    def train(self, mode: bool = True) -> "CaptionTask":
        """Sets the mode of the decoder; the frozen model stays in eval mode."""
        super().train(mode)
        self.model.eval()
        return self

    def on_fit_start(self) -> None:
        """Learns the vocabulary from the training captions, unless a checkpoint brought one."""
        if self.trainer.ckpt_path is None:
            captions = {sample["caption"] for sample in self.trainer.datamodule.train_samples}
            self.vocabulary.learn(self.sentence(caption) for caption in captions)

    def memory(self, batch: dict[str, Any]) -> tuple[Memory, Tensor]:
        """What the decoder attends to, and which samples (B,) have the source modalities.

        The memory holds those samples only.
        """
        tokens = self.model.encode(batch, self.source)
        rows = torch.stack([part.mask.any(1) for part in tokens.values()]).all(0)
        fused = self.model.fuse({name: select(part, rows) for name, part in tokens.items()})
        return memory_of(fused, self.model.pool(fused)), rows

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
            memory, rows = self.memory(batch)
        wanted = [c for c, kept in zip(batch["captions"], rows.tolist(), strict=True) if kept]
        longest = self.decoder.max_pieces
        coded = [self.vocabulary.encode(self.sentence(text), longest) for text in wanted]
        pieces = pad_sequence([torch.tensor(ids) for ids in coded], batch_first=True)
        pieces = pieces.to(memory.values.device)
        logits = self.decoder(pieces[:, :-1], memory)
        return F.cross_entropy(
            logits.flatten(0, 1),
            pieces[:, 1:].flatten(),
            ignore_index=PAD,
            label_smoothing=label_smoothing,
        )

    def write(self, batch: dict[str, Any], num_beams: int = 4) -> list[str | None]:
        """A caption for each sample; None for those without the source modalities."""
        with torch.no_grad():
            memory, rows = self.memory(batch)
        pieces: Sequence[list[int]] = beam_search(self.decoder, memory, num_beams).tolist()
        written = iter(pieces)
        return [self.vocabulary.decode(next(written)) if kept else None for kept in rows.tolist()]

    def sentence(self, caption: str) -> str:
        """The part of a caption that is learned and written."""
        return caption.split(self.hparams["cut_at"])[0] if self.hparams["cut_at"] else caption

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and cosine decay over the whole run."""
        return adamw_with_cosine(
            self.decoder.parameters(),
            self.hparams["lr"],
            self.hparams["weight_decay"],
            num_warmup=20,
            num_steps=int(self.trainer.estimated_stepping_batches),
        )
