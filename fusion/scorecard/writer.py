"""Writing scorecards."""

from pathlib import Path

from fusion.report.writer import write_whole
from fusion.scorecard.card import Scorecard
from fusion.scorecard.page import render

JSON, PAGE = "scorecard.json", "scorecard.html"


def write_scorecard(folder: str | Path, card: Scorecard) -> Path:
    """Writes `scorecard.json` and `scorecard.html`, each whole or not at all.

    Args:
        folder: of the run; made if it is not there.
        card: what to write.

    Returns:
        The path of the page.

    Raises:
        OSError: if the folder cannot be written; files that are there already stay as they are.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / JSON, card.to_json())
    return write_whole(folder / PAGE, render(card))
