"""What tasks write into checkpoints."""

from dataclasses import is_dataclass
from typing import Any

from torch import nn


def without_modules(checkpoint: dict[str, Any]) -> None:
    """Drops hyper-parameters that are objects, which only unsafe loading could read back.

    From the command line hyper-parameters are plain settings and all of them stay, so that the
    file alone rebuilds the task. A task made in Python was given objects: its weights are saved,
    and who loads them passes the objects again.

    Args:
        checkpoint: what Lightning is about to write; changed in place.
    """
    settings = checkpoint.get("hyper_parameters", {})
    checkpoint["hyper_parameters"] = {
        name: value
        for name, value in settings.items()
        if not isinstance(value, nn.Module) and not is_dataclass(value)
    }
