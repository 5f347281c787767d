"""Searches: queries with their best results, on the first screen and in full."""

from collections.abc import Sequence

from fusion.report.content import Gallery, Query, Recording, Result
from fusion.report.markup import Html, data_uri, element, join
from fusion.report.parts import box, image, note

_STRIP_RESULTS = 3  # results per query on the first screen


def search_strip(galleries: Sequence[Gallery]) -> Html:
    """The first query of every gallery with its best few results."""
    cards = []
    for gallery in galleries:
        for query in gallery.queries[:1]:
            title = element("small", {}, gallery.title)
            shown = _results(query.results[:_STRIP_RESULTS])
            cards.append(box("card", title, _question(query), shown))
    return box("grid strip", *cards)


def gallery_section(gallery: Gallery) -> Html:
    """A gallery with all its queries."""
    cards = (box("card", _question(query), _results(query.results)) for query in gallery.queries)
    return join(element("h3", {}, gallery.title), note(gallery.note), box("grid gallery", *cards))


def _question(query: Query) -> Html:
    words = [_quote(query.text)] if query.text else []
    if query.recording:
        words.append(_player(query.recording))
    words.append(element("small", {}, f"true match at rank {query.rank}"))
    picture = [image(query.picture)] if query.picture else []
    return box("query", *picture, box("ask", *words))


def _player(recording: Recording) -> Html:
    attributes = {
        "controls": "",
        "preload": "metadata",
        "src": data_uri(recording.data),
        "aria-label": f"Recording: {recording.transcript}",
    }
    return join(element("audio", attributes), _quote(recording.transcript))


def _quote(words: str) -> Html:
    """Words of a query; the page cuts long ones short, so the whole is held in the title."""
    return element("blockquote", {"class": "cut", "title": words}, f"“{words}”")


def _results(results: Sequence[Result]) -> Html:
    """Pictures side by side, or captions one below the other."""
    pictures = any(result.picture for result in results)
    kind = f"results {'pictures' if pictures else 'words'}"
    style = f"--columns:{max(len(results), 1)}"
    return element("ol", {"class": kind, "style": style}, *map(_result, results))


def _result(result: Result) -> Html:
    mark = element("span", {"class": "badge"}, "✓ hit" if result.hit else "✗ miss")
    similarity = element("span", {"title": "cosine similarity"}, f"{result.similarity:.2f}")
    return element(
        "li",
        {"class": "hit" if result.hit else "miss"},
        image(result.picture) if result.picture else "",
        box("mark", mark, similarity),
        element("span", {"class": "cut", "title": result.caption}, result.caption),
    )
