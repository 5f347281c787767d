"""Datasets of torchvision and torchaudio by their names."""

from __future__ import annotations

import inspect
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from datamodules.pack.dataset import DatasetSource, members_of_picture, members_of_recording
from datamodules.pack.source import PackError

LIBRARIES = ("torchvision", "torchaudio")
_SPLITS = ("split", "subset", "image_set", "url")  # what the libraries call it; torchaudio: url


def is_named(source: str) -> bool:
    """Whether a source is written as `torchvision:NAME` or `torchaudio:NAME`."""
    return source.startswith(tuple(f"{library}:" for library in LIBRARIES))


def named_source(
    source: str, root: Path, split: str | None = None, download: bool = False
) -> DatasetSource:
    """A dataset with pictures, or recordings, and a class or captions.

    The library's own code reads it; for some sets that code loads pickles: trust their files.

    Args:
        source: such as `torchvision:CIFAR10` or `torchaudio:YESNO`.
        root: folder of its files.
        split: its part, such as test; None for the library's default.
        download: let the library fetch it.

    Raises:
        PackError: there is no such set, no such split, it is not in `root`, or needs more.
    """
    library, _, name = source.partition(":")
    datasets = import_module(f"{library}.datasets")
    if name not in datasets.__all__:
        raise PackError(f"{library} has no dataset {name}; see its documentation for their names")
    kind = getattr(datasets, name)
    known = inspect.signature(kind).parameters
    if download and "download" not in known:
        raise PackError(f"{library} cannot download {name}; fetch it into {root} yourself")
    settings: dict[str, Any] = {"download": True} if download else {}
    settings |= _part(name, split, list(known))
    if "root" in known:
        settings["root"] = str(root)
    try:
        dataset = kind(**settings)
    except (TypeError, ValueError, RuntimeError, OSError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PackError(f"{source} cannot be opened in {root}: {reason}") from error
    classes = getattr(dataset, "classes", None) or ()
    pictures = partial(members_of_picture, classes=tuple(map(_class_name, classes)))
    return DatasetSource(
        dataset, pictures if library == "torchvision" else members_of_recording, name
    )


def _part(name: str, split: str | None, known: list[str]) -> dict[str, Any]:
    if split is None:
        return {}
    for parameter in _SPLITS:
        if parameter in known:
            return {parameter: split}
    if "train" in known and split in ("train", "test"):
        return {"train": split == "train"}
    raise PackError(f"{name} has no split {split}; leave --split out, or see its documentation")


def _class_name(name: Any) -> str:
    return name if isinstance(name, str) else ", ".join(map(str, name))  # ImageNet: synonyms
