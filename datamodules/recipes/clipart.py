"""Open Clip Art: drawings with names and keywords, in the public domain."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, final

from datamodules.recipes.base import Drawn, Recipe, Rejection, Task, captioned, key_of, members_of
from datamodules.recipes.clipart_captions import Metadata, keywords_of, name_of
from datamodules.recipes.packages import DebianPackage, RecipeError
from datamodules.recipes.raster import frame, look, read_svg, webp

_ROOT = Path("usr/share/openclipart/svg")
_LICENCE = "CC-PDDC"
_SIZE, _QUALITY = 128, 85


@final
class Clipart(Recipe):
    """Clip art, one sample for each distinct drawing that has a name.

    Members: `webp`, `txt` ("name : keyword, keyword"), `json` (source, name, keywords, path,
    licence).
    """

    name = "clipart"
    packages = (DebianPackage("openclipart-svg"),)
    libraries = ("resvg_py", "lxml")

    def plan(self, source: Path) -> Iterator[Task | Rejection]:
        """Plans one task for each file that is neither a copy nor a generated star."""
        root = source / _ROOT
        if not root.is_dir():
            raise RecipeError(
                f"No clip art in {source}: expected a folder {_ROOT} there; give the folder into "
                "which openclipart-svg was extracted."
            )
        files = {path: path.relative_to(root).as_posix() for path in sorted(root.rglob("*.svg"))}
        metas = {path: read_metadata(path) for path in files}
        sharing = Counter(meta.title.lower() for meta in metas.values())
        for path, place in files.items():
            meta = metas[path]
            name = name_of(meta, sharing[meta.title.lower()])
            reason = _reason_against(path, place, name)
            if reason:
                yield Rejection(place, reason)
            else:
                yield Task(place, partial(_draw, path, place, name, keywords_of(meta, name)))


def read_metadata(path: Path) -> Metadata:
    """Reads title, keywords and author of an SVG; empty where it has none or cannot be read.

    Entities are not resolved and nothing outside the file is read.
    """
    import lxml.etree as etree

    parser = etree.XMLParser(recover=True, resolve_entities=False, no_network=True, load_dtd=False)
    try:
        root = etree.fromstring(path.read_bytes(), parser)
    except (OSError, etree.XMLSyntaxError):
        root = None
    if root is None:
        return Metadata(path.stem, "", (), "")
    work = next(iter(root.xpath("descendant-or-self::*[local-name()='Work']")), root)
    titles = work.xpath("*[local-name()='title']") or root.xpath("*[local-name()='title']")
    creators = work.xpath("*[local-name()='creator']//*[local-name()='title']")
    items = work.xpath("*[local-name()='subject']//*[local-name()='li']")
    keywords = dict.fromkeys(filter(None, (_text(item).lower() for item in items)))
    return Metadata(path.stem, _first(titles), tuple(keywords), _first(creators))


def _first(elements: list[Any]) -> str:
    return _text(elements[0]) if elements else ""


def _text(element: Any) -> str:
    return " ".join("".join(element.itertext()).split()).strip(".,;:")


def _reason_against(path: Path, place: str, name: str) -> str:
    if path.is_symlink():
        return "link to another file"
    if "duplicates" in place.split("/"):
        return "in a folder of duplicates"
    if place.startswith("shapes/stars/star_"):
        return "one of the generated stars, which are all alike"
    return "" if name else "no name"


def _draw(path: Path, place: str, name: str, keywords: list[str]) -> Drawn:
    picture = frame(read_svg(path, 2 * _SIZE), _SIZE)
    meta = {
        "source": "clipart",
        "name": name,
        "keywords": keywords,
        "path": place,
        "licence": _LICENCE,
    }
    members = members_of("webp", webp(picture, _QUALITY), captioned(name, keywords), meta)
    return Drawn(key_of(place.removesuffix(".svg")), members, look(picture))
