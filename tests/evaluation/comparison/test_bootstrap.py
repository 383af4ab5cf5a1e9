"""Intervals against the closed form of a large sample, their coverage, and differences that are exactly none."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from ava_core.errors import AvaError
from ava_core.evaluation.comparison.bootstrap import Difference
from ava_core.evaluation.comparison.matching import MIN_DOCUMENTS, MIN_UNITS, OtherTextError, match
from ava_core.evaluation.losses import Document, Losses

Z = NormalDist().inv_cdf(0.975)
BPB = [(1, "float", "test_bits_per_byte")]


def documents(bytes_N, name="d"):
    return [
        Document(name=f"{name}{i}", sha256=f"{name}{i}", bytes=[int(size)], tokens=[int(size) // 3])
        for i, size in enumerate(bytes_N)
    ]


def losses(texts, nats_N, correct_N=None):
    right = np.zeros(len(nats_N)) if correct_N is None else correct_N
    return Losses(documents=texts, sums={"float": np.stack([nats_N, right, right], axis=1)})


def pair(seed, count, effect, spread=0.02):
    """Two models' losses on `count` documents: hard and easy ones alike for both, and an effect of its own on each."""
    draw = np.random.default_rng(seed)
    texts = documents(draw.integers(2_000, 6_000, count))
    size = np.asarray([document.bytes[0] for document in texts], float)
    base = size * draw.normal(1.3, 0.25, count)
    return losses(texts, base), losses(texts, base + size * draw.normal(effect, spread, count))


def interval(base, other, **options):
    settings = {"significance": 0.05, "resamples": 2_000, "seed": 1, **options}
    (found,) = match([("a", base), ("b", other)]).differences(BPB, "float", **settings)
    return found


def closed_form(base, other):
    """Delta method: the standard error of a ratio of sums over independent units (Cochran 1977, eq. 6.13)."""
    size = base.bytes
    gap = (other.sums["float"][:, 0] - base.sums["float"][:, 0]) / math.log(2)
    ratio = gap.sum() / size.sum()
    error = math.sqrt(((gap - ratio * size) ** 2).sum()) / size.sum()
    return ratio, ratio - Z * error, ratio + Z * error


def test_interval_is_that_of_the_normal_approximation_on_many_documents():
    base, other = pair(0, 400, 0.004)
    found, (value, low, high) = interval(base, other, resamples=10_000), closed_form(base, other)
    assert found.value == pytest.approx(value, rel=1e-9)
    assert found.low == pytest.approx(low, abs=0.04 * (high - low))
    assert found.high == pytest.approx(high, abs=0.04 * (high - low))


def test_pairing_removes_what_is_hard_for_both():
    base, other = pair(1, 400, 0.004)
    draw = np.random.default_rng(9).permutation(400)
    shuffled = losses(documents(base.bytes[draw], "x"), base.sums["float"][draw, 0])
    apart = losses(documents(base.bytes[draw], "x"), other.sums["float"][:, 0][draw][::-1] * 1.0)
    paired, unpaired = interval(base, other), interval(shuffled, apart)
    assert paired.high - paired.low < 0.2 * (unpaired.high - unpaired.low)


def test_an_interval_of_95_percent_holds_the_truth_about_95_times_of_100():
    held = 0
    for seed in range(300):
        base, other = pair(seed, 60, 0.005)
        found = interval(base, other, resamples=400)
        held += found.low <= 0.005 / math.log(2) <= found.high
    # three standard errors of 300 trials are 0.038; the percentile interval of 60 units is a little narrow
    assert 0.90 <= held / 300 <= 0.98


def test_equal_models_differ_by_exactly_nothing():
    base, _ = pair(2, 80, 0.0)
    again = losses(list(reversed(base.documents)), base.sums["float"][::-1, 0])
    assert interval(base, again) == Difference(value=0.0, low=0.0, high=0.0)
    assert interval(base, again).verdict(lower_is_better=True) == "equal"


def test_same_seed_gives_the_same_bits_and_another_one_others():
    base, other = pair(3, 70, 0.0)
    assert interval(base, other) == interval(base, other)
    assert interval(base, other) != interval(base, other, seed=2)


def test_interval_widens_with_confidence():
    base, other = pair(4, 70, 0.0)
    narrow, wide = interval(base, other, significance=0.5), interval(base, other, significance=0.01)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(("effect", "verdict"), [(0.02, "worse"), (-0.02, "better"), (0.0, "unclear")])
def test_verdict_follows_the_interval(effect, verdict):
    base, other = pair(5, 300, effect)
    assert interval(base, other).verdict(lower_is_better=True) == verdict
    mirrored = {"worse": "better", "better": "worse"}.get(verdict, verdict)
    assert interval(base, other).verdict(lower_is_better=False) == mirrored


def test_tolerance_moves_where_worse_begins():
    found = Difference(value=0.02, low=0.01, high=0.03)
    assert [found.verdict(True, margin) for margin in (0.0, 0.02, 0.04)] == ["worse", "unclear", "better"]


def test_too_few_units_give_no_interval():
    base, other = pair(6, MIN_UNITS - 1, 0.5)
    found = interval(base, other)
    assert (found.low, found.high) == (None, None)
    assert found.verdict(lower_is_better=True) == "too little text"


def test_few_documents_are_resampled_by_part_and_many_as_a_whole():
    def text(count):
        return [Document(name=str(i), sha256=str(i), bytes=[10, 10], tokens=[5, 5]) for i in range(count)]

    few, many = text(MIN_DOCUMENTS - 1), text(MIN_DOCUMENTS)
    by_part = match([(name, losses(few, np.ones(2 * len(few)))) for name in "ab"])
    assert (by_part.unit, by_part.units) == ("parts", 2 * len(few))
    whole = match([(name, losses(many, np.ones(2 * len(many)))) for name in "ab"])
    assert (whole.unit, whole.units, whole.bytes[0]) == ("documents", len(many), 20)


def test_documents_that_were_cut_differently_are_compared_as_a_whole():
    def text(parts):
        return [Document(name=str(i), sha256=str(i), bytes=parts, tokens=parts) for i in range(12)]

    found = match([("a", losses(text([6, 6]), np.ones(24))), ("b", losses(text([12]), np.ones(12)))])
    assert (found.unit, found.units) == ("documents", 12)
    assert found.sides[0]["float.nats"].tolist() == [2.0] * 12


def test_equal_texts_twice_in_a_split_stay_two_documents():
    twice = [Document(name=name, sha256="same", bytes=[9], tokens=[3]) for name in "ab"]
    found = match([("a", losses(twice, np.array([1.0, 2.0]))), ("b", losses(twice, np.array([1.0, 2.0])))])
    assert found.sides[1]["float.nats"].tolist() == [1.0, 2.0]


def test_another_text_is_refused_by_name():
    base, _ = pair(7, 20, 0.0)
    other = losses([*base.documents[:-1], *documents([5], "z")], base.sums["float"][:, 0])
    with pytest.raises(OtherTextError, match="B: was evaluated on another text than A: of its 20 documents 19 are"):
        match([("A", base), ("B", other)])
    assert issubclass(OtherTextError, AvaError)
