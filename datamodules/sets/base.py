"""What a public set is, and how one of its splits becomes a source that can be packed."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, final

from datamodules.archive import MAX_NAME
from datamodules.decode import DecodeError, check_text
from datamodules.pack.folder import open_within
from datamodules.pack.source import Draft, PackError, Plan, Refusal, Source
from datamodules.samples import MEMBERS, METADATA


@dataclass(frozen=True, slots=True)
class Entry:
    """A file and what the annotations say of it; both are checked by `SetSource`.

    Attributes:
        folder: where the files of the split lie.
        file: path below `folder`, with slashes; "" if the annotations name none.
        captions: all of them; blank ones are left out.
        meta: what else goes into the sample's `json`: ids, and a `licence` where the set gives one
            for each file.
    """

    folder: Path
    file: str
    captions: Sequence[str]
    meta: Mapping[str, Any] = field(default_factory=dict)


class CaptionSet(ABC):
    """A public set of files with captions, in the layout of its publishers.

    Attributes:
        name: as `fusion data` takes it.
        splits: names of its parts; the first is the default.
        extensions: of its files, in lower case.
        licence: of a file that has none of its own.
        origin: what to get, where, and where to put it: the end of an error's sentence.
    """

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    extensions: ClassVar[tuple[str, ...]]
    licence: ClassVar[str]
    origin: ClassVar[str]

    @abstractmethod
    def entries(self, root: Path, split: str) -> Iterator[Entry | Refusal]:
        """Reads the annotations of a split, in an order that depends on them alone.

        Args:
            root: the folder into which the publishers' archives were extracted.
            split: one of `splits`.

        Yields:
            An entry for each file, a refusal for each annotation that cannot be read.

        Raises:
            PackError: annotations or the folder of the files are missing, or of another form.
        """


@final
class SetSource(Source):
    """One split of a public set. A sample has its file, `txt` and `json`.

    `txt` is the first caption; `json` holds source, split, licence, the set's ids and `captions`,
    all of them.

    Args:
        captions: the set.
        root: the folder into which the publishers' archives were extracted.
        split: one of the set's splits; None takes the first.

    Raises:
        PackError: the set has no such split.
    """

    def __init__(self, captions: CaptionSet, root: Path, split: str | None = None) -> None:
        self.captions, self.root = captions, root
        self.split = captions.splits[0] if split is None else split
        if self.split not in captions.splits:
            raise PackError(
                f"{captions.name} has no split {split!r}; choose one of "
                f"{', '.join(captions.splits)}"
            )

    def plan(self) -> Plan:
        """Reads the annotations and looks up the files."""
        entries = self.captions.entries(self.root, self.split)
        items = [item if isinstance(item, Refusal) else self._item(item) for item in entries]
        if not items:
            raise PackError(
                f"the annotations in {self.root} list nothing for the split {self.split}; "
                f"{self.captions.origin}"
            )
        return Plan(sum(isinstance(item, Draft) for item in items), iter(items))

    def _item(self, entry: Entry) -> Draft | Refusal:
        source = shown(f"{entry.folder.name}/{entry.file}")
        extension = entry.file.rpartition(".")[2].lower()
        if not entry.file:
            return Refusal(source, "", "the annotation names no file")
        if extension not in self.captions.extensions:
            wanted = ", ".join(self.captions.extensions)
            return Refusal(source, "", f"its extension is not one of {wanted}")
        file = open_within(entry.folder, entry.file)
        if isinstance(file, str):
            return Refusal(source, extension, file)
        try:
            words = self._words(entry)
        except UnicodeEncodeError:
            return Refusal(source, METADATA, "what the annotation says of it is not UTF-8")
        except DecodeError as error:
            return Refusal(source, METADATA, f"of a caption: {error}")
        if not words:
            return Refusal(source, METADATA, "the annotation has no caption of it")
        return Draft(source, PurePosixPath(entry.file).stem, {extension: file, **words})

    def _words(self, entry: Entry) -> dict[str, bytes]:
        """The members made of the annotation; none without a caption."""
        captions = [check_text(text) for text in entry.captions if text.strip()]
        if not captions:
            return {}
        meta = {"source": self.captions.name, "split": self.split}
        meta |= {"licence": self.captions.licence, **entry.meta, "captions": captions}
        encoded = json.dumps(meta, ensure_ascii=False).encode()
        return {MEMBERS["text"][0]: captions[0].encode(), METADATA: encoded}


def shown(name: str) -> str:
    """A stranger's name as a list of refusals can hold it: UTF-8, not long."""
    return name[:MAX_NAME].encode("utf-8", "backslashreplace").decode()
