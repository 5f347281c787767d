"""The report page as HTML. What it shows is explained in `fusion.report.content`."""

from collections.abc import Iterator, Mapping

from fusion import plots
from fusion.report.content import (
    About,
    CaptionExample,
    Captions,
    Iteration,
    ReportContent,
    Training,
)
from fusion.report.frame import frame
from fusion.report.markup import Html, element, join
from fusion.report.parts import (
    arrow,
    box,
    figure,
    headline_figures,
    image,
    note,
    number,
    percent,
    terms,
)
from fusion.report.recall import recall_section, recall_tiles
from fusion.report.searches import gallery_section, search_strip


def render(content: ReportContent) -> str:
    """The whole page; nothing in it is fetched from elsewhere."""
    sections = _sections(content)
    parts = (
        element("section", {"id": name.lower()}, element("h2", {}, name), html)
        for name, html in sections.items()
    )
    return frame(content.about.title, _header(content, sections), join(*parts))


def _sections(content: ReportContent) -> Mapping[str, Html]:
    sections = {"Recall": recall_section(content.retrieval)}
    if content.galleries:
        sections["Searches"] = join(*map(gallery_section, content.galleries))
    if content.captions:
        sections["Captions"] = _captions(content.captions)
    if content.training:
        sections["Training"] = _training(content.training)
    if content.iteration:
        sections["Iteration"] = _iteration(content.iteration)
    return sections | {"Run": _run(content.about)}


def _header(content: ReportContent, sections: Mapping[str, Html]) -> Html:
    """The first screen: what this is, the headline numbers and one search of each kind."""
    links = (element("a", {"href": f"#{name.lower()}"}, name) for name in sections)
    return join(
        element("h1", {}, content.about.title),
        note(content.about.summary),
        element("nav", {"aria-label": "Sections"}, *links),
        recall_tiles(content.retrieval),
        search_strip(content.galleries),
    )


def _captions(captions: Captions) -> Html:
    figures = {
        "CIDEr-D": number(captions.cider),
        "CIDEr-D of the true captions, the ceiling": number(captions.cider_of_truth),
        "distinct captions": percent(captions.distinct_share),
        "held-out pictures": str(captions.num_pictures),
    }
    return join(
        headline_figures(figures),
        note(f"{len(captions.examples)} held-out pictures drawn at random, good or bad."),
        box("grid captions", *map(_caption, captions.examples)),
    )


def _caption(example: CaptionExample) -> Html:
    words = {
        "generated": element("strong", {}, example.generated or "(nothing)"),
        "true": example.true,
        "CIDEr-D": number(example.cider),
    }
    return box("card caption", image(example.picture), terms("words", words))


def _training(training: Training) -> Html:
    loss = training.loss
    curves = {arrow(name): (curve.steps, curve.values) for name, curve in training.recall.items()}
    baseline = {arrow(name): value for name, value in training.recall_baseline.items()}
    last = number(loss.values[-1]) if loss.values else "none"
    return box(
        "grid figures",
        figure(
            plots.loss_figure(loss.steps, loss.values, training.chance_loss),
            "Contrastive loss of pictures and words while they are aligned, before anything is "
            f"fused; its last value is {last}. A model that knows nothing stays at "
            f"ln(batch size) = {training.chance_loss:.2f}.",
        ),
        figure(
            plots.recall_figure(curves, baseline),
            "Recall on held-out samples after that, while the fusion block and the speech encoder "
            "learn; dashed, the linear baseline.",
        ),
    )


def _iteration(iteration: Iteration) -> Html:
    rounds = iteration.num_iters
    figures = {
        "rounds, mean": f"{sum(rounds) / len(rounds):.1f}" if rounds else "none",
        "rounds, most": str(max(rounds, default="none")),
        "converged": percent(iteration.share_converged),
        "largest contraction factor q": number(iteration.q, ".3f"),
        "largest error bound": number(iteration.error_bound, ".1e"),
    }
    certificate = (
        "As q is below 1, every sample has one fixed point, reached from any start."
        if iteration.q < 1
        else "As q is not below 1, no fixed point and no error bound are certified."
    )
    return join(
        element(
            "p",
            {},
            "Local updates and the shared context alternate until no token changes by more than "
            f"the tolerance {iteration.tol:g}; each sample stops on its own. {certificate}",
        ),
        headline_figures(figures),
        box("grid figures", *_iteration_figures(iteration)),
    )


def _iteration_figures(iteration: Iteration) -> Iterator[Html]:
    yield figure(
        plots.residual_figure(iteration.residuals, iteration.q, iteration.tol),
        f"Residual per round of {len(iteration.residuals)} held-out samples, a line each.",
    )
    yield figure(
        plots.iterations_figure(iteration.num_iters),
        f"Rounds that {len(iteration.num_iters)} held-out samples took.",
    )
    if iteration.order:
        yield figure(
            plots.order_figure(iteration.order, iteration.coherence),
            "Strength of the shared context, and how far all tokens of a sample are in phase.",
        )
    if iteration.ambiguity:
        ambiguity, rounds = zip(*iteration.ambiguity, strict=True)
        yield figure(
            plots.ambiguity_figure(ambiguity, rounds),
            "Rounds against ambiguity: how undecided a sample's tokens are between slots.",
        )


def _run(about: About) -> Html:
    seconds = {**about.seconds, "total": sum(about.seconds.values())}
    tables = {
        "Data": {"seed": str(about.seed)} | {name: f"{n:,}" for name, n in about.data.items()},
        "Time": {stage: f"{value:.1f} s" for stage, value in seconds.items()},
        "Versions": about.versions,
    }
    cards = (
        box("card", element("h3", {}, title), terms("facts", rows))
        for title, rows in tables.items()
    )
    limits = (element("li", {}, limit) for limit in about.limits)
    return join(
        element("h3", {}, "Limits of this experiment"),
        element("ul", {}, *limits),
        box("grid", *cards),
    )
