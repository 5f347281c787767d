"""Caption scores without Java: CIDEr-D and the share of distinct captions.

CIDEr-D is Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation"
(arXiv 1411.5726), section 3 with the clipped counts and length penalty of its "-D" variant. On the
same tokens it equals the public COCO scorer; only the tokeniser is simpler (see `tokenize`).
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

MAX_ORDER = 4  # n-grams of 1 to 4 words
LENGTH_SIGMA = 6.0  # words; width of the Gaussian length penalty
SCALE = 10.0  # the "-D" variant reports ten times the mean similarity

Ngram = tuple[str, ...]


class CaptionScores(NamedTuple):
    """CIDEr-D of a set of captions: its mean, and the score of every caption in order."""

    mean: float
    each: tuple[float, ...]


class _Document(NamedTuple):
    """A caption as tf-idf vectors: one per n-gram order, with their norms, and its word count."""

    vectors: tuple[dict[Ngram, float], ...]
    norms: tuple[float, ...]
    num_words: int


def tokenize(caption: str) -> list[str]:
    """Words of a caption: NFKC, casefolded, every punctuation mark and symbol taken as a space.

    Splits "dog's" into "dog", "s". Scripts written without spaces come back as one word per run.
    """
    folded = unicodedata.normalize("NFKC", caption).casefold()
    return "".join(" " if unicodedata.category(c)[0] in "PS" else c for c in folded).split()


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """CIDEr-D of generated captions, from 0 (no informative n-gram shared) to 10.

    Rare n-grams weigh more: the document frequencies are those of `references`, so the score
    depends on the whole set, and with a single picture every weight, and so the score, is 0.
    A perfect caption of fewer than four words has no long n-grams and gets 2.5 per word at most:
    score the true captions themselves to know the ceiling of a set.

    Args:
        candidates: one generated caption per picture.
        references: the true captions of every picture, at least one each.

    Raises:
        ValueError: if the two differ in length or are empty, or a picture has no true caption.
    """
    _check(candidates, references)
    reference_counts = [[_count_ngrams(text) for text in texts] for texts in references]
    frequency: Counter[Ngram] = Counter()
    for counts in reference_counts:
        frequency.update(set().union(*counts))
    log_pictures = math.log(len(references))

    def weigh(counts: Counter[Ngram]) -> _Document:
        return _to_document(counts, frequency, log_pictures)

    each = []
    for candidate, counts in zip(candidates, reference_counts, strict=True):
        document = weigh(_count_ngrams(candidate))
        similarity = sum(_similarity(document, weigh(reference)) for reference in counts)
        each.append(SCALE * similarity / len(counts))
    return CaptionScores(sum(each) / len(each), tuple(each))


def distinct_share(captions: Sequence[str]) -> float:
    """Share of distinct captions, compared as words: 1 when all differ, 1/n when all are alike.

    Raises:
        ValueError: if there are no captions.
    """
    if not captions:
        raise ValueError("distinct_share needs at least one caption, got none")
    return len({tuple(tokenize(caption)) for caption in captions}) / len(captions)


def _count_ngrams(text: str) -> Counter[Ngram]:
    words = tokenize(text)
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(words) - order + 1)
    )


def _to_document(
    counts: Counter[Ngram], frequency: Counter[Ngram], log_pictures: float
) -> _Document:
    vectors = tuple(dict[Ngram, float]() for _ in range(MAX_ORDER))
    for ngram, count in counts.items():
        idf = log_pictures - math.log(max(1, frequency[ngram]))
        vectors[len(ngram) - 1][ngram] = count * idf
    norms = tuple(math.sqrt(sum(x * x for x in vector.values())) for vector in vectors)
    num_words = sum(count for ngram, count in counts.items() if len(ngram) == 1)
    return _Document(vectors, norms, num_words)


def _similarity(candidate: _Document, reference: _Document) -> float:
    """Mean over n-gram orders of the clipped cosine, times the length penalty."""
    total = 0.0
    for order in range(MAX_ORDER):
        norm = candidate.norms[order] * reference.norms[order]
        if norm == 0:
            continue
        truth = reference.vectors[order]
        # Clipping to the reference keeps a caption from gaining by repeating a word.
        shared = candidate.vectors[order].keys() & truth.keys()
        clipped = {ngram: min(candidate.vectors[order][ngram], truth[ngram]) for ngram in shared}
        total += math.fsum(clipped[ngram] * truth[ngram] for ngram in shared) / norm
    gap = candidate.num_words - reference.num_words
    return total / MAX_ORDER * math.exp(-(gap**2) / (2 * LENGTH_SIGMA**2))


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(candidates) != len(references) or not candidates:
        raise ValueError(
            f"cider_d needs one list of true captions per candidate and at least one candidate, "
            f"got {len(candidates)} candidates and {len(references)} lists"
        )
    for index, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise ValueError(
                f"references[{index}] must be a non-empty list of captions, got {texts!r}"
            )
