"""Batches under a curriculum: the same windows in other portions, and easy windows first."""

import json
import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.config.train import CurriculumConfig, TrainConfig
from ava_core.data.batches import TrainingBatches
from ava_core.data.curriculum import Stages, build_batches
from ava_core.data.difficulty import count_windows
from ava_core.errors import AvaError, IntegrityError

LENGTH = 32
STREAM = np.arange(2_000, dtype=np.uint16)
"""A token is its own position, so that the first one of a window tells where it begins."""
STAGED = {"sequence_lengths": [8, 16], "batch_sizes": [2, 4], "sequence_share": 0.6, "batch_share": 0.4}
COMPETENCE = {"difficulty": "reference", "difficulty_start": 0.25, "difficulty_share": 0.5}


def build(curriculum=None, tokens=STREAM, difficulty=None, seed=5, stream="", **changes):
    values = {"steps": 20, "warmup_steps": 2, "sequence_length": LENGTH, "global_batch_size": 8, "micro_batch_size": 2}
    config = TrainConfig(**{**values, **changes}, curriculum=CurriculumConfig(**curriculum or {}))
    return build_batches(tokens, 0, config, seed, difficulty, stream)


def grid_scores(seed=0, tokens=STREAM):
    return np.random.default_rng(seed).permutation(count_windows(tokens, LENGTH)).astype(float)


def whole_starts(batch):
    """Starts of the uncut windows of a batch."""
    length = batch.windows.shape[1] - 1
    return batch.windows[:: LENGTH // length, 0]


curricula = st.fixed_dictionaries(
    {
        "sequence_lengths": st.sampled_from([[], [8], [8, 16]]),
        "batch_sizes": st.sampled_from([[], [4], [2, 4, 6]]),
        "sequence_share": st.floats(0, 1),
        "batch_share": st.floats(0, 1),
    }
)


@settings(deadline=None)
@given(st.integers(LENGTH + 1, 3_000), st.integers(0, 60), st.integers(0, 2**32 - 1))
def test_without_a_curriculum_batches_are_those_of_the_ordinary_order(size, index, seed):
    tokens = np.random.default_rng(size).integers(0, 900, size).astype(np.uint16)
    batches, ordinary = build(tokens=tokens, seed=seed), TrainingBatches(tokens, LENGTH, 8, seed)
    batch = batches.batch(index)
    assert np.array_equal(batch.windows, ordinary.batch(index))
    assert batch.windows.dtype == np.int64
    assert batch.figures == {}
    assert batches.passes(0, index) == index * 8 / ordinary.windows_per_epoch
    assert batches.sizes.total(index) == index * 8


@settings(deadline=None, max_examples=50)
@given(curricula, st.integers(0, 100))
def test_stages_deal_out_the_windows_of_the_ordinary_order_without_gap_or_repetition(curriculum, seed):
    batches = build(curriculum, seed=seed)
    dealt = np.concatenate([whole_starts(batches.batch(index)) for index in range(25)])
    assert np.array_equal(dealt, batches.ordinary.starts(0, len(dealt)))
    epoch = batches.ordinary.windows_per_epoch
    assert len(dealt) > epoch
    assert len(set(dealt[:epoch].tolist())) == epoch
    assert batches.sizes.total(25) == len(dealt)
    assert batches.passes(0, 25) == len(dealt) / epoch
    assert batches.passes(5, 25) == (len(dealt) - batches.windows_before(5)) / epoch


@settings(deadline=None, max_examples=50)
@given(curricula, st.integers(0, 24))
def test_cut_windows_hold_the_inputs_and_targets_of_the_uncut_ones(curriculum, index):
    cut = build(curriculum).batch(index).windows
    whole = build({**curriculum, "sequence_lengths": []}).batch(index).windows
    assert np.array_equal(cut[:, :-1].ravel(), whole[:, :-1].ravel())
    assert np.array_equal(cut[:, 1:].ravel(), whole[:, 1:].ravel())
    assert len(cut) * (cut.shape[1] - 1) == len(whole) * LENGTH


def test_stages_begin_at_equal_parts_of_their_share_of_the_steps_and_show_in_the_figures():
    batches = build(STAGED)
    rows = [batches.batch(index).figures for index in range(22)]
    assert [row["sequence_length"] for row in rows] == [8] * 6 + [16] * 6 + [32] * 10
    assert [row["global_batch_size"] for row in rows] == [2] * 4 + [4] * 4 + [8] * 14
    assert {name for row in rows for name in row} == {"sequence_length", "global_batch_size"}
    assert batches.batch(0).windows.shape == (2 * 4, 8 + 1)
    assert batches.batch(7).windows.shape == (4 * 2, 16 + 1)
    assert batches.batch(21).windows.shape == (8, 32 + 1)


def test_only_features_that_are_on_have_figures():
    assert set(build({"sequence_lengths": [8]}).batch(0).figures) == {"sequence_length"}
    assert set(build({"batch_sizes": [4]}).batch(0).figures) == {"global_batch_size"}
    assert set(build(COMPETENCE, difficulty=grid_scores()).batch(0).figures) == {"competence", "difficulty"}


@given(st.lists(st.integers(1, 9), max_size=4), st.integers(1, 9), st.floats(0, 30), st.integers(0, 40))
def test_total_of_stages_is_the_sum_of_their_values(early, final, batches, index):
    stages = Stages.equal(early, final, batches)
    assert stages.total(index) == sum(stages.at(before) for before in range(index))
    assert stages.at(31) == final


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 24), st.sampled_from([1, 2]), st.booleans())
def test_ranks_share_the_batch_of_a_single_rank_and_its_figures(index, ranks, difficult):
    curriculum = {**STAGED, **(COMPETENCE if difficult else {})}
    batches = build(curriculum, difficulty=grid_scores() if difficult else None)
    parts = [batches.batch(index, rank, ranks) for rank in range(ranks)]
    whole = batches.batch(index)
    assert np.array_equal(np.concatenate([part.windows for part in parts]), whole.windows)
    assert all(part.figures == whole.figures for part in parts)


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(25)), st.booleans())
def test_a_batch_depends_on_seed_and_index_alone(order, difficult):
    curriculum = {**STAGED, **(COMPETENCE if difficult else {})}
    scores = grid_scores() if difficult else None
    resumed = build(curriculum, difficulty=scores)
    found = {index: resumed.batch(index) for index in order}
    fresh = build(curriculum, difficulty=scores)
    for index in range(25):
        batch = fresh.batch(index)
        assert np.array_equal(found[index].windows, batch.windows)
        assert found[index].figures == batch.figures
    other = build(curriculum, difficulty=scores, seed=6)
    assert any(not np.array_equal(found[i].windows, other.batch(i).windows) for i in range(25))


