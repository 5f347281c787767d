"""The contract every encoder keeps: raw input in, tokens with mask and position out.

Letters: B batch, L input length (pictures, word pieces, frames), N tokens.
"""

import hashlib
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from encoders.lora import add_adapters

TrainMode = Literal["frozen", "lora", "full", "scratch"]
"""How a tower with pretrained weights takes part in training: not at all, through LoRA adapters,
with all its weights, or with all of them from a random start, its pretrained weights unread."""

_bare: ContextVar[bool] = ContextVar("bare", default=False)


@contextmanager
def bare() -> Iterator[None]:
    """Builds towers without reading any pretrained weights, for a state dict to fill them.

    Settings stay as they were, so the same config builds the bare tower and the one from its
    weights; the state dict brings all that was read from files, tokenizers included.
    """
    token = _bare.set(True)
    try:
        yield
    finally:
        _bare.reset(token)


def is_bare() -> bool:
    """Whether towers are being built bare, so that none of their files may be needed."""
    return _bare.get()


def reads_weights(train: TrainMode) -> bool:
    """Whether a tower that is being built should read its pretrained weights.

    Raises:
        ValueError: If there is no such mode.
    """
    if train not in get_args(TrainMode):
        raise ValueError(f"Got train={train!r}; choose one of {', '.join(get_args(TrainMode))}.")
    return train != "scratch" and not is_bare()


class EncoderOutput(NamedTuple):
    """Tokens of one modality for a batch.

    Attributes:
        values: (B, N, dim) tokens; zero where the mask is False.
        mask: (B, N) bool, True for a real token.
        position: (B, N, 3) float32 (seconds, row, column); 0 on an axis that does not apply,
            row and column in [0, 1].
    """

    values: Tensor
    mask: Tensor
    position: Tensor


class Encoder(nn.Module, ABC):
    """Turns the raw inputs of one modality into tokens.

    A leaf implements `forward(inputs, mask)`. `inputs` (B, L, ...) stacks what `transform` made of
    each sample, `mask` (B, L) is True where it is real; a row that is False throughout means the
    sample lacks this modality, and its tokens are all masked. The tokens of a sample depend
    neither on its neighbours in the batch nor on how much padding they caused.

    A tower with pretrained weights takes `train: TrainMode = "frozen"`, reads its weights only if
    `reads_weights(train)`, and ends its constructor with `self.set_train_mode(train)`. What its
    files decide beside the weights, such as a tokenizer, it keeps in its state dict.

    Args:
        modality: Name of the modality, such as "image".
        dim: Width of the tokens.
        transform: Makes a tensor (L, ...) of one raw sample; runs in data workers. Its `repr` must
            state its settings (a dataclass does), for they are part of the fingerprint.
        augment: Takes the place of `transform` in training and may draw from torch's global
            generator, which the loader seeds for each sample; None is `transform` itself.

    Attributes:
        frozen: Nothing in it trains.
        pretrained: It starts from trained weights, whether these train on or not.
    """

    frozen: bool
    pretrained: bool

    def __init__(
        self,
        modality: str,
        dim: int,
        transform: Callable[[Any], Tensor],
        augment: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.modality = modality
        self.dim = dim
        self.transform = transform
        self._augment = augment
        self.frozen = self.pretrained = False

    @abstractmethod
    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode a batch.

        Args:
            inputs: (B, L, ...) transformed samples, padded to a common L.
            mask: (B, L) bool, True = real.
        """

    def __call__(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Check the shapes and run `forward`, without gradients when frozen.

        Raises:
            ValueError: If the mask is not a bool tensor of the inputs' first two sizes.
        """
        if mask.dtype != torch.bool or mask.shape != inputs.shape[:2]:
            raise ValueError(
                f"{type(self).__name__} got inputs {tuple(inputs.shape)} with a {mask.dtype} mask "
                f"{tuple(mask.shape)}; give a bool mask of the inputs' first two sizes."
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return super().__call__(inputs, mask)

    @property
    def augment(self) -> Callable[[Any], Tensor]:
        """What takes the place of `transform` in training."""
        return self._augment or self.transform

    def set_train_mode(self, train: TrainMode) -> None:
        """Freeze the tower or give it adapters, as `train` says; once, when it is built.

        Raises:
            ValueError: If "lora" finds no layer to adapt.
            ModuleNotFoundError: If "lora" finds no peft.
        """
        self.pretrained = train != "scratch"
        if train == "frozen":
            self.freeze()
        elif train == "lora":
            add_adapters(self)

    def checkpoint_gradients(self) -> None:
        """Recompute hidden states in the backward pass instead of keeping them all.

        It trades a third more computing for memory (Chen et al. 2016, arXiv:1604.06174) and
        changes no gradient.

        Raises:
            ValueError: If the tower has no layers for it.
        """
        raise ValueError(
            f"{type(self).__name__} cannot recompute its hidden states; train it without gradient "
            "checkpointing, or in smaller batches."
        )

    def freeze(self) -> None:
        """Stop training for good: no parameter requires grad and eval mode stays on."""
        self.frozen = True
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Encoder":
        """Set training mode, except that a frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)

    def fingerprint(self) -> str:
        """Sha256 (hex) of all that decides the tokens: code, settings, transform and weights.

        Raises:
            ValueError: If the transform's `repr` holds a memory address instead of its settings.
        """
        transform = repr(self.transform)
        if " at 0x" in transform:
            raise ValueError(
                f"The transform {transform} does not state its settings in its repr, so a "
                "fingerprint would change with every run; make it a dataclass."
            )
        digest = hashlib.sha256()
        sources = _source(type(self)), _source(type(self.transform))
        for part in (type(self).__qualname__, *sources, repr(self), transform):
            digest.update(part.encode() + b"\0")
        for name, value in self.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy())
        return digest.hexdigest()


def _source(cls: type) -> str:
    """Source text of the module that defines `cls`; empty where there is none (a console)."""
    try:
        return inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError, KeyError):
        return ""
