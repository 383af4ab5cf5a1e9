"""Next-token prediction as classification: an ROC curve of the top-1 probability, and a confusion matrix.

Two views, both counted while the test split is scored, in the form of `kfp.dsl.ClassificationMetrics`, which Kubeflow's
pages draw:

- ROC curve (`confidenceMetrics`): does the probability of the most probable token tell right answers from wrong ones?
  At threshold t, recall is the share of the right answers with a probability above t, and the false positive rate that
  of the wrong answers.
- confusion matrix (`confusionMatrix`): class of the true token (rows) against that of the most probable one (columns).
"""

from __future__ import annotations

import unicodedata
from itertools import accumulate
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

BINS = 50
"""Bins of the top-1 probability, of equal width; bin i covers (i / BINS, (i + 1) / BINS]."""
CLASSES = (
    "letters",
    "space + letters",
    "digits",
    "punctuation",
    "space",
    "line break",
    "end of document",
    "other",
)
_LETTERS, _WORD, _DIGITS, _PUNCTUATION, _SPACE, _LINE_BREAK, _END, _OTHER = range(len(CLASSES))


def token_classes(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> np.ndarray:
    """The class of each token as an index into CLASSES, int64 of shape (vocab_size,).

    See `classify`. Special tokens but end-of-text, and ids that the tokenizer doesn't have, are `other`.
    """
    classes = np.full(vocab_size, _OTHER, np.int64)
    named = sorted(token for token in tokenizer.get_vocab().values() if token < vocab_size)
    texts = tokenizer.batch_decode([[token] for token in named], clean_up_tokenization_spaces=False)
    classes[named] = [classify(text) for text in texts]
    classes[[token for token in tokenizer.all_special_ids if token < vocab_size]] = _OTHER
    if tokenizer.eos_token_id is not None:
        classes[tokenizer.eos_token_id] = _END
    return classes


def classify(text: str) -> int:
    """The class of a token's text, as an index into CLASSES.

    A token with a line break is `line break`; else its first character that is no white space decides. Bytes that are
    no whole UTF-8 character, decoded as U+FFFD, are `other`.
    """
    word = text.lstrip()
    if "\n" in text:
        return _LINE_BREAK
    if not word:
        return _SPACE if text else _OTHER
    first = word[0]
    if first.isalpha():
        return _LETTERS if word == text else _WORD
    if first.isdigit():
        return _DIGITS
    is_sign = unicodedata.category(first)[0] in "PS" and first != "\N{REPLACEMENT CHARACTER}"
    return _PUNCTUATION if is_sign else _OTHER


def describe(right: list[int], wrong: list[int], pairs: list[int]) -> dict[str, Any]:
    """Metadata of a `kfp.dsl.ClassificationMetrics`. Without a right or without a wrong answer there is no curve.

    Args:
        right: tokens whose top-1 prediction is right, by bin of its probability: BINS counts.
        wrong: tokens whose top-1 prediction is wrong, likewise.
        pairs: the confusion matrix, flattened by rows: CLASSES x CLASSES counts, rows by class of the true token,
            columns by that of the most probable one.
    """
    size = len(CLASSES)
    matrix = {
        "annotationSpecs": [{"displayName": name} for name in CLASSES],
        "rows": [{"row": pairs[start : start + size]} for start in range(0, size * size, size)],
    }
    if not any(right) or not any(wrong):
        return {"confusionMatrix": matrix}
    curve = [
        {"confidenceThreshold": (BINS - bins) / BINS, "recall": recall, "falsePositiveRate": false_positives}
        for bins, (recall, false_positives) in enumerate(zip(_shares(right), _shares(wrong), strict=True))
    ]
    return {"confidenceMetrics": curve, "confusionMatrix": matrix}


def _shares(counts: list[int]) -> list[float]:
    """Share of the counts in the upper 0, 1, ... BINS bins: the rate of what lies above each threshold."""
    total = sum(counts)
    return [count / total for count in accumulate(reversed(counts), initial=0)]
