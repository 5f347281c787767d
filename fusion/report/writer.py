"""Writing pages."""

import os
from pathlib import Path

from fusion.report.content import ReportContent
from fusion.report.page import render


def write_report(path: str | Path, content: ReportContent) -> Path:
    """Writes a report as one self-contained HTML file, whole or not at all.

    Args:
        path: file to write; replaced if it exists.
        content: what the report says.

    Returns:
        The path written.

    Raises:
        ValueError: if a picture or recording is in a form that browsers do not show.
        OSError: if the folder cannot be written; an existing report is left as it was.
    """
    return write_whole(path, render(content))


def write_whole(path: str | Path, page: str) -> Path:
    """Writes a text file, whole or not at all.

    Args:
        path: file to write; replaced if it exists.
        page: its content.

    Returns:
        The path written.

    Raises:
        OSError: if the folder cannot be written; an existing file is left as it was.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(page, "utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
