"""The page of `fusion explain`: right numbers, right drawings, self-contained, by the command."""

import io
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from encoders.base import Encoder, EncoderOutput
from encoders.open_clip_tower import ClipPieces
from encoders.text import WordPieces
from fusion import FixedPointSolver, FusionBlock
from fusion.accom import MeanAccom
from fusion.cli.main import main
from fusion.diagnostics import Trajectory, trajectory
from fusion.explain import Exhibit, Part, Piece, words, write_explanation
from fusion.explain import page as page_module
from fusion.explain.drawings import picture_drawing, sound_drawing
from fusion.explain.naming import pieces_of
from fusion.explain.slots import COLORS, shown_slots

DIM = 32
HOSTILE = """</style><script>alert(1)</script>" onload="x' $title &amp; <img src=x> ${main}"""
CELLS = torch.tensor([[0, r, c] for r in (0.25, 0.75) for c in (0.25, 0.75)])
TIMES = torch.tensor([[t, 0, 0] for t in (0.0, 0.1, 0.2)])


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self.inside = "", ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data):
        self.text += "" if self.inside == "style" else data


def check_self_contained(page: Page) -> None:
    anchors = {f"#{attributes['id']}" for _, attributes in page.tags if "id" in attributes}
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href") in {None, *anchors}
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")


def found_by(num_tokens: int, junk: float | None = None, **settings) -> Trajectory:
    block = FusionBlock(DIM, num_heads=2, num_slots=settings.pop("num_slots", 3), **settings)
    values = torch.randn(1, num_tokens, DIM)
    if junk is not None:
        values[0, 0, 0] = junk
    return trajectory(block, values, torch.ones(1, num_tokens, dtype=torch.bool))


def exhibit(title: str = "a frog", junk: float | None = None, **settings) -> Exhibit:
    """A picture of 4 tokens, a sound of 3, a text of 3, and 2 tokens of something else."""
    pieces = [Piece("start", mark=True), Piece(title), Piece("let", joined=True)]
    parts = [
        Part("image", torch.randint(0, 255, (3, 40, 60), dtype=torch.uint8), CELLS),
        Part("audio", (0.1 * torch.randn(1, 4000), 8000), TIMES),
        Part("text", pieces, torch.zeros(3, 3)),
        Part("touch", None, torch.zeros(2, 3)),
    ]
    return Exhibit(title, parts, [found_by(12, junk, **settings)])


def with_weights(weights: torch.Tensor) -> Trajectory:
    """An iteration whose slots have these weights (H, K, N)."""
    found = found_by(weights.shape[-1])
    return Trajectory(**{**vars(found), "weights": weights[None]})


def test_the_head_that_tells_tokens_apart_is_shown() -> None:
    vague, sharp = torch.full((3, 4), 0.25), torch.tensor(
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.1, 0.0], [0.0, 0.0, 0.0, 3.0]]
    )  # fmt: skip
    slots = shown_slots(with_weights(torch.stack([vague, sharp])))
    assert (slots.head, slots.num_heads, slots.num_slots) == (1, 2, 3)
    assert slots.owner == [0, 0, 1, 2] and slots.indices == [0, 1, 2]
    assert torch.equal(slots.makeup.sum(dim=1), torch.ones(3))
    assert slots.makeup[0].tolist() == [0.5, 0.5, 0, 0] and slots.certainty.tolist() == [1] * 4
    assert [slots.name(place) for place in slots.owner] == ["1", "1", "2", "3"]


def test_of_many_slots_those_of_most_tokens_are_shown() -> None:
    num = len(COLORS) + 4
    weights = torch.eye(num)[:, list(range(num)) + list(range(4, num))]
    slots = shown_slots(with_weights(weights[None]))
    assert slots.indices == list(range(4, num))
    assert slots.owner[:4] == [-1] * 4 and slots.owner[4:] == [*range(8), *range(8)]
    assert slots.name(-1) == "–" and slots.color(-1) not in COLORS
    assert len({slots.color(place) for place in range(8)}) == 8


