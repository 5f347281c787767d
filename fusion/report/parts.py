"""Small parts that the sections of the report page share."""

import math
from collections.abc import Mapping

from fusion.plots import Drawing
from fusion.report.content import Picture
from fusion.report.markup import Html, data_uri, element, join


def box(css_class: str, *children: str) -> Html:
    """A block of the page."""
    return element("div", {"class": css_class}, *children)


def note(text: str) -> Html:
    """A paragraph of explanation in soft ink."""
    return element("p", {"class": "soft"}, text)


def headline_figures(values: Mapping[str, str]) -> Html:
    """A card of large figures with their names below."""
    cells = (
        element("div", {}, element("dt", {}, name), element("dd", {}, value))
        for name, value in values.items()
    )
    return element("dl", {"class": "card stats"}, *cells)


def terms(css_class: str, values: Mapping[str, str]) -> Html:
    """A list of names and values."""
    pairs = (join(element("dt", {}, k), element("dd", {}, v)) for k, v in values.items())
    return element("dl", {"class": css_class}, *pairs)


def figure(drawing: Drawing, caption: str) -> Html:
    """A card with a drawing and its caption, which is also its text alternative."""
    return pictured(Picture(drawing.svg().encode(), caption))


def pictured(picture: Picture) -> Html:
    """A card with a picture, and under it the words that describe it."""
    caption = element("figcaption", {}, picture.alt)
    return element("figure", {"class": "card"}, image(picture), caption)


def image(picture: Picture) -> Html:
    """A picture held inside the page."""
    return element("img", {"src": data_uri(picture.data), "alt": picture.alt})


def percent(share: float) -> str:
    """A share in [0, 1] as "38.8 %"."""
    return f"{100 * share:.1f} %"


def number(value: float, form: str = ".2f") -> str:
    """A number in the given format, or "none" where it is not finite."""
    return format(value, form) if math.isfinite(value) else "none"


def arrow(direction: str) -> str:
    """ "image+audio->text" as "image + audio → text"."""
    return direction.replace("->", " → ").replace("+", " + ")
