"""The pictures of a page."""

from fusion.plots import Drawing
from fusion.report.content import Picture
from fusion.report.markup import Html
from fusion.report.parts import pictured


class Album:
    """The pictures of a page by their names."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def add(self, name: str, drawing: Drawing, caption: str) -> Html:
        """Draws a picture and shows it with its caption."""
        self.files[name] = drawing.png()
        return pictured(Picture(self.files[name], caption))
