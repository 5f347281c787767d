"""A dataset of torchvision, torchaudio or your own as a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, final

from torch import Tensor

from datamodules.pack.encode import EncodeError, encode_captions, encode_picture, encode_recording
from datamodules.pack.source import Draft, PackError, Plan, Refusal, Source


class Dataset(Protocol):
    """What torch calls a map-style dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@final
class DatasetSource(Source):
    """The items of a dataset, in order; each is loaded and encoded when its turn comes.

    An item that raises is refused. A run that is gone on with loads the items that it has been
    through again, so they must come out the same: use no random transform.

    Args:
        dataset: has a length and items.
        to_members: an item -> the members of its sample, extension -> bytes, such as
            `members_of_picture` or `members_of_recording`.
        name: what its samples are called in keys and in the list of what is rejected.
    """

    def __init__(
        self,
        dataset: Dataset,
        to_members: Callable[[Any], Mapping[str, bytes]],
        name: str = "item",
    ) -> None:
        self.dataset, self.to_members, self.name = dataset, to_members, name

    def plan(self) -> Plan:
        """Counts the items; they are loaded as they are asked for."""
        if not len(self.dataset):
            raise PackError(f"the dataset {self.name} holds no item; give at least one")
        return Plan(len(self.dataset), self._items())

    def _items(self) -> Iterator[Draft | Refusal]:
        width = len(str(len(self.dataset) - 1))
        for index in range(len(self.dataset)):
            source = f"{self.name}:{index}"
            try:
                members = self.to_members(self.dataset[index])
            except ImportError as error:  # it would be so for every item
                raise PackError(f"{self.name} needs a package that is missing: {error}") from error
            except Exception as error:  # whatever the dataset and its files come up with
                yield Refusal(source, "", _told(error))
            else:
                yield Draft(source, f"{self.name}_{index:0{width}d}", members)


def members_of_picture(item: Any, classes: Sequence[str] = ()) -> dict[str, bytes]:
    """Members of (picture, target, ...) as the datasets of torchvision give it.

    Args:
        item: a PIL image or a (C, H, W) tensor; and a class number, a caption or several, or None.
        classes: their names; without them a class is called by its number.

    Raises:
        EncodeError: it is something else.
    """
    picture: Any = item
    target: Any = None
    if isinstance(item, Sequence) and len(item) > 1:
        picture, target = item[:2]
    if isinstance(target, Tensor) and target.ndim == 0:
        target = target.item()
    if isinstance(target, int) and not isinstance(target, bool):
        target = classes[target] if classes else str(target)
    captions = [target] if isinstance(target, str) else target or []
    if not isinstance(captions, Sequence) or not all(isinstance(c, str) for c in captions):
        raise EncodeError(f"its target is a {type(target).__name__}; wanted a class or captions")
    return {**encode_picture(picture), **encode_captions(captions)}


def members_of_recording(item: Any) -> dict[str, bytes]:
    """Members of (waveform, sample rate, ...) as the datasets of torchaudio give it.

    The caption is the first string after the rate; without one, a list of numbers, spelled out.

    Args:
        item: a (C, T) tensor, its rate in Hz, and what else the dataset has.

    Raises:
        EncodeError: it is something else.
    """
    if not isinstance(item, Sequence) or len(item) < 2 or not isinstance(item[0], Tensor):
        raise EncodeError("it does not begin with a waveform and its rate")
    texts = [part for part in item[2:] if isinstance(part, str) and part]
    spelled = [" ".join(map(str, part)) for part in item[2:] if isinstance(part, list) and part]
    return {**encode_recording(item[0], int(item[1])), **encode_captions([*texts, *spelled][:1])}


def _told(error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return reason if isinstance(error, EncodeError) else f"{type(error).__name__} ({reason})"
