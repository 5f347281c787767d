"""Raw samples to what the model takes: tokens for frozen encoders, transformed input for others."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from encoders.base import Encoder
from encoders.cache import TokenCache


class RawSample(Protocol):
    """A decoded sample."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Modality to raw value, of those that it has; anything for what `knows` knew."""
        ...

    @property
    def digests(self) -> Mapping[str, str]:
        """Modality to a name of the content, where there is one already."""
        ...


class Preparation:
    """Transforms raw samples once, and encodes those of frozen encoders once, through a cache.

    Args:
        encoders: modality to encoder.
        cache: keeps the tokens of frozen encoders on disk.
    """

    def __init__(self, encoders: nn.ModuleDict, cache: TokenCache) -> None:
        self.encoders = cast(dict[str, Encoder], dict(encoders.items()))
        self.cache = cache

    def transform(self, samples: Sequence[RawSample]) -> list[dict[str, dict[str, Tensor]]]:
        """Transforms samples for evaluation and encodes none; runs in data workers.

        Args:
            samples: decoded samples; modalities without an encoder are ignored.

        Returns:
            For each sample `inputs` {modality: (L, ...)}.
        """
        return [self._inputs(sample, False) for sample in samples]

    def augment(self, samples: Sequence[RawSample]) -> list[dict[str, dict[str, Tensor]]]:
        """Like `transform`, for training: with the random part of each encoder's transform."""
        return [self._inputs(sample, True) for sample in samples]

    def _inputs(self, sample: RawSample, training: bool) -> dict[str, dict[str, Tensor]]:
        present = ((n, e) for n, e in self.encoders.items() if n in sample.inputs)
        return {
            "inputs": {
                name: (encoder.augment if training else encoder.transform)(sample.inputs[name])
                for name, encoder in present
            }
        }

    def knows(self, modality: str, content: str) -> bool:
        """Whether the raw value of a content of that name is not needed.

        Its tokens are in the cache, or nothing takes the modality.
        """
        encoder = self.encoders.get(modality)
        return encoder is None or (encoder.frozen and self.cache.has(encoder, content))

    def __call__(self, samples: Sequence[RawSample]) -> list[dict[str, dict[str, Tensor]]]:
        """Prepares samples.

        Args:
            samples: decoded samples; modalities without an encoder are ignored.

        Returns:
            For each sample `inputs` {modality: (L, ...)} and `positions` {modality: (L, 3)}, the
            latter for cached tokens only.
        """
        prepared: list[dict[str, dict[str, Tensor]]] = [
            {"inputs": {}, "positions": {}} for _ in samples
        ]
        for name, encoder in self.encoders.items():
            rows = [row for row, sample in enumerate(samples) if name in sample.inputs]
            raws = [samples[row].inputs[name] for row in rows]
            if not encoder.frozen:
                for row, raw in zip(rows, raws, strict=True):
                    prepared[row]["inputs"][name] = encoder.transform(raw)
                continue
            tokens = self.cache.encode(
                encoder,
                [
                    samples[row].digests.get(name) or content_key(raw)
                    for row, raw in zip(rows, raws, strict=True)
                ],
                lambda index, raws=raws, encoder=encoder: encoder.transform(raws[index]),
            )
            for row, (values, position) in zip(rows, tokens, strict=True):
                prepared[row]["inputs"][name] = values
                prepared[row]["positions"][name] = position
        return prepared


def content_key(raw: Any) -> str:
    """Sha256 (hex) of a raw value: a text, a picture tensor, or (waveform, rate)."""
    digest = hashlib.sha256()
    for part in raw if isinstance(raw, tuple) else (raw,):
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}\0".encode())
            digest.update(part.contiguous().view(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(f"{part}\0".encode())
    return digest.hexdigest()
