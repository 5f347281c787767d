"""fusion search: the entries of an index that are nearest to a query of any modalities."""

import json
from collections.abc import Sequence
from pathlib import Path

from fusion.cli.display import origin_of, printable
from fusion.cli.index import index_folder
from fusion.inference import Pipeline
from fusion.retrieval import Hit, LanceIndex, find
from fusion.retrieval.lance import exists

_FILE_WIDTH = 1000  # a table in a file or a pipe need not break its lines


def search(
    run: str,
    *text: str,
    image: str | None = None,
    audio: str | None = None,
    k: int = 5,
    json: bool = False,
    index: str | None = None,
) -> None:
    """Finds the entries of an index that are nearest to a query.

    Text, picture and sound may be given together: they are fused into one query.

    Examples:
        fusion search runs/quickstart "a red bird"
        fusion search runs/quickstart --image bird.jpg --audio chirp.wav --k 3

    Args:
        run: run folder or checkpoint.
        text: words to search by, in quotes or not.
        image: picture to search by.
        audio: recording to search by.
        k: number of results.
        json: print JSON instead of a table.
        index: folder of the index; without this option the folder "index" beside the checkpoint.
    """
    values = {"text": " ".join(text) or None, "image": image, "audio": audio}
    query = {name: value for name, value in values.items() if value is not None}
    if not query:
        raise ValueError('There is no query; give words ("a red bird"), --image or --audio.')
    folder = Path(index) if index else index_folder(run)
    if not exists(folder):
        raise ValueError(f"There is no index in {folder} yet; run: fusion index {run} SOURCE")
    pipeline = Pipeline.from_run(run)
    table = LanceIndex(folder, pipeline.model.dim, pipeline.fingerprint)
    hits = find(pipeline, table, query, k)
    if json:
        _print_json(hits)
    else:
        _print_table(hits)


def _print_json(hits: Sequence[Hit]) -> None:
    rows = [
        {"rank": rank, "similarity": round(hit.similarity, 6), **hit.metadata}
        for rank, hit in enumerate(hits, start=1)
    ]
    print(json.dumps(rows, ensure_ascii=False, indent=2))


def _print_table(hits: Sequence[Hit]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("rank", "similarity", "caption", "source")
    table.columns[-1].overflow = "fold"  # a path that is cut is no use
    for rank, hit in enumerate(hits, start=1):
        caption = Text(printable(hit.metadata.get("caption", "")))
        source = Text(printable(origin_of(hit.metadata)))
        table.add_row(str(rank), f"{hit.similarity:.3f}", caption, source)
    console = Console()
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    console.print(table)