def test_ranks_that_don_t_divide_an_early_batch_are_refused():
    with pytest.raises(AvaError, match=r"train\.curriculum\.batch_sizes = 2: must be a multiple of the 4 ranks"):
        build(STAGED).batch(0, 0, 4)
    with pytest.raises(AvaError, match=r"train\.global_batch_size = 8: must be a multiple of the 3 ranks"):
        build().batch(0, 0, 3)


def test_competence_is_the_square_root_law_and_ends_at_its_share():
    batches = build(COMPETENCE, difficulty=grid_scores())
    values = [batches.competence(index) for index in range(20)]
    assert values[0] == 0.25
    assert values[5] == pytest.approx(math.sqrt(5 * (1 - 0.0625) / 10 + 0.0625))
    assert values[9] < 1
    assert values[10:] == [1.0] * 10
    assert values == sorted(values)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.01, 1), st.floats(0, 1), st.integers(0, 40))
def test_competence_stays_between_its_start_and_1(start, share, index):
    curriculum = {"difficulty": "reference", "difficulty_start": start, "difficulty_share": share}
    batches = build(curriculum, difficulty=grid_scores())
    assert start - 1e-12 <= batches.competence(index) <= 1.0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 9), st.integers(0, 50))
def test_batches_are_drawn_without_replacement_from_the_easiest_share(index, seed):
    scores = grid_scores(seed)  # 0, 1, ... in some order: the easiest share is known
    batches = build(COMPETENCE, difficulty=scores, seed=seed)
    batch = batches.batch(index)
    windows = batch.windows[:, 0] // LENGTH
    assert (batch.windows[:, 0] % LENGTH == 0).all()
    assert len(set(windows.tolist())) == len(windows)
    assert scores[windows].max() < math.ceil(batches.competence(index) * len(scores))
    assert batch.figures["difficulty"] == pytest.approx(scores[windows].mean())
    assert batch.figures["competence"] == batches.competence(index)


