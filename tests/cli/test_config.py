import json
import re

import yaml

from ava_core.config import resolve
from ava_core.config.data import DeduplicationConfig
from ava_core.config.estimate import estimate
from ava_core.config.schema import AvaConfig


def test_every_value_is_shown_with_where_it_came_from(ava, tmp_path):
    (tmp_path / "params.yaml").write_text("preset: cpu/small\ntrain: {steps: 500}\n")
    result = ava("config", "show", "--set", "train.momentum=0.9")
    assert result.code == 0
    of_train = result.out.partition("\nalign:")[0]
    origins = dict(re.findall(r"^ *([a-z_0-9]+): .*  # (.+)$", of_train, re.MULTILINE))
    assert origins["steps"] == "params.yaml"
    assert origins["momentum"] == "--set"
    assert origins["hidden_size"] == "configs/cpu/small.yaml"
    assert origins["weight_decay"] == "default"


def test_several_files_can_be_given_and_the_last_one_wins(ava, tmp_path):
    (tmp_path / "mine.yaml").write_text("train: {micro_batch_size: 4, global_batch_size: 8}\n")
    shown = ava("config", "show", "--config", "hardware/a100", "--config", "mine.yaml", "--yaml")
    assert shown.code == 0, shown.err
    values = yaml.safe_load(shown.out)["train"]
    only = yaml.safe_load(ava("config", "show", "--config", "hardware/a100", "--yaml").out)["train"]
    assert values["micro_batch_size"] == 4 != only["micro_batch_size"]
    assert values["memory_budget"] == only["memory_budget"] is not None


def test_size_and_memory_are_estimated(ava):
    result = ava("config", "show", "--preset", "gpu/large")
    assert re.search(r"^parameters +1,5\d\d,\d{3},\d{3}$", result.out, re.MULTILINE)
    assert re.search(r"^active parameters +3\d\d,\d{3},\d{3}  per token, at most$", result.out, re.MULTILINE)
    assert re.search(
        r"^training memory +\d+\.\d\d GiB  estimated: (process .*, )?weights 2\.\d", result.out, re.MULTILINE
    )


def test_a_finished_tokenizer_counts_with_its_own_size_and_what_is_added_to_it(ava, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({entry: index for index, entry in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    from ava_core.data.finished_tokenizer import take_tokenizer

    (tmp_path / "taken").mkdir()
    added = take_tokenizer(tmp_path, tmp_path / "taken").added
    data = ("--data", tmp_path.parent)
    shown = ava("config", "show", *data, "--set", f"tokenizer.from={tmp_path.name}").out
    entries = 256 + len(added)
    assert added and re.search(rf"^vocabulary +{entries}  entries of tokenizer.from ", shown, re.MULTILINE)
    plain = ava("config", "show").out
    config = resolve().config
    for text, size in ((shown, entries), (plain, config.tokenizer.vocab_size)):
        parameters = estimate(config.model, config.train, size).parameters
        assert re.search(rf"^parameters +{parameters:,}$", text, re.MULTILINE)
    assert "vocabulary" not in plain
    gone = ava("config", "show", "--set", "tokenizer.from=/gone").out
    assert re.search(r"^vocabulary .* tokenizer.vocab_size, for its size isn't known: .*/gone", gone, re.MULTILINE)


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


def test_a_setting_is_explained(ava):
    shown = ava("config", "explain", "train.learning_rate")
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert lines[0].startswith("train.learning_rate: Peak rate")
    assert "  default  0.02" in lines and "  allowed  > 0, <= 1000" in lines
    assert any(re.fullmatch(r"  presets  .*cpu/tiny 0\.01\b.*", line) for line in lines)
    assert any(line.startswith("  reruns   train; sft") for line in lines)


def test_a_default_that_the_machine_decides_is_told_as_it_is_here(ava):
    here = AvaConfig().train.precision
    assert f"  default  as the machine is: here {here}" in ava("config", "explain", "train.precision").out.splitlines()


def test_sections_and_their_keys_are_listed(ava):
    sections = ava("config", "explain").out.splitlines()
    assert {line.split()[0] for line in sections} == set(AvaConfig().model_dump(by_alias=True))
    inside = ava("config", "explain", "data.deduplication").out.splitlines()
    assert inside[0] == "data.deduplication: Removal of repeated documents."
    assert [line.split()[0] for line in inside[1:]] == [
        f"data.deduplication.{name}" for name in DeduplicationConfig.model_fields
    ]


def test_a_key_that_is_not_there_is_refused_with_the_nearest(ava):
    shown = ava("config", "explain", "train.learnig_rate")
    assert shown.code == 2 and shown.out == ""
    assert shown.err == "ava: train.learnig_rate: unknown key: did you mean train.learning_rate?\n"


def test_explanations_are_json_for_programs(ava):
    told = json.loads(ava("config", "explain", "train.zero_stage", "--json").out)
    assert told["allowed"] == ["one of 0, 1, 2, 3"] and told["default"] == 0 and told["unit"] is None
    section = json.loads(ava("config", "explain", "train.guard", "--json").out)
    assert "train.guard.window" in {item["key"] for item in section["keys"]}
    assert json.loads(ava("config", "explain", "--json").out)[0]["key"] == "preset"


def test_values_are_shown_with_what_they_mean(ava):
    shown = ava("config", "show", "--explain", "--set", "run.tags.team=a", "--set", "train.momentum=0.9").out
    plain = ava("config", "show", "--set", "run.tags.team=a", "--set", "train.momentum=0.9").out
    assert [line for line in shown.splitlines() if not line.lstrip().startswith("#")] == plain.splitlines()
    assert re.search(r"^  momentum: 0\.9 +# --set\n      # .*\n      # type number;", shown, re.MULTILINE)
    known = json.loads(ava("config", "show", "--explain", "--json", "--set", "train.momentum=0.9").out)
    assert known["train.momentum"]["value"] == 0.9 and known["train.momentum"]["origin"] == "--set"
    assert known["train.momentum"]["allowed"] == [">= 0", "< 1"]
    assert json.loads(ava("config", "show", "--json").out)["train.momentum"] == {"value": 0.95, "origin": "default"}
