"""The estimate of a training's memory is what its process really takes."""

import pytest

from ava_core.data.shards import load_splits_info
from benchmarks.memory import configuration, estimated, measure, shards_for


@pytest.mark.slow
@pytest.mark.parametrize("case", ["cpu/tiny", "cpu/small, 4 sequences"])
def test_estimate_is_within_a_quarter_of_the_peak(case, tmp_path):
    shards = shards_for(configuration(case).tokenizer.vocab_size, tmp_path)
    peak = measure(case, shards, tmp_path)
    shown = estimated(case, load_splits_info(shards).vocab_size)
    assert 0.75 < shown / peak.process < 1.25
    assert 0.75 < peak.planned / peak.process < 1.25
