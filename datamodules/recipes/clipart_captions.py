"""Names and keywords of Open Clip Art files, freed of theme names and authors.

The titles of this collection often name the icon theme a drawing comes from, its file names often
end with the author's name, and its keywords mix subjects with housekeeping. The word lists below
were made by reading what the 2,721 distinct titles and 1,895 distinct keywords say.
"""

import re
from typing import NamedTuple

# Titles that name a collection, not the thing drawn.
_THEME_TITLE = re.compile(
    r"icon (collection|set)|icons? theme|^icons?$|etiquette icons|various clip|clipart$|theme|"
    r"gramastar|^aiga|lemon|mapsym|nuvola|bluecurve|gnome|kde|part of the flat|gradient|"
    r"^card$|^untitled|unnamed|^svg|^\W*$",
    re.IGNORECASE,
)
_MAX_SHARED = 6  # a title that more files share is a theme's too
_THEME_WORDS = re.compile(r"\b(gnome|kde|mime|aiga|stock|rodentia|etiquette|clip ?art)\b")
_VARIANT_ENDINGS = frozenset({"bw", "alt"})
_MAX_KEYWORDS = 6
_MAX_KEYWORD_LENGTH = 40
# Keywords about the file, its origin or its place in a theme, not about what is drawn.
_HOUSEKEEPING = re.compile(
    "action|appicon|application|art|by|cartoon|cc0|clip art|clip_art|clipart|colou?r|computer|"
    "contour|drawing|externalsource|filesystem|graphic|hash.*|icon|icon clip art|icons|image|"
    "inkscape|lemon_theme_icon|magick|mapsym|media|menu|mime-types|mimetypes|openclipart|outline|"
    "png|public ?domain|recreation|remix|shapes?|sign|signs_and_symbols|silhouette clip art|"
    "sodipodi|special|svg|symbol|theme|united_nations_member|unsorted|unsorted images|vector|work"
)


class Metadata(NamedTuple):
    """What a clip-art file says about itself.

    Attributes:
        stem: File name without `.svg`.
        title: Title, or "".
        keywords: Keywords in lower case, without repeats.
        creator: Author's name, or "".
    """

    stem: str
    title: str
    keywords: tuple[str, ...]
    creator: str


def plain(text: str) -> str:
    """Lower-case words: camel case and punctuation split, digits and parentheses dropped."""
    text = re.sub(r"([a-z])([A-Z])", r"\1 \2", text.removesuffix(".svg"))
    text = re.sub(r"\(.*?\)", "", re.sub(r"[_\-/.,;:]+", " ", text))
    return " ".join(re.sub(r"\d+", " ", text).lower().split())


def name_of(meta: Metadata, num_sharing: int) -> str:
    """Names what is drawn: the title when it is specific, else the file's name.

    Args:
        meta: Metadata of the file.
        num_sharing: Number of files with this title, this one included.

    Returns:
        The name, or "" when neither holds a word.
    """
    title = plain(meta.title)
    is_theme = _THEME_TITLE.search(meta.title) or num_sharing > _MAX_SHARED
    name = _name_of_file(meta) if is_theme or not _has_word(title) else title
    name = " ".join(_THEME_WORDS.sub("", name).split())
    return name if _has_word(name) else ""


def keywords_of(meta: Metadata, name: str) -> list[str]:
    """Keywords that add to the name: none of its words, the author's or the housekeeping's."""
    authors = set(plain(meta.creator).split())
    kept = (
        plain(keyword)
        for keyword in meta.keywords
        if not _HOUSEKEEPING.fullmatch(keyword) and len(keyword) < _MAX_KEYWORD_LENGTH
    )
    fresh = (
        word
        for word in dict.fromkeys(kept)
        if len(word) > 1 and word not in name and authors.isdisjoint(word.split())
    )
    return list(fresh)[:_MAX_KEYWORDS]


def _has_word(text: str) -> bool:
    return re.search("[a-z]{2}", text) is not None


def _name_of_file(meta: Metadata) -> str:
    """File name without the author's name, often cut short, at its end."""
    authors = plain(meta.creator).split()
    joined = "".join(authors)
    authors = [word for word in authors if len(word) > 1]

    def is_ending(word: str) -> bool:
        return (
            len(word) == 1
            or word in _VARIANT_ENDINGS
            or (len(word) > 2 and joined.startswith(word))
            or any(author.startswith(word) or word.startswith(author) for author in authors)
        )

    words = plain(meta.stem).split()
    while len(words) > 1 and is_ending(words[-1]):
        words.pop()
    return " ".join(words)
