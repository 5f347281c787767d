"""The loaders that are measured: open_clip's, ours, and ours without its guards.

Letters: B batch, S picture side.
"""

import importlib.util
import inspect
import io
import json
import multiprocessing
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO, NamedTuple
from unittest import mock

import torch
from PIL import Image
from torch import Tensor

from datamodules.archive import Found, Member, split_member
from datamodules.decode.image import _plain_rgb, _upright
from datamodules.module import ShardDataModule
from datamodules.reader import Shard
from datamodules.samples import Sample
from encoders.open_clip_tower import ClipPieces
from encoders.picture import RandomCrop

SIDE, MODEL = 224, "ViT-B-32"
_CONTEXT, _MAX_CHARS = 77, 500


class Pass(NamedTuple):
    """What one sample of a pass took, in all processes together."""

    seconds: float
    cpu_seconds: float


def cost(run: Callable[[], int]) -> Pass:
    """Times a pass, which returns its number of samples."""
    before, began = _cpu_seconds(), time.perf_counter()
    num_samples = run()
    seconds, cpu_seconds = time.perf_counter() - began, _cpu_seconds() - before
    return Pass(seconds / num_samples, cpu_seconds / num_samples)


def _cpu_seconds() -> float:
    """Processor time of this process and of its workers so far."""
    tick, total = os.sysconf("SC_CLK_TCK"), time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / tick
    return total


def open_clip_loader(shards: Sequence[str], batch: int, num_workers: int) -> Callable[[], int]:
    """A pass of open_clip's training pipeline."""
    import open_clip
    from open_clip.transform import image_transform

    args = SimpleNamespace(
        train_data="::".join(shards),
        train_num_samples=sum(_counts(shards)),
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=batch,
        workers=num_workers,
        world_size=1,
        seed=0,
    )
    data = _open_clip_data().get_wds_dataset(
        args, image_transform(SIDE, is_train=True), True, tokenizer=open_clip.get_tokenizer(MODEL)
    )
    return lambda: sum(len(images) for images, _ in data.dataloader)


def our_loader(
    shards: Sequence[str], batch: int, num_workers: int, same_output: bool
) -> Callable[[], int]:
    """A pass of ours.

    Args:
        shards: paths.
        batch: largest batch.
        num_workers: processes that load.
        same_output: pictures and texts in the form that open_clip gives them.
    """
    loader = _data(shards, batch, num_workers, same_output).train_dataloader()
    return lambda: sum(len(found["keys"]) for found in loader)


def guarded(shards: Sequence[str], batch: int) -> Callable[[], int]:
    """A pass of ours with all it does before the first batch."""
    return lambda: our_loader(shards, batch, 0, True)()


def bare(shards: Sequence[str], batch: int) -> Callable[[], int]:
    """The same without its guards."""
    counts = _counts(shards)

    def run() -> int:
        with _without_guards([Shard(*each) for each in zip(shards, counts, strict=True)]):
            return our_loader(shards, batch, 0, True)()

    return run


def _data(
    shards: Sequence[str], batch: int, num_workers: int, same_output: bool
) -> ShardDataModule:
    data = ShardDataModule(list(shards), batch_size=batch, num_workers=num_workers)
    data.augment = _same_as_open_clip() if same_output else _as_it_is
    data.setup()
    return data


def _as_it_is(samples: Sequence[Sample]) -> list[Mapping[str, Any]]:
    """As the towers that train on open_clip's weights take their inputs."""
    crop, cut = RandomCrop((SIDE, SIDE)), ClipPieces(_CONTEXT, _MAX_CHARS)
    inputs = ((sample.inputs["image"], sample.inputs["text"]) for sample in samples)
    return [{"inputs": {"image": crop(image), "text": cut(text)}} for image, text in inputs]  # type: ignore


def _same_as_open_clip() -> Callable[[list[Sample]], list[Mapping[str, Any]]]:
    """Normalised float32 pictures (1, 3, S, S) and ids with their padding (1, 77)."""
    import open_clip

    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]
    crop, tokenize = RandomCrop((SIDE, SIDE)), open_clip.get_tokenizer(MODEL)

    def transform(samples: list[Sample]) -> list[Mapping[str, Any]]:
        made = []
        for sample in samples:
            image: Any = sample.inputs["image"]
            pictures: Tensor = (crop(image) / 255 - mean) / std
            made.append({"inputs": {"image": pictures, "text": tokenize(sample.caption)}})
        return made

    return transform


def _open_clip_data() -> ModuleType:
    """`open_clip_train.data`, in an environment that has neither pandas nor an old webdataset.

    It imports pandas for tables alone, which are not used. It was written for webdataset up to
    0.2.86; later ones mark where a shard ends, which its grouping of members stumbles over.
    """
    pandas = {} if importlib.util.find_spec("pandas") else {"pandas": ModuleType("pandas")}
    with mock.patch.dict(sys.modules, pandas):
        data = importlib.import_module("open_clip_train.data")
    if "eof_value" in inspect.signature(data.tar_file_expander).parameters:
        data.tar_file_expander = partial(data.tar_file_expander, eof_value=None)  # type: ignore
    return data


def _counts(shards: Sequence[str]) -> list[int]:
    listed = json.loads(Path(shards[0]).with_name("manifest.json").read_text())["shards"]
    counts = {entry["name"]: entry["samples"] for entry in listed}
    return [counts[Path(shard).name] for shard in shards]


@contextmanager
def _without_guards(shards: list[Shard]) -> Iterator[None]:
    """No manifest, no checks of names, headers and sizes, no caps, no ledger."""
    off = {
        "datamodules.module.manifest_beside": lambda *_: {},
        "datamodules.module.count_shards": lambda *_: (shards, []),
        "datamodules.reader.find_samples": _walk,
        "datamodules.samples.decode_text": bytes.decode,
        "datamodules.decoding.DECODERS": {"image": _decode},
        "datamodules.ledger.Ledger.record": lambda *_: None,
    }
    with ExitStack() as stack:
        for name, stand_in in off.items():
            stack.enter_context(mock.patch(name, stand_in))
        yield


def _decode(data: bytes) -> Tensor:
    """A picture the right way up, from a file that is believed."""
    with Image.open(io.BytesIO(data)) as image:
        orientation = image.getexif().get(0x0112, 1)
    return _upright(_plain_rgb(data), orientation)


def _walk(file: BinaryIO, wanted: Any, shard: str) -> list[Found]:
    """What Python's tarfile finds, believed."""
    samples: dict[str, Found] = {}
    with tarfile.open(fileobj=file) as archive:
        for header in archive:
            key, extension = split_member(header.name)
            if key and extension and extension in wanted:
                found = samples.setdefault(key, Found(key))
                found.members[extension] = Member(header.name, header.offset_data, header.size)
    return list(samples.values())
