"""The most probable token as an answer: classes of tokens, counts against a literal computation, KFP's own form."""

import json

import numpy as np
import pytest
import torch
from kfp import dsl

from ava_core.data.shards import ShardedSplit
from ava_core.evaluation.classification import BINS, CLASSES, classify, describe, token_classes
from ava_core.evaluation.scoring import score
from ava_core.generation.loading import load_model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ing", "letters"),
        (" the", "space + letters"),
        ("é", "letters"),
        (" 15", "digits"),
        ("'s", "punctuation"),
        (" --", "punctuation"),
        ("  ", "space"),
        ("\n\n", "line break"),
        ("\ufffd", "other"),
        ("", "other"),
        ("\x00", "other"),
    ],
)
def test_the_first_character_that_is_no_space_decides_the_class(text, expected):
    assert CLASSES[classify(text)] == expected


def test_every_token_has_a_class_and_the_boundary_its_own(tiny_model):
    _, tokenizer = load_model(tiny_model)
    classes = token_classes(tokenizer, len(tokenizer) + 3)
    assert classes.shape == (len(tokenizer) + 3,)
    assert CLASSES[classes[0]] == "end of document" and CLASSES[classes[1]] == "other"
    assert [CLASSES[index] for index in classes[-3:]] == ["other"] * 3
    assert CLASSES[classes[tokenizer.encode("a")[0]]] == "letters"
    assert set(np.unique(classes)) >= {CLASSES.index(name) for name in ("letters", "space + letters", "line break")}


def test_counts_are_those_of_a_literal_computation(tiny_model, tiny_shards, tmp_path):
    model, tokenizer = load_model(tiny_model)
    tokens = ShardedSplit.open(tiny_shards, "test").tokens[:200]
    classes = token_classes(tokenizer, model.config.vocab_size)
    result = score(
        model,
        tokens,
        sequence_length=64,
        boundary_token_id=0,
        token_classes=classes,
        units=np.zeros(len(tokens), int),
        batch_size=2,
        kept=tmp_path / "kept.json",
    )
    right, wrong, pairs = np.zeros(BINS, int), np.zeros(BINS, int), np.zeros((len(CLASSES), len(CLASSES)), int)
    for start in range(0, len(tokens), 64):
        window = tokens[start : start + 64].astype(np.int64)
        inputs = torch.from_numpy(np.concatenate([[0] if start == 0 else tokens[start - 1 : start], window[:-1]]))
        with torch.no_grad():
            probabilities = model(inputs.long()[None]).logits[0].double().softmax(-1)
        for target, (probability, top) in zip(window, zip(*probabilities.max(-1), strict=True), strict=True):
            bucket = min(int(np.ceil(float(probability) * BINS)), BINS) - 1
            (right if top == target else wrong)[bucket] += 1
            pairs[classes[target], classes[top]] += 1
    assert result.class_pairs == pairs.ravel().tolist()
    assert sum(result.right) == result.correct == right.sum()
    assert sum(result.right) + sum(result.wrong) == len(tokens)
    # A probability at the edge of a bin may fall on either side.
    assert np.abs(np.cumsum(result.right) - np.cumsum(right)).max() <= 1
    assert np.abs(np.cumsum(result.wrong) - np.cumsum(wrong)).max() <= 1


def test_metadata_is_what_kfp_s_own_class_writes(evaluated):
    found = json.loads((evaluated.output / "classification.json").read_text())
    curve, matrix = found["confidenceMetrics"], found["confusionMatrix"]
    artifact = dsl.ClassificationMetrics()
    artifact.log_roc_curve(
        [point["falsePositiveRate"] for point in curve],
        [point["recall"] for point in curve],
        [point["confidenceThreshold"] for point in curve],
    )
    artifact.log_confusion_matrix(list(CLASSES), [row["row"] for row in matrix["rows"]])
    assert artifact.metadata == found
    counts = np.array([row["row"] for row in matrix["rows"]])
    assert counts.sum() == json.loads((evaluated.output / "evaluation.json").read_text())["protocol"]["tokens"]


def test_curve_rises_from_nothing_to_everything(evaluated):
    curve = json.loads((evaluated.output / "classification.json").read_text())["confidenceMetrics"]
    shares = np.array([[point["falsePositiveRate"], point["recall"]] for point in curve])
    thresholds = [point["confidenceThreshold"] for point in curve]
    assert thresholds == sorted(thresholds, reverse=True) and (thresholds[0], thresholds[-1]) == (1.0, 0.0)
    assert shares[0].tolist() == [0, 0] and shares[-1].tolist() == [1, 1]
    assert (np.diff(shares, axis=0) >= 0).all()
    area = np.trapezoid(shares[:, 1], shares[:, 0])
    assert area > 0.5  # a model that has learnt something is surer where it is right


def test_answers_of_one_kind_have_no_curve():
    counts = [0] * (BINS - 1) + [3]
    for right, wrong in ((counts, [0] * BINS), ([0] * BINS, counts)):
        assert set(describe(right, wrong, [0] * len(CLASSES) ** 2)) == {"confusionMatrix"}
