"""A CSV or JSON Lines file of paths and captions as a source."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, final

from datamodules.decode import DecodeError, check_text
from datamodules.manifest import MODALITIES
from datamodules.pack.folder import extension_of, open_within
from datamodules.pack.rows import Row, csv_header, csv_rows, jsonl_rows
from datamodules.pack.source import Draft, File, PackError, Plan, Refusal, Source
from datamodules.samples import MEMBERS, METADATA

MEDIA = tuple(modality for modality in MEMBERS if modality != "text")
CAPTION, CAPTIONS = ("text", "caption"), "captions"
_LookUp = Callable[[str, str], File | str]
COLUMNS = (*MEDIA, *CAPTION, CAPTIONS)


@dataclass(frozen=True, slots=True)
class _Checked:
    """A row that can be packed."""

    source: str
    name: str
    files: Mapping[str, File]
    captions: tuple[str, ...]
    metadata: Mapping[str, Any]

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(os.path.normpath(file.path) for file in self.files.values())


@final
class TableSource(Source):
    """A .csv with a header or a .jsonl of objects.

    The columns `image`, `audio`, `video` and `sensor` hold paths, relative to the table and below
    its folder; `text` or `caption` holds a caption, and in a .jsonl `captions` a list of them.
    Empty cells are absent. Rows with the same files are one sample with all their captions; a row
    that adds no caption to it is refused. All other columns are the sample's metadata; where its
    rows differ, a list of their values.

    A sample's `txt` is its first caption. If it has several, its `json` has them all, as
    `captions`.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def plan(self) -> Plan:
        """Reads the table and looks up its files."""
        items = list(self._items(self._rows()))
        if not items:
            raise PackError(f"{self.path} holds no row; give at least one")
        return Plan(sum(isinstance(item, Draft) for item in items), iter(items))

    def _rows(self) -> Iterator[Row]:
        if self.path.suffix.lower() != ".csv":
            return jsonl_rows(self.path)
        header = csv_header(self.path)
        if CAPTIONS in header or set(CAPTION) <= set(header) or not set(COLUMNS) & set(header):
            wanted = ", ".join((*MEDIA, *CAPTION))
            raise PackError(
                f"{self.path} has the columns {', '.join(header)[:200] or 'none'}; wanted at least "
                f"one of {wanted}, not both text and caption, and a row for each caption"
            )
        return csv_rows(self.path)

    def _items(self, rows: Iterator[Row]) -> Iterator[Draft | Refusal]:
        entries: list[_Checked | Refusal] = []
        samples: dict[tuple[str, ...], list[_Checked]] = {}  # files -> rows
        look_up = cache(self._file)  # a file has a row for each of its captions
        for row in rows:
            entry = self._checked(row, look_up)
            if isinstance(entry, Refusal) or not entry.files:
                entries.append(entry)
            elif (before := samples.get(entry.paths)) is None:
                samples[entry.paths] = [entry]
                entries.append(entry)
            else:
                known = {caption for row in before for caption in row.captions}
                fresh = tuple(caption for caption in entry.captions if caption not in known)
                if fresh:
                    before.append(replace(entry, captions=fresh))
                else:
                    reason = f"its files are in {before[0].source}, and it adds no caption"
                    entries.append(Refusal(entry.source, "", reason))
        for entry in entries:
            if isinstance(entry, Refusal):
                yield entry
            else:
                yield _draft(samples[entry.paths] if entry.files else [entry])

    def _checked(self, row: Row, look_up: _LookUp) -> _Checked | Refusal:
        source = f"{self.path.name}:{row.line}"
        if isinstance(row.cells, str):
            return Refusal(source, "", row.cells)
        given = [column for column in COLUMNS if column in row.cells]
        if not given:
            return Refusal(source, "", f"it has none of {', '.join(COLUMNS)}")
        captioned = [column for column in given if column not in MEDIA]
        if len(captioned) > 1:
            return Refusal(source, captioned[1], f"it has both {' and '.join(captioned)}")
        files: dict[str, File] = {}
        for column in (column for column in given if column in MEDIA):
            cell = row.cells[column]
            if not isinstance(cell, str):
                return Refusal(source, column, f"it is a {type(cell).__name__}; wanted a string")
            file = look_up(column, cell)
            if isinstance(file, str):
                return Refusal(source, column, file)
            files[extension_of(file.path.name)] = file
        captions: list[str] = []
        for column in captioned:
            captions, reason = _captions(column, row.cells[column])
            if reason:
                return Refusal(source, column, reason)
        metadata = {column: row.cells[column] for column in row.cells if column not in COLUMNS}
        path = row.cells[given[0]] if files else ""
        name = path[: -len(extension_of(path)) - 1] if path else f"row_{row.line:07d}"
        return _Checked(source, name, files, tuple(captions), metadata)

    def _file(self, column: str, cell: str) -> File | str:
        file = open_within(self.path.parent, cell)
        if not isinstance(file, str) and MODALITIES.get(extension_of(cell)) != column:
            return f"its extension is not one of {', '.join(MEMBERS[column])}"
        return file


def _captions(column: str, cell: Any) -> tuple[list[str], str]:
    """(The captions of a cell, each once; why it is refused or "")."""
    texts = cell if column == CAPTIONS else [cell]
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        wanted = "a list of strings" if column == CAPTIONS else "a string"
        return [], f"it is a {type(cell).__name__}; wanted {wanted}"
    try:
        return list(dict.fromkeys(check_text(text) for text in texts)), ""
    except DecodeError as error:
        return [], str(error)


def _draft(rows: Sequence[_Checked]) -> Draft:
    """The sample that rows with the same files are."""
    first = rows[0]
    members: dict[str, File | bytes] = dict(first.files)
    captions = [caption for row in rows for caption in row.captions]
    metadata: dict[str, Any] = {CAPTIONS: captions} if len(captions) > 1 else {}
    for column in dict.fromkeys(column for row in rows for column in row.metadata):
        values = [row.metadata.get(column) for row in rows]
        metadata[column] = values[0] if all(value == values[0] for value in values) else values
    if captions:
        members[MEMBERS["text"][0]] = captions[0].encode()
    if metadata:
        members[METADATA] = json.dumps(metadata).encode()
    return Draft(first.source, first.name, members)
