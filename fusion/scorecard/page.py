"""The scorecard as a page: one HTML file that holds its figures and asks for nothing."""

from collections.abc import Iterable, Sequence

from fusion.report.frame import frame
from fusion.report.markup import Html, element, join
from fusion.report.parts import arrow, box, headline_figures, note
from fusion.scorecard.card import Scorecard
from fusion.scorecard.figures import (
    calibration_figures,
    iteration_figures,
    matrix_figures,
    robustness_figures,
)
from fusion.scorecard.recall import Cell

TITLE = "Scorecard"


def render(card: Scorecard) -> str:
    """The whole page."""
    sections = {
        "Recall": _recall(card),
        "Robustness": box("grid figures", *robustness_figures(card)),
        "Geometry": _geometry(card),
        "Classification": _classification(card),
        "Calibration": _calibration(card),
        "Iteration": _iteration(card),
    }
    shown = {name: html for name, html in sections.items() if html}
    links = (element("a", {"href": f"#{name.lower()}"}, name) for name in shown)
    header = join(
        element("h1", {}, TITLE),
        note(
            "Held-out samples only. Ties count against the model, chance is a random ranking of "
            "the same pool, and the control pairs queries with answers at random: it must sit at "
            "chance, else the evaluation leaks."
        ),
        element("nav", {"aria-label": "Sections"}, *links),
        *(element("p", {"role": "alert"}, f"⚠ {warning}") for warning in card.warnings),
        headline_figures(_headline(card)),
    )
    parts = (
        element("section", {"id": name.lower()}, element("h2", {}, name), html)
        for name, html in shown.items()
    )
    return frame(TITLE, header, join(*parts))


def _headline(card: Scorecard) -> dict[str, str]:
    found = {"samples": f"{card.num_samples:,}", "groups": f"{card.num_groups:,}"}
    if card.recall:
        mean = sum(cell.scores.recall_at_10 for cell in card.recall) / len(card.recall)
        found["R@10, mean of directions"] = _percent(mean)
    if card.captions:
        found["CIDEr-D of captions"] = f"{card.captions.cider:.2f}"
        found["distinct captions"] = _percent(card.captions.distinct)
    return found


def _recall(card: Scorecard) -> Html:
    heads = ("Direction", "R@1", "R@5", "R@10", "Median rank", "Queries", "Pool", "Control R@10")
    bodies = [_group("Directions", card.recall, len(heads))]
    if card.mixed:
        title = "Mixed pools: all other modalities together"
        bodies.append(_group(title, card.mixed, len(heads)))
    return join(
        note(
            "In %; the small figures are chance. A mixed pool shows what a gap between modalities "
            "costs when everything is searched at once."
        ),
        box("card scroll", element("table", {}, _head(heads), *bodies)),
        box("grid figures", *matrix_figures(card)),
    )


def _group(title: str, cells: Sequence[Cell], span: int) -> Html:
    head = element("th", {"class": "group", "colspan": str(span), "scope": "rowgroup"}, title)
    return element("tbody", {}, element("tr", {}, head), *map(_cell_row, cells))


def _cell_row(cell: Cell) -> Html:
    scores = cell.scores
    figures = [
        join(f"{100 * recall:.1f}", element("small", {}, f" {100 * chance:.1f}"))
        for recall, chance in zip(scores.recall, scores.chance, strict=True)
    ]
    others = (scores.median_rank, scores.num_queries, scores.pool)
    figures += [join(f"{value:g}") for value in others]
    figures.append(join(f"{100 * cell.control.recall_at_10:.1f}"))
    return _row(arrow(cell.direction), figures)


def _geometry(card: Scorecard) -> Html:
    heads = ("Modality", "Samples", "Effective rank", "Uniformity")
    rows = (
        _row(s.modality, [f"{s.num:,}", f"{s.effective_rank:.1f}", _number(s.uniformity)])
        for s in card.spreads
    )
    words = (
        "How each modality uses the space: in how many directions, and how evenly (0: all are one "
        "point, about -4: spread over a sphere)."
    )
    return join(note(words), _table(heads, rows), _gaps(card))


def _gaps(card: Scorecard) -> Html:
    if not card.gaps:
        return Html()
    heads = ("Pair", "Gap", "Alignment", "Cosine, paired", "unpaired", "Told apart")
    rows = (
        _row(
            f"{g.first}, {g.second}",
            [
                f"{g.centroid_distance:.2f}",
                f"{g.alignment:.2f}",
                f"{g.paired_cosine:.2f}",
                _number(g.unpaired_cosine),
                "none" if g.separability is None else _percent(g.separability),
            ],
        )
        for g in card.gaps
    )
    words = (
        "Gap: distance of the mean embeddings. Told apart: how often a linear rule names the "
        "modality of an embedding; 50 % is a guess, 100 % a gap that no pair bridges."
    )
    return join(note(words), _table(heads, rows))


def _classification(card: Scorecard) -> Html:
    if not card.zero_shot:
        return Html()
    heads = ("Query", "Top 1", "Top 5", "Classes", "Queries")
    rows = (
        _row(
            arrow(z.query),
            [
                join(f"{100 * z.top_1:.1f}", element("small", {}, f" {100 * z.chance_1:.1f}")),
                join(f"{100 * z.top_5:.1f}", element("small", {}, f" {100 * z.chance_5:.1f}")),
                f"{z.num_classes:,}",
                f"{z.num_queries:,}",
            ],
        )
        for z in card.zero_shot
    )
    words = "Which of the held-out captions describes a sample; mean over captions, in %."
    return join(note(words), _table(heads, rows))


def _calibration(card: Scorecard) -> Html:
    if not card.calibration:
        return Html()
    heads = ("Direction", "Calibration error", "Brier score", "Pairs")
    rows = (
        _row(arrow(c.direction), [f"{c.error:.3f}", f"{c.brier:.3f}", f"{c.num_pairs:,}"])
        for c in card.calibration
    )
    return join(_table(heads, rows), box("grid figures", *calibration_figures(card)))


def _iteration(card: Scorecard) -> Html:
    if not card.iterations:
        return Html()
    heads = ("Direction", "Rounds, mean", "most", "Converged", "q", "Rounds with rank")
    rows = (
        _row(
            arrow(i.direction),
            [
                f"{i.mean:.1f}",
                str(i.most),
                _percent(i.share_converged),
                _number(i.q),
                _number(i.correlation),
            ],
        )
        for i in card.iterations
    )
    return join(
        note("Rounds with rank: Spearman's correlation; above 0 if hard queries take more rounds."),
        _table(heads, rows),
        box("grid figures", *iteration_figures(card)),
    )


def _table(heads: Sequence[str], rows: Iterable[Html]) -> Html:
    table = element("table", {}, _head(heads), element("tbody", {}, *rows))
    return box("card scroll", table)


def _head(names: Sequence[str]) -> Html:
    cells = (element("th", {"scope": "col"}, name) for name in names)
    return element("thead", {}, element("tr", {}, *cells))


def _row(name: str, figures: Sequence[str]) -> Html:
    head = element("th", {"scope": "row"}, name)
    return element("tr", {}, head, *(element("td", {}, value) for value in figures))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
