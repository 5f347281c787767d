"""The frame of a page: one HTML file that holds its style and asks for nothing."""

from importlib.resources import files
from string import Template

from fusion.report.markup import Html, join


def frame(title: str, header: Html, main: Html) -> str:
    """A whole page.

    Args:
        title: as text.
        header: the first screen.
        main: what comes below it.

    Returns:
        An HTML document; nothing in it is fetched from elsewhere.
    """
    templates = files("fusion.report")
    return Template(templates.joinpath("page.html").read_text("utf-8")).substitute(
        title=join(title),
        style=templates.joinpath("page.css").read_text("utf-8"),
        header=header,
        main=main,
    )
