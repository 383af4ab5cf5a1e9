import re

import yaml

from ava_core.config import resolve
from ava_core.config.estimate import estimate


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
