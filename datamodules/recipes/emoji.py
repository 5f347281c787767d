"""Emoji drawn by two vendors, with the names and tags of emojibase."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from datamodules.recipes.base import Drawn, Recipe, Rejection, Task, captioned, members_of
from datamodules.recipes.packages import NpmPackage, RecipeError
from datamodules.recipes.raster import centre, on_paper, render_svg, webp

if TYPE_CHECKING:
    from PIL import Image

NAMES = NpmPackage("emojibase-data", "17.0.0")
TWEMOJI = NpmPackage("@iconify-json/twemoji", "1.2.5")
NOTO = NpmPackage("@iconify-json/noto", "1.2.9")
SIZE = 72
_LICENCES = {"twemoji": "CC-BY-4.0", "noto": "Apache-2.0"}
_QUALITY = 85
_COMPONENTS = 2  # emojibase's group of parts (skin tones, hair), which are no emoji alone


@final
class Emoji(Recipe):
    """Emoji, one sample for each concept and vendor; the key is `CONCEPT_VENDOR`.

    A concept is a sequence of code points without skin tones. Members: `webp`, `txt`
    ("label : tag, tag"), `json` (source, vendor, concept, label, tags, licence).
    """

    name = "emoji"
    packages = (TWEMOJI, NOTO, NAMES)
    libraries = ("resvg_py",)

    def plan(self, source: Path) -> Iterator[Task | Rejection]:
        """Plans one task for each drawing whose code points emojibase names."""
        concepts = read_concepts(source)
        for vendor, licence in _LICENCES.items():
            icons = read_json(source, f"@iconify-json/{vendor}/icons.json")
            names = read_json(source, f"@iconify-json/{vendor}/chars.json")
            by_concept = {concept_of(code): name for code, name in sorted(names.items())}
            for concept, entry in concepts.items():
                place = f"{vendor}/{concept}"
                icon = icons["icons"].get(by_concept.get(concept))
                if icon is None:
                    yield Rejection(place, "not drawn by this vendor")
                    continue
                about = {"source": self.name, "vendor": vendor, "concept": concept}
                meta = about | words_of(entry) | {"licence": licence}
                yield Task(place, partial(draw_icon, to_svg(icon, icons), meta))


def read_concepts(source: Path) -> dict[str, Mapping[str, Any]]:
    """Reads what emojibase says of each concept, sorted by concept; parts are left out."""
    entries = read_json(source, f"{NAMES.name}/en/data.json")
    whole = (entry for entry in entries if entry.get("group") != _COMPONENTS)
    return dict(sorted({concept_of(entry["hexcode"]): entry for entry in whole}.items()))


def words_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the label and tags of an entry of emojibase."""
    return {"label": entry["label"], "tags": entry.get("tags", [])}


def concept_of(code: str) -> str:
    """Code points in lower case without joiner and variation selector, as vendors differ there."""
    return re.sub(r"-(fe0f|200d)(?=-|$)", "", code.lower())


def to_svg(icon: dict[str, Any], icons: dict[str, Any]) -> str:
    """Completes an Iconify icon to an SVG document; the set's defaults are 16 x 16 at 0, 0."""
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">'
        f"{icon['body']}</svg>"
    )


def draw_icon(svg: str, meta: dict[str, Any]) -> Drawn:
    """Draws the sample of an icon; `meta` becomes its `json`."""
    return to_sample(render_svg(svg, SIZE), meta)


def to_sample(image: Image.Image, meta: dict[str, Any]) -> Drawn:
    """Makes the sample of a picture that is no larger than `SIZE`; `meta` becomes its `json`."""
    picture = webp(centre(on_paper(image), SIZE), _QUALITY)
    members = members_of("webp", picture, captioned(meta["label"], meta["tags"]), meta)
    return Drawn(f"{meta['concept']}_{meta['vendor']}", members)


def read_json(source: Path, name: str) -> Any:
    """Reads a file of an npm package.

    Raises:
        RecipeError: When it is not there.
    """
    path = source / name
    if not path.is_file():
        raise RecipeError(
            f"No file {name} in {source}; give a folder laid out like node_modules that holds "
            "the packages of the recipe."
        )
    return json.loads(path.read_text("utf-8"))
