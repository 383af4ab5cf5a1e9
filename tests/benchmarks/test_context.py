"""What the benchmark of longer contexts trains with, and its table."""

from ava_core.config import resolve
from ava_core.evaluation.long_context import LongScore
from benchmarks.context import KINDS, PLAIN, lengths, scaling, show


def test_settings_are_accepted_and_keep_the_tokens_of_a_step():
    for kind in (PLAIN, *KINDS):
        values = {"model.max_position_embeddings": 1024, **lengths(4096, 1024), **scaling(kind, 128)}
        config = resolve(overrides=[f"{key}={value}" for key, value in values.items()]).config
        assert config.train.global_batch_size * config.train.sequence_length == 4096
        assert config.model.rope_scaling.type == ("none" if kind == PLAIN else kind)


def test_table_has_a_row_for_each_place_and_a_column_for_each_model():
    score = LongScore(nats=[30.0, 20.0, 0.0], tokens=[10, 10, 0], bytes=[9, 9, 0], num_bytes=18)
    lines = show({"plain": score, "yarn": score}, 96).splitlines()
    assert lines[0].split() == ["tokens", "read", "tokens", "plain", "yarn"]
    assert lines[2].split() == ["32", "to", "63", "10", "2.000", "2.000"]
    assert lines[3].split() == ["64", "to", "95", "0"]
