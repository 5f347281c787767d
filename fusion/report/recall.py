"""Recall: the tiles of the first screen, and the table of every direction."""

import math
from collections.abc import Iterable, Mapping

from fusion.metrics import CUTOFFS, RetrievalScores
from fusion.report.content import Retrieval
from fusion.report.markup import Html, element, join
from fusion.report.parts import arrow, box, percent

_HEADS = ("Direction", *(f"R@{k}" for k in CUTOFFS), "Median rank", "Pool")


def recall_tiles(retrieval: Retrieval) -> Html:
    """R@1 and R@10 of the directions that have a baseline, beside it; else of the first two."""
    compared = [name for name in retrieval.trained if name in retrieval.baseline]
    return box("grid", *(_tile(name, retrieval) for name in compared or [*retrieval.trained][:2]))


def recall_section(retrieval: Retrieval) -> Html:
    """Every direction of the trained model, then the baseline, then the shuffled control."""
    groups = {
        "Trained model": retrieval.trained,
        "Baseline: closed-form linear ridge regression, same training pairs": retrieval.baseline,
        "Control: trained model, pairs shuffled": retrieval.shuffled,
    }
    explanation = (
        "Held-out samples only: R@k is the share of queries, in %, whose true match is among the "
        "first k of the pool. Ties count against the model. The small figures are chance, a random "
        f"ranking of the same pool. {_standard_error(retrieval.trained.values())}"
    )
    head = element("tr", {}, *(element("th", {"scope": "col"}, name) for name in _HEADS))
    bodies = (_group(title, rows) for title, rows in groups.items() if rows)
    return join(
        element("p", {}, explanation),
        box("card scroll", element("table", {}, element("thead", {}, head), *bodies)),
    )


def _tile(name: str, retrieval: Retrieval) -> Html:
    trained, baseline = retrieval.trained[name], retrieval.baseline.get(name)
    bars = []
    for index in (0, 2):  # recall at 1 and at 10
        rival = baseline.recall[index] if baseline else None
        bars.append(_bar(CUTOFFS[index], trained.recall[index], rival, trained.chance[index]))
    return box("card tile", element("h3", {}, arrow(name)), *bars)


def _bar(k: int, recall: float, rival: float | None, chance: float) -> Html:
    tracks = [element("i", {"style": f"width:{100 * recall:.1f}%"})]
    beside = join(f"chance {percent(chance)}")
    if rival is not None:
        tracks.append(element("i", {"class": "rival", "style": f"width:{100 * rival:.1f}%"}))
        key = element("i", {"class": "key"})
        beside = join(key, f"linear baseline {percent(rival)} · ", beside)
    return box(
        "bar",
        element("span", {}, f"R@{k}"),
        element("span", {"class": "track", "aria-hidden": "true"}, *tracks),
        element("strong", {}, percent(recall)),
        element("small", {}, beside),
    )


def _standard_error(rows: Iterable[RetrievalScores]) -> str:
    errors = [math.sqrt(r * (1 - r) / row.num_queries) for row in rows for r in row.recall]
    return f"One standard error is at most {100 * max(errors):.1f} points." if errors else ""


def _group(title: str, rows: Mapping[str, RetrievalScores]) -> Html:
    span = {"class": "group", "colspan": str(len(_HEADS)), "scope": "rowgroup"}
    return element(
        "tbody",
        {},
        element("tr", {}, element("th", span, title)),
        *(_row(name, scores) for name, scores in rows.items()),
    )


def _row(name: str, scores: RetrievalScores) -> Html:
    cells = [
        join(f"{100 * recall:.1f}", element("small", {}, f"{100 * chance:.1f}"))
        for recall, chance in zip(scores.recall, scores.chance, strict=True)
    ]
    cells += [join(f"{scores.median_rank:g}"), join(str(scores.pool))]
    head = element("th", {"scope": "row"}, arrow(name))
    return element("tr", {}, head, *(element("td", {}, cell) for cell in cells))
