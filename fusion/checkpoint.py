"""Models out of checkpoint files, built from the file alone.

A checkpoint may come from a stranger. It is read without running pickles, its archive is checked
for damage, and the classes it names are built only if they are parts of a model.
"""

import hashlib
import importlib
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from encoders.base import Encoder, bare
from fusion.accom import Accom
from fusion.assim import Assim
from fusion.block import FusionBlock
from fusion.captioner import Captioner
from fusion.model import FusionModel
from fusion.relations import Rule
from fusion.solver import Anderson, FixedPointSolver, Gradient

FILE_NAMES = ("model.ckpt", "last.ckpt")
_PARTS = (Encoder, FusionBlock, Assim, Accom, FixedPointSolver, Gradient, Anderson, Rule)
_MODEL, _DECODER, _VOCABULARY = "model.", "decoder.", "vocabulary."
_CAPTIONER = "captioner."

State = Mapping[str, Any]


class Restored(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        model: with its weights, in eval mode.
        captioner: of that model; None if the checkpoint has no decoder.
        fingerprint: sha256 (hex) of the model's settings and weights, decoder left out: equal
            fingerprints give equal embeddings.
    """

    model: FusionModel
    captioner: Captioner | None
    fingerprint: str


def find_checkpoint(run: str | Path) -> Path:
    """The checkpoint of a run folder, or the file itself.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(run)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"There is no run {path}; give a run folder or a .ckpt file.")
    for name in FILE_NAMES:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(
        f"The folder {path} holds no {' or '.join(FILE_NAMES)}; give a folder that a training run "
        "wrote, or the .ckpt file itself."
    )


def restore(path: Path) -> Restored:
    """Builds what a checkpoint of a contrastive or captioning task holds.

    Raises:
        ValueError: if the file is damaged, or not such a checkpoint.
        ModuleNotFoundError: if an encoder needs a package that is not installed.
    """
    settings, state = _read(path)
    try:
        config = dict(settings["model"])
        with bare():  # the checkpoint brings the weights
            model = _build(FusionModel, config.get("init_args", config))
        _fill(model, state, _MODEL)
        captioner = None
        if any(name.startswith(_DECODER) for name in state):
            captioner = Captioner(model, settings["source"], settings["vocabulary_size"])
            _fill(captioner.decoder, state, _DECODER)
            _fill(captioner.vocabulary, state, _VOCABULARY)
            captioner.eval()
    except ModuleNotFoundError:
        raise
    except Exception as error:  # settings and shapes of a foreign file fail in any way they like
        raise ValueError(
            f"{path} does not fit this version of fusion ({_one_line(error)}); use the version "
            "that wrote it, or train again."
        ) from error
    return Restored(model.eval(), captioner, _fingerprint(config, state))


def read_plain(path: Path, mmap: bool = False) -> Any:
    """What a file of `torch.save` holds, tested for damage and read without running pickles.

    torch.load itself does not look at the checksums in such a file, and gives other values for one
    that was damaged.

    Args:
        path: the file.
        mmap: leave tensors in the file until they are used.

    Raises:
        ValueError: it is cut off, damaged, no such file, or holds more than tensors and plain
            values.
        OSError: it cannot be read.
    """
    advice = "copy it again, or train again"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a checkpoint, or it is cut off; {advice}.") from error
    except OSError:
        raise
    except Exception as error:  # a damaged header leads the reader astray in many ways
        raise ValueError(f"{path} is damaged ({_one_line(error)}); {advice}.") from error
    if damaged:
        raise ValueError(f"{path} is damaged at {damaged}; {advice}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(
            f"{path} is not a checkpoint that `fusion fit` wrote: it holds something else than "
            "tensors and plain values."
        ) from error


def _read(path: Path) -> tuple[Mapping[str, Any], State]:
    """Settings of the task and its state dict."""
    content = read_plain(path)
    settings, state = (
        content.get(name) if isinstance(content, Mapping) else None
        for name in ("hyper_parameters", "state_dict")
    )
    if isinstance(state, Mapping):  # a captioning task keeps its model inside its captioner
        state = {str(name).removeprefix(_CAPTIONER): value for name, value in state.items()}
    if not (
        isinstance(settings, Mapping)
        and isinstance(settings.get("model"), Mapping)
        and isinstance(state, Mapping)
        and any(name.startswith(_MODEL) for name in state)
    ):
        raise ValueError(
            f"{path} is a checkpoint of something else: it lacks the settings or the weights of a "
            "fusion model; give one that `fusion fit` wrote."
        )
    return settings, state


def _build(cls: Any, settings: Mapping[str, Any]) -> Any:
    return cls(**_arguments(cls, settings))


def _arguments(cls: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `cls`; where its types ask for parts, these are built from their settings."""
    hints = get_type_hints(cls.__init__)
    return {name: _value(hints.get(name), value) for name, value in settings.items()}


def _value(hint: Any, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if "class_path" in value:
        cls, settings = _part(value["class_path"]), value.get("init_args", {})
        if any(get_origin(kind) is Callable for kind in kinds):  # a maker of parts
            return partial(cls, **_arguments(cls, settings))
        return _build(cls, settings)
    # jsonargparse writes a class that has no subclasses as its bare settings.
    final = next((k for k in kinds if isinstance(k, type) and issubclass(k, _PARTS)), None)
    if final is not None:
        return _build(final, value)
    return {key: _value(None, item) for key, item in value.items()}


def _part(class_path: str) -> type:
    """The class of that name, if it is one that a model is made of."""
    module, _, name = class_path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    if not (isinstance(cls, type) and issubclass(cls, _PARTS)):
        raise ValueError(f"{class_path} is not a part of a model")
    return cls


def _fill(module: nn.Module, state: State, prefix: str) -> None:
    module.load_state_dict(
        {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
    )


def _fingerprint(config: Mapping[str, Any], state: State) -> str:
    digest = hashlib.sha256(json.dumps(_essence(config), sort_keys=True).encode())
    for name, value in sorted(state.items()):
        if name.startswith(_MODEL) and isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _essence(value: Any) -> Any:
    """Settings without what does not change embeddings: how towers train, import paths."""
    if isinstance(value, Mapping):
        return {
            key: _part(item).__qualname__ if key == "class_path" else _essence(item)
            for key, item in value.items()
            if key != "train"
        }
    return [_essence(item) for item in value] if isinstance(value, list | tuple) else value


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (text if len(text) <= 200 else f"{text[:200]} ...") or type(error).__name__
