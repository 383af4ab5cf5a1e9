"""How varied and how repetitive texts are, in words separated by white space."""

from __future__ import annotations

from collections.abc import Sequence


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Distinct n-grams over all n-grams, of all texts together (distinct-n, arXiv 1510.03055); 0 without any."""
    ngrams = [ngram for text in texts for ngram in _ngrams(text, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def repetition(texts: Sequence[str], n: int = 4) -> float:
    """Share of a text's n-grams that occurred in it before (seq-rep-n, arXiv 1908.04319).

    0: nothing is repeated; near 1: a loop. The mean over the texts that have any n-grams; 0 without.
    """
    shares = [1 - len(set(ngrams)) / len(ngrams) for text in texts if (ngrams := _ngrams(text, n))]
    return sum(shares) / len(shares) if shares else 0.0
