"""A folder of plain files as a source."""

from __future__ import annotations

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

    def plan(self) -> Plan:
        """Lists the folder, sorted by path."""
        if not self.root.is_dir():
            raise PackError(f"{self.root} is not a folder; give one with pictures, sounds or texts")
        if self.without is not None and self.without.resolve() == self._root:
            raise PackError(f"got {self.root} as source and as target; write to another folder")
        groups = self._groups()
        if not any(extension for found in groups.values() for extension, _ in found):
            wanted = ", ".join(sorted(EXTENSIONS - {METADATA}))
            raise PackError(f"{self.root} holds no file that could be packed; wanted {wanted}")
        items = [item for stem, found in groups.items() for item in self._items(stem, found)]
        return Plan(sum(isinstance(item, Draft) for item in items), iter(items))

    def _groups(self) -> dict[str, list[tuple[str, Path]]]:
        """Stem -> (extension, file) of the sample; the extension is "" where it is not known."""
        groups: dict[str, list[tuple[str, Path]]] = {}
        without = self.without.resolve() if self.without is not None else None
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            hidden = any(part.startswith(".") for part in name.split("/"))
            ours = without is not None and (self._root / name).is_relative_to(without)
            if not hidden and not ours and (path.is_symlink() or not path.is_dir()):
                extension = extension_of(name)
                stem = name[: -len(extension) - 1] if extension else name
                groups.setdefault(stem, []).append((extension, path))
        return groups

    def _items(self, stem: str, found: list[tuple[str, Path]]) -> Iterator[Draft | Refusal]:
        shown = stem.encode("utf-8", "backslashreplace").decode()
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
