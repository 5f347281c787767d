"""Tokens of frozen encoders on disk, so that a frozen tower runs once for each sample.

Letters: N tokens of a sample.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from encoders.base import Encoder

Tokens = tuple[Tensor, Tensor]  # values (N, dim) float16, position (N, 3) float32

_FILE_SAMPLES = 1024  # samples in a file: what an interrupted run can lose


class TokenCache:
    """Encodes each sample once and keeps its tokens.

    Files lie in one folder for each encoder fingerprint and are named by the sha256 of their
    content, so a damaged file is known by its name: it is dropped and its samples are encoded
    again. Files appear whole or not at all, and several processes may share the folder. What has
    been read or encoded also stays in memory, and an encoder is fingerprinted once: it must not
    change while a cache uses it.

    Args:
        folder: Where the files go; made when first needed. It may be deleted at any time.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._folders: WeakKeyDictionary[Encoder, Path] = WeakKeyDictionary()
        self._tokens: dict[Path, dict[str, Tokens]] = {}

    def encode(
        self,
        encoder: Encoder,
        keys: Sequence[str],
        load: Callable[[int], Tensor],
        batch_size: int = 64,
        progress: Callable[[int], object] | None = None,
    ) -> list[Tokens]:
        """Tokens of the samples, from disk where it has them.

        Args:
            encoder: A frozen encoder.
            keys: One name for each sample that stands for its content: the same key gives the
                same tokens again, whatever `load` would return.
            load: Gives the transformed sample (L, ...) of an index into `keys`; called for
                samples that are not on disk only.
            batch_size: Samples encoded together.
            progress: Called with the number of samples ready so far.

        Returns:
            For each key, values (N, dim) float16 and position (N, 3) float32 of the real tokens.

        Raises:
            ValueError: If the encoder is not frozen, or a token is not finite in float16.
        """
        if not encoder.frozen:
            raise ValueError(
                f"{type(encoder).__name__} is not frozen, so its tokens change while it trains "
                "and cannot be cached; call freeze() first."
            )
        folder, tokens = self._open(encoder)
        index_of: dict[str, int] = {}
        for index, key in enumerate(keys):
            index_of.setdefault(key, index)
        missing = [key for key in index_of if key not in tokens]
        num_ready = len(keys) - len(missing)
        report = progress or (lambda num_ready: None)
        report(num_ready)
        for file_keys in _slices(missing, _FILE_SAMPLES):
            fresh: dict[str, Tokens] = {}
            for batch_keys in _slices(file_keys, batch_size):
                samples = [load(index_of[key]) for key in batch_keys]
                fresh.update(zip(batch_keys, _run(encoder, batch_keys, samples), strict=True))
                num_ready += len(batch_keys)
                report(num_ready)
            _write(folder, fresh)
            tokens.update(fresh)
        return [tokens[key] for key in keys]

    def has(self, encoder: Encoder, key: str) -> bool:
        """Whether the tokens of a frozen encoder for this key are there."""
        return key in self._open(encoder)[1]

    def _open(self, encoder: Encoder) -> tuple[Path, dict[str, Tokens]]:
        """The encoder's folder and all tokens in it; hashed and read once."""
        if encoder not in self._folders:
            name = f"{encoder.modality}-{encoder.fingerprint()[:16]}"
            self._folders[encoder] = self.folder / name
        folder = self._folders[encoder]
        if folder not in self._tokens:
            self._tokens[folder] = _read(folder)
        return folder, self._tokens[folder]


def _slices(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _run(encoder: Encoder, keys: Sequence[str], samples: Sequence[Tensor]) -> Iterator[Tokens]:
    """Encode one batch and cut it into the real tokens of each sample."""
    device = next(encoder.parameters()).device
    lengths = torch.tensor([len(sample) for sample in samples])
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    inputs = pad_sequence(list(samples), batch_first=True)
    out = encoder(inputs.to(device), mask.to(device))
    values = out.values[out.mask].half().cpu()
    position = out.position[out.mask].float().cpu()
    counts = out.mask.sum(dim=1).tolist()
    for key, value, place in zip(keys, values.split(counts), position.split(counts), strict=True):
        if not value.isfinite().all():
            raise ValueError(
                f"{type(encoder).__name__} gave a token of sample {key} that is not finite in "
                "float16 (largest 65,504), so it cannot be cached; scale the tokens down."
            )
        yield value, place


def _write(folder: Path, tokens: dict[str, Tokens]) -> None:
    from safetensors.torch import save

    values, positions = zip(*tokens.values(), strict=True)
    content = save(
        {
            "values": torch.cat(values),
            "position": torch.cat(positions),
            "lengths": torch.tensor([len(value) for value in values]),
        },
        metadata={"keys": json.dumps(list(tokens))},
    )
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / f"{hashlib.sha256(content).hexdigest()}.safetensors")
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _read(folder: Path) -> dict[str, Tokens]:
    """Tokens of all files; damaged files are dropped with one warning."""
    tokens: dict[str, Tokens] = {}
    num_damaged = 0
    for path in sorted(folder.glob(f"{'[0-9a-f]' * 64}.safetensors")):
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # another process dropped it
            continue
        if hashlib.sha256(content).hexdigest() != path.stem:
            path.unlink(missing_ok=True)
            num_damaged += 1
            continue
        tokens.update(_parse(content))
    if num_damaged:
        warnings.warn(
            f"Dropped {num_damaged} damaged file(s) of the token cache {folder}; "
            "their samples are encoded again.",
            stacklevel=4,
        )
    return tokens


def _parse(content: bytes) -> Iterator[tuple[str, Tokens]]:
    from safetensors.torch import load

    header_size = int.from_bytes(content[:8], "little")  # the file format's own first field
    header = json.loads(content[8 : 8 + header_size])
    keys = json.loads(header["__metadata__"]["keys"])
    arrays = load(content)
    lengths = arrays["lengths"].tolist()
    values, positions = arrays["values"].split(lengths), arrays["position"].split(lengths)
    for key, value, position in zip(keys, values, positions, strict=True):
        yield key, (value, position)
