"""A CSV or JSON Lines file of paths and captions as a source."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

from datamodules.decode import DecodeError, decode_metadata
from datamodules.manifest import MODALITIES
from datamodules.pack.folder import extension_of, open_within
from datamodules.pack.source import Draft, File, PackError, Plan, Refusal, Source
from datamodules.samples import MEMBERS

CAPTIONS = ("text", "caption")
COLUMNS = (*(modality for modality in MEMBERS if modality != "text"), *CAPTIONS)
_Row = tuple[int, Mapping[str, Any] | str]  # line, and the cells or why it is refused


@final
class TableSource(Source):
    """A .csv with a header or a .jsonl of objects: a row is a sample.

    Columns `image` and `audio` hold paths, relative to the file and below its folder; `text` or
    `caption` holds the text itself. Empty cells are absent modalities; other columns are not
    packed.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def plan(self) -> Plan:
        """Reads the table and looks up its files."""
        rows = self._csv() if self.path.suffix.lower() == ".csv" else self._jsonl()
        items = [self._item(*row) for row in rows]
        if not items:
            raise PackError(f"{self.path} holds no row; give at least one")
        return Plan(sum(isinstance(item, Draft) for item in items), iter(items))

    def _csv(self) -> Iterator[_Row]:
        # newline="" lets csv see the ends of lines inside quotes
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            header = _header(reader, self.path)
            while True:
                line = reader.line_num + 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:  # it goes on with the next line
                    yield line, f"the row is not CSV ({error})"
                    continue
                if len(cells) == len(header):
                    yield line, dict(zip(header, cells, strict=True))
                elif cells:
                    yield line, f"the row has {len(cells)} cells, the header {len(header)}"

    def _jsonl(self) -> Iterator[_Row]:
        with self.path.open("rb") as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    try:
                        yield line, decode_metadata(text)
                    except DecodeError as error:
                        yield line, str(error)

    def _item(self, line: int, row: Mapping[str, Any] | str) -> Draft | Refusal:
        source = f"{self.path.name}:{line}"
        if isinstance(row, str):
            return Refusal(source, "", row)
        cells = {column: row[column] for column in COLUMNS if row.get(column) not in (None, "")}
        if not cells:
            return Refusal(source, "", f"it has none of {', '.join(COLUMNS)}")
        if all(caption in cells for caption in CAPTIONS):
            return Refusal(source, "caption", "it has both a text and a caption")
        members: dict[str, File | bytes] = {}
        for column, cell in cells.items():
            extension, content = self._member(column, cell)
            if isinstance(content, str):
                return Refusal(source, column, content)
            members[extension] = content
        paths = [cell for column, cell in cells.items() if column not in CAPTIONS]
        name = paths[0][: -len(extension_of(paths[0])) - 1] if paths else f"row_{line:07d}"
        return Draft(source, name, members)

    def _member(self, column: str, cell: Any) -> tuple[str, File | bytes | str]:
        """Extension and content of a cell, or why it is refused."""
        if not isinstance(cell, str):
            return "", f"it is a {type(cell).__name__}; wanted a string"
        if column in CAPTIONS:
            try:
                return MEMBERS["text"][0], cell.encode()
            except UnicodeEncodeError:
                return "", "it is not UTF-8"
        extension = extension_of(cell)
        file = open_within(self.path.parent, cell)
        if not isinstance(file, str) and MODALITIES.get(extension) != column:
            return "", f"its extension is not one of {', '.join(MEMBERS[column])}"
        return extension, file


def _header(reader: Iterator[list[str]], path: Path) -> list[str]:
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
    except csv.Error as error:
        raise PackError(f"the header of {path} is not CSV ({error}); mend it") from error
    known = [cell for cell in header if cell in COLUMNS]
    if not known or len(set(known)) < len(known) or set(CAPTIONS) <= set(known):
        raise PackError(
            f"{path} has the columns {', '.join(header)[:200] or 'none'}; wanted at least one of "
            f"{', '.join(COLUMNS)}, each once, and not both text and caption"
        )
    return header