def smallest_difference(colors: tuple[str, ...]) -> float:
    """Of two colours in sRGB, as somebody sees them who lacks the cones for red or for green.

    The matrices are those of Vienot, Brettel and Mollon (1999) for linear RGB.
    """
    rgb = torch.tensor([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colors])
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    smallest = math.inf
    for red, green, blue in ((0.11238, 0.88762, 0.00401), (0.29275, 0.70725, -0.02234)):
        mix = torch.tensor([[red, green, 0], [red, green, 0], [blue, -blue, 1]])
        seen = (linear @ mix.T).clamp(min=0) ** (1 / 2.2)
        smallest = min(smallest, float(torch.pdist(seen).min()))
    return smallest


def test_colours_are_told_apart_with_any_colour_vision() -> None:
    assert smallest_difference(COLORS) > 0.14
    assert smallest_difference(("#d62728", "#2ca02c")) < 0.14  # a common red and green


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.000291, "0.0003"), (0.00121, "0.0013"), (0.02, "0.02"), (0.99, "0.99"),
     (0.999, "1"), (1.23, "1.3"), (40.0, "40"), (41.2, "42"), (123.0, "130"),
     (3e-9, "0.000000003")],
)  # fmt: skip
def test_errors_are_rounded_up(value: float, text: str) -> None:
    assert words.upward(value) == text and float(text) >= value


def test_outcomes_in_words() -> None:
    settled = found_by(5)
    bound = words.upward(float(settled.error_bound[-1, 0]))
    assert words.outcome(settled) == f"{int(settled.num_iters)} rounds; certain to within {bound}."
    hasty = found_by(5, solver=FixedPointSolver(max_iters=1, tol=1e-6))
    assert words.outcome(hasty).startswith("Not settled after 1 round: the last change was ")
    assert words.outcome(found_by(5, math.nan)).startswith("Failed in round 1")
    unknown = Trajectory(**{**vars(settled), "error_bound": torch.full((1, 1), math.inf)})
    assert "nothing is certified" in words.outcome(unknown)


def test_tokens_have_names() -> None:
    image, audio, text, touch = exhibit().parts
    names = ["top left", "top right", "bottom left", "bottom right"]
    assert [words.token_name(image, index) for index in range(4)] == names
    assert words.token_name(Part("image", None, torch.tensor([[0, 0.5, 0.5]])), 0) == "centre"
    assert words.token_name(audio, 2) == "0.2 s"
    assert [words.token_name(text, index) for index in (0, 1)] == ["the start", "“a frog”"]
    assert words.token_name(touch, 1) == "token 2"


def blueness(picture: Image.Image) -> float:
    """Share of the pixels that are much more blue than red."""
    pixels = numpy.asarray(picture).astype(int)
    return float((pixels[..., 2] > pixels[..., 0] + 60).mean())


