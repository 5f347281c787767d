"""Tux Paint's stamps: photographs and cartoons with captions, spoken names and sounds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

from datamodules.recipes.base import Drawn, Recipe, Rejection, Task, key_of, members_of
from datamodules.recipes.packages import DebianPackage, RecipeError
from datamodules.recipes.raster import GREY, frame, read_svg, webp
from datamodules.recipes.sound import to_opus

if TYPE_CHECKING:
    from PIL import Image

_ROOT = Path("usr/share/tuxpaint/stamps")
_LICENCE = "GPL-2.0-or-later"
_SIZE, _QUALITY, _MAX_ZOOM = 128, 85, 3.0
_LANGUAGES = ("en", "fr")
# Tux Paint's rule: NAME_desc_LL is a spoken description, English when LL is left out, and NAME
# alone is a sound effect.
_SOUNDS = {"speech_en": ("_desc", "_desc_en"), "speech_fr": ("_desc_fr",), "sfx": ("",)}


@final
class Stamps(Recipe):
    """Tux Paint's stamps, one sample each: picture, caption, speech and sound effect.

    Members: `webp`, `txt` (English), `json` (source, path, category, symbol, caption by language,
    licence) and, where there is one, `speech_fr.opus`, `speech_en.opus`, `sfx.opus`.
    """

    name = "stamps"
    packages = (DebianPackage("tuxpaint-stamps-default"),)
    libraries = ("resvg_py", "scipy")

    def plan(self, source: Path) -> Iterator[Task | Rejection]:
        """Plans one task for each stamp with an English caption."""
        root = source / _ROOT
        if not root.is_dir():
            raise RecipeError(
                f"No stamps in {source}: expected a folder {_ROOT} there; give the folder into "
                "which tuxpaint-stamps-default was extracted."
            )
        pictures = (path for path in root.rglob("*") if path.suffix in (".png", ".svg"))
        for stem in sorted({path.relative_to(root).with_suffix("") for path in pictures}):
            caption = read_captions(_beside(root / stem, ".txt"))
            if "en" in caption:
                yield Task(stem.as_posix(), partial(_draw, root, stem, caption))
            else:
                yield Rejection(stem.as_posix(), "no English caption")


def read_captions(path: Path) -> dict[str, str]:
    """Reads a stamp's text file: English on the first line, then lines `LANGUAGE.utf8=text`.

    Returns:
        Captions in English and French, those that are there; empty when there is no file.
    """
    if not path.exists():
        return {}
    first, *others = path.read_text("utf-8", "replace").split("\n")
    captions = {"en": first.strip()}
    for line in others:
        match = re.match(r"([\w@]+)\.utf8=(.*)", line)
        if match:
            captions.setdefault(match[1], match[2].strip())
    return {language: captions[language] for language in _LANGUAGES if captions.get(language)}


def _draw(root: Path, stem: Path, caption: dict[str, str]) -> Drawn:
    path = stem.as_posix()
    category = stem.parts[0]
    meta = {
        "source": "stamps",
        "path": path,
        "category": category,
        "symbol": category == "symbols",
        "caption": caption,
        "licence": _LICENCE,
    }
    members = members_of("webp", webp(_read_picture(root / stem), _QUALITY), caption["en"], meta)
    omitted = []
    for member, sound in _find_sounds(root / stem):
        try:
            members[f"{member}.opus"] = to_opus(sound)
        except (ValueError, RuntimeError) as error:
            omitted.append(Rejection(sound.relative_to(root).as_posix(), str(error)))
    return Drawn(key_of(path), members, omitted=tuple(omitted))


def _read_picture(stem: Path) -> Image.Image:
    from PIL import Image

    # Where both exist the PNG is the one drawn for the screen.
    png = _beside(stem, ".png")
    image = Image.open(png) if png.exists() else read_svg(_beside(stem, ".svg"), 2 * _SIZE)
    try:
        return frame(image, _SIZE, _MAX_ZOOM)
    except ValueError:  # all white: a flash of lightning
        return frame(image, _SIZE, _MAX_ZOOM, GREY)


def _find_sounds(stem: Path) -> Iterator[tuple[str, Path]]:
    for member, endings in _SOUNDS.items():
        places = (_beside(stem, end + suffix) for end in endings for suffix in (".ogg", ".wav"))
        found = next((place for place in places if place.exists()), None)
        if found is not None:
            yield member, found


def _beside(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)  # not with_suffix: a stem may hold a dot
