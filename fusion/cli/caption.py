"""fusion caption: files in words."""

from fusion.cli.display import printable
from fusion.inference import Pipeline


def caption(run: str, *files: str, num_beams: int = 4) -> None:
    """Describes files in words, one line each: the file, a tab, the caption.

    Examples:
        fusion caption runs/quickstart bird.jpg
        fusion caption runs/quickstart *.png --num_beams 1

    Args:
        run: run folder or checkpoint, with a caption decoder.
        files: pictures (or what else the run describes).
        num_beams: candidates of the beam search; 1 is greedy search.
    """
    if not files:
        raise ValueError("There is no file to describe; give at least one.")
    captions = Pipeline.from_run(run).caption(files, num_beams)
    for file, text in zip(files, captions, strict=True):
        print(f"{file}\t{printable(text)}")