def test_a_slot_is_drawn_where_its_tokens_are() -> None:
    """One slot holds the upper left cell, another the rest: the pixels have their colours."""
    weights = torch.tensor([[1.0, 0, 0, 0], [0, 0.2, 0.4, 0.4]])
    slots = shown_slots(with_weights(weights[None]))
    grey = torch.full((3, 50, 50), 128, dtype=torch.uint8)
    drawing = picture_drawing(grey, CELLS, slots, slice(0, 4))
    shown = Image.open(io.BytesIO(drawing.png())).convert("RGB")
    panel = shown.width // 3
    first = shown.crop((panel, 0, 2 * panel, shown.height))  # the panel of slot 1, colour blue
    assert 0.1 < blueness(first) < 0.3
    right = first.crop((panel // 2 + 8, 0, panel - 8, shown.height))
    assert blueness(right) == 0


@pytest.mark.parametrize(("num_tokens", "seconds"), [(1, 0.3), (3, 0.3), (3, 5.0), (3, 0.05)])
def test_sounds_of_any_length_are_drawn(num_tokens: int, seconds: float) -> None:
    slots = shown_slots(found_by(num_tokens))
    waveform = torch.sin(torch.arange(int(8000 * seconds)) / 5)[None]
    drawing = sound_drawing(waveform, 8000, TIMES[:num_tokens], slots, slice(0, num_tokens))
    assert drawing.png().startswith(b"\x89PNG")


def test_the_page_is_complete_and_asks_for_nothing(tmp_path) -> None:
    path = write_explanation(tmp_path / "made" / "page.html", [exhibit(HOSTILE), exhibit()])
    page = Page(path.read_text("utf-8"))
    check_self_contained(page)
    assert page.text.count(HOSTILE) >= 4
    for sentence in ("certain to within", "Which tokens share a slot", "effective rank", "clusters",
                     "phase coherence", "context |C|", "Iterations against ambiguity", "token 2",
                     "angles up to 30 degrees", "All slots of all heads"):  # fmt: skip
        assert sentence in page.text, sentence
    files = sorted(file.name for file in (tmp_path / "made" / "page-pictures").iterdir())
    kinds = ("order", "picture", "portrait", "residual", "slots", "sound")
    assert files == ["ambiguity.png"] + [f"sample{n}-{kind}.png" for n in (1, 2) for kind in kinds]
    for file in files:
        assert Image.open(tmp_path / "made" / "page-pictures" / file).format == "PNG"
    assert sum(tag == "img" for tag, _ in page.tags) == len(files)


def test_shares_in_the_table_add_up(tmp_path) -> None:
    text = write_explanation(tmp_path / "x.html", [exhibit()]).read_text("utf-8")
    rows = re.findall(r'<i class="swatch".*?</tr>', text)
    assert len(rows) == 3
    for row in rows:
        assert abs(sum(map(int, re.findall(r"<td>(\d+) %", row))) - 100) <= 2


@pytest.mark.parametrize("settings", [{"accom": MeanAccom}, {"num_slots": 1}, {"num_slots": 12}])
def test_any_number_of_slots_is_drawn(settings: dict, tmp_path) -> None:
    text = Page(write_explanation(tmp_path / "x.html", [exhibit(**settings)]).read_text("utf-8"))
    assert ("with 8 of them" in text.text) == (settings.get("num_slots") == 12)


def test_energy_is_drawn_where_there_is_one(tmp_path) -> None:
    plain = exhibit()
    found = plain.blocks[0]
    known = Trajectory(**{**vars(found), "energy": -torch.arange(len(found.context))[:, None]})
    for energy, blocks in ((False, [found]), (True, [known, known])):
        path = tmp_path / f"{energy}.html"
        page = Page(write_explanation(path, [Exhibit("x", plain.parts, blocks)]).read_text("utf-8"))
        assert ("no round of this map can raise it" in page.text) == energy
        assert ("Block 2 of 2" in page.text) == energy
        names = {file.name for file in path.with_name(f"{energy}-pictures").iterdir()}
        assert ("block2-energy.png" in names) == energy


def test_a_failed_iteration_is_shown_as_one(tmp_path) -> None:
    page = Page(write_explanation(tmp_path / "x.html", [exhibit(junk=math.inf)]).read_text("utf-8"))
    assert "Failed in round 1" in page.text and "nan" not in page.text.lower()


def test_of_many_samples_the_first_are_drawn_and_all_compared(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(page_module, "MOST_DRAWN", 2)
    found = found_by(4)
    samples = [
        Exhibit(f"n{i}", [Part("touch", None, torch.zeros(4, 3))], [found]) for i in range(4)
    ]
    page = Page(write_explanation(tmp_path / "x.html", samples).read_text("utf-8"))
    assert "Of 4 samples the first 2 are drawn" in page.text and "4. n3" in page.text
    assert sum(tag == "section" for tag, _ in page.tags) == 3


class Lines(Encoder):
    """A text encoder with a transform of its own."""

    def __init__(self, transform) -> None:
        super().__init__("text", 4, transform)

    def forward(self, inputs, mask):
        return EncoderOutput(inputs.float(), mask, torch.zeros(*mask.shape, 3))


def test_word_pieces_have_the_names_of_their_tokenizer() -> None:
    vocabulary = ["[UNK]", "[CLS]", "[SEP]", "a", "frog", "##let", "."]
    definition = {
        "version": "1.0",
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 99,
            "vocab": {word: index for index, word in enumerate(vocabulary)},
        },
    }
    encoder = Lines(WordPieces(json.dumps(definition).encode(), 100, 9))
    pieces = pieces_of(encoder, [1, 3, 4, 5, 6, 2], 6)
    assert [piece.text for piece in pieces] == ["start", "a", "frog", "let", ".", "end"]
    assert [piece.joined for piece in pieces] == [False, False, False, True, False, False]
    assert [piece.mark for piece in pieces] == [True, False, False, False, False, True]


def test_clip_pieces_have_names_too() -> None:
    encoder = Lines(ClipPieces(32, 500))
    ids = encoder.transform("a froglet zzyx").tolist()
    pieces = pieces_of(encoder, ids, len(ids))
    assert (pieces[0].text, pieces[-1].text) == ("start", "end")
    joined = "".join(p.text if p.joined else f" {p.text}" for p in pieces if not p.mark)
    assert joined == " a froglet zzyx" and any(piece.joined for piece in pieces)


def test_tokens_of_a_stranger_are_numbers() -> None:
    assert [p.text for p in pieces_of(Lines(len), [7, 8], 2)] == ["1", "2"]
    assert [p.text for p in pieces_of(Lines(ClipPieces(32, 500)), [7, 8], 3)] == ["1", "2", "3"]


@pytest.fixture
def run(runs, tmp_path) -> Path:
    return Path(shutil.copytree(runs.contrastive, tmp_path / "my run"))


def error_of(capsys, *args: object) -> str:
    capsys.readouterr()
    assert main(["explain", *map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("fusion: error: ") and err.count("\n") == 1
    return err


def test_files_and_words_are_one_sample(run, media, capsys) -> None:
    files = [str(media / "a.png"), str(media / "sounds" / "d.wav")]
    assert main(["explain", str(run), *files, "--text", "a red ball"]) == 0
    assert capsys.readouterr().out.startswith(f"Explained 1 sample: {run / 'explain.html'}\n")
    page = Page((run / "explain.html").read_text("utf-8"))
    check_self_contained(page)
    assert "a.png + d.wav + “a red ball”" in page.text and "certain to within" in page.text
    chips = [a["class"] for tag, a in page.tags if tag == "span" and "chip" in a.get("class", "")]
    assert len(chips) == 5  # start, three words, end
    assert (run / "explain-pictures" / "picture.png").is_file()
    assert (run / "explain-pictures" / "sound.png").is_file()


def test_a_folder_is_a_sample_for_each_name(run, media, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(page_module, "MOST_DRAWN", 2)
    page = tmp_path / "elsewhere" / "page.html"
    assert main(["explain", str(run), str(media), "--text", "a boat", "--out", str(page)]) == 0
    assert "Explained 7 samples" in capsys.readouterr().out
    text = Page(page.read_text("utf-8")).text
    assert "1. “a boat”" in text and "2. media/a" in text and "7. media/sounds/f" in text
    assert "\x1b" not in page.read_text("utf-8")
    assert "Iterations against ambiguity" in text and not (run / "explain.html").exists()


def test_errors_of_inputs(run, media, tmp_path, capsys) -> None:
    (tmp_path / "text.jpg").write_text("text")
    (tmp_path / "odd.pdf").write_text("text")
    (tmp_path / "empty").mkdir()
    twice = f"Got {media / 'b.jpg'} beside {media / 'a.png'}: a sample has one image at most"
    for args, reason in [
        ([], "There is no input"),
        ([tmp_path / "none.jpg"], "There is no file"),
        ([tmp_path / "odd.pdf"], "the files that are read end in bmp, flac"),
        ([tmp_path / "text.jpg"], "text.jpg: this file is text, not a picture"),
        ([media / "a.png", media / "b.jpg"], twice),
        ([media / "a.txt", "--text", "x"], "a sample has one text at most"),
        (["--text", " "], "empty text"),
        ([tmp_path / "empty"], "holds no file that fits"),
        ([media / "a.png", "--out", media], "Is a directory"),
    ]:
        assert reason in error_of(capsys, run, *args)
    assert "There is no run" in error_of(capsys, tmp_path / "no run", media / "a.png")
    assert not (run / "explain.html").exists()


def test_help_has_an_example(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["explain", "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "Examples:" in out and "one sample" in out
    assert "Args:" not in out
