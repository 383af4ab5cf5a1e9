"""The benchmark of the loss's parts: what it would run, and what it prints."""

import pytest

from ava_core.config import resolve
from ava_core.config.loss import LossConfig
from benchmarks import losses


@pytest.mark.parametrize("name", losses.PARTS)
def test_every_part_is_turned_on_by_valid_fields(name):
    overrides = [f"{key}={value}" for key, value in losses.PARTS[name].items()]
    config = resolve(overrides=overrides).config
    changed = config.train.loss != LossConfig() or config.model.router_diversity_weight > 0
    assert changed == (name != losses.NONE)


def test_every_weight_of_the_loss_is_benchmarked():
    fields = {key.rpartition(".")[2] for part in losses.PARTS.values() for key in part}
    weights = {name for name in LossConfig.model_fields if name.endswith("_weight")}
    assert weights | {"label_smoothing", "temperature", "router_diversity_weight"} <= fields


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "focal,hope"], "--parts hope: must be among none, label_smoothing"),
        (["--steps", "1"], "--steps = 1: must be > 1"),
        (["--shards", "/nowhere"], "run `ava preprocess` first"),
    ],
)
def test_faults_are_refused_by_name(arguments, message, capsys):
    with pytest.raises(SystemExit) as ending:
        losses.main(arguments)
    assert ending.value.code == 2 and message in capsys.readouterr().err


def test_table_has_a_row_per_part():
    samples = {f"{way}_{what}": 0.5 for way in losses.STRATEGIES for what in ("repetition_4gram", "distinct_2")}
    values = {**samples, "validation_bits_per_byte": 2.25, "seconds_per_step": 0.125}
    lines = losses.show({"none": values, "focal": {**values, "greedy_repetition_4gram": 0.25}}).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["none", "2.2500", "0.500", "0.500", "0.500", "0.500", "0.125"],
        ["focal", "2.2500", "0.250", "0.500", "0.500", "0.500", "0.125"],
    ]
