"""What a report says, as plain data: numbers, text and the bytes of picture and sound files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusion.metrics import RetrievalScores


@dataclass(frozen=True)
class Picture:
    """A PNG, JPEG, WebP or GIF file, and the words for those who cannot see it."""

    data: bytes
    alt: str


@dataclass(frozen=True)
class Recording:
    """A WAV, Ogg, FLAC or MP3 file, and what is said or heard in it."""

    data: bytes
    transcript: str


@dataclass(frozen=True)
class Result:
    """One answer to a query.

    Attributes:
        similarity: cosine of query and answer.
        hit: whether the answer is one of the query's positives.
        caption: what the answer shows, or the answer itself where captions are searched.
        picture: the answer where pictures are searched.
    """

    similarity: float
    hit: bool
    caption: str
    picture: Picture | None = None


@dataclass(frozen=True)
class Query:
    """A held-out query of any modalities with its best results, best first.

    Attributes:
        results: the first few answers.
        rank: rank of the best positive in the whole pool (1 is perfect).
        text: the text part of the query, if any.
        recording: the speech or sound part, if any.
        picture: the picture part, if any.
    """

    results: Sequence[Result]
    rank: int
    text: str = ""
    recording: Recording | None = None
    picture: Picture | None = None


@dataclass(frozen=True)
class Gallery:
    """Queries of one kind; the first of them is shown on the first screen."""

    title: str
    note: str
    queries: Sequence[Query]


@dataclass(frozen=True)
class CaptionExample:
    """A picture, what the model says about it, what is true, and its CIDEr-D."""

    picture: Picture
    generated: str
    true: str
    cider: float


@dataclass(frozen=True)
class Captions:
    """Generated captions of held-out pictures.

    Attributes:
        examples: randomly drawn ones, good or bad.
        num_pictures: number of held-out pictures captioned.
        cider: mean CIDEr-D over all of them.
        cider_of_truth: CIDEr-D of the true captions themselves: the ceiling of this set.
        distinct_share: share of distinct captions among all generated.
    """

    examples: Sequence[CaptionExample]
    num_pictures: int
    cider: float
    cider_of_truth: float
    distinct_share: float


@dataclass(frozen=True)
class Curve:
    """Values logged at training steps."""

    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Training:
    """What was logged during training.

    Attributes:
        loss: contrastive loss over steps.
        chance_loss: ln(batch size), the loss of a model that knows nothing.
        recall: label, such as "image->text R@10", to its curve on held-out samples.
        recall_baseline: the same labels to the recall of the linear baseline.
    """

    loss: Curve
    chance_loss: float
    recall: Mapping[str, Curve]
    recall_baseline: Mapping[str, float]


@dataclass(frozen=True)
class Iteration:
    """How the fusion blocks iterated on held-out samples.

    Attributes:
        num_iters: rounds each sample took.
        residuals: residual of every round, a sequence for each sample to draw; it ends where the
            sample stopped.
        tol: residual at which a sample stops.
        q: largest contraction factor over samples; infinite when none is declared.
        error_bound: largest certified distance to the fixed point over samples.
        share_converged: share of samples that reached `tol`.
        order: |C| at the start and after each round, a sequence for each sample to draw.
        coherence: phase coherence of the tokens, for the same.
        ambiguity: of each sample, how undecided its tokens are between slots, and its rounds.
    """

    num_iters: Sequence[int]
    residuals: Sequence[Sequence[float]]
    tol: float
    q: float
    error_bound: float
    share_converged: float
    order: Sequence[Sequence[float]] = ()
    coherence: Sequence[Sequence[float]] = ()
    ambiguity: Sequence[tuple[float, int]] = ()


@dataclass(frozen=True)
class Retrieval:
    """Recall on held-out samples per direction, such as "image+audio->text".

    Attributes:
        trained: the trained model, every direction.
        baseline: closed-form linear ridge regression on the same training pairs.
        shuffled: the trained model on shuffled pairs, the control that must sit at chance.
    """

    trained: Mapping[str, RetrievalScores]
    baseline: Mapping[str, RetrievalScores]
    shuffled: Mapping[str, RetrievalScores]


@dataclass(frozen=True)
class About:
    """What was run.

    Attributes:
        title: the heading.
        summary: one or two sentences on what was trained and on what.
        seed: seed of the run.
        seconds: stage to its duration, in order; the page adds the total.
        data: label to count, such as "training pairs" to 8312.
        versions: package to version.
        limits: what this experiment does not show, a sentence each.
    """

    title: str
    summary: str
    seed: int
    seconds: Mapping[str, float]
    data: Mapping[str, int]
    versions: Mapping[str, str]
    limits: Sequence[str]


@dataclass(frozen=True)
class ReportContent:
    """A whole report; a part that is None (or an empty gallery list) is left out."""

    about: About
    retrieval: Retrieval
    galleries: Sequence[Gallery] = ()
    captions: Captions | None = None
    training: Training | None = None
    iteration: Iteration | None = None