def test_every_batch_is_a_draw_of_its_own():
    batches = build({**COMPETENCE, "difficulty_start": 0.2}, difficulty=grid_scores())  # 8 of at least 13 windows
    assert len({tuple(batches.batch(index).windows[:, 0]) for index in range(10)}) == 10
    seen = np.unique(np.concatenate([batches.batch(index).windows[:, 0] for index in range(10)]))
    assert len(seen) > 20


def test_difficulty_rises_with_competence():
    batches = build(COMPETENCE, difficulty=grid_scores(), steps=400)
    means = [batches.batch(index).figures["difficulty"] for index in range(200)]
    assert np.mean(means[:40]) < np.mean(means[80:120]) < np.mean(means[160:])


@pytest.mark.parametrize("curriculum", [COMPETENCE, {**COMPETENCE, **STAGED, "batch_share": 0.8}])
def test_at_full_competence_the_ordinary_order_begins_at_its_first_window(curriculum):
    batches = build(curriculum, difficulty=grid_scores())
    dealt = np.concatenate([whole_starts(batches.batch(index)) for index in range(10, 30)])
    assert np.array_equal(dealt, batches.ordinary.starts(0, len(dealt)))
    assert batches.sizes.total(30) == batches.sizes.total(10) + len(dealt)


sizes = st.fixed_dictionaries(
    {
        "global_batch_size": st.sampled_from([6, 8, 14, 32]),
        "steps": st.sampled_from([5, 20, 90]),
        "curriculum": st.fixed_dictionaries(
            {"batch_sizes": st.sampled_from([[], [4], [2, 4]]), "batch_share": st.floats(0, 1)},
            optional={"sequence_lengths": st.just([8, 16]), "sequence_share": st.floats(0, 1)},
        ),
    }
)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(sizes, st.integers(0, 12)), min_size=2, max_size=4), st.integers(0, 99), st.booleans())
def test_runs_that_go_on_from_one_another_deal_out_every_window_once(runs, seed, drawn):
    """With other sizes, steps, stages and lengths in each: in every epoch each window once, in the ordinary order."""
    step, record, dealt = 0, None, []
    scores = {"difficulty": grid_scores()} if drawn else {}
    for changes, count in runs:
        difficulty = {**COMPETENCE, "difficulty_share": 0.1} if drawn else {}
        batches = build(**scores, seed=seed, **{**changes, "curriculum": {**changes["curriculum"], **difficulty}})
        if record is not None:
            batches = batches.resumed(step, record)
        for index in range(step, step + count):
            if index >= batches.drawn_batches:
                dealt.append(whole_starts(batches.batch(index)))
        step += count
        record = json.loads(json.dumps(batches.record(step)))
    dealt = np.concatenate(dealt) if dealt else np.zeros(0, np.int64)
    assert np.array_equal(dealt, batches.ordinary.starts(0, len(dealt)))
    assert record["dealt"] == len(dealt)
    epoch = batches.ordinary.windows_per_epoch
    for first in range(0, len(dealt) - epoch + 1, epoch):
        assert len(set(dealt[first : first + epoch].tolist())) == epoch


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 25), st.integers(0, 10), st.sampled_from([[], [2, 4, 6]]))
def test_run_that_goes_on_unchanged_has_the_batches_of_one_that_never_stopped(step, further, batch_sizes):
    whole = build({**COMPETENCE, "batch_sizes": batch_sizes}, difficulty=grid_scores())
    again = whole.resumed(step, whole.record(step))
    assert np.array_equal(again.batch(step + further).windows, whole.batch(step + further).windows)
    assert again.record(step + further) == whole.record(step + further)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"tokens": STREAM[:-1], "stream": "other"}, 0),  # text that none of it was of
        ({"seed": 6}, 2 * 61),  # 80 windows are 1.3 epochs of 61
        ({"sequence_length": 2 * LENGTH}, 2 * 30),
    ],
)
def test_other_text_begins_anew_and_another_order_with_its_next_epoch(changes, windows, caplog):
    caplog.set_level(logging.INFO)
    record = build(stream="this").record(10)
    batches = build(**{"stream": "this", **changes}).resumed(10, record)
    assert batches.windows_before(10) == windows
    assert np.array_equal(batches.batch(10).windows[:, 0], batches.ordinary.starts(windows, 8))
    assert caplog.text.count("train: begins") == 1


