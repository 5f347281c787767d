"""A trained model on files and raw values: embeddings and captions.

Shapes: n items, D width of the embedding, L length of one modality's input.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from datamodules.archive import MAX_MEMBER_BYTES
from datamodules.decode import DECODERS, DecodeError
from datamodules.samples import collate
from fusion.captioner import Captioner
from fusion.checkpoint import find_checkpoint, restore
from fusion.model import FusionModel

Item = Mapping[str, Any]
"""Modality to value: a path or the bytes of a file; str for text; or a raw value, which is uint8
(3, H, W) for an image, `(waveform (channels, samples), rate in Hz)` for audio, `(frames (T, 3, H,
W), times (T,) in seconds)` for video and float32 (T, C) for sensor. None counts as absent."""
Inputs = Mapping[str, Tensor]
"""Modality to what its encoder takes, (L, ...)."""

_BATCH = 64
_RAW = {
    "image": (Tensor, "a uint8 tensor (3, H, W)"),
    "text": (str, "a str"),
    "audio": (tuple, "(waveform, rate)"),
    "video": (tuple, "(frames, times)"),
    "sensor": (Tensor, "a float32 tensor (T, C)"),
}


@final
class Pipeline:
    """Embeds and describes items: any subset of modalities each, files or raw values.

    Attributes:
        model: the model, in eval mode.
        captioner: writes captions; None where no decoder was trained.
        fingerprint: stands for the embedding space: rows of equal fingerprints may be compared.
    """

    def __init__(
        self, model: FusionModel, captioner: Captioner | None = None, fingerprint: str = ""
    ) -> None:
        self.model = model.eval()
        self.captioner = captioner.eval() if captioner else None
        self.fingerprint = fingerprint

    @classmethod
    def from_run(cls, path: str | Path, device: str = "cpu") -> "Pipeline":
        """Loads a trained model.

        Args:
            path: run folder with a `model.ckpt` or `last.ckpt`, or a checkpoint file.
            device: where it runs.

        Raises:
            FileNotFoundError: if there is no checkpoint.
            ValueError: if it is damaged or of something else.
        """
        model, captioner, fingerprint = restore(find_checkpoint(path))
        return cls(model.to(device), captioner.to(device) if captioner else None, fingerprint)

    def encode(self, items: Sequence[Item]) -> Tensor:
        """Unit embeddings (n, D), on the CPU; an item's row does not depend on its neighbours.

        Args:
            items: see `Item`; each may have another subset of modalities.

        Raises:
            ValueError: if an item has no modality, one that the model has not, or a value that
                cannot be read.
            FileNotFoundError: if a file is missing.
        """
        rows = torch.zeros(len(items), self.model.dim)
        for start in range(0, len(items), _BATCH):
            part = [self.prepare(item) for item in items[start : start + _BATCH]]
            rows[start : start + len(part)] = self.embed(part)
        return rows

    def prepare(self, item: Item) -> Inputs:
        """Decodes and transforms one item, ready for `embed`; raises what `encode` does."""
        _check_item(item)
        present = {name: value for name, value in item.items() if value is not None}
        if not present or not set(present) <= set(self.model.modalities):
            raise ValueError(
                f"Got an item of {_listed(present)}; this model embeds any of "
                f"{_listed(self.model.modalities)}."
            )
        return {name: self._prepare_one(name, value) for name, value in present.items()}

    def _prepare_one(self, name: str, value: Any) -> Tensor:
        raw, origin = _decode(name, value)
        try:
            return self.model.encoders[name].transform(raw)  # pyright: ignore
        except ValueError as error:
            raise ValueError(f"{origin}{error}") from error

    @torch.no_grad()
    def embed(self, prepared: Sequence[Inputs]) -> Tensor:
        """Unit embeddings (n, D) of prepared items, run as one batch per subset of modalities."""
        rows = torch.zeros(len(prepared), self.model.dim)
        subsets: dict[tuple[str, ...], list[int]] = {}
        for index, inputs in enumerate(prepared):
            names = tuple(name for name in self.model.modalities if name in inputs)
            subsets.setdefault(names, []).append(index)
        for names, indices in subsets.items():
            batch = self._batch([prepared[index] for index in indices])
            rows[indices] = self.model.embed(batch, names).float().cpu()
        return rows

    def caption(self, items: Sequence[str | Path | Item], num_beams: int = 4) -> list[str]:
        """Writes a caption of each item.

        Args:
            items: each a path, where one modality is described, or an `Item` that has those
                modalities; its other modalities are left out.
            num_beams: candidates of the beam search; 1 is greedy search.

        Raises:
            ValueError: if the run has no decoder, or an item cannot be described.
            FileNotFoundError: if a file is missing.
        """
        if self.captioner is None:
            raise ValueError(
                "This run has no caption decoder; train one with "
                "`fusion fit --config configs/captioning.yaml`."
            )
        captions: list[str] = []
        for start in range(0, len(items), _BATCH):
            part = [self._described(item) for item in items[start : start + _BATCH]]
            batch = self._batch([self.prepare(item) for item in part])
            captions += [text or "" for text in self.captioner.write(batch, num_beams)]
        return captions

    def _described(self, item: str | Path | Item) -> Item:
        """Those modalities of an item that the captioner describes."""
        assert self.captioner is not None
        source = self.captioner.source
        if isinstance(item, str | Path) and len(source) == 1:
            return {source[0]: item if source[0] == "text" else Path(item)}
        if not isinstance(item, Mapping) or any(item.get(name) is None for name in source):
            got = _listed(item) if isinstance(item, Mapping) else f"the path {item}"
            raise ValueError(f"Got {got}; this run describes {_listed(source)} together.")
        return {name: item[name] for name in source}

    def _batch(self, prepared: Sequence[Inputs]) -> dict[str, Any]:
        batch = collate(
            [
                {"key": "", "caption": "", "group_id": 0, "weight": 1.0, "inputs": inputs}
                for inputs in prepared
            ]
        )
        device = next(self.model.parameters()).device
        for part in ("inputs", "masks"):
            batch[part] = {name: value.to(device) for name, value in batch[part].items()}
        return batch


def _check_item(item: Item) -> None:
    if not isinstance(item, Mapping):
        raise ValueError(
            f"Got {item!r} as an item; give a dict of modality to value, "
            "such as {'image': 'a.jpg'} or {'text': 'a cat'}."
        )


def _decode(name: str, value: Any) -> tuple[Any, str]:
    """The raw value, and how an error message calls where it came from."""
    origin = ""
    if isinstance(value, Path) or (isinstance(value, str) and name != "text"):
        origin, value = f"{value}: ", _read(Path(value))
    if isinstance(value, bytes | bytearray):
        if name not in DECODERS:
            raise ValueError(f"{origin}No file of {name} can be decoded; give its raw value.")
        try:
            return DECODERS[name](bytes(value)), origin
        except DecodeError as error:
            raise ValueError(f"{origin}{error}") from error
    wanted, described = _RAW.get(name, (object, ""))
    if not isinstance(value, wanted):
        raise ValueError(f"Got {type(value).__name__} for {name}; give a path or {described}.")
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"Got an empty {name}; give at least one word.")
    return value, origin


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; check the path.")
    if (size := path.stat().st_size) > MAX_MEMBER_BYTES:
        raise ValueError(f"{path} has {size} bytes, more than the limit of {MAX_MEMBER_BYTES}.")
    return path.read_bytes()


def _listed(names: Any) -> str:
    return ", ".join(str(name) for name in names) or "nothing"
