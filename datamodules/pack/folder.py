"""A folder of plain files as a source."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import final

from datamodules.manifest import EXTENSIONS
from datamodules.pack.names import against_name, within
from datamodules.pack.source import Draft, File, PackError, Plan, Refusal, Source, against_size
from datamodules.samples import METADATA


@final
class FolderSource(Source):
    """A folder and those below; files that share a stem are one sample (see `read_folder`).

    Hidden files are ignored; files of other extensions are refused, one by one.

    Args:
        root: the folder.
        without: a folder below that is no part of it, such as the one that is written to.
    """

    def __init__(self, root: Path, without: Path | None = None) -> None:
        self.root, self.without = root, without
        self._root = root.resolve()
        self._without = without.resolve() if without is not None else None

    def plan(self) -> Plan:
        """Lists the folder, sorted by path."""
        if not self.root.is_dir():
            raise PackError(f"{self.root} is not a folder; give one with pictures, sounds or texts")
        if self._without == self._root:
            raise PackError(f"got {self.root} as source and as target; write to another folder")
        groups, unread = self._groups()
        if not any(extension for found in groups.values() for extension, _ in found):
            wanted = ", ".join(sorted(EXTENSIONS - {METADATA}))
            raise PackError(f"{self.root} holds no file that could be packed; wanted {wanted}")
        items: list[Draft | Refusal] = [*unread]
        items += [item for stem, found in groups.items() for item in self._items(stem, found)]
        return Plan(sum(isinstance(item, Draft) for item in items), iter(items))

    def _groups(self) -> tuple[dict[str, list[tuple[str, Path]]], list[Refusal]]:
        """(Stem -> (extension, file) of the sample, the folders that cannot be read).

        The extension is "" where it is not known.
        """
        groups: dict[str, list[tuple[str, Path]]] = {}
        paths, unread = _walk(self.root)
        for name in map(self._name, filter(self._counts, paths)):
            extension = extension_of(name)
            stem = name[: -len(extension) - 1] if extension else name
            groups.setdefault(stem, []).append((extension, self.root / name))
        shown = [
            (_shown(self._name(path)), reason) for path, reason in unread if self._counts(path)
        ]
        return groups, [Refusal(name, "", f"it cannot be read ({why})") for name, why in shown]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _counts(self, path: Path) -> bool:
        """Whether a path is neither hidden nor below the folder that is no part of the source."""
        name = self._name(path)
        hidden = any(part.startswith(".") for part in name.split("/"))
        return not hidden and (
            self._without is None or not (self._root / name).is_relative_to(self._without)
        )

    def _items(self, stem: str, found: list[tuple[str, Path]]) -> Iterator[Draft | Refusal]:
        shown = _shown(stem)
        for extension, _ in found:
            if not extension:
                yield Refusal(shown, "", "its extension is not one of those that are packed")
        members: dict[str, File | bytes] = {}
        for extension, path in found:
            if not extension:
                continue
            if extension in members:
                yield Refusal(shown, extension, "the member is there twice, in other case")
                return
            file = open_within(self.root, path.relative_to(self.root).as_posix())
            if isinstance(file, str):
                yield Refusal(shown, extension, file)
                return
            members[extension] = file
        if members:
            yield Draft(stem, stem, members)


def _walk(root: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """(Files and links below a folder, (folder that cannot be read, reason)), both sorted."""
    errors: list[OSError] = []
    paths: list[Path] = []
    for folder, names, files in os.walk(root, onerror=errors.append):
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        paths += [Path(folder, name) for name in [*links, *files]]
    return sorted(paths), sorted((Path(e.filename), str(e.strerror)) for e in errors)


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def extension_of(name: str) -> str:
    """The longest known extension that fits a file's name, in lower case; "" if none does."""
    fits = [extension for extension in EXTENSIONS if name.lower().endswith(f".{extension}")]
    return max(fits, key=len, default="")


def open_within(root: Path, name: str) -> File | str:
    """Looks up a file of `root` by its name, or says why it is refused."""
    if reason := against_name(name):
        return reason
    path = root / name
    try:
        if not within(path, root):
            return "it is a link that leaves the source"
        file = File.of(path)
        if not path.is_file():
            return "it is not a plain file"
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        return f"it cannot be read ({getattr(error, 'strerror', None) or 'links in a circle'})"
    return against_size(file.size) or file