def test_record_that_says_nothing_of_windows_is_refused():
    batches = build()
    for record in ({}, {**batches.record(2), "dealt": None}, {**batches.record(2), "dealt": True}):
        with pytest.raises(IntegrityError, match="doesn't say which windows were dealt out"):
            batches.resumed(2, record)


def test_windows_off_the_grid_have_the_score_between_those_they_overlap():
    # A score that grows by 1 per window is start / LENGTH at any start.
    scores = np.arange(count_windows(STREAM, LENGTH), dtype=float)
    batch = build(COMPETENCE, difficulty=scores).batch(15)
    assert (batch.windows[:, 0] % LENGTH).any()
    assert batch.figures["difficulty"] == pytest.approx((batch.windows[:, 0] / LENGTH).mean())


def test_ties_are_not_broken_by_the_place_in_the_text():
    scores = np.zeros(count_windows(STREAM, LENGTH))
    scores[-1] = 1.0  # all but the last are equal
    batches = build({**COMPETENCE, "difficulty_start": 0.2}, difficulty=scores)
    assert batches.batch(0).windows[:, 0].max() > len(STREAM) // 2  # the first fifth of the text would end before


def test_a_batch_larger_than_the_corpus_takes_every_window_before_it_repeats_one():
    tokens = np.arange(5 * LENGTH + 1)
    batches = build(COMPETENCE, tokens=tokens, difficulty=np.arange(5.0))
    windows = batches.batch(0).windows[:, 0] // LENGTH
    assert np.bincount(windows, minlength=5).min() == 1
    assert np.bincount(windows).max() == 2


def document(token, size):
    return [token] * (size - 1) + [0]


def test_short_documents_come_first_by_length():
    short, long = [document(7, 16)] * 40, [document(8, 640)] * 2
    tokens = np.concatenate([*long, *short]).astype(np.uint16)
    batches = build({"difficulty": "length", "difficulty_start": 0.25, "difficulty_share": 1.0}, tokens=tokens)
    first, last = batches.batch(0), batches.batch(19)
    assert 8 not in first.windows[:, 1:]
    assert first.figures["difficulty"] == 16.0
    assert last.figures["difficulty"] > 16.0


def test_common_tokens_come_first_by_rarity():
    generator = np.random.default_rng(0)
    common, rare = generator.integers(1, 4, 1_200), generator.integers(100, 900, 1_200)
    tokens = np.concatenate([rare, common]).astype(np.uint16)
    batches = build({"difficulty": "rarity", "difficulty_start": 0.25, "difficulty_share": 1.0}, tokens=tokens)
    assert batches.batch(0).windows[:, 1:].max() < 4
    assert any(batches.batch(index).windows.max() >= 100 for index in range(10, 20))


def test_predictable_text_comes_first_by_a_bigram_model_though_its_tokens_are_as_frequent():
    generator = np.random.default_rng(0)
    cycle = np.tile(np.arange(1, 33), 40)
    tokens = np.concatenate([generator.permutation(cycle), cycle]).astype(np.uint16)
    batches = build({"difficulty": "reference", "difficulty_start": 0.25}, tokens=tokens)
    easy = batches.batch(0).windows
    assert ((easy[:, 1:] - easy[:, :-1]) % 32 == 1).all()


def test_scores_that_order_nothing_are_refused():
    with pytest.raises(AvaError, match=r"difficulty = length: all 62 windows are equally hard: use rarity"):
        build({"difficulty": "length"})
    with pytest.raises(AvaError, match=r"has scores of shape \(3,\): must be \(62,\), one per window"):
        build(COMPETENCE, difficulty=np.arange(3.0))
    with pytest.raises(AvaError, match="some scores are not finite"):
        build(COMPETENCE, difficulty=np.where(grid_scores() == 3, np.nan, grid_scores()))
    with pytest.raises(AvaError, match=r"difficulty = rarity: uses no reference model: set it to reference"):
        build({"difficulty": "rarity"}, difficulty=grid_scores())
