"""Measures of generated texts: against references, and against each other. Words are separated by white space."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from ava_core.evaluation.diversity import distinct, repetition


def against_references(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU and chrF of the whole corpus, from 0 to 100 (sacrebleu's defaults; arXiv 1804.08771, W15-3049), and ROUGE-L
    (W04-1013, F1 with the best reference) and exact match (white space apart), means from 0 to 1.

    Args:
        texts: at least one.
        references: of each text, at least one.
    """
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    by_reference = [list(stream) for stream in zip_longest(*references)]
    rouge = RougeScorer(["rougeL"])
    longest = [
        max(rouge.score(reference, text)["rougeL"].fmeasure for reference in own)
        for text, own in zip(texts, references, strict=True)
    ]
    same = [
        text.split() in [reference.split() for reference in own] for text, own in zip(texts, references, strict=True)
    ]
    return {
        "bleu": sacrebleu.corpus_bleu(list(texts), by_reference).score,
        "chrf": sacrebleu.corpus_chrf(list(texts), by_reference).score,
        "rouge_l": sum(longest) / len(texts),
        "exact_match": sum(same) / len(texts),
    }


def among_themselves(texts: Sequence[str]) -> dict[str, float]:
    """Distinct 1-, 2- and 3-grams, repeated 4-grams, and self-BLEU, from 0 to 100: the mean BLEU of a text with all
    others as references (arXiv 1802.01886); of less than two texts there is none."""
    from sacrebleu.metrics import BLEU

    figures = {f"continuation_distinct_{n}": distinct(texts, n) for n in (1, 2, 3)}
    figures["continuation_repetition_4gram"] = repetition(texts)
    if len(texts) > 1:
        bleu = BLEU(effective_order=True)
        others = [[*texts[:index], *texts[index + 1 :]] for index in range(len(texts))]
        scores = [bleu.sentence_score(text, rest).score for text, rest in zip(texts, others, strict=True)]
        figures["self_bleu"] = sum(scores) / len(scores)
    return figures
