"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685), through peft."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from encoders.pretrained import require

if TYPE_CHECKING:
    from encoders.base import Encoder

RANK = 4
"""Rank of the adapters: below 2 % of the weights of common transformers."""


def add_adapters(tower: nn.Module) -> None:
    """Hold all weights of a tower and add trained adapters to its attention and MLP layers.

    The adapters start at zero effect and are part of the state dict.

    Args:
        tower: Changed in place.

    Raises:
        ValueError: If it has no linear layer.
        ModuleNotFoundError: If peft is not installed.
    """
    learning = {id(weight) for weight in tower.parameters() if weight.requires_grad}
    fused = [
        name
        for name, module in tower.named_modules()
        if isinstance(module, nn.MultiheadAttention) and id(module.in_proj_weight) in learning
    ]
    # Queries, keys and values of nn.MultiheadAttention come from one parameter.
    linear = [
        name
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear)
        and id(module.weight) in learning
        and not _reads_weights_of_parts(tower.get_submodule(name.rpartition(".")[0]))
    ]
    if not linear:
        raise ValueError(
            f"{type(tower).__name__} has no attention or MLP layers for LoRA to adapt; "
            "choose train: full or frozen."
        )
    peft = require("peft", "lora")
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=linear,
        target_parameters=[f"{name}.in_proj_weight" for name in fused] or None,
    )
    peft.inject_adapter_in_model(config, tower)


def _reads_weights_of_parts(module: nn.Module) -> bool:
    """Whether a module never calls its linear layers, so that adapters there would do nothing."""
    shifted = type(module).__name__.startswith("ShiftedWindowAttention")  # of torchvision
    return shifted or isinstance(module, nn.MultiheadAttention)


def merged(encoder: Encoder, inputs: Tensor, mask: Tensor, tol: float = 1e-5) -> Encoder:
    """A frozen copy whose adapters are folded into the weights, checked against the original.

    Its state dict is that of the same tower built with `train: frozen`.

    Args:
        encoder: Has adapters; stays as it is.
        inputs: (B, L, ...) some transformed samples, for the check.
        mask: (B, L) bool.
        tol: Greatest difference of a token's values, relative to the largest value above 1.

    Raises:
        ValueError: If there are no adapters, or the copy gives other tokens.
    """
    copied = copy.deepcopy(encoder).eval()
    layers = require("peft", "lora").tuners.tuners_utils.BaseTunerLayer
    adapted: dict[str, Any] = {n: m for n, m in copied.named_modules() if isinstance(m, layers)}
    if not adapted:
        raise ValueError(f"{type(encoder).__name__} has no adapters to merge; use it as it is.")
    for name, layer in adapted.items():
        layer.merge(safe_merge=True)
        copied.set_submodule(name, layer.get_base_layer())
    copied.freeze()
    mode = encoder.training
    with torch.no_grad():
        expected, got = encoder.eval()(inputs, mask).values, copied(inputs, mask).values
    encoder.train(mode)
    error = float((got - expected).abs().max() / expected.abs().max().clamp_min(1))
    if not error <= tol:
        raise ValueError(
            f"Merged adapters change the tokens of {type(encoder).__name__} by {error:.1e}, more "
            f"than {tol:.0e}; merge in float32, or keep the adapters apart."
        )
    return copied
