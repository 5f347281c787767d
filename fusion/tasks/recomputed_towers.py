"""Less memory for activations of large towers."""

from collections.abc import Sequence
from typing import Any, cast, final

from lightning import Callback, LightningModule, Trainer

from encoders.base import Encoder


@final
class RecomputedTowers(Callback):
    """Recomputes the hidden states of towers in the backward pass instead of keeping them all.

    It trades a third more computing for memory and changes no gradient; see
    `encoders.base.Encoder.checkpoint_gradients`. Frozen towers keep no hidden states anyway.

    Args:
        modalities: whose towers; None is all that train.
    """

    def __init__(self, modalities: Sequence[str] | None = None) -> None:
        self.modalities = modalities

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sets the towers up, before a strategy wraps them.

        Raises:
            ValueError: if a modality is unknown or its tower frozen, or if a tower has no layers
                for it.
        """
        if stage != "fit":
            return
        model = cast(Any, pl_module).model
        trained = [name for name in model.modalities if name not in model.frozen]
        chosen = trained if self.modalities is None else self.modalities
        if unknown := [name for name in chosen if name not in trained]:
            raise ValueError(
                f"Got modalities to recompute {', '.join(unknown)}; those with a tower that trains "
                f"are {', '.join(trained) or 'none'}."
            )
        for name in chosen:
            cast(Encoder, model.encoders[name]).checkpoint_gradients()
