"""Emoji drawn by ten vendors: many pictures of one thing."""

from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

from datamodules.recipes.base import Drawn, Recipe, Rejection, Task
from datamodules.recipes.emoji import (
    NAMES,
    NOTO,
    SIZE,
    TWEMOJI,
    concept_of,
    draw_icon,
    read_concepts,
    read_json,
    to_sample,
    to_svg,
    words_of,
)
from datamodules.recipes.packages import NpmPackage, RecipeError


class _Vendor(NamedTuple):
    family: str  # vendors of one family drew nearly the same pictures
    licence: str
    package: NpmPackage


_ICONIFY = {
    "openmoji": _Vendor("openmoji", "CC-BY-SA-4.0", NpmPackage("@iconify-json/openmoji", "1.2.29")),
    "twemoji": _Vendor("twemoji", "CC-BY-4.0", TWEMOJI),
    "noto": _Vendor("noto", "Apache-2.0", NOTO),
    "noto-v1": _Vendor("noto", "Apache-2.0", NpmPackage("@iconify-json/noto-v1", "1.2.5")),
    "fluent-emoji": _Vendor("fluent", "MIT", NpmPackage("@iconify-json/fluent-emoji", "1.2.7")),
    "fluent-emoji-flat": _Vendor(
        "fluent", "MIT", NpmPackage("@iconify-json/fluent-emoji-flat", "1.2.6")
    ),
    "emojione": _Vendor("emojione", "CC-BY-4.0", NpmPackage("@iconify-json/emojione", "1.2.3")),
    "emojione-v1": _Vendor(
        "emojione", "CC-BY-SA-4.0", NpmPackage("@iconify-json/emojione-v1", "1.2.3")
    ),
    "fxemoji": _Vendor("fxemoji", "Apache-2.0", NpmPackage("@iconify-json/fxemoji", "1.2.2")),
}
# The only set that is no Iconify one: WebP files named by code points. MIT is its packager's word.
_PICTURES = {"fluent-3d": _Vendor("fluent", "MIT", NpmPackage("@lobehub/fluent-emoji-3d", "1.1.0"))}
# These give code points for their names; the names are shared by sets that give none.
_NAMING = ("noto", "twemoji", "openmoji", "fluent-emoji-flat")


@final
class EmojiAll(Recipe):
    """Emoji of ten vendors, one sample for each concept and vendor; the key is `CONCEPT_VENDOR`.

    Members as in `Emoji`; `json` also holds the vendor's family. For a test on unseen drawings
    hold out a family, not a vendor: three are of fluent, two of noto, two of emojione.
    """

    name = "emoji-all"
    packages = (*(vendor.package for vendor in (_ICONIFY | _PICTURES).values()), NAMES)
    libraries = ("resvg_py",)

    def plan(self, source: Path) -> Iterator[Task | Rejection]:
        """Plans one task for each drawing whose code points or name emojibase knows."""
        concepts = read_concepts(source)
        shared = _names_of(source, concepts)
        for vendor, about in (_ICONIFY | _PICTURES).items():
            drawings = dict(
                _icons(source, about.package.name, shared)
                if vendor in _ICONIFY
                else _pictures(source / about.package.name / "assets")
            )
            for concept, entry in concepts.items():
                place = f"{vendor}/{concept}"
                if concept not in drawings:
                    yield Rejection(place, "not drawn by this vendor")
                    continue
                drawing = drawings[concept]
                meta = {"source": self.name, "vendor": vendor, "family": about.family}
                meta |= {"concept": concept, **words_of(entry), "licence": about.licence}
                draw = draw_icon if isinstance(drawing, str) else _draw_file
                yield Task(place, partial(draw, drawing, meta))


def _names_of(source: Path, concepts: Collection[str]) -> dict[str, str]:
    """Name of an icon -> concept, by the first set that gives its code points."""
    shared: dict[str, str] = {}
    for vendor in _NAMING:
        codes = read_json(source, f"{_ICONIFY[vendor].package.name}/chars.json")
        for code, name in sorted(codes.items()):
            if concept_of(code) in concepts:
                shared.setdefault(name, concept_of(code))
    return shared


def _icons(source: Path, package: str, shared: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(concept, SVG) of a set; of two icons of one concept that with its code points comes last."""
    icons = read_json(source, f"{package}/icons.json")
    codes = read_json(source, f"{package}/chars.json")
    named = [(shared[name], name) for name in sorted(icons["icons"]) if name in shared]
    coded = [(concept_of(code), name) for code, name in sorted(codes.items())]
    for concept, name in named + coded:
        if name in icons["icons"]:
            yield concept, to_svg(icons["icons"][name], icons)


def _pictures(folder: Path) -> Iterator[tuple[str, Path]]:
    """(concept, file) of the pictures of a folder."""
    if not folder.is_dir():
        raise RecipeError(f"No folder {folder.name} in {folder.parent}; extract the package again.")
    for path in sorted(folder.glob("*.webp")):
        yield concept_of(path.stem), path


def _draw_file(path: Path, meta: dict[str, Any]) -> Drawn:
    from PIL import Image

    with Image.open(path) as image:
        picture = image.convert("RGBA")
    picture.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    return to_sample(picture, meta)
