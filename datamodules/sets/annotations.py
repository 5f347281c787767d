"""Reading annotation files of strangers: what is missing or of another form is one sentence."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.pack.source import PackError, Refusal

_MAX_BYTES = 2**30  # the largest published file of these sets has about 150 MB


def find(root: Path, names: Sequence[str], origin: str) -> Path:
    """The first of several files or folders that is there.

    Args:
        root: folder that the names are relative to.
        names: paths, in order of preference.
        origin: what to do if there is none; see `CaptionSet`.

    Raises:
        PackError: there is none.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    raise PackError(f"{root} has no {' nor '.join(names)}; {origin}")


def read_object(path: Path) -> Mapping[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        PackError: it holds something else.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise PackError(f"{path} has more than {_MAX_BYTES} bytes; get the published file")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PackError(f"{path} is not JSON ({error}); get it again") from error
    if not isinstance(value, dict):
        raise PackError(f"{path} is no JSON object; get it again")
    return value


def objects_of(value: Mapping[str, Any], name: str, path: Path) -> list[Mapping[str, Any]]:
    """The list of objects that an object holds under a name.

    Raises:
        PackError: there is no such list.
    """
    items = value.get(name)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise PackError(f"{path} holds no list {name!r} of objects; get the published file")
    return items


def text_of(row: Mapping[str, Any], name: str) -> str:
    """A string of an object; "" where it has none."""
    value = row.get(name)
    return value if isinstance(value, str) else ""


def id_of(row: Mapping[str, Any], name: str) -> int | str | None:
    """An id of an object; None where it has none."""
    value = row.get(name)
    return value if isinstance(value, int | str) else None


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, str] | Refusal]:
    """Reads a CSV file with a header.

    Args:
        path: the file, in UTF-8; other bytes become surrogates.
        columns: those that the header must hold.

    Yields:
        Cells by column, or a refusal for a row that is none.

    Raises:
        PackError: a column is missing.
    """
    # newline="" lets csv see the ends of lines inside quotes
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        header: list[str] | None = None
        while True:
            source = f"{path.name}:{reader.line_num + 1}"
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:  # it goes on with the next line
                yield Refusal(source, "", f"the row is not CSV ({error})")
                continue
            if header is None:
                header = cells
                _check_header(header, columns, path)
            elif len(cells) == len(header):
                yield dict(zip(header, cells, strict=True))
            elif cells:
                reason = f"the row has {len(cells)} cells, the header {len(header)}"
                yield Refusal(source, "", reason)
    if header is None:
        _check_header([], columns, path)


def _check_header(header: Sequence[str], columns: Sequence[str], path: Path) -> None:
    if missing := [column for column in columns if column not in header]:
        raise PackError(
            f"{path} has no column {', '.join(missing)}; wanted the published file, whose first "
            "line names its columns"
        )
