"""Pictures: SVG to pixels, a centred frame on white, WebP bytes."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

WHITE, GREY = (255, 255, 255), (128, 128, 128)
_INK = 5  # a channel further than this from the paper's is ink; nearer, it is compression noise
_MARGIN = 4  # paper left on each side of the ink
_MIN_INK_PIXELS = 20
_MIN_SPREAD = 3.0  # standard deviation of a picture that shows something


def read_svg(path: Path, size: int) -> Image.Image:
    """Renders an SVG file to RGBA; see `render_svg`."""
    return render_svg(path.read_bytes().decode("utf-8", "replace"), size)


def render_svg(svg: str, size: int) -> Image.Image:
    """Renders SVG markup to RGBA, its longer side `size` pixels.

    System fonts are left out, so that a drawing is the same on every machine.

    Raises:
        ValueError: When resvg refuses the markup.
    """
    import resvg_py
    from PIL import Image

    # Without a resolution, sizes in pt, mm or cm come out as zero and the file is refused.
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=size, height=size, dpi=96, skip_system_fonts=True
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def on_paper(image: Image.Image, paper: tuple[int, int, int] = WHITE) -> Image.Image:
    """Lays a picture of any mode on paper of one colour; gives RGB of the same size."""
    from PIL import Image

    sheet = Image.new("RGBA", image.size, (*paper, 255))
    sheet.alpha_composite(image.convert("RGBA"))
    return sheet.convert("RGB")


def frame(
    image: Image.Image,
    size: int,
    max_zoom: float = 2.0,
    paper: tuple[int, int, int] = WHITE,
) -> Image.Image:
    """Crops a picture to its ink and centres it on a square of paper.

    Args:
        image: Picture of any mode; where it is transparent the paper shows.
        size: Side of the square in pixels.
        max_zoom: Small pictures are enlarged by at most this factor.
        paper: Colour of the square.

    Returns:
        RGB picture of `size` x `size`.

    Raises:
        ValueError: When nothing shows on this paper.
    """
    from PIL import Image, ImageChops, ImageStat

    image = on_paper(image, paper)
    change = ImageChops.difference(image, Image.new("RGB", image.size, paper))
    # The most changed channel decides: pure yellow is ink although red and green are as in white.
    red, green, blue = change.split()
    most = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    ink = most.point([255 if value > _INK else 0 for value in range(256)])
    box = ink.getbbox()
    num_ink = ink.histogram()[255]
    if box is None or num_ink < _MIN_INK_PIXELS or max(ImageStat.Stat(image).stddev) < _MIN_SPREAD:
        raise ValueError("blank picture")
    image = image.crop(box)
    zoom = min(max_zoom, (size - 2 * _MARGIN) / max(image.size))
    width, height = (max(1, round(side * zoom)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    return centre(image, size, paper)


def centre(image: Image.Image, size: int, paper: tuple[int, int, int] = WHITE) -> Image.Image:
    """Puts an RGB picture no larger than `size` in the middle of a square of paper."""
    from PIL import Image

    square = Image.new("RGB", (size, size), paper)
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


def look(image: Image.Image) -> bytes:
    """Coarse fingerprint: pictures that agree on 24 x 24 cells and 16 grey levels share it."""
    grey = image.resize((24, 24)).convert("L").point([value // 16 for value in range(256)])
    return hashlib.blake2b(grey.tobytes(), digest_size=16).digest()


def webp(image: Image.Image, quality: int) -> bytes:
    """Encodes a picture as lossy WebP with the slowest, smallest method."""
    out = io.BytesIO()
    image.save(out, "WEBP", quality=quality, method=6)
    return out.getvalue()
