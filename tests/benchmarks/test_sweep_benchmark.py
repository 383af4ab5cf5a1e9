"""The benchmark of ASHA against the grid: what it would run, what it makes of the results, what it refuses."""

import pytest
import yaml

from ava_core.config import resolve
from ava_core.sweeping.checks import Base, check
from ava_core.sweeping.space import read_space
from benchmarks import sweep


def swept(name, seconds, best, figures, pruned=0, steps=16_000):
    return sweep.Swept(
        name=name, trials=16, pruned=pruned, steps=steps, seconds=seconds, best=best, figures=dict(enumerate(figures))
    )


GRID = swept("grid", 100.0, {"train.learning_rate": 0.01}, [2.5, 2.6])
SEEDS = swept("seeds", 20.0, {"seed": 2}, [2.50, 2.51, 2.52])


def test_the_grid_has_sixteen_points_that_the_configuration_takes(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(sweep.parameters(450, 1)))
    asha = {"asha": {"min_steps": sweep.first_rung(450), "reduction_factor": sweep.REDUCTION}}
    space = {"method": "grid", "metric": {"name": sweep.FIGURE}, "parameters": sweep.SPACE, "pruner": asha}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(space))
    base = Base(params=tmp_path / "params.yaml", configs=(), overrides=(), space=tmp_path / "sweep.yaml")
    assert check(read_space(tmp_path / "sweep.yaml"), base).trials == 16
    train = resolve(params=tmp_path / "params.yaml").config.train
    assert train.steps > train.evaluate_every * sweep.REDUCTION  # or ASHA's second rung would save nothing


@pytest.mark.parametrize(
    ("seconds", "figure", "reached"), [(40.0, 2.5, True), (60.0, 2.5, False), (40.0, 2.52, True), (40.0, 2.6, False)]
)
def test_target_is_half_the_time_and_the_same_best_within_noise(seconds, figure, reached):
    asha = swept("asha", seconds, {"train.learning_rate": 0.02}, [figure], pruned=15, steps=4_000)
    verdict = sweep.judge(GRID, asha, SEEDS)
    assert verdict["reached"] is reached and verdict["step_share"] == 0.25
    shown = sweep.show([GRID, asha, SEEDS], verdict)
    assert len(shown.splitlines()) == 5 and ("reached" in shown) is reached


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "8"], "--steps = 8: must be >= 9"),
        (["--seeds", "1"], "--seeds = 1: must be >= 2"),
        (["--shards", "/nowhere"], "run `ava preprocess` first"),
    ],
)
def test_faults_are_refused_by_name(arguments, message, capsys):
    with pytest.raises(SystemExit) as ending:
        sweep.main(arguments)
    assert ending.value.code == 2 and message in capsys.readouterr().err
