"""Writing the page and its pictures."""

from collections.abc import Sequence
from pathlib import Path

from fusion.explain.content import Exhibit
from fusion.explain.page import render
from fusion.report.writer import write_whole


def write_explanation(path: str | Path, exhibits: Sequence[Exhibit]) -> Path:
    """Writes one self-contained HTML page, and its pictures as PNG files.

    The pictures go to the folder `pictures_of(path)`, where files of the same names are replaced.

    Args:
        path: file to write; replaced if it exists, folders above it are made.
        exhibits: the samples, at least one.

    Returns:
        The path written.

    Raises:
        OSError: if it cannot be written.
    """
    path = Path(path)
    page, pictures = render(exhibits)
    folder = pictures_of(path)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    return write_whole(path, page)


def pictures_of(path: Path) -> Path:
    """The folder of a page's pictures, beside it."""
    return path.with_name(f"{path.stem}-pictures")
