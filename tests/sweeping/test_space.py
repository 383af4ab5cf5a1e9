import pytest
import yaml

from ava_core.errors import ConfigError
from ava_core.sweeping.checks import Base, check
from ava_core.sweeping.space import read_space

RATE = {"train.learning_rate": {"min": 0.001, "max": 0.1, "scale": "log"}}
SPACE = {"metric": {"name": "validation_loss"}, "parameters": RATE}


@pytest.fixture
def checked(tmp_path):
    def run(trials=None, params="train: {warmup_steps: 10}", **changes):
        space = tmp_path / "sweep.yaml"
        space.write_text(yaml.safe_dump({k: v for k, v in {**SPACE, **changes}.items() if v is not None}))
        (tmp_path / "params.yaml").write_text(params)
        base = Base(params=tmp_path / "params.yaml", configs=(), overrides=(), space=space)
        return check(read_space(space), base, trials)

    return run


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"parameters": {"train.learning_rat": {"values": [1]}}}, "did you mean train.learning_rate?"),
        ({"parameters": {"train.learning_rate": {"min": -1, "max": 1}}}, "train.learning_rate = -1.0: must be > 0"),
        ({"parameters": {"train.learning_rate": {"min": 0.1, "max": 1e9}}}, "must be <= 1000"),
        ({"parameters": {"model.router": {"values": ["top_k", "topk"]}}}, "model.router = topk: must be one of"),
        ({"parameters": {"train.steps": {"min": 1.5, "max": 5}}}, "takes whole numbers"),
        ({"parameters": {"kubernetes.labels": {"values": [{"a": "b"}]}}}, "no step of this sweep reads it"),
        ({"parameters": {"evaluate.prompts": {"values": [["a"]]}}}, "no step of this sweep reads it"),
        ({"parameters": {}}, "an empty space"),
        ({"parameters": {"train": {"values": [{}]}, "train.steps": {"values": [20]}}}, "train.steps lies in train"),
        ({"parameters": {"train.steps": {"values": [20, 20]}}}, "20 stands there twice"),
        ({"parameters": {"train.steps": {"values": [20], "min": 3}}}, "stands beside values"),
        ({"parameters": {"train.steps": {"min": 30, "max": 20}}}, "must be < max"),
        ({"parameters": {"train.steps": {"mim": 30}}}, "did you mean min?"),
        ({"metric": {"name": "validation_los"}}, "did you mean validation_loss?"),
        ({"metric": {"name": "promoted"}}, "no step gives this figure"),
        ({"metric": {"name": "validation_loss", "goal": "min"}}, "must be one of minimize or maximize"),
        ({"metric": None}, "must have a metric"),
        ({"metod": "grid"}, "did you mean method?"),
        ({"method": "grid"}, "a range in a grid needs step or count"),
        ({"method": "grid", "parameters": {"train.steps": {"values": list(range(20, 1021))}}}, "= 1,001 points"),
        ({"pruner": {"asha": {"min_steps": 5}, "median": {}}}, "must have one of asha, median"),
        (
            {"metric": None, "objectives": [{"name": "steps"}, {"name": "train_loss"}], "pruner": {"median": {}}},
            "goes by one figure",
        ),
    ],
)
def test_a_wrong_space_is_refused_before_any_work(checked, changes, says):
    with pytest.raises(ConfigError, match=r"sweep\.yaml") as error:
        checked(**changes)
    assert says in str(error.value)


def test_a_value_that_fits_only_with_others_is_taken_and_a_grid_with_a_bad_pair_is_not(checked):
    pair = {"train.steps": {"values": [5, 300]}, "train.warmup_steps": {"values": [2, 20]}}
    assert checked(parameters=pair, trials=3).trials == 3
    with pytest.raises(ConfigError, match=r"warmup_steps = 20: must be < steps = 5 .*train.steps = 5"):
        checked(parameters=pair, method="grid")


def test_a_grid_has_all_points_the_last_key_fastest(checked):
    axes = {
        "train.learning_rate": {"min": 0.001, "max": 0.1, "scale": "log", "count": 3},
        "train.steps": {"min": 20, "max": 40, "step": 20},
    }
    found = [tuple(point.values()) for point in checked(parameters=dict(sorted(axes.items())), method="grid").points]
    assert found == [(0.001, 20), (0.001, 40), (0.01, 20), (0.01, 40), (0.1, 20), (0.1, 40)]
    assert all(isinstance(steps, int) for _, steps in found)


def test_a_pruned_grid_is_shuffled_the_same_way_each_time(checked):
    rates = [10.0**-power for power in range(1, 9)]

    def order(**more):
        of = {"train.adam_learning_rate": {"values": rates}}
        points = checked(parameters=of, method="grid", pruner={"asha": {"min_steps": 1}}, **more).points
        return [point["train.adam_learning_rate"] for point in points]

    assert sorted(order()) == sorted(rates) and order() != rates
    assert order() == order() != order(seed=1)


def test_the_figures_that_are_asked_for_decide_which_steps_a_trial_has(checked):
    assert not checked().plan.evaluate
    both = [{"name": "test_bits_per_byte"}, {"name": "int8_decode_tokens_per_second", "goal": "maximize"}]
    plan = checked(metric=None, objectives=both).plan
    assert (plan.evaluate, plan.schemes, plan.preprocess) == (True, ("int8",), False)
    assert checked(parameters={"tokenizer.vocab_size": {"values": [512, 1024]}}).plan.preprocess
