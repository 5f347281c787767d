"""Samples that hold files to samples that hold raw values."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from datamodules import decode
from datamodules.decode import DECODERS, DecodeError, Raw
from datamodules.samples import Rejected, Sample, reject


def decode_samples(
    samples: Iterable[Sample], rejected: list[Rejected] | None = None
) -> Iterator[Sample]:
    """Decode the bytes of every modality to raw values (see `datamodules.decode`).

    Args:
        samples: as read; values that are decoded already pass through.
        rejected: receives the samples that cannot be decoded; None raises at the first.

    Raises:
        ValueError: a sample cannot be decoded and `rejected` is None.
    """
    for sample in samples:
        decoded = decode_sample(sample)
        if isinstance(decoded, Rejected):
            reject(decoded, rejected)
        else:
            yield decoded


def decode_sample(sample: Sample, known: Collection[str] = ()) -> Sample | Rejected:
    """Decode one sample, or say why it cannot be.

    Args:
        sample: as read.
        known: modalities whose files stay bytes.
    """
    inputs: dict[str, bytes | Raw] = dict(sample.inputs)
    for modality, value in sample.inputs.items():
        if isinstance(value, bytes) and modality not in known:
            try:
                inputs[modality] = DECODERS[modality](value)
            except DecodeError as error:
                return Rejected(sample.shard, sample.key, modality, error.reason, str(error))
    return replace(sample, inputs=inputs)


def with_digests(sample: Sample) -> Sample:
    """The sample with a name for the content of each file: equal names give equal raw values.

    It is the sha256 of the file and of the code that decodes it.
    """
    files = {m: value for m, value in sample.inputs.items() if isinstance(value, bytes)}
    return replace(
        sample, digests={m: hashlib.sha256(_code() + f).hexdigest() for m, f in files.items()}
    )


@cache
def _code() -> bytes:
    sources = sorted(Path(decode.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).digest()
