import re

import yaml

from ava_core.config import resolve


def test_every_value_is_shown_with_where_it_came_from(ava, tmp_path):
    (tmp_path / "params.yaml").write_text("preset: cpu/small\ntrain: {steps: 500}\n")
    result = ava("config", "show", "--set", "train.momentum=0.9")
    assert result.code == 0
    origins = dict(re.findall(r"^ *([a-z_0-9]+): .*  # (.+)$", result.out, re.MULTILINE))
    assert origins["steps"] == "params.yaml"
    assert origins["momentum"] == "--set"
    assert origins["hidden_size"] == "configs/cpu/small.yaml"
    assert origins["weight_decay"] == "default"


def test_size_and_memory_are_estimated(ava):
    result = ava("config", "show", "--preset", "gpu/large")
    assert re.search(r"^parameters +1,5\d\d,\d{3},\d{3}$", result.out, re.MULTILINE)
    assert re.search(r"^active parameters +3\d\d,\d{3},\d{3}  per token, at most$", result.out, re.MULTILINE)
    assert re.search(
        r"^training memory +\d+\.\d\d GiB  estimated: (process .*, )?weights 2\.\d", result.out, re.MULTILINE
    )


def test_auto_says_why(ava):
    result = ava("config", "show", "--preset", "auto")
    assert re.search(r"^preset auto: [cg]pu/\w+, for this machine has \d+ cores, ", result.out, re.MULTILINE)


def test_the_printed_yaml_gives_the_same_configuration(ava, tmp_path):
    printed = ava("config", "show", "--preset", "cpu/medium", "--set", "train.steps=321", "--yaml").out
    (tmp_path / "again.yaml").write_text(printed)
    assert resolve(params=tmp_path / "again.yaml").config == (
        resolve(overrides=["preset=cpu/medium", "train.steps=321"]).config
    )
    assert yaml.safe_load(printed)["train"]["steps"] == 321
    assert ava("config", "show", "--params", "again.yaml", "--yaml").out == printed
