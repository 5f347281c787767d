"""Rows of CSV and JSON Lines files, the bad ones with why they are."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from datamodules.decode import DecodeError, decode_metadata
from datamodules.pack.source import PackError


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        line: its first line in the file, from 1.
        cells: column -> value, or why the row cannot be read.
    """

    line: int
    cells: Mapping[str, Any] | str


def csv_header(path: Path) -> list[str]:
    """The columns of a CSV file, in lower case.

    Raises:
        PackError: the first line is not CSV, or a column is there twice.
    """
    with _open(path) as file:
        header = _header(csv.reader(file), path)
    named = [cell for cell in header if cell]
    if len(set(named)) < len(named):
        raise PackError(f"{path} has the columns {', '.join(header)[:200]}; give each once")
    return header


def csv_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV file with a header; columns without a name and empty cells are left out."""
    with _open(path) as file:
        reader = csv.reader(file)
        header = _header(reader, path)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # it goes on with the next line
                yield Row(line, f"the row is not CSV ({error})")
                continue
            if not _is_text(cells):
                yield Row(line, "the row is not UTF-8")
            elif len(cells) == len(header):
                pairs = zip(header, cells, strict=True)
                yield Row(line, {column: cell for column, cell in pairs if column and cell})
            elif cells:
                yield Row(line, f"the row has {len(cells)} cells, the header {len(header)}")


def jsonl_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSON Lines file; what is null or "" is left out."""
    with path.open("rb") as file:
        for line, text in enumerate(file, 1):
            if text.strip():
                try:
                    cells = decode_metadata(text)
                except DecodeError as error:
                    yield Row(line, str(error))
                else:
                    yield Row(line, {k: v for k, v in cells.items() if v not in (None, "")})


def _is_text(cells: list[str]) -> bool:
    return not any("\udc80" <= letter <= "\udcff" for cell in cells for letter in cell)


def _open(path: Path) -> TextIO:
    # newline="" lets csv see the ends of lines inside quotes
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _header(reader: Iterator[list[str]], path: Path) -> list[str]:
    try:
        return [cell.strip().lower() for cell in next(reader, [])]
    except csv.Error as error:
        raise PackError(f"the header of {path} is not CSV ({error}); mend it") from error
