"""The page: complete, self-contained, escaped, readable, and written whole or not at all."""

import io
import math
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from importlib.resources import files

import numpy
import pytest
import soundfile
from PIL import Image

from fusion.metrics import RetrievalScores
from fusion.report import (
    About,
    CaptionExample,
    Captions,
    Curve,
    Gallery,
    Iteration,
    Picture,
    Query,
    Recording,
    ReportContent,
    Result,
    Retrieval,
    Training,
    write_report,
)

HOSTILE = (
    """</style></title><script>alert(1)</script>" onload="x' $title ${main} &amp; <img src=x>"""
)
VOID = {"img", "meta", "br"}


def picture(alt="A frog."):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (20, 160, 60)).save(buffer, "WEBP")
    return Picture(buffer.getvalue(), alt)


def recording(transcript="Une grenouille."):
    buffer = io.BytesIO()
    soundfile.write(buffer, numpy.zeros(800, "float32"), 8000, format="WAV")
    return Recording(buffer.getvalue(), transcript)


def scores(first):
    return RetrievalScores(first, 0.6, 0.7123, 3.0, 134, 130, 1 / 130, 5 / 130, 10 / 130)


def content(words="A frog."):
    hit, miss = Result(0.43, True, words, picture(words)), Result(0.12, False, "A boat.", picture())
    galleries = [
        Gallery("Text query", words, [Query([hit, miss], 1, text=words)]),
        Gallery("Speech query", words, [Query([miss, miss], 17, recording=recording(words))]),
        Gallery(
            "Fused query",
            words,
            [Query([Result(0.3, True, words)], 1, picture=picture(), recording=recording())],
        ),
    ]
    return ReportContent(
        About(
            words, words, 7, {"train": 61.5, words: 1.0}, {"pairs": 8863}, {"torch": words}, [words]
        ),
        Retrieval(
            {"image->text": scores(0.3881), "image+audio->text": scores(0.42)},
            {"image->text": scores(0.3134)},
            {"image->text": scores(0.0075)},
        ),
        galleries,
        Captions([CaptionExample(picture(), words, words, 5.0)], 134, 1.25, 6.5, 0.8),
        Training(
            Curve([0, 1], [6.9, 3.0]), math.log(1024), {words: Curve([0], [0.3])}, {words: 0.25}
        ),
        Iteration([9, 12], [[0.5, 0.1]], 1e-3, 0.9, 9e-3, 1.0),
    )


class Page(HTMLParser):
    """Every tag with its attributes, the visible text, and whether the tags are balanced."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def check_self_contained(page):
    """No script, no event handler, and no address but data and anchors of this page."""
    anchors = {f"#{attributes['id']}" for _, attributes in page.tags if "id" in attributes}
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "srcset", "poster", "action", "data"}:
                assert value.startswith("data:")
            if name == "href":
                assert value in anchors


@pytest.fixture
def write(tmp_path):
    def write_and_read(content):
        return Page(write_report(tmp_path / "report.html", content).read_text("utf-8"))

    return write_and_read


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return Page(write_report(path, content()).read_text("utf-8"))


def test_the_page_says_what_it_was_given(page):
    for words in (
        "38.8 %", "linear baseline 31.3 %", "chance 0.8 %", "image + audio → text", "42.0",
        "true match at rank 17", "A boat.", "0.43", "1.25", "80.0 %", "8,863", "61.5 s", "62.5 s",
        "0.900", "9.0e-03", "10.5", "Limits of this experiment", "at most 4.3 points",
    ):  # fmt: skip
        assert words in page.text, words
    # Each query is shown in full, and once more on the first screen.
    assert page.text.count("✓ hit") == 2 * 2
    assert page.text.count("✗ miss") == 2 * 3
    assert len(page.named("audio")) == 2 * 2
    assert all(tag["src"].startswith("data:audio/wav") for tag in page.named("audio"))
    assert sum(tag["src"].startswith("data:image/svg") for tag in page.named("img")) == 4


def test_the_first_screen_comes_before_the_details(page):
    text = page.text
    assert text.index("linear baseline") < text.index("Une grenouille.") < text.index("Median rank")


def test_it_is_self_contained(page):
    check_self_contained(page)
    policy = [tag for tag in page.named("meta") if "http-equiv" in tag]
    assert "default-src 'none'" in policy[0]["content"]
    css = files("fusion.report").joinpath("page.css").read_text("utf-8")
    assert "url(" not in css and "@import" not in css


def test_hostile_words_are_only_words(write, page):
    hostile = write(content(HOSTILE))
    check_self_contained(hostile)
    assert hostile.text.count(HOSTILE) > 12
    assert len(hostile.tags) == len(page.tags)


def test_the_check_itself_finds_what_it_looks_for():
    for source in ("<script></script>", "<img src=x>", '<p onclick="x"></p>', '<a href="//x"></a>'):
        with pytest.raises(AssertionError):
            check_self_contained(Page(source))


def test_it_is_accessible(page):
    assert page.named("html")[0]["lang"] == "en"
    assert any(tag.get("name") == "viewport" for tag in page.named("meta"))
    assert all(tag["alt"] for tag in page.named("img"))
    assert all(tag["aria-label"] and "controls" in tag for tag in page.named("audio"))
    assert all("scope" in tag for tag in page.named("th"))
    assert len(page.named("h1")) == 1


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
@pytest.mark.parametrize(
    ("ink", "back"),
    [(i, b) for i in ("ink", "soft", "accent") for b in ("card", "page")]
    + [("hit", "hit-back"), ("miss", "miss-back")],
)
def test_text_contrast_is_at_least_4_5_in_both_colour_schemes(scheme, ink, back):
    css = files("fusion.report").joinpath("page.css").read_text("utf-8")
    colors = dict(
        re.findall(r"--([a-z-]+): (#\w{6});", re.findall(r":root {([^}]*)}", css)[scheme])
    )
    dark, light = sorted((luminance(colors[ink]), luminance(colors[back])))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_parts_that_are_missing_are_left_out(write):
    page = write(ReportContent(content().about, Retrieval({"image->text": scores(0.4)}, {}, {})))
    assert "40.0 %" in page.text and "linear" not in page.text
    for name in ("Searches", "Captions", "Training", "Iteration"):
        assert name not in page.text
    check_self_contained(page)


def test_without_a_contraction_nothing_is_certified(write):
    iteration = Iteration([30], [[0.5, 0.6]], 1e-3, math.inf, math.inf, 0.0)
    text = write(replace(content(), training=None, iteration=iteration)).text
    assert "no fixed point and no error bound are certified" in text
    assert "inf" not in text


def test_a_report_that_cannot_be_made_leaves_the_old_one(tmp_path):
    plain = replace(content(), training=None, iteration=None)
    path = write_report(tmp_path / "report.html", plain)
    before = path.read_bytes()
    galleries = [Gallery("x", "x", [Query([], 1, picture=Picture(b"not a picture", "x"))])]
    with pytest.raises(ValueError, match="convert it first"):
        write_report(path, replace(plain, galleries=galleries))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert write_report(path, plain).read_bytes() == before


def test_a_folder_that_is_missing_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "nowhere" / "report.html", content())


def test_a_failed_write_leaves_no_unfinished_file(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError):
        write_report(tmp_path / "report.html", content())
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_every_part_is_frozen():
    for part in (content(), content().about, picture(), content().galleries[0].queries[0]):
        with pytest.raises(AttributeError):
            setattr(part, fields(part)[0].name, None)
