"""What a recipe is: a plan of samples over a tree of public source files."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from datamodules.recipes.packages import Package


class Rejection(NamedTuple):
    """A source item that was left out, and why."""

    source: str
    reason: str


class Drawn(NamedTuple):
    """One sample, ready to be written.

    Attributes:
        key: Name of the sample in its shard; no dots.
        members: Bytes of each member by extension (`webp`, `txt`, `speech_fr.opus`, ...).
        look: What the picture looks like, coarsely. Of two samples of one recipe with the same
            look only the first is kept; `b""` means "never a duplicate".
        omitted: Parts of the source left out of the sample.
    """

    key: str
    members: dict[str, bytes]
    look: bytes = b""
    omitted: tuple[Rejection, ...] = ()


class Task(NamedTuple):
    """A sample still to be drawn, perhaps in another process.

    Attributes:
        source: Where it comes from, for the list of rejected items.
        draw: Picklable function that draws it. It refuses by raising `ValueError`, `OSError`,
            `RuntimeError` or `SyntaxError`, the errors of resvg, libsndfile and Pillow.
    """

    source: str
    draw: Callable[[], Drawn]


class Recipe(ABC):
    """Turns the files of public packages into samples.

    Attributes:
        name: Name of the recipe and prefix of its shard.
        packages: Packages whose extracted files `plan` reads.
        libraries: Python modules of the extra `recipes` that it draws with.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[Package, ...]]
    libraries: ClassVar[tuple[str, ...]]

    @abstractmethod
    def plan(self, source: Path) -> Iterator[Task | Rejection]:
        """Lists what there is to draw, in an order that depends on the files alone.

        Args:
            source: Folder that holds the extracted packages.

        Yields:
            A task for each sample, a rejection for each item left out at first sight.

        Raises:
            RecipeError: When `source` does not hold the expected files.
        """


def key_of(path: str) -> str:
    """Makes a sample's key from a path: runs of anything but letters and digits become `_`."""
    return re.sub(r"[^A-Za-z0-9]+", "_", path)


def members_of(
    extension: str, content: bytes, caption: str, meta: dict[str, Any]
) -> dict[str, bytes]:
    """Gives the members that every sample has: its picture or sound, `txt` and `json`."""
    encoded = json.dumps(meta, ensure_ascii=False).encode()
    return {extension: content, "txt": caption.encode(), "json": encoded}


def captioned(name: str, words: list[str]) -> str:
    """Joins a name and the words that go with it: "name : word, word", or the name alone."""
    return f"{name} : {', '.join(words)}" if words else name
