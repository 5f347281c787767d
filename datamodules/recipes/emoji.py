"""Emoji drawn by two vendors, with the names and tags of emojibase."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, final

from datamodules.recipes.base import Drawn, Recipe, Rejection, Task, captioned, members_of
from datamodules.recipes.packages import NpmPackage, RecipeError
from datamodules.recipes.raster import centre, on_paper, render_svg, webp

_LICENCES = {"twemoji": "CC-BY-4.0", "noto": "Apache-2.0"}
_SIZE, _QUALITY = 72, 85
_COMPONENTS = 2  # emojibase's group of parts (skin tones, hair), which are no emoji alone


@final
class Emoji(Recipe):
    """Emoji, one sample for each concept and vendor; the key is `CONCEPT_VENDOR`.

    A concept is a sequence of code points without skin tones. Members: `webp`, `txt`
    ("label : tag, tag"), `json` (source, vendor, concept, label, tags, licence).
    """

    name = "emoji"
    packages = (
        NpmPackage("@iconify-json/twemoji", "1.2.5"),
        NpmPackage("@iconify-json/noto", "1.2.9"),
        NpmPackage("emojibase-data", "17.0.0"),
    )

    def plan(self, source: Path) -> Iterator[Task | Rejection]:
        """Plans one task for each drawing whose code points emojibase names."""
        concepts = {
            concept_of(entry["hexcode"]): entry
            for entry in _read(source, "emojibase-data/en/data.json")
            if entry.get("group") != _COMPONENTS
        }
        for vendor in _LICENCES:
            icons = _read(source, f"@iconify-json/{vendor}/icons.json")
            names = _read(source, f"@iconify-json/{vendor}/chars.json")
            by_concept = {concept_of(code): name for code, name in sorted(names.items())}
            for concept, entry in sorted(concepts.items()):
                place = f"{vendor}/{concept}"
                icon = icons["icons"].get(by_concept.get(concept))
                if icon is None:
                    yield Rejection(place, "not drawn by this vendor")
                    continue
                words = entry["label"], entry.get("tags", [])
                yield Task(place, partial(_draw, vendor, concept, to_svg(icon, icons), *words))


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


def _draw(vendor: str, concept: str, svg: str, label: str, tags: list[str]) -> Drawn:
    picture = centre(on_paper(render_svg(svg, _SIZE)), _SIZE)
    meta = {
        "source": "emoji",
        "vendor": vendor,
        "concept": concept,
        "label": label,
        "tags": tags,
        "licence": _LICENCES[vendor],
    }
    members = members_of(webp(picture, _QUALITY), captioned(label, tags), meta)
    return Drawn(f"{concept}_{vendor}", members)


def _read(source: Path, name: str) -> Any:
    path = source / name
    if not path.is_file():
        raise RecipeError(
            f"No file {name} in {source}; give a folder laid out like node_modules that holds "
            "@iconify-json/twemoji, @iconify-json/noto and emojibase-data."
        )
    return json.loads(path.read_text("utf-8"))
